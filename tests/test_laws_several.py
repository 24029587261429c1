"""harness/laws/several.py on made-up traces of two ranks: each law holds, and fails for what it is there to see."""

import copy

import pytest
import torch

from harness.laws import several
from harness.runs.scenarios import LAUNCHES, spread
from harness.spec import RunSpec
from harness.trace import Checkpoint
from tests.traces import BASE, A, B, made_up

#: Eight rows in order: two steps of two ranks with two rows each.
SPEC = spread(
    RunSpec().but(data={"rows": 8}, max_steps=2, per_device_train_batch_size=4, train_sampling_strategy="sequential"),
    "ddp",
)


def of_two(spec=SPEC, **changes):
    """What two ranks saw of a run: rank r has rows 2r and 2r + 1 of each step's four."""
    ranks = []
    for rank in range(2):
        trace = made_up(spec, steps=2, **copy.deepcopy(changes))
        for step in trace.steps:
            first = 4 * (step.number - 1) + 2 * rank
            step.batches[0].rows = [first, first + 1]
            step.batches[0].loss = 2.5 + 0.1 * rank
            step.batches[0].num_items = 60.0
        for entry in trace.log_history:
            entry["loss"] = 5.1
        trace.distributed = {
            "wrapper": "FSDPModel",
            "units": {"": "FSDPModule", "model.layers.0": "FSDPModule"},
            "kinds": dict.fromkeys(trace.parameters, "DTensor"),
            "local": {name: shape[0] * shape[1] // 2 for name, (_, shape) in trace.parameters.items()},
            "dtypes": {name: dtype for name, (dtype, _) in trace.parameters.items()},
            "flat": 0,
            "find_unused_parameters": None,
        }
        ranks.append(trace)
    ranks[0].ranks = ranks[1:]
    return ranks[0]


def single():
    """The run in one process that of_two is."""
    trace = several.as_one(of_two())
    return copy.deepcopy(trace)


def test_ranks_are_put_together_in_their_order():
    merged = several.as_one(of_two())
    assert [step.batches[0].rows for step in merged.steps] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [step.batches[0].tokens for step in merged.steps] == [60, 60]
    assert merged.steps[0].batches[0].loss == pytest.approx(5.1)
    assert merged.spec.arguments["per_device_train_batch_size"] == 4
    assert not merged.spec.launch.several and not merged.ranks


@pytest.mark.parametrize("items", [None, 30.0], ids=["no-count", "own-count"])
def test_losses_of_ranks_are_means_without_a_count_over_all(items):
    trace = of_two()
    for one in (trace, *trace.ranks):
        one.steps[0].batches[0].num_items = items
    assert several.as_one(trace).steps[0].batches[0].loss == pytest.approx(2.55)


def move(trace, name=A, by=0.01):
    trace.adapter[name] = trace.adapter[name] + by


def first_batch(trace, rows):
    trace.steps[0].batches[0].rows = rows


def lose_a_rank(trace):
    trace.ranks = []


def fail(trace):
    trace.error = "rank 1 of 2: ValueError: no"


def change_base(trace):
    trace.base = {BASE: "4567"}


def change_state(trace):
    trace.optimizer_state[B] = {"exp_avg": torch.ones(4, 2)}


def change_gradient(trace):
    trace.steps[1].clipped[A] = trace.steps[1].clipped[A] + 1e-3


LAWS = {
    "ranks_agree": several.ranks_agree,
    "equals_single": lambda trace: several.equals_single(trace, single()),
    "trains_its_share": several.trains_its_share,
    "logged_mean": several.logged_mean,
    "sharded": lambda trace: several.sharded(trace, "fsdp2"),
    "units": lambda trace: several.units(trace, ["", "model.layers.0"]),
    "dtypes_kept": several.dtypes_kept,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds(law):
    verdict = LAWS[law](of_two())
    assert verdict.holds, verdict.seen


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [(lose_a_rank, "1 ranks left a trace, expected 2"), (fail, "the run ended with rank 1 of 2")],
    ids=["lost", "failed"],
)
def test_a_law_wants_every_rank(law, damage, words):
    trace = of_two()
    damage(trace)
    assert words in "\n".join(LAWS[law](trace).seen)


@pytest.mark.parametrize(
    ("law", "damage", "words"),
    [
        ("ranks_agree", lambda t: move(t.ranks[0], by=1e-7), "rank 1: adapter at the end: " + A),
        ("ranks_agree", lambda t: change_base(t.ranks[0]), "rank 1: its base is another"),
        ("ranks_agree", lambda t: change_state(t.ranks[0]), f"rank 1: state of {B}:"),
        ("ranks_agree", lambda t: change_gradient(t.ranks[0]), f"rank 1: step 2: gradient of {A}"),
        ("equals_single", move, "adapter at the end: " + A),
        ("equals_single", lambda t: first_batch(t.ranks[0], [0, 1]), "step 1: the ranks trained rows [[0, 1, 0, 1]]"),
        ("trains_its_share", lambda t: first_batch(t.ranks[0], [0, 1]), "rank 1, step 1: trained rows [[0, 1]]"),
        ("trains_its_share", lambda t: first_batch(t, [2, 3]), "rank 0, step 1: trained rows [[2, 3]]"),
        ("logged_mean", lambda t: t.log_history[1].update(loss=5.2), "step 2: logged loss 5.2"),
        ("logged_mean", lambda t: t.log_history.pop(), "step 2: no loss to compare"),
        ("sharded", lambda t: t.distributed.update(units={}), "no module is an FSDPModule"),
        ("sharded", lambda t: t.distributed["kinds"].update({A: "Parameter"}), "1 of 3 parameters are no DTensor"),
        ("sharded", lambda t: t.distributed["local"].update({A: 8}), f"{A} has 8 elements, but [8, 4] of them lie"),
        ("units", lambda t: t.distributed["units"].pop(""), "the model is no unit"),
        ("units", lambda t: t.distributed["units"].update(lm_head="FSDPModule"), "lm_head is a unit, unexpected"),
        (
            "dtypes_kept",
            lambda t: t.distributed["dtypes"].update({BASE: "float64"}),
            f"{BASE} was float32, spread it is",
        ),
    ],
)
def test_a_law_fails_for_what_it_is_there_to_see(law, damage, words):
    trace = of_two()
    damage(trace)
    verdict = LAWS[law](trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_a_flat_parameter_is_asked_for():
    trace = of_two()
    assert "no module is an FullyShardedDataParallel" in "\n".join(several.sharded(trace, "fsdp1").seen)
    trace.distributed["units"][""] = "FullyShardedDataParallel"
    assert "no module has a FlatParameter" in "\n".join(several.sharded(trace, "fsdp1").seen)


def test_ranks_must_have_started_apart_for_the_first_to_win():
    trace = of_two()
    assert "all ranks started from the same adapter" in "\n".join(several.first_rank_wins(trace, single()).seen)
    trace.ranks[0].adapter_before[A] = trace.adapter_before[A] + 1
    assert several.first_rank_wins(trace, single()).holds


# ---- another number of ranks ----


def resumed(rows):
    """A run that went on from step 1 of of_two() and trained these rows, in one process."""
    trace = made_up(RunSpec().but(data={"rows": 8}, max_steps=2), steps=2)
    trace.steps = trace.steps[1:]
    trace.steps[0].batches[0].rows = rows
    return trace


def test_every_row_of_the_epoch_is_trained_once():
    assert several.no_row_twice(resumed([4, 5, 6, 7]), of_two(), after=1).holds
    seen = "\n".join(several.no_row_twice(resumed([2, 3, 4, 5]), of_two(), after=1).seen)
    assert "2 of 4 rows had been trained before in this epoch: [2, 3]" in seen
    assert "2 rows of the epoch are never trained: [6, 7]" in seen


def test_the_same_rows_go_on_to_the_same_end():
    trace = single()
    trace.steps = trace.steps[1:]
    trace.spec = RunSpec().but(data={"rows": 8}, max_steps=2)
    assert several.goes_on(trace, of_two(), after=1).holds
    other = copy.deepcopy(trace)
    other.steps[0].batches[0].rows = [4, 5, 6, 0]
    assert "after step 1 rows [[0, 4, 5, 6]] were trained" in "\n".join(several.goes_on(other, of_two(), after=1).seen)
    move(trace)
    assert "adapter at the end" in "\n".join(several.goes_on(trace, of_two(), after=1).seen)


def test_restored_means_no_value_of_the_start():
    whole, again = of_two(), of_two()
    for one in (again, *again.ranks):
        one.adapter_resumed = {name: value + 1 for name, value in one.adapter_before.items()}
    assert several.restored_to(again, whole).holds
    again.adapter_resumed[A] = whole.adapter_before[A]
    assert "1 of 2 adapter tensors are restored" in "\n".join(several.restored_to(again, whole).seen)


# ---- files ----


def with_files(*files, step=2):
    trace = of_two()
    trace.checkpoints = [Checkpoint(step, "", dict.fromkeys(files, 10), {}, {}, {}, [step])]
    return trace


def test_a_checkpoint_has_exactly_the_files():
    trace = with_files("scheduler.pt", "optimizer_0/__0_0.distcp")
    assert several.rank_files(trace, ["scheduler.pt", "optimizer_0/"]).holds
    seen = "\n".join(several.rank_files(trace, ["scheduler.pt", "model.bin"]).seen)
    assert "checkpoint-2 has optimizer_0/, unexpected" in seen and "checkpoint-2 has no model.bin" in seen
    assert "no checkpoint was written" in several.rank_files(of_two(), []).seen


def test_the_models_file_holds_the_adapter_alone(tmp_path):
    trace = with_files("pytorch_model_fsdp.bin")
    trace.checkpoints[0].path = str(tmp_path)
    file = tmp_path / "pytorch_model_fsdp.bin"
    raw = {
        f"base_model.model.{name.replace('.weight', '.default.weight')}": value for name, value in trace.adapter.items()
    }
    torch.save(raw, file)
    assert several.model_file(trace).holds
    torch.save({**raw, f"base_model.model.{BASE}": torch.zeros(4, 4)}, file)
    assert BASE in "\n".join(several.model_file(trace).seen)
    torch.save({}, file)
    assert f"{A} is missing" in "\n".join(several.model_file(trace).seen)
    assert "no checkpoint has a pytorch_model_fsdp.bin" in several.model_file(of_two()).seen


def test_save_model_must_have_written_the_adapter(tmp_path):
    from safetensors.torch import save_file

    trace = of_two()
    assert "save_model() wrote no adapter: nothing" in several.saved_at_the_end(trace, tmp_path).seen[0]
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{name}": value for name, value in trace.adapter.items()}, file)
    assert several.saved_at_the_end(trace, tmp_path).holds
    save_file({f"base_model.model.{A}": trace.adapter[A]}, file)
    assert f"{B} is missing" in "\n".join(several.saved_at_the_end(trace, tmp_path).seen)


def test_the_engines_files():
    states = [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    model = "global_step2/mp_rank_00_model_states.pt"
    trace = with_files(*states, model, "scheduler.pt")
    assert several.engine_optimizer(trace).holds and several.engine_files(trace).holds
    trace.checkpoints[0].files[model] = 64
    assert "has 64 bytes, the frozen parameters 64" in several.engine_files(trace).seen[0]
    seen = "\n".join(several.engine_optimizer(with_files(states[0], "optimizer.pt")).seen)
    for words in ("1 files of optimizer state for 2 ranks", "has optimizer.pt", "has no scheduler.pt"):
        assert words in seen
    assert "no checkpoint has a file of the engine's model" in several.engine_files(of_two()).seen


# ---- what is left out, and why ----


@pytest.mark.parametrize(
    ("launch", "clause", "words"),
    [
        ("fsdp2-2", "CKPT-07", "optimizer's state"),
        ("fsdp2-2-sharded", "CKPT-25", "no adapter file"),
        ("fsdp1-1", "CKPT-12", "nothing is saved"),
        ("zero2-2", "LOSS-01", "keeps gradients"),
    ],
)
def test_a_law_that_says_nothing_of_a_launch_says_why(launch, clause, words):
    assert words in several.silent(clause, LAUNCHES[launch])


def test_ddp_is_judged_by_every_law():
    from harness.laws.universal import OF_ONE

    assert {several.silent(clause, LAUNCHES["ddp-2"]) for clause in OF_ONE} == {None}
