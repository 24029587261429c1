"""What people have, as a RunSpec: adapter_config.json, TrainingArguments, config.json, rows, and other tools' files.

`read` joins the readers of this package:

1. `configurations` reads a file of TRL, LLaMA-Factory or axolotl; `adapter` and `arguments` read what upstream writes.
2. `argument_names` brings TrainingArguments of any release under today's names.
3. `model` and `small_config` make the architecture small by rule, `small_run` the run, and `jsonl_rows` the data. `fit`
   lets the adapter fit. Each change is a sentence.
4. `launching` takes deepspeed and fsdp out of the arguments.
5. The spec is checked as one from a file (`harness.spec`, `harness.trust`).
"""

from __future__ import annotations

from harness.brought.reader import Brought, read

__all__ = ["Brought", "read"]
