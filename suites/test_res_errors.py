"""RES: which checkpoint is chosen, and how a checkpoint that cannot be resumed from is refused."""

import pytest

from harness.laws import resume
from harness.laws.equal import equal_runs
from harness.runs.damage import WRITTEN
from harness.runs.scenarios import PLAIN, cases, continued
from harness.verdict import same

#: Four steps an epoch, two epochs, saved every two steps.
SHORT = PLAIN.but(data={"rows": 16}, max_steps=8)


def damaged(*damage, step=4):
    return continued(SHORT, step, damage=damage)


def wants_file(train, spec, name):
    """Skip if the subject does not write the file, since then it cannot be damaged."""
    first = train(spec.first_leg())
    if name not in first.checkpoints[0].files:
        pytest.skip(f"subject {first.subject} writes no {name}")


# ---- which checkpoint ----


@pytest.mark.clause("RES-03")
def test_false_starts_afresh_beside_checkpoints(train, judge):
    spec = continued(SHORT, False)
    judge(equal_runs(train(spec), train(spec.first_leg())))


@pytest.mark.clause("RES-03")
def test_true_takes_the_highest_number_not_the_last_name(train, judge):
    # checkpoint-9 is the last by name, checkpoint-10 the newest by number.
    spec = continued(SHORT.but(max_steps=12, lr_scheduler_type="constant"), True, every=1, max_steps=10)
    judge(same("steps made after resuming", [step.number for step in train(spec).steps], [11, 12]))


@pytest.mark.clause("RES-03")
def test_true_without_a_checkpoint_is_refused(upstream, train, judge):
    spec = continued(SHORT, True, damage=("remove",))
    judge(resume.refused(train(spec), "ValueError", words="No valid checkpoint found in output directory"))


@pytest.mark.clause("RES-06")
def test_the_training_argument_of_that_name_is_not_read(train, judge):
    whole = train(continued(SHORT, 4).first_leg())
    named = SHORT.but(resume_from_checkpoint=whole.checkpoint(4).path)
    judge(equal_runs(train(named), whole))


# ---- files that are missing or truncated ----


@pytest.mark.clause("RES-04")
@cases(
    {
        "empty": damaged("empty"),
        "no-such-directory": damaged("remove"),
        "no-adapter-file": damaged("delete adapter_model.safetensors"),
    }
)
def test_a_path_without_an_adapter_is_refused(spec, upstream, train, judge):
    trace = train(spec)
    judge(resume.refused(trace, "ValueError", words=f"Can't find a valid checkpoint at {trace.directory}/checkpoint-4"))


@pytest.mark.clause("RES-04")
def test_a_path_without_trainer_state_is_refused(upstream, train, judge):
    trace = train(damaged("delete trainer_state.json"))
    judge(resume.refused(trace, "FileNotFoundError", words="checkpoint-4/trainer_state.json"))


#: Words of safetensors for a file that is cut short.
SHORT_TENSORS = ("deserializing header",)
#: Words of torch for one. Its readers map the file, read an archive, or fall back to a pickle.
SHORT_ARCHIVE = ("Invalid argument", "zip archive", "EOFError", "UnpicklingError", "unexpected EOF")


@pytest.mark.clause("RES-05")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(damaged(f"truncate {name} {size}"), words, id=f"{name}-of-{size}-bytes")
        for name, size, words in [
            ("adapter_model.safetensors", 0, SHORT_TENSORS),
            ("adapter_model.safetensors", 5000, SHORT_TENSORS),
            ("optimizer.pt", 5000, SHORT_ARCHIVE),
            ("scheduler.pt", 500, SHORT_ARCHIVE),
            ("rng_state.pth", 5000, SHORT_ARCHIVE),
            ("trainer_state.json", 100, ("JSONDecodeError",)),
        ]
    ],
)
def test_a_truncated_file_is_an_error(spec, words, train, judge):
    judge(resume.refused(train(spec), words=words))


@pytest.mark.clause("RES-05")
@pytest.mark.parametrize("name", ["training_args.bin", "adapter_config.json", "README.md"])
def test_files_that_are_not_read_are_not_missed(name, train, judge):
    spec = damaged(f"delete {name}")
    wants_file(train, spec, name)
    judge(resume.continues(train(spec), train(spec.first_leg()), after=4))


@pytest.mark.clause("RES-26")
@pytest.mark.parametrize(
    ("spec", "what", "words"),
    [
        pytest.param(damaged("delete optimizer.pt"), "no optimizer.pt", ("optimizer",), id="no-optimizer.pt"),
        pytest.param(damaged("delete scheduler.pt"), "no scheduler.pt", ("scheduler",), id="no-scheduler.pt"),
        pytest.param(damaged("delete rng_state.pth"), "no rng_state.pth", ("rng", "random"), id="no-rng_state.pth"),
        pytest.param(
            continued(SHORT.but(save_only_model=True), 4),
            "a checkpoint of save_only_model=True",
            ("optimizer", "save_only_model"),
            id="save-only-model",
        ),
    ],
)
def test_a_missing_state_is_not_passed_over(spec, what, words, train, judge):
    judge(resume.loud(train(spec), what, words))


#: The file at which the process was killed, and whether within the write or after it.
KILL_POINTS = [("after", name) for name in WRITTEN[:-1]]
KILL_POINTS += [("in", name) for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json")]


# Checkpoints 2 and 4 are complete. The process was killed while it wrote checkpoint-6.
@pytest.mark.clause("RES-25")
@pytest.mark.parametrize(("where", "name"), KILL_POINTS)
def test_a_torn_checkpoint_is_not_taken_for_a_good_one(where, name, train, judge):
    spec = continued(SHORT, True, damage=("newest remove", f"newest torn {where} {name}"))
    wants_file(train, spec, name)
    missing = WRITTEN[WRITTEN.index(name) + (where == "after") :]
    judge(resume.falls_back(train(spec), train(spec.first_leg()), torn=6, complete=4, missing=missing))


@pytest.mark.clause("RES-25")
def test_an_empty_directory_is_not_taken_for_a_checkpoint(train, judge):
    spec = continued(SHORT, True, damage=("newest remove", "newest empty"))
    judge(resume.falls_back(train(spec), train(spec.first_leg()), torn=6, complete=4, missing=WRITTEN))


# ---- a checkpoint of another adapter ----


@pytest.mark.clause("RES-13")
@pytest.mark.parametrize(
    ("spec", "what", "words"),
    [
        pytest.param(
            continued(SHORT.but(lora={"r": 4}), 4, lora={"r": 8}), "another rank", ("size mismatch",), id="rank"
        ),
        pytest.param(
            continued(SHORT.but(lora={"target_modules": ["q_proj"]}), 4, lora={"target_modules": ["q_proj", "v_proj"]}),
            "an adapter on other modules",
            ("missing", "unexpected", "target_modules", "parameter group"),
            id="fewer-modules",
        ),
        # k_proj and v_proj have the same shape, so v_proj's optimizer state fits k_proj.
        pytest.param(
            continued(
                SHORT.but(lora={"target_modules": ["q_proj", "k_proj"]}),
                4,
                lora={"target_modules": ["q_proj", "v_proj"]},
            ),
            "an adapter on other modules",
            ("missing", "unexpected", "target_modules"),
            id="other-modules-of-the-same-shape",
        ),
    ],
)
def test_a_checkpoint_of_another_adapter_is_not_passed_over(spec, what, words, train, judge):
    judge(resume.loud(train(spec), what, words))
