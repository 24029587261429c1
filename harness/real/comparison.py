"""The three runs of `peft-harness train`, the checks on them, and the files that record both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.errors import UsageError
from harness.files import out_of_space, reason
from harness.fixtures import models
from harness.progress import Progress
from harness.real import answers, checks, show
from harness.real.answers import Question
from harness.real.checks import Check
from harness.real.inputs import Rows, write_rows
from harness.real.progress import LiveRuns, output_redirected
from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.trace import Trace

SCHEMA_VERSION = 1


class Comparison:
    """Trains a spec with two subjects, then the first one again from its middle checkpoint, and judges the runs.

    - console: where everything is shown
    - spec: the whole run; `spec.data.path` lies in `target`
    - rows: the content of `spec.data.path`
    - tokenizer: the model's
    - subjects: two; the first is judged, the second is what it is compared with
    - model: the base model of the spec, which is asked before training
    - target: a new or empty directory. It gets rows.jsonl, spec.json, result.json, loss-curves.png, train.log (what the
      trainers print) and runs/ (checkpoints)
    """

    def __init__(
        self,
        console: Console,
        spec: RunSpec,
        rows: Rows,
        tokenizer: Any,
        model: Any,
        subjects: list[Subject],
        target: Path,
    ):
        self.console = console
        self.spec = spec
        self.rows = rows
        self.tokenizer = tokenizer
        self.model = model
        self.subjects = subjects
        self.target = target
        self.started = time.perf_counter()
        first, second = (subject.name for subject in subjects)
        #: The runs' names in tables and files. Two runs of one subject must differ.
        self.labels = (first, second if second != first else f"{second} again")
        self._log = target / "train.log"

    def run(self) -> int:
        """Train, judge, show and write everything. Return the exit code (`checks.exit_code`).

        Raises UsageError if the disk is full. What is written until then stays, without a result.json.
        """
        try:
            return self._run()
        except OSError as error:
            raise UsageError(
                out_of_space(error, [self.target]) or f"{self.target}: cannot be written ({reason(error)})"
            ) from None

    def _run(self) -> int:
        self.target.mkdir(parents=True, exist_ok=True)
        write_rows(self.rows.encoded, self.target / "rows.jsonl")
        show.write_json(self.spec.to_json(), self.target / "spec.json")
        self._print_inputs()

        asked = answers.questions(self.rows.examples, self.rows.held_out)
        with Progress(None, "asking the model, before training"), output_redirected(self._log):
            before = answers.answer(self.model, None, self.tokenizer, asked)
        self.model = None  # a second copy in memory would be of no use
        runs, resumed = self._train()
        for trace in (*runs.values(), resumed):
            if trace is not None and trace.error and (full := out_of_space(RuntimeError(trace.error), [self.target])):
                raise UsageError(full)
        judged = checks.judge(runs, resumed)
        with Progress(None, "asking the model, after training"), output_redirected(self._log):
            after = self._answers_after(runs[self.labels[0]], asked)
        answered = [
            {"question": question.text, "trained_on": question.trained_on, "before": old, "after": new}
            for question, old, new in zip(asked, before, after, strict=True)
        ]

        steps = show.steps_of(runs)
        show.print_steps(self.console, steps, self.labels)
        for label, trace in runs.items():
            if trace.error is not None:
                self.console.print(f"{label} ended with {checks.shorten(trace.error)}", style="red", soft_wrap=True)
        show.print_checks(self.console, judged)
        show.print_answers(self.console, answered)
        bit_equal = judged[0].verdict.holds
        show.write_json(self._result(runs, resumed, steps, judged, answered), self.target / "result.json")
        self._plot(steps, bit_equal)
        self._print_totals(runs, judged)
        return checks.exit_code(judged)

    def _print_inputs(self) -> None:
        rows, spec = self.rows, self.spec
        left_out = f", {rows.left_out} left out (no room for an answer)" if rows.left_out else ""
        self.console.print(f"model   {spec.model.path}", soft_wrap=True)
        self.console.print(
            f"rows    {len(rows.encoded)} from {rows.source}, {rows.answer_tokens} answer tokens{left_out}"
        )
        steps, batch = spec.arguments["max_steps"], spec.arguments["per_device_train_batch_size"]
        if batch > len(rows.encoded):
            self.console.print(
                f"rows    a step has {len(rows.encoded)} rows: there are no more, and --batch-size is {batch}"
            )
            batch = len(rows.encoded)
        base = "NF4 computing in float32" if spec.model.quantization else "float32"
        self.console.print(
            f"run     {steps} steps of {batch} rows of up to {spec.data.length} tokens, {base}, {spec.launch.device}, "
            f"{spec.launch.threads} threads"
        )

    def _train(self) -> tuple[dict[str, Trace], Trace | None]:
        """Return the traces of the two whole runs by label, and that of the resumed run. None: there was none to resume."""
        first, second = self.subjects
        steps = int(self.spec.arguments["max_steps"])
        middle = int(self.spec.arguments["save_steps"])
        continued = f"{self.labels[0]} from step {middle}"
        runs = Runs(first, self.target / "runs", self.spec.launch.device)
        live = LiveRuns(self.console, {**dict.fromkeys(self.labels, steps), continued: steps - middle})
        resumed = None
        with live.showing(), output_redirected(self._log):
            with live.run(self.labels[0]):
                judged = runs.train(self.spec)
            with live.run(self.labels[1]):
                # Traces are cached by subject and spec: the second run of one subject must not be read from there.
                other = runs.train(self.spec, second, again=second.name == first.name)
            if judged.error is None:
                with live.run(continued):
                    resumed = runs.train(self.spec.resumed(middle))
        return {self.labels[0]: judged, self.labels[1]: other}, resumed

    def _answers_after(self, trace: Trace, asked: list[Question]) -> list[str | None]:
        """Return the answers with the last checkpoint's adapter, loaded by peft. None: there is none that peft loads."""
        if trace.error is not None or not trace.checkpoints:
            return [None] * len(asked)
        try:
            adapter = Path(trace.checkpoints[-1].path)
            return answers.answer(models.build(self.spec.model), adapter, self.tokenizer, asked)
        except Exception as error:  # another trainer's checkpoint may be in a format that peft does not read
            self.console.print(f"peft does not load the adapter of {trace.subject}: {error}", style="red")
            return [None] * len(asked)

    def _result(
        self,
        runs: dict[str, Trace],
        resumed: Trace | None,
        steps: list[dict[str, Any]],
        judged: list[Check],
        answered: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Return the content of result.json."""
        first = next(iter(runs.values()))
        return {
            "schema_version": SCHEMA_VERSION,
            "environment": first.environment,
            "spec": self.spec.to_json(),
            "subjects": [subject.name for subject in self.subjects],
            "trained_numbers": checks.numbers_of(first),
            "rows": {
                "source": self.rows.source,
                "rows": len(self.rows.encoded),
                "left_out": self.rows.left_out,
                "answer_tokens": self.rows.answer_tokens,
            },
            "steps": steps,
            "bit_equal": judged[0].verdict.holds,
            "checks": [check.to_json() for check in judged],
            "answers": answered,
            "errors": {label: trace.error for label, trace in runs.items() if trace.error is not None},
            "seconds": {
                **{label: trace.seconds for label, trace in runs.items()},
                "resumed": resumed.seconds if resumed else None,
                "altogether": time.perf_counter() - self.started,
            },
        }

    def _plot(self, steps: list[dict[str, Any]], bit_equal: bool) -> None:
        """Write loss-curves.png, or say why there is none."""
        name, rank = Path(str(self.spec.model.path)).name, self.spec.adapter.config["r"]
        method = "QLoRA" if self.spec.model.quantization else "LoRA"
        title = f"{name}, {method} r={rank}: the two runs are {'' if bit_equal else 'not '}bit-equal"
        if not show.plot(steps, self.labels, title, self.target / "loss-curves.png"):
            self.console.print("no loss-curves.png: matplotlib is not installed, `pip install matplotlib`")

    def _print_totals(self, runs: dict[str, Trace], judged: list[Check]) -> None:
        failed = sum(check.fails for check in judged)
        held = sum(check.verdict.holds for check in judged)
        by_design = sum(check.by_design for check in judged)
        not_judged = len(judged) - held - failed - by_design
        counts = [f"{held} of {len(judged)} checks hold"]
        if failed:
            counts.append(f"{failed} fail")
        if not_judged:
            counts.append(f"{not_judged} not judged")
        if by_design:
            counts.append(f"{by_design} not judged by design")
        self.console.print(", ".join(counts))
        times = ", ".join(f"{label} {trace.seconds:.0f} s" for label, trace in runs.items())
        seconds = time.perf_counter() - self.started
        self.console.print(f"training took {times}; everything {seconds:.0f} s")
        self.console.print(f"written to {self.target}", soft_wrap=True)
