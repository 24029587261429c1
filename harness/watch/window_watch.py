"""The window of a step: its micro-batches and rows, the events around it, and which rows they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from harness.laws.data_order import expected_places, expected_rows
from harness.laws.loading import NotModelled
from harness.laws.plan import plan
from harness.watch.check import Check
from harness.watch.seen import MicroPass

#: Collators that put each row into a sequence of its own, and leave its tokens as they are.
COLLATORS = (
    "default_data_collator",
    "DefaultDataCollator",
    "DataCollatorWithPadding",
    "DataCollatorForSeq2Seq",
    "DataCollatorForTokenClassification",
)

#: Methods of the Trainer by which a subclass chooses rows or windows of its own.
_OWN_ROWS = (
    "get_train_dataloader",
    "_get_train_sampler",
    "get_batch_samples",
    "_get_dataloader",
    "_inner_training_loop",
)

#: Rows that are read from a dataset to find out whether it holds rows twice.
MOST_ROWS = 20_000


def own_rows(seen: Any) -> str | None:
    """Return why the rows of a step do not follow from the arguments; None if they do."""
    if seen.spec is None:
        return seen.unknown or "the arguments are not known"
    if seen.trainer is None:
        return "the Trainer was not found"
    if own := seen.overridden(*_OWN_ROWS):
        return f"{own} is the user's own"
    if int(getattr(seen.args, "n_gpu", 0) or 0) > 1:
        return "DataParallel splits each batch"
    if seen.argument("auto_find_batch_size"):
        return "auto_find_batch_size may make the batches smaller"
    return None


def collator_changes(seen: Any) -> str | None:
    """Return why the sequences of a batch may be other than the rows of the data; None if they are the rows."""
    collator = getattr(seen.trainer, "data_collator", None)
    inner = getattr(collator, "data_collator", collator)  # transformers wraps it to remove columns
    name = getattr(inner, "__name__", type(inner).__name__)
    if name == "DataCollatorForLanguageModeling" and not getattr(inner, "mlm", True):
        return None
    return None if name in COLLATORS else f"data_collator {name} may change rows"


class Windows(Check):
    id = "windows"

    def why_not(self) -> str | None:
        return None if self.seen.accumulation else own_rows(self.seen)

    def begin(self) -> None:
        if self.seen.accumulation:
            return
        self._collator = collator_changes(self.seen)
        self._total: int | None = None
        try:
            self._total = plan(self.seen.spec).total  # type: ignore[arg-type]
        except NotModelled as reason:
            self.skip(str(reason))

    def step_begin(self) -> None:
        if not self.seen.accumulation and self._total is not None and self.seen.number > self._total:
            self.judge([f"a step {self.seen.number} begins, but the arguments ask for {self._total}"])

    def before_update(self) -> None:
        seen = self.seen
        if not seen.window and seen.argument("torch_compile"):
            return
        if seen.accumulation:
            made = len(seen.window)
            wrong = made != seen.accumulation
            self.judge([f"the step has {made} micro-batches, expected {seen.accumulation}"] if wrong else [])
            return
        spec = seen.spec
        assert spec is not None
        try:
            _, places = expected_places(spec, seen.number, seen.rank if seen.world > 1 else None, seen.resumed_step)
        except NotModelled as reason:
            self.skip(str(reason))
            return
        rows, expected = [batch.rows for batch in seen.window], [len(batch) for batch in places]
        if self._collator or spec.data.iterable:
            wrong = len(rows) != len(expected) and not spec.data.iterable
            self.judge([f"the window has {len(rows)} micro-batches, expected {len(expected)}"] if wrong else [])
            return
        self.judge([f"micro-batches of {rows} rows, expected {expected}"] if rows != expected else [])

    def end(self) -> None:
        seen = self.seen
        if seen.accumulation:
            return
        stopped = seen.foreign or (getattr(seen.control, "should_training_stop", False) and seen.number != self._total)
        if self._total is None or self._early_stop() or seen.spec is None or seen.spec.data.iterable:
            return
        made = int(seen.state.global_step)
        if made == self._total or (made < self._total and seen.foreign):
            self.judge([])
        elif stopped and made < self._total and not self._stopped_by_itself():
            self.skip("training was stopped")
        else:
            self.judge([f"the run made {made} steps, the arguments ask for {self._total}"])

    def _stopped_by_itself(self) -> bool:
        """Return whether the Trainer's own step counter ended the run: it takes max_steps of its state for the last step."""
        return int(self.seen.state.global_step) >= int(self.seen.state.max_steps or 0)

    def _early_stop(self) -> bool:
        found = getattr(getattr(self.seen.trainer, "callback_handler", None), "callbacks", ())
        return any(type(callback).__name__ == "EarlyStoppingCallback" for callback in found)


