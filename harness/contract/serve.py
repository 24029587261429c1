"""SERVE: what is loaded elsewhere is what was trained."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "SERVE",
    "loaded elsewhere",
    (
        Clause(
            "SERVE-01",
            "An adapter directory that a run saved, loaded in a new process, after the directory was moved, into another "
            "base object, without a network, MUST compute what the live model computes, bit for bit. This MUST hold for "
            "PeftModel.from_pretrained, AutoPeftModel, load_adapter of transformers, and set_peft_model_state_dict of "
            "load_peft_weights.",
            source="peft/peft_model.py:418-640 (PeftModel.from_pretrained); peft/auto.py:65-180; "
            "transformers/integrations/peft.py (PeftAdapterMixin.load_adapter); peft/utils/save_and_load.py",
            device="cpu",
        ),
        Clause(
            "SERVE-02",
            "An adapter that was merged into its base elsewhere (merge_and_unload), saved by save_pretrained and loaded by "
            "from_pretrained, MUST compute what the live model computes, within what rounding in that dtype explains. "
            "Saving and loading the merged model MUST change no bit.",
            source="peft/tuners/tuners_utils.py (BaseTuner.merge_and_unload); transformers/modeling_utils.py:3310 "
            "(PreTrainedModel.save_pretrained)",
            device="cpu",
        ),
        Clause(
            "SERVE-03",
            "adapter_config.json MUST name what was trained: the adapter's method and settings, and the base's directory. "
            "An adapter that is made from it alone MUST have exactly the tensors that the adapter's file holds.",
            source="peft/config.py:132-180 (PeftConfigMixin.save_pretrained); peft/peft_model.py:373-410 "
            "(PeftModel.save_pretrained)",
            device="cpu",
        ),
        Clause(
            "SERVE-04",
            "Loading an adapter MUST change no weight of the base, and no file of the adapter's and the base's directory.",
            source="peft/peft_model.py:418-640, 1417 (PeftModel.from_pretrained, load_adapter)",
            device="cpu",
        ),
    ),
    profile="checkpoint",
)
