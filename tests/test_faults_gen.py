"""Put faults into upstream under which drawn runs must fail the clauses that compare whole runs."""

import pytest
from hypothesis import strategies

from harness.runs.drawn import Draw
from harness.runs.scenarios import PLAIN
from harness.verdict import Case
from tests.faults import FAILED, mutant, proves, replace

TRAINER = "transformers.trainer:Trainer"


def twice_the_rate(original, trainer, *args, **options):
    """The learning rate is twice what was asked for."""
    original(trainer, *args, **options)
    trainer.optimizer.param_groups[0]["lr"] *= 2
    trainer.optimizer.param_groups[0]["initial_lr"] = trainer.optimizer.param_groups[0]["lr"]
    return trainer.optimizer


FAULTS = {
    "GEN-01": (replace(TRAINER, "create_optimizer", twice_the_rate), "step 1: learning rates"),
    "GEN-02": (mutant("dropout-of-the-process"), "step 1: gradients of"),
}


@pytest.mark.parametrize(
    "clause", [pytest.param(id, id=id, marks=proves(id, says=fault.says)) for id, (fault, _) in FAULTS.items()]
)
def test_a_fault_of_upstream_is_seen_in_a_drawn_run(clause, runs, monkeypatch):
    fault, words = FAULTS[clause]
    fault(monkeypatch)
    verdicts = []
    draw = Draw([Case(clause, "drawn", "", "hf-trainer")], runs, lambda *failed: verdicts.append(failed), 0, [])
    draw.judge_all(strategies.just(PLAIN.but(max_steps=2)), 0)
    verdict, failed = verdicts[0]
    FAILED.add(failed)
    assert words in "\n".join(verdict.seen)
