"""What Watch has found: for each check how often it was judged, what broke it, and why it was not judged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.verdict import FAIL, NOT_COMPARABLE, Unjudged, Verdict

log = logging.getLogger("harness.watch")

#: Each check by its name, and what it says if it holds. The certificate has them in this order.
CHECKS = {
    "frozen-base": "the base keeps every bit, and gets no gradient",
    "trained-tensors": "what the adapter's config says is trained, and nothing else",
    "optimizer-holds": "the optimizer holds exactly what is trained, with the settings of the arguments",
    "adapter-effect": "an adapted layer adds its scaled adapter, with dropout as configured",
    "gradients": "a finite gradient that is not zero reaches each adapter tensor",
    "adapter-moves": "each adapter tensor changes by training",
    "nothing-else-moves": "between optimizer steps nothing changes the adapter, its gradients or its config",
    "loss": "the loss is the one recomputed from logits and labels, and the gradient that of the window's mean",
    "token-count": "the loss is divided by the number of the window's labels",
    "windows": "each step has as many micro-batches and rows as the arguments say, and the run as many steps",
    "events": "each window is cleared, clipped and stepped once, and logs, evaluations and saves are on time",
    "rows": "each step trains the rows that the seed gives",
    "rows-once": "each row is trained once in an epoch",
    "learning-rate": "each step uses the rate of the schedule",
    "clipping": "gradients are clipped as max_grad_norm says",
    "optimizer-step": "an update is the optimizer's, recomputed in float64",
    "precision": "autocast, adapter and optimizer state have the dtypes that were asked for",
    "scaler": "the gradient scaler of fp16 is in the state that its skipped steps give",
    "random-numbers": "logs, saves and evaluations draw no random numbers of the run, and nothing sets a seed anew",
    "memory": "memory does not grow from step to step",
    "logs": "the logged loss, norm and rate are those of the steps",
    "evaluation": "evaluations run in evaluation mode, with the adapter, and change nothing",
    "ranks": "all ranks have the same adapter, rate and step, and rows of their own",
    "checkpoint-files": "a checkpoint holds the files that it must, and old ones go as save_total_limit says",
    "checkpoint-adapter": "the adapter's file is the adapter in memory: keys, shapes, dtypes, values, size",
    "checkpoint-optimizer": "optimizer.pt, scheduler.pt and scaler.pt are the state in memory",
    "checkpoint-state": "trainer_state.json and the generators' states are those of the save",
    "resume": "what was restored is what was saved",
    "best-model": "the best model is that of the best evaluation, and is loaded at the end",
}

#: Findings of a check that are kept. All are counted.
MOST_FINDINGS = 20


@dataclass(frozen=True)
class Finding:
    """Something that must not be so.

    - check: a key of `CHECKS`.
    - step: the global step at which it was found; 0 before the first.
    - sentence: what was seen and what was expected.
    """

    check: str
    step: int
    sentence: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.check}: {self.sentence}"


@dataclass
class Entry:
    """What became of a check.

    - judged: how often it was judged.
    - steps: how many different steps it was judged at.
    - findings: the first ones; `broken` counts all.
    - reasons: why it was not judged, and how often each.
    """

    judged: int = 0
    steps: int = 0
    broken: int = 0
    findings: list[Finding] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    last: int = -1

    @property
    def verdict(self) -> str:
        """ "fails", "holds" or "not judged"."""
        return "fails" if self.broken else "holds" if self.judged else "not judged"


class Book:
    """The record of one run.

    - heard: called with each new finding.
    """

    def __init__(self, heard: Callable[[Finding], None] = lambda finding: None):
        self.entries = {name: Entry() for name in CHECKS}
        self._heard = heard
        self._said: set[tuple[str, str]] = set()

    @property
    def findings(self) -> list[Finding]:
        """All findings that were kept, in the order of their steps."""
        return sorted((f for entry in self.entries.values() for f in entry.findings), key=lambda finding: finding.step)

    def holds(self, check: str, step: int) -> None:
        """Note that a check was judged at a step. What broke it is noted besides."""
        entry = self.entries[check]
        entry.judged += 1
        entry.steps += step != entry.last
        entry.last = step

    def breaks(self, check: str, step: int, sentence: str) -> None:
        """Note a finding. The same sentence, but for its numbers, is told once."""
        entry, finding = self.entries[check], Finding(check, step, sentence)
        entry.broken += 1
        key = (check, "".join(letter for letter in sentence if not letter.isdigit()))
        if key in self._said or len(entry.findings) >= MOST_FINDINGS:
            return
        self._said.add(key)
        entry.findings.append(finding)
        self._heard(finding)

    def skips(self, check: str, reason: str) -> None:
        """Note why a check was not judged."""
        reasons = self.entries[check].reasons
        if reason in reasons or len(reasons) < MOST_FINDINGS:
            reasons[reason] = reasons.get(reason, 0) + 1

    def judge(self, check: str, step: int, findings: list[str]) -> None:
        """Note that a check was judged, and what it found. `Unjudged` findings are reasons."""
        told = [sentence for sentence in findings if not isinstance(sentence, Unjudged)]
        for sentence in findings:
            if isinstance(sentence, Unjudged):
                self.skips(check, str(sentence))
        if told or not findings:
            self.holds(check, step)
        for sentence in told[:3]:
            self.breaks(check, step, sentence)

    def take(self, check: str, step: int, judged: Verdict) -> None:
        """Note the verdict of a law."""
        if judged.outcome == NOT_COMPARABLE:
            for reason in judged.seen:
                self.skips(check, str(reason))
        else:
            self.judge(check, step, list(judged.seen) if judged.outcome == FAIL else [])
