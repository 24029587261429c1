"""LOG: what is logged: log_history, TensorBoard, the console."""

from pathlib import Path
from typing import Any

import pytest

from harness import compat
from harness.laws import logs
from harness.runs.scenarios import PLAIN, SCENARIOS, by_route, cases, over
from harness.verdict import same

SHORT = PLAIN.but(max_steps=7)
EVALUATED: dict[str, Any] = {"data": {"eval_rows": 10}, "eval_strategy": "steps", "eval_steps": 5}
LOGGED = {
    "each-third-step": SHORT.but(logging_steps=3),
    "first-step": SHORT.but(logging_steps=3, logging_first_step=True),
    "share-of-all-steps": SHORT.but(logging_steps=0.4),
    "each-epoch": PLAIN.but(data={"rows": 16}, logging_strategy="epoch"),
    "never": SHORT.but(logging_strategy="no"),
    "accumulation": SCENARIOS["accumulation"].but(logging_steps=3),
}
PADDED = SHORT.but(data={"min_length": 6, "eval_rows": 10}, eval_strategy="steps", eval_steps=5)


@pytest.mark.clause("LOG-01")
@over(by_route({name: spec for name, spec in SCENARIOS.items() if name != "label-smoothing"} | LOGGED))
def test_an_entry_for_each_logging_step_has_the_mean_loss_since_the_one_before(trace, judge):
    judge(logs.entries(trace, compat.logged_digits()))


@pytest.mark.clause("LOG-01")
@over(by_route({"tokens": PADDED.but(include_num_input_tokens_seen=True)}))
def test_entries_count_tokens_and_their_rate(trace, judge):
    judge(logs.entries(trace, compat.logged_digits(), also=(logs.TOKENS, *compat.token_rates())))


@pytest.mark.clause("LOG-01")
@pytest.mark.parametrize(
    ("spec", "padding"),
    [
        pytest.param(PADDED.but(include_num_input_tokens_seen=True), True, id="all-tokens"),
        pytest.param(PADDED.but(include_num_input_tokens_seen="non_padding"), False, id="tokens-without-padding"),
    ],
)
def test_tokens_fed_are_counted_in_every_entry(spec, padding, train, judge):
    judge(logs.tokens(train(spec), padding))


# ---- TensorBoard ----


@pytest.mark.clause("LOG-02")
@cases(by_route({"evaluated": SHORT.but(**EVALUATED, report_to=["tensorboard"])}))
def test_tensorboard_has_what_log_history_has(spec, train, judge):
    trace = train(spec)
    judge(logs.tensorboard(trace, Path(trace.directory) / "runs"))


@pytest.mark.clause("LOG-02")
def test_an_environment_variable_names_another_directory(upstream, tmp_path, monkeypatch, judge):
    if not compat.tensorboard_directory_from_environment():
        pytest.skip("before transformers 5.0 the directory was the argument logging_dir")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    trainer = upstream.build(SHORT.but(report_to=["tensorboard"], max_steps=1), tmp_path / "output")
    trainer.train()
    found = {file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("events.out.tfevents.*")}
    judge(same("directories with an event file", found, {"elsewhere"}))


# ---- the end, and the console ----


@pytest.mark.clause("LOG-03")
@over(SCENARIOS | {name: LOGGED[name] for name in ("each-epoch", "never")})
def test_the_last_entry_is_the_metrics_of_training(trace, judge):
    judge(logs.last_entry(trace))


@pytest.mark.clause("LOG-04")
@pytest.mark.parametrize("disable_tqdm", [True, False], ids=["printed", "with-progress-bars"])
def test_the_console_shows_each_entry(disable_tqdm, upstream, tmp_path, capsys, judge):
    trainer = upstream.build(SHORT.but(**EVALUATED, disable_tqdm=disable_tqdm), tmp_path)
    capsys.readouterr()
    trainer.train()
    judge(logs.console(trainer.state.log_history, capsys.readouterr().out))
