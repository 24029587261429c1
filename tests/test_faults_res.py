"""Put faults into upstream under which the checks of suites/test_res_*.py and suites/test_rng.py must fail."""

from pathlib import Path

from harness.laws.resume import continues
from harness.mutants.res import without
from harness.runs.scenarios import continued
from harness.suites import test_res_equal as equal
from harness.suites import test_res_errors as errors
from harness.suites import test_res_reports as reports
from harness.suites import test_rng as rng
from tests.faults import Fault, assert_seen, each, mutant, nothing, replace

SHORT = equal.SHORT


# ---- faults ----

TRAINER = "transformers.trainer:Trainer"
NO_RNG = mutant("generators-not-restored")
NO_ADAPTER = mutant("adapter-not-restored")
EPOCH_0_AGAIN = mutant("first-epochs-order-again")
NO_OPTIMIZER = mutant("optimizer-not-restored")


def reading_the_model_card(original, model, path, *args, **options):
    """Resuming needs the README.md of the checkpoint."""
    (Path(path) / "README.md").read_text()
    return original(model, path, *args, **options)


def reading_the_argument(original, trainer, resume_from_checkpoint=None, **options):
    """train() reads the training argument resume_from_checkpoint."""
    chosen = resume_from_checkpoint or trainer.args.resume_from_checkpoint
    return original(trainer, resume_from_checkpoint=chosen, **options)


def unread(original, *args):
    """A checkpoint without trainer_state.json is refused with words that name no file."""
    raise ValueError("unread")


def never_skipping(original, trainer, *args):
    """ignore_data_skip is ignored."""
    trainer.args.ignore_data_skip = False
    return original(trainer, *args)


STEP_6 = {"spec": continued(SHORT, 6)}

