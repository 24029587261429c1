"""What is left of a small adapter in bfloat16, by learning rate, rank, alpha, dtypes, steps, and by the way to compute it.

    python -m harness.serving.survives --json FILE [--plot FILE] [--model DIR --tokens JSONL] [--rows N] [--steps 1,10,50]
    python -m harness.serving.survives --json FILE --layers 30 --text FILE --device cuda --compiled --long 4

1. `rows` chooses configurations so that each pair of values of two fields occurs (greedy pairwise cover).
2. Each is trained twice from the same start by AdamW at a constant rate, without a Trainer: in float32, and under bfloat16
   autocast on its own base.
3. At each number of steps the float32 run's adapter is computed in each of `WAYS`. `harness.laws.effect_share` says what
   share of its effect on the logits is there. The same is asked of the change of the loss.
4. Gradients: of one batch, at that adapter, under autocast beside float32 (cosine, and ratio of lengths).
5. Learned: the change of the float32 loss by the adapter that was trained under autocast, as a share of the float32 run's.
6. The first `--long` configurations go on to 500 steps.

Without `--model` the weights are random. `--layers N` makes them a Llama as wide as SmolLM2-135M, with N layers. `--text`
takes the bytes of a text as tokens. `--part I/N` measures each N-th configuration only, for N processes side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import itertools
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from harness.environment import check_device, describe
from harness.files import write_figure, write_whole
from harness.fixtures import data, models
from harness.laws import effect_share
from harness.spec import RunSpec
from harness.subjects.hf_trainer import inject

#: The width of SmolLM2-135M, with a vocabulary of bytes.
WIDE: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip

#: Rows whose logits are compared.
HELD = 40

#: Steps at which the first `--long` configurations end, and tokens of a row of `--text`.
LONG, ROW = 500, 128

#: Field -> values that are tried.
FIELDS: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-5, 1e-4, 1e-3),
    "r": (4, 16, 64),
    "alpha_over_r": (1, 2),
    "base": ("float32", "bfloat16", "nf4"),
    "adapter": ("float32", "bfloat16"),
    "checkpointing": (False, True),
}


def rows(most: int) -> list[dict[str, Any]]:
    """Return configurations in which each pair of values of two fields occurs, the first `most` of them."""
    every = [dict(zip(FIELDS, values, strict=True)) for values in itertools.product(*FIELDS.values())]
    left = {pair for row in every for pair in _pairs(row)}
    chosen: list[dict[str, Any]] = []
    while left and len(chosen) < most:
        best = max(every, key=lambda row: len(_pairs(row) & left))
        left -= _pairs(best)
        chosen.append(best)
    return chosen


def _pairs(row: dict[str, Any]) -> set[Any]:
    return set(itertools.combinations(row.items(), 2))


# ---- models ----


class Subject:
    """A configuration: its base with an adapter, made anew for each way. layers: of a model as wide as SmolLM2; 0: tiny."""

    def __init__(
        self, row: dict[str, Any], model: Path | None, tokens: list[list[int]], device: str = "cpu", layers: int = 0
    ):
        self.row, self.tokens, self.device = row, tokens, device
        quantization = "nf4" if row["base"] == "nf4" else None
        dtype = "bfloat16" if row["base"] == "bfloat16" else "float32"
        changes: dict[str, Any] = {
            "dtype": dtype,
            "quantization": quantization,
            "path": None if model is None else str(model),
        }
        if layers:
            changes["config"] = {**WIDE, "num_hidden_layers": layers}
        lora = {"r": row["r"], "lora_alpha": row["r"] * row["alpha_over_r"], "lora_dropout": 0.0}
        self.spec = RunSpec().but(model=changes, lora=lora)

    def build(self, float32: bool = False) -> Any:
        """Return the base with the adapter as it starts. float32: compute in float32, of the same weights."""
        model = inject(models.build(self.spec.model).to(self.device), self.spec.adapter)
        model = model.float() if float32 and self.row["base"] != "nf4" else model
        if self.row["adapter"] == "bfloat16" and not float32:
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.bfloat16()
        return model

    def batch(self, step: int) -> torch.Tensor:
        size = 4
        chosen = [self.tokens[(step * size + index) % len(self.tokens)] for index in range(size)]
        return torch.tensor(chosen, device=self.device)

    def train(self, steps: list[int], autocast: bool) -> dict[int, dict[str, torch.Tensor]]:
        """Return the adapter after each number of steps."""
        model = self.build(float32=not autocast).train()
        if self.row["checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=self.row["learning_rate"])
        kept = {}
        for step in range(1, max(steps) + 1):
            loss_of(model, self.batch(step), autocast).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step in steps:
                kept[step] = {name: p.detach().float().clone() for name, p in trained.items()}
        return kept


def _autocast(on: bool, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def loss_of(model: Any, tokens: torch.Tensor, autocast: bool) -> torch.Tensor:
    with _autocast(autocast, tokens.device):
        found: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return found


def put(model: Any, adapter: dict[str, torch.Tensor] | None) -> None:
    """Put an adapter's values into a model; None: an adapter that adds nothing."""
    for name, parameter in model.named_parameters():
        if ".lora_B" in name or (adapter is not None and ".lora_A" in name):
            parameter.data.copy_(torch.zeros_like(parameter) if adapter is None else adapter[name])


