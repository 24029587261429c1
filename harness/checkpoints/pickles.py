"""What a pickle describes, without running what it names.

A pickle is a program: it names classes and functions, and calls them. Here each name stands for a `Stub`, or for one of
the few functions below that make plain data. Nothing is imported, so that no code of the file's choice runs.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Instructions that neither torch nor Python's pickler (protocols 2 to 4) writes for data, and that cost more memory or
#: time than the file has bytes: numbers as text, buffers of a length that the file names, the registry of extensions.
_LEFT_OUT = (
    *(pickle.INT, pickle.LONG, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
)


class Broken(Exception):
    """A pickle that does not come to its end. The message says why, in words that follow the file's name."""


class Stub:
    """An object that a pickle describes. name: of its class or function. args: of the call. state: its fields."""

    name = ""

    def __init__(self, *args: Any, **_: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __new__(cls, *_: Any, **__: Any) -> Stub:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        # A class with slots has a pair: the fields of __dict__, and those of the slots.
        pair = isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict)
        self.state = {**(state[0] or {}), **state[1]} if pair else state

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(self.state, dict):
            self.state[key] = value

    def __call__(self, *args: Any, **_: Any) -> Stub:
        return Stub(*args)

    def append(self, value: Any) -> None:
        """Take an item of a list's subclass. It is not kept."""

    def extend(self, values: Any) -> None:
        """Take items of a list's subclass. They are not kept."""

    add = append

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


@dataclass(frozen=True)
class Storage:
    """Numbers that lie beside the pickle. dtype: as safetensors names it. numel: how many."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A tensor: a view of a storage."""

    storage: Storage
    shape: tuple[int, ...]


class Dict(dict[Any, Any]):
    """An OrderedDict, which may have fields beside its items (`_metadata` of a state dict)."""


@dataclass
class Described:
    """A pickle's content. code: names that stand for neither numbers nor containers."""

    value: Any
    storages: dict[str, Storage] = field(default_factory=dict)
    code: set[str] = field(default_factory=set)


#: The storage classes of torch -> their dtype, as safetensors names it; "" if it has no name there.
_DTYPES = {
    **{"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16"},
    **{"Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "Untyped": "U8"},
}


def _tensor(storage: Any, _offset: Any = 0, size: Any = (), *_: Any) -> Any:
    whole = isinstance(storage, Storage) and isinstance(size, tuple) and all(type(one) is int for one in size)
    return Tensor(storage, size) if whole else Stub(storage, size)


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _bytes(text: Any = "", *_: Any) -> bytes:
    return text.encode("latin1", "replace") if isinstance(text, str) else b""


#: Functions and classes that make plain data.
_PLAIN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Dict,
    "torch.Size": lambda size=(), *_: tuple(size) if isinstance(size, (tuple, list)) else (),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "_codecs.encode": _bytes,
}

#: Beginnings of names that stand for numbers, dtypes and arrays, whose classes torch.load(weights_only=True) takes.
_HARMLESS = (
    *("torch.device", "torch.Size", "torch._utils._rebuild_", "torch.serialization._get_layout"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.core.multiarray.scalar"),
    *("numpy._core.multiarray.scalar", "numpy.ndarray", "numpy.dtype", "numpy.dtypes."),
    *("collections.defaultdict", "collections.Counter", "builtins.dict", "__builtin__.dict", "builtins.set"),
    *("__builtin__.set", "builtins.int", "builtins.list", "__builtin__.list", "__builtin__.int"),
    *("torch.distributed.checkpoint.metadata.", "torch.distributed.checkpoint.filesystem._StorageInfo"),
    *("torch.distributed.checkpoint._extension", "torch.distributed.tensor.", "torch.distributed._tensor."),
    *("pathlib.", "datetime."),
)


class _Reader(pickle._Unpickler):
    # The reader in Python: the one in C reserves memory for an index of the memo that the file names.
    dispatch = {key: value for key, value in pickle._Unpickler.dispatch.items() if key not in {x[0] for x in _LEFT_OUT}}

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.described = Described(None)
        self._classes: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _PLAIN:
            return _PLAIN[full]
        kind = name.removesuffix("Storage")
        is_storage = module in ("torch", "torch.storage") and name.endswith("Storage")
        is_dtype = module == "torch" and name.islower()
        if not (is_storage and kind in _DTYPES) and not is_dtype and not full.startswith(_HARMLESS):
            self.described.code.add(full)
        if full not in self._classes:
            self._classes[full] = type("Stub", (Stub,), {"name": full})
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Any:
        try:
            _, kind, key, _, numel = pid
            storage = Storage(str(key), _DTYPES.get(kind.name.rpartition(".")[2].removesuffix("Storage"), ""), numel)
        except (TypeError, ValueError, AttributeError):
            return Stub(pid)
        if type(numel) is not int or numel < 0:
            raise Broken("names a storage without a size")
        self.described.storages[storage.key] = storage
        return storage


def describe(content: bytes) -> Described:
    """Return what a pickle describes. Raises Broken if it does not come to its end."""
    reader = _Reader(content)
    try:
        reader.described.value = reader.load()
    except Broken:
        raise
    except KeyError:
        raise Broken("has an instruction that no pickle of torch has") from None
    except Exception as error:  # damaged bytes are instructions, too
        raise Broken(f"is no whole pickle ({type(error).__name__})") from None
    return reader.described


def first_pickled(content: bytes, name: str) -> Any:
    """Return the first value beside a text in a pickle, such as that of a field; None if there is none.

    It finds fields wherever they are: `describe` has them in the objects that they belong to.
    """
    seen: set[int] = set()
    todo = [describe(content).value]
    while todo:
        value = todo.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        inner = value.state if isinstance(value, Stub) else value
        if isinstance(inner, dict):
            if name in inner:
                return inner[name]
            todo.extend(inner.values())
        elif isinstance(inner, (list, tuple)):
            todo.extend(inner)
        if isinstance(value, Stub):
            todo.extend(value.args)
    return None
