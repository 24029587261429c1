"""LOSS: what is minimised, and by how much it is divided."""

from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOSS",
    "the loss",
    (
        Clause(
            "LOSS-01",
            "The training loss of a micro-batch MUST be the cross entropy summed over the labels that its logits "
            "predict, divided by the number of such labels in the whole accumulation window. So loss and gradient of "
            "an optimizer step are the window's mean over tokens. A causal model predicts the labels[..., 1:] that "
            "are not -100; with virtual tokens before them it predicts the first label, too. A classifier predicts "
            "the labels of its rows, and a decoder that is fed the labels predicts all of them.",
            source="transformers/trainer.py:2298-2359 (Trainer._get_num_items_in_batch), "
            "transformers/loss/loss_utils.py:34-73 (ForCausalLMLoss)",
            profile="any-loop",
        ),
        Clause(
            "LOSS-02",
            "If a collator provides `shift_labels`, these MUST be the targets. They MUST be counted unchanged for "
            "num_items_in_batch, without a further shift.",
            source="transformers/trainer.py:2325-2335 (Trainer._get_num_items_in_batch)",
            needs=("transformers>=4.50",),
        ),
        Clause(
            "LOSS-03",
            "If num_items_in_batch has normalised a loss, it MUST NOT be divided again by "
            "gradient_accumulation_steps. If a subclass sets loss_is_scaled_for_ga = False and returns a mean per "
            "batch, that MUST be divided once, by the number of micro-batches of the current window.",
            source="transformers/trainer.py:2099-2111 (Trainer.training_step)",
        ),
        Clause(
            "LOSS-04",
            "With label_smoothing_factor e, the loss MUST be (1 - e) * NLL + e * mean over the vocabulary of -log p. "
            "Both MUST be means over the predicted labels that are not -100. This MUST hold through either injection "
            "route.",
            source="transformers/trainer_pt_utils.py:435-481 (LabelSmoother.__call__)",
        ),
        Clause(
            "LOSS-05",
            "With label smoothing, the model MUST run without labels. The labels MUST be shifted for a causal model "
            "and for no other. What counts MUST be the class of the model below the adapter.",
            source="transformers/trainer.py:2153-2189 (Trainer.compute_loss)",
        ),
        Clause(
            "LOSS-06",
            "Label smoothing MUST work with prompt learning: the smoothed loss MUST be over the labels that are "
            "predicted.",
            source="transformers/trainer.py:2180-2189 (Trainer.compute_loss)",
        ),
        Clause(
            "LOSS-07",
            "For problem_type multi_label_classification, the Trainer MUST warn that label smoothing does not fit, "
            "and MUST train with the model's own loss.",
            source="transformers/trainer.py:547-558 (Trainer.__init__)",
            needs=("transformers>=4.56",),
        ),
        Clause(
            "LOSS-08",
            "compute_loss_func MUST be given the labels and the window's num_items_in_batch, and the model MUST NOT "
            "be given the labels. Its result MUST NOT be divided by gradient_accumulation_steps.",
            source="transformers/trainer.py:2153-2177 (Trainer.compute_loss)",
            needs=("transformers>=4.46",),
        ),
        Clause(
            "LOSS-10",
            "If the loss of a step is NaN or infinite, this MUST show in the log and in TrainOutput.training_loss. "
            "No finite number may stand in for it.",
            source="transformers/trainer.py:1911-1924 (Trainer._run_epoch, logging_nan_inf_filter)",
        ),
    ),
    profile="trainer",
)