# ---- ways to compute ----


def _plain(model: Any) -> Any:
    return model


def _half(model: Any) -> Any:
    """Everything but the adapter in bfloat16, as a server loads it."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and parameter.dtype == torch.float32:
            parameter.data = parameter.data.bfloat16()
    return model


def _merged(model: Any) -> Any:
    return _half(model).merge_and_unload()


def _sum_first(model: Any) -> Any:
    """Layers add the adapter's output, in float32, to a product that is not rounded yet."""
    for layer in _half(model).modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            layer.forward = functools.partial(_unrounded, layer)
    return model


def _unrounded(layer: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        whole: torch.Tensor = x.float() @ layer.base_layer.weight.float().T
        for name in layer.active_adapters:
            a, b = (part[name].weight.float() for part in (layer.lora_A, layer.lora_B))
            whole = whole + x.float() @ a.T @ b.T * layer.scaling[name]
    return whole.to(layer.base_layer.weight.dtype)


def _float32_layers(model: Any) -> Any:
    """Layers return the sum of base and adapter in float32, and the stream between the layers is float32."""
    _sum_first(model)
    for layer in model.modules():
        if isinstance(getattr(layer, "forward", None), functools.partial):
            layer.forward = functools.partial(_wide, layer)
    return _float32_residual(model, half=False)


def _wide(layer: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    result: torch.Tensor = layer.base_layer(x).float()
    for name in layer.active_adapters:
        a, b = (part[name].weight.float() for part in (layer.lora_A, layer.lora_B))
        with torch.autocast(x.device.type, enabled=False):
            result = result + x.float() @ a.T @ b.T * layer.scaling[name]
    return result


def _float32_residual(model: Any, half: bool = True) -> Any:
    """The stream between the layers is float32: what is added to it is bfloat16."""
    model = _half(model) if half else model
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data.float()
    return model


def _compiled(model: Any) -> Any:
    """Compile each decoder layer. All have the same code, which is compiled once."""
    for layer in model.modules():
        if type(layer).__name__.endswith("DecoderLayer"):
            layer.forward = torch.compile(layer.forward)
    return model


#: Way -> what it does to the model, whether it computes under autocast, and whether it is for packed bases, too.
WAYS: dict[str, tuple[Callable[[Any], Any], bool, bool]] = {
    "autocast, eager": (_plain, True, True),
    "autocast, compiled": (_compiled, True, False),
    "bfloat16, unmerged": (_half, False, False),
    "bfloat16, merged": (_merged, False, False),
    "mend: float32 residual stream": (_float32_residual, True, False),
    "mend: added in float32 before the cast": (_sum_first, False, False),
    "mend: sum and residual stream float32": (_float32_layers, True, False),
}


def computed(model: Any, tokens: torch.Tensor, autocast: bool) -> tuple[torch.Tensor, float]:
    """Return logits (tokens, vocabulary) in float64, and the loss."""
    with torch.no_grad(), _autocast(autocast, tokens.device):
        found = model(input_ids=tokens, labels=tokens)
    logits = found.logits.double()
    # The loss in float64: what the logits say, and not how the loss rounds.
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return logits.flatten(0, 1), float(loss)


def _change(
    subject: Subject, make: Callable[[Any], Any], autocast: bool, adapter: Any, exact: bool, held: torch.Tensor
) -> tuple[torch.Tensor, float]:
    seen = []
    for values in (adapter, None):
        model = subject.build(float32=exact)
        put(model, values)
        seen.append(computed(make(model.eval()), held, autocast))
    return seen[0][0] - seen[1][0], seen[0][1] - seen[1][1]


def gradients(subject: Subject, adapter: Any) -> dict[str, Any]:
    """Return cosine and ratio of lengths of the gradients of lora_A and lora_B, under autocast beside float32."""
    found: list[dict[str, torch.Tensor]] = []
    for exact in (True, False):
        model = subject.build(float32=exact).train()
        put(model, adapter)
        loss_of(model, subject.batch(0), not exact).backward()
        parts: dict[str, list[torch.Tensor]] = {"lora_A": [], "lora_B": []}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parts["lora_A" if "lora_A" in name else "lora_B"].append(parameter.grad.double().flatten())
        found.append({name: torch.cat(part) for name, part in parts.items()})
    exactly, seen = found
    return {
        name: {
            "cosine": float(torch.nn.functional.cosine_similarity(seen[name], exactly[name], dim=0)),
            "length": float(seen[name].norm() / exactly[name].norm()),
        }
        for name in seen
    }


def measure(subject: Subject, steps: list[int], compiled: bool) -> Iterator[dict[str, Any]]:
    """Yield the measurement of a configuration after each number of steps. compiled: whether compiled layers are measured."""
    row = subject.row
    exactly, as_is = (subject.train(steps, autocast) for autocast in (False, True))
    held = torch.tensor(subject.tokens[:HELD], device=subject.device)
    for step in steps:
        effect, fall = _change(subject, _plain, False, exactly[step], True, held)
        ways: dict[str, Any] = {}
        for way, (make, autocast, packed) in WAYS.items():
            if (row["base"] == "nf4" and not packed) or (make is _compiled and not compiled):
                continue
            seen, fell = _change(subject, make, autocast, exactly[step], False, held)
            ways[way] = {**vars(effect_share.share(seen, effect)), "loss": fell / fall if fall else None}
        learned = _change(subject, _plain, False, as_is[step], True, held)[1]
        yield {
            **row,
            "steps": step,
            "effect": float(effect.square().mean().sqrt()),
            "loss_change": fall,
            "ways": ways,
            "gradients": gradients(subject, exactly[step]),
            "learned": learned / fall if fall else None,
        }


# ---- output ----


def figure(results: list[dict[str, Any]]) -> Any:
    """Return the plot: the share that is left, by way, against the size of the effect on the logits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(8, 5))
    for index, way in enumerate(WAYS):
        points = [(one["effect"], one["ways"][way]) for one in results if way in one["ways"]]
        if points:
            x = [size for size, _ in points]
            y = [found["share"] for _, found in points]
            error = [found["uncertainty"] for _, found in points]
            axes.errorbar(x, y, yerr=error, fmt="osv^Dx*"[index % 7], label=way, capsize=2, lw=0.8)
    axes.set(xscale="log", xlabel="effect of the adapter on the logits in float32 (root mean square)", ylim=(-0.3, 1.5))
    axes.set_ylabel("share of it that is left")
    axes.axhline(1.0, color="grey", lw=0.8)
    axes.legend(fontsize=7)
    drawn.tight_layout()
    return drawn


def table(results: list[dict[str, Any]]) -> str:
    """Return the measurements as Markdown."""
    lines = ["| lr | r | alpha/r | base | adapter | ckpt | steps | " + " | ".join(WAYS) + " | loss, eager | learned |"]
    lines.append("|" + "--|" * (9 + len(WAYS)))
    for one in results:
        cells = [f"{one['learning_rate']:.0e}", *(str(one[name]) for name in [*FIELDS][1:]), str(one["steps"])]
        for way in WAYS:
            found = one["ways"].get(way)
            cells.append("" if found is None else f"{found['share']:.2f} ±{found['uncertainty']:.2f}")
        eager = one["ways"]["autocast, eager"]["loss"]
        cells += [f"{value:.2f}" if value is not None else "" for value in (eager, one["learned"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _made(layers: int) -> str:
    return f"random Llama as wide as SmolLM2-135M, {layers} layers" if layers else "tiny llama of fixtures/models.py"


def main() -> None:
    """Measure, and write after each configuration, so that what is interrupted is not lost."""
    from harness.processes.imports import import_upstream

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--steps", default="1,10,50")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layers", type=int, default=0, help="random weights as wide as SmolLM2-135M, with N layers")
    parser.add_argument("--text", type=Path, help="a text, whose bytes are the tokens")
    parser.add_argument("--long", type=int, default=0, help=f"the first N configurations go on to {LONG} steps")
    parser.add_argument("--part", default="0/1", help="I/N: each N-th configuration from the I-th on")
    parser.add_argument("--only", help="values that a configuration must have, as base=bfloat16,adapter=float32")
    given = parser.parse_args()
    import_upstream([])
    check_device(given.device)
    if given.text is not None:
        body = list(given.text.read_bytes())
        tokens = [body[start : start + ROW] for start in range(0, len(body) - ROW, ROW)]
    elif given.tokens is None:
        tokens = [row["input_ids"] for row in data.rows(RunSpec().data)[0]]
    else:
        tokens = [json.loads(line)["input_ids"] for line in given.tokens.read_text().splitlines()]
    steps = [int(part) for part in given.steps.split(",")]
    wanted = dict(part.split("=") for part in given.only.split(",")) if given.only else {}
    chosen = [row for row in rows(given.rows) if all(str(row[name]) == value for name, value in wanted.items())]
    longer = [*steps, *([LONG] if max(steps) < LONG else [])]
    part, parts = map(int, given.part.split("/"))
    results: list[dict[str, Any]] = []
    for index, row in list(enumerate(chosen))[part::parts]:
        subject = Subject(row, given.model, tokens, given.device, given.layers)
        made = list(measure(subject, longer if index < given.long else steps, given.compiled))
        results += made
        report = {
            "schema_version": 1,
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {describe().get('cpu', '') or platform.processor()}",
            "environment": describe(given.device),
            "model": given.model.name if given.model is not None else _made(given.layers),
            "tokens": f"{len(tokens)} rows",
            "results": results,
        }
        write_whole(given.json, json.dumps(report, indent=1) + "\n")
        print(*table(made).splitlines()[2:], sep="\n", flush=True)
    if given.plot is not None:
        write_figure(given.plot, figure(results))
    print(table(results))


if __name__ == "__main__":
    main()