#: By clause; `tests.faults` describes a row.
FAULTS = {
    "RES-01/rng": (equal.test_each_of_twenty_steps_can_be_resumed, STEP_6, NO_RNG, "step 7: gradients of"),
    "RES-01/optimizer": (
        equal.test_each_of_twenty_steps_can_be_resumed,
        STEP_6,
        NO_OPTIMIZER,
        "step 7: learning rates [0.01, 0.01]",
    ),
    "RES-02": (
        equal.test_get_peft_model_resumes_from_a_checkpoint_of_add_adapter,
        {"spec": continued(SHORT, 2, adapter={"route": "add_adapter"})},
        NO_ADAPTER,
        "step 3: gradients of",
    ),
    "RES-03/false": (
        errors.test_false_starts_afresh_beside_checkpoints,
        {},
        mutant("resumed-unasked"),
        "steps none, expected 1 to 8",
    ),
    "RES-03/highest": (
        errors.test_true_takes_the_highest_number_not_the_last_name,
        {},
        mutant("last-checkpoint-by-name"),
        "[10, 11, 12]",
    ),
    "RES-03/none": (
        errors.test_true_without_a_checkpoint_is_refused,
        {},
        replace(
            "transformers.trainer",
            "get_last_checkpoint",
            lambda original, folder: folder,
            "If there is no checkpoint, resume_from_checkpoint=True resumes from the output directory itself.",
        ),
        "the run ended with ValueError: Can't find",
    ),
    "RES-04/adapter": (
        errors.test_a_path_without_an_adapter_is_refused,
        {"spec": errors.damaged("delete adapter_model.safetensors")},
        mutant("checkpoint-not-loaded"),
        "no error: it trained steps 5 to 8",
    ),
    "RES-04/state": (
        errors.test_a_path_without_trainer_state_is_refused,
        {},
        replace(TRAINER, "_load_from_checkpoint", unread),
        "the run ended with ValueError: unread",
    ),
    "RES-05/truncated": (
        errors.test_a_truncated_file_is_an_error,
        {"spec": errors.damaged("truncate rng_state.pth 5000"), "words": errors.SHORT_ARCHIVE},
        NO_RNG,
        "no error: it trained steps 5 to 8",
    ),
    "RES-05/not-read": (
        errors.test_files_that_are_not_read_are_not_missed,
        {"name": "README.md"},
        replace("peft:PeftModel", "load_adapter", reading_the_model_card),
        "the run ended with FileNotFoundError",
    ),
    "RES-06": (
        errors.test_the_training_argument_of_that_name_is_not_read,
        {},
        replace(TRAINER, "train", reading_the_argument),
        "steps 5 to 8, expected 1 to 8",
    ),
    "RES-07": (
        reports.test_a_finished_run_stays_finished,
        {"spec": continued(SHORT, 8, every=8)},
        mutant("finished-run-goes-on"),
        "it trained step 9, past the last step 8",
    ),
    "RES-08": (
        reports.test_training_loss_and_throughput_are_those_of_this_call,
        STEP_6,
        mutant("training-loss-over-all-steps"),
        "the mean of these 2 steps",
    ),
    "RES-09": (
        reports.test_the_first_log_covers_the_steps_since_the_checkpoint,
        {"spec": continued(SHORT.but(logging_steps=3), 4)},
        mutant("first-log-over-a-whole-window"),
        "the mean of the 2 steps since",
    ),
    "RES-10/log": (
        reports.test_the_log_is_restored_and_extended,
        {"spec": reports.REPORTED.resumed(4)},
        mutant("log-forgotten"),
        "log_history[0] is",
    ),
    "RES-10/flos": (
        reports.test_totals_and_best_metric_are_restored,
        {"spec": reports.REPORTED.resumed(4)},
        mutant("operations-forgotten"),
        "trainer_state.json, total_flos",
    ),
    "RES-11": (
        reports.test_another_learning_rate_is_not_used,
        {},
        mutant("new-rate-used-in-an-old-schedule"),
        "step 6: learning rates",
    ),
    "RES-11/schedule": (
        reports.test_another_number_of_steps_stretches_the_schedule,
        {},
        NO_OPTIMIZER,
        "differs first at index 0: 0.01, expected 0.005",
    ),
    "RES-12/warning": (
        reports.test_a_changed_interval_or_size_is_warned_of,
        {"argument": "save_steps"},
        replace(
            "transformers.trainer",
            "compare_trainer_and_checkpoint_args",
            nothing,
            "Resuming does not compare the arguments with those of the checkpoint.",
        ),
        "no warning names save_steps, 3 here and 2",
    ),
    "RES-12/position": (
        reports.test_the_data_position_is_that_of_the_new_sizes,
        {"spec": continued(SHORT.but(per_device_train_batch_size=2), 4, per_device_train_batch_size=4)},
        mutant("nothing-skipped"),
        "step 5: trained rows",
    ),
    "RES-13": (
        errors.test_a_checkpoint_of_another_adapter_is_not_passed_over,
        {"spec": continued(SHORT.but(lora={"r": 4}), 4, lora={"r": 8}), "what": "another rank", "words": ("mismatch",)},
        NO_ADAPTER,
        "neither an error nor a warning: with another rank it trained steps 5 to 8",
    ),
    "RES-14": (
        reports.test_ignore_data_skip_starts_the_epoch_again,
        {"spec": continued(SHORT.but(ignore_data_skip=True), 6)},
        replace(TRAINER, "_init_training_state", never_skipping),
        "step 7: trained rows",
    ),
    "RES-15": (equal.test_each_step_begins_with_the_same_random_state, {}, NO_RNG, "step 3: "),
    "RES-17": (
        equal.test_every_adapter_is_restored_whatever_its_name,
        {"spec": equal.redrawn(name="foo", others={"second": {"r": 4}})},
        mutant("second-adapter-not-restored"),
        "which is not trained, is another",
    ),
    "RES-18": (
        equal.test_prompt_tuning_resumes,
        {
            "spec": continued(
                SHORT.but(
                    adapter={
                        "peft_type": "PROMPT_TUNING",
                        "config": {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
                    }
                ),
                6,
            )
        },
        NO_ADAPTER,
        "step 7: gradients of",
    ),
    "RES-20": (
        reports.test_auto_find_batch_size_keeps_the_size_of_the_checkpoint,
        {},
        Fault("Resuming ignores the batch size of the checkpoint.", without(train_batch_size=4)),
        "step 5: trained rows",
    ),
    "RES-21": (
        equal.test_every_adapter_tensor_is_restored_before_the_first_step,
        {"spec": equal.counted(), "count": 8},
        NO_ADAPTER,
        "after loading checkpoint-2:",
    ),
    "RES-22": (
        equal.test_the_rest_of_an_epoch_keeps_its_order,
        STEP_6,
        EPOCH_0_AGAIN,
        "step 7: trained rows",
    ),
    "RES-23": (
        equal.test_accumulation_that_does_not_divide_the_epoch_resumes,
        {"spec": continued(equal.UNEVEN["three-of-eight"], 2, every=1)},
        mutant("a-batch-skipped"),
        "step 3: trained rows",
    ),
    "RNG-01/before": (
        rng.test_numbers_drawn_before_trainer_change_nothing,
        {},
        mutant("seed-not-set"),
        "step 1: gradients of",
    ),
    "RNG-01/between": (
        rng.test_numbers_drawn_between_trainer_and_train_shift_its_dropout,
        {},
        mutant("seed-set-at-train"),
        "the same dropout",
    ),
    "RNG-01/model_init": (
        rng.test_train_seeds_again_where_it_builds_the_model,
        {},
        mutant("seed-not-set"),
        "differs first at index",
    ),
    "RNG-02": (
        rng.test_the_order_does_not_depend_on_the_global_generator,
        {},
        EPOCH_0_AGAIN,
        "step 5: trained rows",
    ),
    "RNG-03": (
        rng.test_each_pass_draws_one_number_and_nothing_else_does,
        {"spec": rng.NO_DROPOUT},
        mutant("log-draws-a-number"),
        "the generator is not where 2 draws",
    ),
    "RNG-04": (
        rng.test_workers_do_not_change_a_run,
        {},
        mutant("workers-draw-a-number"),
        "step 1: gradients of",
    ),
}


@each(FAULTS)
def test_a_fault_of_upstream_is_seen_and_named(name, runs, tmp_path, monkeypatch):
    assert_seen(FAULTS[name], runs, tmp_path, monkeypatch)


def test_a_plain_resume_holds_without_a_fault(runs):
    spec = continued(SHORT, 6)
    assert continues(runs.train(spec), runs.train(spec.first_leg()), after=6).holds
