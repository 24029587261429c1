"""Read what A and B of `peft-harness where` name, word by word.

A word is a spec's file, a subject, a device, a launch, a setting, or a requirement of a stack.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from harness import subjects, trust
from harness.brought import launching
from harness.environment import STACK
from harness.errors import UsageError
from harness.reading import shown, shown_path
from harness.spec import RunSpec
from harness.subjects import from_file
from harness.subjects.launch_arguments import STRATEGIES

_SUBJECT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SETTING = re.compile(r"(?:(model|adapter|lora|data|trainer|launch|arguments)\.)?(\w+)=([^=].*)")
#: What is no argument of the Trainer's, but a part of a spec.
_PARTS = ("model", "adapter", "lora", "data", "trainer", "launch", "arguments", "resume")
_LAUNCH = re.compile(rf"({'|'.join(STRATEGIES)})(:[0-9]+)?")


@dataclass(frozen=True)
class Named:
    """What one side is.

    - words: as the user wrote it. where: what messages call it.
    - spec: what is trained. subject: who trains it.
    - stack: requirements of the stack; "" for the running one.
    - preload: modules that are imported before upstream is used.
    - said: what was changed in the spec's file.
    """

    words: str
    where: str
    spec: RunSpec
    subject: str
    stack: str = ""
    preload: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def read(
    words: str, where: str, spec: RunSpec, subject: str, device: str, trusted: bool, preload: tuple[str, ...] = ()
) -> Named:
    """Return what a side names. What its words do not say is as in the other parameters.

    - words: "" for a side as it is.
    - where: what messages call it: "A" or "B".
    - trusted: whether code that a spec's file names may run.

    Raises UsageError for a word that names nothing, and for a spec's file that cannot be read or is not trusted.
    """
    found = Named(words, where, spec.on_device(device), subject, preload=preload)
    stack: list[str] = []
    # Files first: one that is named after a setting must not undo it.
    for word in sorted(words.split(), key=lambda word: not word.endswith(".json")):
        if word.endswith(".json"):
            read_spec, said = from_file.as_run(RunSpec.load(word), shown_path(word))
            trust.check(read_spec, shown_path(word), trusted)
            found = dataclasses.replace(found, spec=read_spec, said=tuple(said))
        elif word in ("cpu", "cuda"):
            found = dataclasses.replace(found, spec=found.spec.on_device(word))
        elif word in subjects.NAMES or _SUBJECT.fullmatch(word):
            found = dataclasses.replace(found, subject=word)
        elif _LAUNCH.fullmatch(word):
            launch = launching.named(word, found.spec.launch.device)
            found = dataclasses.replace(found, spec=dataclasses.replace(found.spec, launch=launch))
        elif match := _SETTING.fullmatch(word):
            found = dataclasses.replace(found, spec=_changed(found.spec, match, where))
        elif (
            re.search(r"[=<>~@]", word) or word == "current" or Path(word.partition("[")[0].partition(":")[0]).is_file()
        ):
            stack.append(word)
        else:
            raise UsageError(
                f"{where}: {shown(word)} names nothing: no spec (FILE.json), no subject ({', '.join(subjects.NAMES)} or "
                f"module:factory), no device (cpu, cuda), no launch ({', '.join(STRATEGIES)}; ddp:2 for two ranks), no "
                "setting (such as learning_rate=1e-3, lora.r=4 or model.dtype=bfloat16), and no stack "
                "(a requirements file, or releases such as peft==0.18.1)"
            )
    asked = " ".join(stack)
    return dataclasses.replace(found, stack="" if asked == "current" else asked)


def _changed(spec: RunSpec, setting: re.Match[str], where: str) -> RunSpec:
    """Return a spec with one field changed.

    - setting: a match of _SETTING. Its value is JSON, or text as it is. null removes what may be left out.

    Raises UsageError for a part without a field, and as `RunSpec.from_json` does.
    """
    part, name, text = setting.groups()
    if part is None and name in _PARTS:
        raise UsageError(
            f"{where}: {shown(setting[0])} names a part of a spec; a setting names one field, "
            "such as learning_rate=1e-3, lora.r=4 or model.dtype=bfloat16"
        )
    if part is None and canonicalize_name(name) in STACK:
        raise UsageError(f"{where}: {shown(setting[0])} is no setting; a release is written {name}=={text}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {"True": True, "False": False, "None": None}.get(text, text)
    body = spec.to_json()
    fields = body["adapter"]["config"] if part == "lora" else body[part or "arguments"]
    if value is None and part in (None, "arguments", "lora", "trainer"):
        fields.pop(name, None)
    else:
        fields[name] = value
    return RunSpec.from_json(body, where)