class Events(Check):
    """Judges the order of the events of a window, and whether logs, evaluations and saves come when they are due."""

    id = "events"

    #: Event -> those that may come before it in a window.
    _BEFORE = {
        "substep": ("step_begin", "substep"),
        "before_update": ("step_begin", "substep"),
        "after_update": ("before_update",),
        "step_end": ("after_update",),
    }

    def why_not(self) -> str | None:
        if self.seen.trainer is None:
            return "a loop has no events"
        own = self.seen.overridden("_inner_training_loop", "_run_epoch", "_maybe_log_save_evaluate")
        return f"{own} is the user's own" if own else None

    def begin(self) -> None:
        self._last = ""
        self._substeps = 0
        self._due: dict[str, int] = {}

    def _comes(self, event: str) -> None:
        before = self._BEFORE[event]
        if self._last not in before and self._last:
            self.judge([f"{event} came after {self._last}, expected {' or '.join(before)}"])
        self._last = event

    def step_begin(self) -> None:
        self._missed()
        if self._last not in ("", "step_end"):
            self.judge([f"a step begins after {self._last}, expected step_end"])
        self._last, self._substeps = "step_begin", 0

    def substep_end(self) -> None:
        self._comes("substep")
        self._substeps += 1

    def before_update(self) -> None:
        self._comes("before_update")
        window = len(self.seen.window)
        if window and self._substeps != window - 1:
            self.judge([f"{self._substeps} events substep_end for {window} micro-batches, expected {window - 1}"])
        else:
            self.judge([])

    def after_update(self) -> None:
        self._comes("after_update")

    def step_end(self) -> None:
        self._comes("step_end")
        seen = self.seen
        self._due = {}
        if seen.foreign or seen.spec is None:
            self.skip(
                "callbacks of your own may log, evaluate and save at other steps" if seen.foreign else seen.unknown
            )
            return
        for kind in ("logging", "eval", "save"):
            strategy = str(getattr(seen.argument(f"{kind}_strategy"), "value", seen.argument(f"{kind}_strategy")))
            steps = int(getattr(seen.state, f"{kind}_steps", 0) or 0)
            if strategy != "steps" or steps < 1 or (kind == "eval" and seen.argument("eval_delay")):
                continue
            last = seen.number >= seen.state.max_steps and kind != "logging"
            if seen.number % steps == 0 or last:
                self._due[kind] = seen.number

    def logged(self, logs: dict[str, Any]) -> None:
        self._due.pop("logging", None)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        self._due.pop("eval", None)

    def saved(self, path: Any) -> None:
        self._due.pop("save", None)

    def epoch_end(self) -> None:
        self._missed()

    def _missed(self) -> None:
        words = {"logging": "log", "eval": "evaluation", "save": "save"}
        for kind, number in self._due.items():
            if callbacks_may_stop(self.seen) and kind != "logging":
                continue
            self.judge([f"no {words[kind]} came after step {number}, where one is due"])
        self._due = {}


def callbacks_may_stop(seen: Any) -> bool:
    """Return whether a callback has stopped the run, so that what is due may not come."""
    return bool(seen.control is not None and seen.control.should_training_stop and seen.number < seen.state.max_steps)


class Rows(Check):
    """Judges at sampled steps that the rows are those that the seed gives, token by token."""

    id = "rows"

    def why_not(self) -> str | None:
        seen = self.seen
        if reason := own_rows(seen) or collator_changes(seen):
            return reason
        if readable(seen) is None:
            return (
                f"a {type(getattr(seen.loader, 'dataset', None)).__name__} is not read: that might draw random numbers"
            )
        return None

    def begin(self) -> None:
        self._tokens: list[Any] = []
        self._last_reason = ""

    def step_begin(self) -> None:
        self._tokens = []

    def forward(self, batch: MicroPass, inputs: dict[str, Any], output: Any) -> None:
        if self.seen.sampled:
            self._tokens.append((inputs.get("input_ids"), inputs.get("attention_mask")))

    def before_update(self) -> None:
        seen, spec = self.seen, self.seen.spec
        if not seen.sampled or not self._tokens or spec is None:
            return
        if any(not isinstance(tokens, torch.Tensor) for tokens, _ in self._tokens):
            self.skip("the model is given no input_ids")
            return
        try:
            expected = expected_rows(spec, seen.number, seen.rank if seen.world > 1 else None, seen.resumed_step)
        except NotModelled as reason:
            self.skip(str(reason))
            return
        dataset = readable(seen)
        found: list[str] = []
        for index, ((tokens, mask), rows) in enumerate(zip(self._tokens, expected, strict=False)):
            shown = [_row(line, hidden) for line, hidden in zip(tokens.tolist(), _lists(mask, tokens), strict=True)]
            wanted = [_row(*_of_dataset(dataset, row)) for row in rows]
            if not all(_alike(a, b) for a, b in zip(shown, wanted, strict=False)) or len(shown) != len(wanted):
                found.append(f"micro-batch {index + 1} does not hold rows {rows} of the data, as the seed gives them")
        self.judge(found[:1])


