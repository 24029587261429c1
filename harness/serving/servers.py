"""The section `servers`: which servers can take an adapter, and why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.checkpoints.adapter_directory import Adapter
from harness.serving.rules import ASK, NEEDS, NO, NOT_JUDGED, RULES, SERVERS, WRONG

YES, REFUSES, WRONGLY, DEPENDS = "yes", "no", "wrongly", "depends"


@dataclass
class Answer:
    """What one server does with an adapter.

    - takes: "yes", "no" (it refuses it), "wrongly" (it loads it and computes something else), or "depends".
    - why: sentences, each with the source of its rule. needs: options that the server must be started with, likewise.
    - not_judged: what was not looked at.
    """

    server: str
    takes: str = YES
    why: list[dict[str, str]] = field(default_factory=list)
    needs: list[dict[str, str]] = field(default_factory=list)
    not_judged: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}


def judge(adapter: Adapter) -> list[Answer]:
    """Return what each server does with an adapter, by the rules that were read in its source."""
    answers = []
    for server in SERVERS:
        answer = Answer(server, not_judged=NOT_JUDGED[server])
        kinds = set()
        for rule in RULES:
            sentence = rule.applies(adapter) if rule.server == server else None
            if sentence is None:
                continue
            said = {"sentence": sentence, "source": str(rule.source)}
            (answer.needs if rule.kind == NEEDS else answer.why).append(said)
            kinds.add(rule.kind)
        answer.takes = REFUSES if NO in kinds else WRONGLY if WRONG in kinds else DEPENDS if ASK in kinds else YES
        answers.append(answer)
    return answers
