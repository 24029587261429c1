"""Ranks in step: each rank leaves a note in torch.distributed's store, and rank 0 compares them later.

No collective is called. A rank without Watch, or one that is late, can so hold up nobody: it is "not judged".
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import torch

from harness.subjects.observer import digest
from harness.watch.check import Check
from harness.watch.seen import MicroPass
from harness.watch.window_watch import hashes

#: Seconds for which rank 0 waits at the end for the notes of the others.
PATIENCE = 5.0

_RUNS = itertools.count(1)


class Ranks(Check):
    id = "ranks"

    def why_not(self) -> str | None:
        if self.seen.world == 1:
            return "there is one process"
        if self.seen.argument("parallelism_config") is not None:
            return "parallelism_config may give ranks equal rows and other parts of a tensor"
        return self.seen.sharded

    def begin(self) -> None:
        from torch.distributed import distributed_c10d

        self._store: Any = distributed_c10d._get_default_store()
        self._run = next(_RUNS)
        self._pending: list[int] = []
        self._rows: list[Any] = []
        self._note(0)

    def step_begin(self) -> None:
        self._rows = []
        self._read()

    def forward(self, batch: MicroPass, inputs: dict[str, Any], output: Any) -> None:
        tokens = inputs.get("input_ids")
        if self.seen.sampled and isinstance(tokens, torch.Tensor) and tokens.dim() == 2:
            mask = inputs.get("attention_mask")
            self._rows.append(hashes(tokens, mask if mask is not None and mask.shape == tokens.shape else None))

    def step_end(self) -> None:
        if self.seen.sampled:
            self._note(self.seen.number)
            self._read()

    def _key(self, number: int, rank: int) -> str:
        return f"harness-watch/{self._run}/{number}/{rank}"

    def _note(self, number: int) -> None:
        seen = self.seen
        kinds: dict[str, list[Any]] = {}
        for parameter in seen.trained.values():
            kinds.setdefault(str(parameter.dtype), []).append(parameter.detach().flatten())
        note = {
            "adapter": [digest(torch.cat(parts)) for _, parts in sorted(kinds.items())],
            "rates": [float(group["lr"]) for group in getattr(seen.optimizer, "param_groups", ())],
            "epoch": seen.state.epoch,
            "items": [float(batch.items) for batch in seen.window if batch.items is not None],
            "rows": torch.cat(self._rows).tolist() if self._rows else [],
        }
        self._store.set(self._key(number, seen.rank), json.dumps(note))
        if seen.rank == 0:
            self._pending.append(number)

    def _read(self) -> None:
        for number in list(self._pending):
            keys = [self._key(number, rank) for rank in range(self.seen.world)]
            if not self._store.check(keys):
                return
            notes = [json.loads(self._store.get(key)) for key in keys]
            self._pending.remove(number)
            for key in keys:
                self._store.delete_key(key)
            self._compare(number, notes)

    def _compare(self, number: int, notes: list[dict[str, Any]]) -> None:
        when = f"after step {number}" if number else "before the first step"
        words = {
            "adapter": "the adapter",
            "rates": "the learning rates",
            "epoch": "the epoch",
            "items": "num_items_in_batch",
        }
        found = []
        for name, what in words.items():
            if name == "items" and not self.seen.argument("average_tokens_across_devices"):
                continue
            apart = [rank for rank, note in enumerate(notes) if note[name] != notes[0][name]]
            if apart:
                found.append(
                    f"{when} {what} of rank {apart[0]} differ{'s' if what.startswith('the a') else ''} from rank 0's"
                )
        rows = [note["rows"] for note in notes]
        if (
            rows[0]
            and len(set(rows[0])) == len(rows[0])
            and all(set(each) == set(rows[0]) for each in rows[1:])
            and len(rows[0]) > 1
        ):
            found.append(f"in step {number} all ranks train the same rows")
        self.book.judge(self.id, self.seen.number, found)

    def end(self) -> None:
        started = time.monotonic()
        self._read()
        while self._pending and time.monotonic() - started < PATIENCE:
            time.sleep(0.01)
            self._read()
        if self._pending:
            self.skip("a rank left no note: is Watch added in each of them?")