def readable(seen: Any) -> Any:
    """Return the data set if reading a row of it has no effect; None otherwise, and for one without a length."""
    dataset = getattr(seen.loader, "dataset", None)
    if isinstance(dataset, (list, tuple)):
        return dataset
    module = type(dataset).__module__
    if module == "datasets.arrow_dataset":
        kind = dict(getattr(dataset, "format", None) or {}).get("type")
        return dataset if kind in (None, "python", "torch", "numpy") else None
    if module == "harness.fixtures.data" and type(dataset).__name__ == "Rows":
        return dataset if not any(getattr(cell.cell_contents, "augment", False) for cell in _cells(dataset)) else None
    return None


def _cells(dataset: Any) -> Any:
    return getattr(type(dataset).__getitem__, "__closure__", None) or ()


def _of_dataset(dataset: Any, row: int) -> tuple[list[int], list[int] | None]:
    item = dataset[row]
    tokens, mask = item["input_ids"], item.get("attention_mask")
    as_list: Any = lambda value: value.tolist() if hasattr(value, "tolist") else list(value)  # noqa: E731
    return as_list(tokens), None if mask is None else as_list(mask)


def _lists(mask: Any, tokens: Any) -> list[Any]:
    usable = isinstance(mask, torch.Tensor) and mask.shape == tokens.shape
    return mask.tolist() if usable else [None] * len(tokens)


def _row(tokens: list[int], mask: list[int] | None) -> tuple[int, ...]:
    return tuple(tokens if mask is None else [token for token, shown in zip(tokens, mask, strict=False) if shown])


def _alike(seen: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether two rows are the same but for padding, which a batch may have without saying where."""
    if seen == expected:
        return True
    short, long = sorted((seen, expected), key=len)
    padding = len(long) - len(short)
    ends = (long[:padding], long[len(short) :])
    return padding > 0 and any(
        len(set(end)) == 1 and body == short
        for end, body in zip(ends, (long[padding:], long[: len(short)]), strict=True)
    )


class RowsOnce(Check):
    """Judges that no row comes twice in an epoch, by a hash of each row's tokens that stays on the device."""

    id = "rows-once"

    def why_not(self) -> str | None:
        if self.seen.trainer is None:
            return "a loop does not say where an epoch ends"
        return own_rows(self.seen) or collator_changes(self.seen)

    def begin(self) -> None:
        self._hashes: list[Any] = []
        self._rows: list[int] = []

    def epoch_begin(self) -> None:
        self._hashes, self._rows = [], []

    def step_begin(self) -> None:
        # Hashes wait on the device until a step that is sampled in any case, so that no other step waits for them.
        if self.seen.sampled:
            self._read()

    def _read(self) -> None:
        if self._hashes:
            self._rows += torch.cat(self._hashes).tolist()
            self._hashes = []

    def forward(self, batch: MicroPass, inputs: dict[str, Any], output: Any) -> None:
        tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if isinstance(tokens, torch.Tensor) and tokens.dim() == 2 and not tokens.is_floating_point():
            shown = mask if isinstance(mask, torch.Tensor) and mask.shape == tokens.shape else None
            self._hashes.append(hashes(tokens, shown))

    def epoch_end(self) -> None:
        self._read()
        if not self._rows:
            self.skip("the model is given no input_ids")
            return
        seen = Counter(self._rows)
        self._rows = []
        repeated = {key: count for key, count in seen.items() if count > 1}
        if not repeated:
            self.judge([])
            return
        dataset = readable(self.seen)
        if self.seen.world > 1 or dataset is None or len(dataset) > MOST_ROWS:
            self.skip("rows come twice, and whether the data hold them twice was not looked up")
            return
        owned: Counter[int] = Counter()
        for row in range(len(dataset)):
            tokens, mask = (torch.tensor([value]) if value is not None else None for value in _of_dataset(dataset, row))
            owned[int(hashes(tokens, mask)[0])] += 1
        more = sum(count - owned.get(key, 1) for key, count in repeated.items() if count > owned.get(key, 1))
        self.judge([f"{more} rows were trained again in one epoch"] if more else [])


def hashes(tokens: Any, mask: Any = None) -> Any:
    """Return a 64-bit hash of each row's tokens without its padding, on the device."""
    shown = torch.ones_like(tokens) if mask is None else (mask != 0).to(tokens.dtype)
    place = shown.cumsum(-1).long()
    mixed = (tokens.long() + 1) * (place * place * 0x2545F4914F6CDD1D + place * 0x1B873593CC9E2D51)
    return ((mixed ^ (mixed >> 29)) * shown).sum(-1)
