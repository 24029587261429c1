"""One session of `peft-harness train`: three runs, the checks on them, and the files that tell of both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.real import answers, checks, show
from harness.real.answers import Asked
from harness.real.checks import Check
from harness.real.inputs import Rows, write_rows
from harness.real.progress import Watch, kept_quiet
from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.trace import Trace

SCHEMA_VERSION = 1


class Session:
    """Trains a spec with two subjects, the first one again from its middle checkpoint, and judges.

    console: where it is shown. rows: what goes into `spec.data.path`. target: a directory that is new or empty; gets
    rows.jsonl, spec.json, result.json, loss-curves.png, train.log (what trainers print) and runs/ (checkpoints).
    """

    def __init__(
        self, console: Console, spec: RunSpec, rows: Rows, tokenizer: Any, subjects: list[Subject], target: Path
    ):
        self.console = console
        self.spec = spec
        self.rows = rows
        self.tokenizer = tokenizer
        self.subjects = subjects
        self.target = target
        self.started = time.perf_counter()
        first, second = (one.name for one in subjects)
        self.labels = (first, second if second != first else f"{second} again")
        self._log = target / "train.log"

    def go(self) -> int:
        """Everything; 0 if every check holds, 1 if one fails."""
        self.target.mkdir(parents=True, exist_ok=True)
        write_rows(self.rows.encoded, self.target / "rows.jsonl")
        show.write_json(self.spec.to_json(), self.target / "spec.json")
        self._introduce()
        asked = answers.questions(self.rows.examples, self.rows.held_out)
        with self.console.status("asking the model, before training"), kept_quiet(self._log):
            before = answers.answer(self.spec.model, None, self.tokenizer, asked)
        runs, resumed = self._train()
        judged = checks.judge(runs, resumed)
        with self.console.status("asking the model, after training"), kept_quiet(self._log):
            after = self._answers_after(runs[self.labels[0]], asked)
        told = [
            {"question": one.question, "trained_on": one.trained_on, "before": old, "after": new}
            for one, old, new in zip(asked, before, after, strict=True)
        ]
        steps = show.steps_of(runs)
        show.print_steps(self.console, steps, self.labels)
        for label, trace in runs.items():
            if trace.error is not None:
                self.console.print(f"{label} ended with {checks.shorten(trace.error)}", style="red", soft_wrap=True)
        show.print_checks(self.console, judged)
        show.print_answers(self.console, told)
        self._keep(runs, resumed, steps, judged, told)
        return self._conclude(runs, judged)

    def _introduce(self) -> None:
        rows, spec = self.rows, self.spec
        left_out = f", {rows.left_out} left out (no room for an answer)" if rows.left_out else ""
        self.console.print(f"model   {spec.model.path}", soft_wrap=True)
        self.console.print(
            f"rows    {len(rows.encoded)} from {rows.source}, {rows.answer_tokens} answer tokens{left_out}"
        )
        steps, batch = spec.arguments["max_steps"], spec.arguments["per_device_train_batch_size"]
        base = "NF4 computing in float32" if spec.model.quantization else "float32"
        self.console.print(
            f"run     {steps} steps of {batch} rows of up to {spec.data.length} tokens, {base}, {spec.launch.device}, "
            f"{spec.launch.threads} threads"
        )

    def _train(self) -> tuple[dict[str, Trace], Trace | None]:
        one, other = self.subjects
        steps = int(self.spec.arguments["max_steps"])
        middle = int(self.spec.arguments["save_steps"])
        continued = f"{self.labels[0]} from step {middle}"
        runs = Runs(one, self.target / "runs", self.spec.launch.device)
        watch = Watch(self.console, {**dict.fromkeys(self.labels, steps), continued: steps - middle})
        resumed = None
        with watch.showing(), kept_quiet(self._log):
            with watch.run(self.labels[0]):
                first = runs.train(self.spec)
            with watch.run(self.labels[1]):
                second = runs.train(self.spec, other, again=other.name == one.name)
            if first.error is None:
                with watch.run(continued):
                    resumed = runs.train(self.spec.resumed(middle))
        return {self.labels[0]: first, self.labels[1]: second}, resumed

    def _answers_after(self, trace: Trace, asked: list[Asked]) -> list[str | None]:
        """Answers with the adapter as peft loads it from the last checkpoint; None where it does not."""
        if trace.error is not None or not trace.checkpoints:
            return [None] * len(asked)
        try:
            return [*answers.answer(self.spec.model, Path(trace.checkpoints[-1].path), self.tokenizer, asked)]
        except Exception as error:  # another trainer's checkpoint may be in no format that peft knows
            self.console.print(f"peft does not load the adapter of {trace.subject}: {error}", style="red")
            return [None] * len(asked)

    def _keep(
        self,
        runs: dict[str, Trace],
        resumed: Trace | None,
        steps: list[dict[str, Any]],
        judged: list[Check],
        told: list[dict[str, Any]],
    ) -> None:
        first = next(iter(runs.values()))
        equal = judged[0].verdict.holds
        result = {
            "schema_version": SCHEMA_VERSION,
            "environment": first.environment,
            "spec": self.spec.to_json(),
            "subjects": [one.name for one in self.subjects],
            "trained_numbers": checks.numbers_of(first),
            "rows": {
                "source": self.rows.source,
                "rows": len(self.rows.encoded),
                "left_out": self.rows.left_out,
                "answer_tokens": self.rows.answer_tokens,
            },
            "steps": steps,
            "bit_equal": equal,
            "checks": [check.to_json() for check in judged],
            "answers": told,
            "errors": {label: trace.error for label, trace in runs.items() if trace.error is not None},
            "seconds": {
                **{label: trace.seconds for label, trace in runs.items()},
                "resumed": resumed.seconds if resumed else None,
                "altogether": time.perf_counter() - self.started,
            },
        }
        show.write_json(result, self.target / "result.json")
        name, rank = Path(str(self.spec.model.path)).name, self.spec.adapter.config["r"]
        kind = "QLoRA" if self.spec.model.quantization else "LoRA"
        title = f"{name}, {kind} r={rank}: the two runs are {'' if equal else 'not '}bit-equal"
        if not show.plot(steps, self.labels, title, self.target / "loss-curves.png"):
            self.console.print("no loss-curves.png: matplotlib is not installed, `pip install matplotlib`")

    def _conclude(self, runs: dict[str, Trace], judged: list[Check]) -> int:
        failed = sum(check.fails for check in judged)
        open_ones = sum(not check.verdict.holds for check in judged) - failed
        counts = [f"{len(judged) - failed - open_ones} of {len(judged)} checks hold"]
        counts += [f"{failed} fail"] * (failed > 0) + [f"{open_ones} not judged"] * (open_ones > 0)
        self.console.print(", ".join(counts))
        times = ", ".join(f"{label} {trace.seconds:.0f} s" for label, trace in runs.items())
        seconds = time.perf_counter() - self.started
        self.console.print(f"training took {times}; everything {seconds:.0f} s")
        self.console.print(f"written to {self.target}", soft_wrap=True)
        return 1 if failed else 0
