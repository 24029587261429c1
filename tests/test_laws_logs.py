"""Tests of harness/laws/logs.py on made-up traces: each law holds, and each fault is found and named."""

import pytest

from harness.laws import logs
from harness.runs.scenarios import PLAIN
from tests.traces import made_up

SPEC = PLAIN.but(max_steps=4, per_device_train_batch_size=2)


def words(verdict):
    assert not verdict.holds
    return "\n".join(verdict.seen)


@pytest.fixture
def trace():
    made = made_up(SPEC)
    metrics = {"train_runtime": 0.1, "train_samples_per_second": 80.0, "train_steps_per_second": 40.0}
    metrics |= {"total_flos": 1e6, "train_loss": 5.25}
    made.output["metrics"] = dict(metrics)
    made.log_history.append({**metrics, "epoch": 0.2, "step": 4})
    return made


def test_a_complete_log_holds(trace):
    assert logs.entries(trace).holds
    assert logs.last_entry(trace).holds


def test_another_loss_is_named_with_the_mean(trace):
    trace.log_history[1]["loss"] += 1e-4
    assert "entry of step 2: loss" in words(logs.entries(trace)) and "the mean of its 1 steps" in words(
        logs.entries(trace)
    )


def test_a_rounded_loss_holds_only_where_it_is_rounded(trace):
    trace.log_history[1]["loss"] += 4e-5
    assert logs.entries(trace, digits=4).holds
    assert not logs.entries(trace).holds


def test_the_mean_is_over_all_steps_since_the_entry_before(trace):
    trace.spec = SPEC.but(logging_steps=2)
    trace.log_history = trace.log_history[1:4:2]
    sentences = words(logs.entries(trace))
    assert "entry of step 2: loss 5.3, the mean of its 2 steps is 5.35" in sentences


def test_micro_batches_are_averaged_where_the_model_was_given_no_number(trace):
    batch = trace.steps[0].batches[0]
    batch.num_items, batch.loss = None, 5.4
    trace.steps[0].batches = [batch, batch]
    assert logs.entries(trace).holds


@pytest.mark.parametrize("key", ["grad_norm", "learning_rate", "epoch"])
def test_a_key_that_is_missing_or_besides_is_named(trace, key):
    trace.log_history[2]["other"] = trace.log_history[2].pop(key)
    sentences = words(logs.entries(trace))
    assert f"entry of step 3 lacks {key}" in sentences and "entry of step 3 has other besides" in sentences


def test_an_entry_left_out_is_named(trace):
    del trace.log_history[2]
    assert "logged after steps [1, 2, 4], expected [1, 2, 3, 4]" in words(logs.entries(trace))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"logging_steps": 3}, [3]),
        ({"logging_steps": 3, "logging_first_step": True}, [1, 3]),
        ({"logging_steps": 0.5}, [2, 4]),
        ({"logging_strategy": "no"}, []),
        ({"logging_strategy": "epoch", "data": {"rows": 6}}, [3, 4]),
    ],
)
def test_which_steps_are_logged(changes, steps):
    assert logs.logging_steps(SPEC.but(**changes)) == steps


def test_the_last_entry_is_that_of_train_output(trace):
    trace.log_history[-1]["train_loss"] = 5.3
    assert "the last entry's train_loss is 5.3, that of TrainOutput 5.25" in words(logs.last_entry(trace))


def test_a_log_without_a_last_entry_is_seen(trace):
    del trace.log_history[-1]
    assert "the last entry lacks total_flos" in words(logs.last_entry(trace))


def test_a_last_entry_of_another_step_is_seen(trace):
    trace.log_history[-1]["step"] = 3
    assert "the last entry is of step 3, expected 4" in words(logs.last_entry(trace))


def test_tokens_are_counted_with_and_without_padding(trace):
    trace.spec = SPEC.but(data={"min_length": 6})
    for entry in trace.log_history:
        entry[logs.TOKENS] = 2 * 16 * entry["step"]
    assert logs.tokens(trace).holds
    assert "training entry of step 1: num_input_tokens_seen 32, expected" in words(logs.tokens(trace, padding=False))
    trace.log_history[3][logs.TOKENS] -= 16
    assert "training entry of step 4: num_input_tokens_seen 112, expected 128" in words(logs.tokens(trace))


# ---- TensorBoard ----


def written(directory, history, texts=("args", "model_config")):
    """Write an event file of this history with torch, and return its directory."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(log_dir=str(directory / "now"))
    for name in texts:
        writer.add_text(name, "{}")
    for entry in history:
        for key, value in entry.items():
            if key != "step":
                writer.add_scalar(logs.tag(key), value, entry["step"])
    writer.close()
    return directory


def test_the_same_numbers_in_tensorboard_hold(trace, tmp_path):
    trace.log_history.append({"eval_loss": 5.1, "step": 4})
    assert logs.tensorboard(trace, written(tmp_path, trace.log_history)).holds


def test_another_number_in_tensorboard_is_named(trace, tmp_path):
    other = [dict(entry) for entry in trace.log_history]
    other[2]["loss"] += 1e-5
    sentences = words(logs.tensorboard(trace, written(tmp_path, other)))
    assert "train/loss: (3, 5.2" in sentences and "log_history has (3, 5.1999" in sentences


def test_scalars_and_texts_missing_or_besides_are_named(trace, tmp_path):
    other = [{**entry, "beta": 1.0} for entry in trace.log_history[:-1]]
    sentences = words(logs.tensorboard(trace, written(tmp_path, other, texts=["args", "lora"])))
    assert "no scalar train/total_flos" in sentences
    assert "a scalar train/beta, which is not in log_history" in sentences
    assert "train/epoch: 4 points, log_history has 5" in sentences
    assert "texts args, lora, expected args, model_config" in sentences


def test_no_event_file_is_named(trace, tmp_path):
    assert "0 event files" in words(logs.tensorboard(trace, tmp_path))


# ---- the console ----

HISTORY = [{"loss": 5.512345, "epoch": 0.1, "step": 1}, {"train_loss": 5.5, "total_flos": 1e6, "epoch": 0.1, "step": 1}]


@pytest.mark.parametrize("first", ["{'loss': '5.512', 'epoch': '0.1'}", "{'loss': 5.512345, 'epoch': 0.1}"])
def test_rounded_and_exact_numbers_hold(first):
    assert logs.console(HISTORY, f"\n 10%|\r{first}\n{{'train_loss': '5.5', 'epoch': '0.1'}}\n").holds


def test_what_the_console_shows_otherwise_is_named():
    sentences = words(
        logs.console(HISTORY, "{'loss': '5.51', 'epoch': '0.1'}\n{'train_loss': '5.5', 'total_flos': 1000000.0}\n")
    )
    assert "entry 1 shows loss 5.51, log_history has 5.512345" in sentences
    assert "entry 2 shows no epoch" in sentences and "entry 2 shows total_flos besides" in sentences


def test_a_silent_console_is_named():
    assert words(logs.console(HISTORY, "")) == "0 entries on standard output, log_history has 2"
