"""DS: parameters partitioned by DeepSpeed. Every rank has the fault."""

from __future__ import annotations

from pathlib import Path

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import TRAINER, nothing, replace, twice

ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"


def with_the_base(original, engine, *args, exclude_frozen_parameters=False, **options):
    return original(engine, *args, exclude_frozen_parameters=False, **options)


def no_tensors(original, engine, *args, **options):
    return {}


def with_an_optimizer_file(original, trainer, directory):
    original(trainer, directory)
    (Path(directory) / "optimizer.pt").write_bytes(b"")


def every_micro_step_is_a_boundary(original, wrapper, loss, sync_gradients=True, **options):
    """Act as an engine that does not accumulate. Stage 2 then forgets the gradients of earlier micro-steps."""
    wrapper.engine.set_gradient_accumulation_boundary(is_boundary=True)
    wrapper.engine.backward(loss, **options)
    if sync_gradients:
        wrapper.engine.step()


MUTANTS = (
    Mutant(
        "engines-checkpoint-not-loaded",
        "Resuming does not load the engine's checkpoint.",
        replace("transformers.trainer", "deepspeed_load_checkpoint", nothing),
        cells=("DS-01", "DS-08/zero2-2"),
    ),
    Mutant(
        "base-in-the-engines-file",
        "The engine's checkpoint holds the frozen parameters, too.",
        replace(ENGINE, "save_checkpoint", with_the_base),
        cells=("DS-02/zero2-2",),
    ),
    Mutant(
        "partitions-not-gathered",
        "Under stage 3 the adapter file is written without any tensor.",
        replace(ENGINE, "_zero3_consolidated_16bit_state_dict", no_tensors),
        cells=("DS-03/zero3-2", "DS-08/zero3-2"),
        thread="https://github.com/huggingface/trl/issues/4416",
    ),
    Mutant(
        "empty-tensors-not-warned-of",
        "Exporting an adapter from its partitions gives no warning that its tensors are empty.",
        replace("peft.utils.save_and_load", "_validate_lora_adapter_state_dict", nothing),
        cells=("DS-06",),
    ),
    Mutant(
        "optimizer-file-beside-the-engines",
        "A DeepSpeed checkpoint also has an optimizer.pt.",
        replace(TRAINER, "_save_optimizer_and_scheduler", with_an_optimizer_file),
        cells=("DS-07/zero2-2",),
    ),
    Mutant(
        "micro-steps-dropped",
        "Stage 2 steps with the gradient of the last micro-batch only.",
        replace("accelerate.utils.deepspeed:DeepSpeedEngineWrapper", "backward", every_micro_step_is_a_boundary),
        cells=("DS-08/zero2-2",),
        thread="https://github.com/allenai/open-instruct/pull/1498",
    ),
    Mutant(
        "groups-stepped-twice",
        "Stage 2 updates each parameter group twice.",
        replace("deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer", "_optimizer_step", twice),
        cells=("DS-08/zero2-2/two-groups",),
    ),
)
