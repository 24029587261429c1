"""Which verb is done to which trained adapter: every method on every kind of layer, and how each case differs otherwise.

Each method is trained once on each kind of layer that upstream adapts by it (`RUNS`). Each verb (`ACTIONS`) is then done to a
model that is rebuilt with the trained values. The rebuilt model differs in three more ways, one choice for each case: its
dtype, whether its embeddings are tied, and the route by which the adapter comes. So every triple of method, kind of layer and
verb is a case, and the other three are spread over them such that every pair of values occurs (`spread`).

`tests/test_verbs.py` counts the pairs and the triples.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.fixtures.methods import METHODS, misfit
from harness.runs.scenarios import spec_for, two_steps
from harness.spec import ADD, GET, RunSpec

LORAS = ("lora", "dora", "rslora")


def _targeted(**named: bool) -> tuple[str, ...]:
    """Return the methods that adapt layers, and whose fields have these values."""
    return tuple(
        name
        for name, method in METHODS.items()
        if method.targeted and all(getattr(method, field) == value for field, value in named.items())
    )


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    - methods: rows of METHODS that adapt it. Upstream refuses the others when the adapter is injected.
    - family: the base that has such layers.
    - config: fields of the adapter's config that name the layers.
    - quantization: of the base.
    - learning_rate: of the run. A single layer needs a larger one, so that its adapter shows.
    """

    methods: tuple[str, ...]
    family: str = "llama"
    config: Mapping[str, Any] | None = None
    quantization: str | None = None
    learning_rate: float = 1e-2

    @property
    def row(self) -> str:
        """The row of FAMILIES with such layers, or the one that a factory has changed."""
        return self.family if ":" not in self.family else "llama"


#: Kinds of layers by name. Linear and NF4 layers are trained by the suite of the tables already, by the same specs.
KINDS: dict[str, Kind] = {
    "linear": Kind(_targeted()),
    "conv1d": Kind(_targeted(conv1d=True), "gpt2", {"target_modules": ["c_attn"]}),
    "embedding": Kind((*LORAS, "oft", "hira"), config={"target_modules": ["embed_tokens"]}),
    "conv2d": Kind(
        (*LORAS, "ia3", "loha", "lokr", "oft", "boft", "hira", "hra", "adalora"),
        "harness.fixtures.convolved:llama",
        {"target_modules": ["conv"]},
        learning_rate=1e-1,
    ),
    "experts": Kind(
        ("lora", "rslora"),
        "qwen3-moe",
        {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "nf4": Kind(_targeted(packed=True), quantization="nf4"),
    # Methods with int8 layers of their own. The others unpack any weight by the same code as in NF4.
    "int8": Kind(("lora", "rslora", "ia3", "vera", "randlora", "hira", "road", "adalora"), quantization="int8"),
}

#: The ways in which a rebuilt model differs besides its route -> their values.
DTYPES = ("float32", "bfloat16")
TYING = ("untied", "tied")


@dataclass(frozen=True)
class Action:
    """A verb.

    - routes: by which of them the adapter may come. unload and merge_and_unload are verbs of a PeftModel.
    - dtypes: of the base.
    - kinds: the kinds of layer that have it; empty for all. Only linear layers are converted to LoRA.
    - methods: the methods that have it; empty for all. Only LoRA is swapped.
    - packed: whether it is judged on packed layers. Each merge packs the weights again, which rounds away what merging twice,
      merging safely, unloading and converting are about; and packed weights are not cast.
    """

    routes: tuple[str, ...] = (GET, ADD)
    dtypes: tuple[str, ...] = DTYPES
    kinds: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    packed: bool = True


ACTIONS: dict[str, Action] = {
    "merge": Action(),
    "merge-again": Action(packed=False),
    "merge-and-unload": Action((GET,), packed=False),
    "disable": Action(),
    "delete": Action(),
    "unload": Action((GET,)),
    "cast": Action(packed=False),
    "modes": Action(),
    "convert": Action((GET,), ("float32",), ("linear", "conv1d")),
    "load/from-pretrained": Action(),
    "load/another-name": Action(),
    "load/low-cpu-mem-usage": Action(),
    "load/beside": Action(),
    "load/by-tensors": Action(),
    "load/hotswap": Action(methods=LORAS),
    "load/by-the-model": Action(),
}


@dataclass(frozen=True)
class Row:
    """One case: a method on a kind of layer, the verb, and the model that it is done to."""

    kind: str
    method: str
    action: str
    tying: str
    dtype: str
    route: str

    @property
    def name(self) -> str:
        """The scenario's name: "conv1d/lora/merge/tied/add_adapter"."""
        plain = ("untied", "float32", GET)
        return "/".join([self.kind, self.method, self.action, *(x for x in self.others if x not in plain)])

    @property
    def others(self) -> tuple[str, str, str]:
        return self.tying, self.dtype, self.route

    @property
    def trained(self) -> RunSpec:
        """The spec of the run that is trained."""
        return RUNS[self.kind, self.method]

    @property
    def spec(self) -> RunSpec:
        """The spec of the model that the verb is done to."""
        tied = {**self.trained.model.config, "tie_word_embeddings": self.tying == "tied"}
        # Some methods compute beside a packed base in half precision only under autocast, which bf16 stands for.
        autocast: dict[str, Any] = {"bf16": True} if self.dtype == "bfloat16" and KINDS[self.kind].quantization else {}
        return self.trained.but(model={"config": tied, "dtype": self.dtype}, adapter={"route": self.route}, **autocast)


def _run(kind: Kind, method: str) -> RunSpec:
    spec = spec_for(kind.row, method)
    if kind.config and METHODS[method].feedforward:
        spec = spec.but(lora={"feedforward_modules": []})
    arguments: dict[str, Any] = {} if kind.learning_rate == 1e-2 else {"learning_rate": kind.learning_rate}
    return two_steps(
        spec.but(
            model={"family": kind.family, "quantization": kind.quantization},
            lora=kind.config,
            **arguments,
        )
    )


#: (kind of layer, method) -> the run that trains it.
RUNS: dict[tuple[str, str], RunSpec] = {
    (name, method): _run(kind, method) for name, kind in KINDS.items() for method in kind.methods
}


def spread(kind: str, method: str, action: str) -> tuple[str, str, str]:
    """Return tying, dtype and route of a case: one of the allowed combinations, chosen by a checksum of its name.

    A checksum instead of a counter: a new method changes no other case. Since each value of each field occurs in hundreds of
    cases, every pair of values occurs.
    """
    verb = ACTIONS[action]
    routes = [r for r in verb.routes if misfit(KINDS[kind].row, method, add_adapter=r == ADD) is None]
    combinations = list(itertools.product(TYING, verb.dtypes, routes))
    return combinations[zlib.crc32(f"{kind}/{method}/{action}".encode()) % len(combinations)]


def rows(*actions: str) -> dict[str, Row]:
    """Return scenario name -> row, of each method on each kind of layer. actions: of ACTIONS, or how they begin ("load/")."""
    return {row.name: row for row in _rows() if row.action.startswith(actions)}


def _rows() -> Iterator[Row]:
    for kind, method in RUNS:
        for action, verb in ACTIONS.items():
            fits = kind in (verb.kinds or KINDS) and method in (verb.methods or METHODS)
            if fits and (verb.packed or not KINDS[kind].quantization):
                yield Row(kind, method, action, *spread(kind, method, action))
