"""`peft-harness repro FILE`: train a spec, or repeat a drawn life, and judge it by every law that applies to any run.

1. `judge_spec` reads the file, and refuses what it may not name (`harness.trust`).
2. The run is trained. If it ends before its first step, upstream refuses the spec, and nothing is judged.
3. Each law is applied. A law that raises an error has judged nothing: that is a fault of the harness, not of the run.
4. Verdicts are printed as they come, laws that do not apply with their reason. `_Tally.code` is the exit code.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import subjects, trust
from harness.environment import check_device
from harness.errors import UsageError
from harness.laws.several import whole_run
from harness.laws.universal import LAWS_OF_SEVERAL_RUNS, laws_for, left_out, why_not_judged
from harness.processes import ranks
from harness.processes.imports import import_upstream
from harness.progress import screen
from harness.runs.cache import Runs
from harness.runs.lifecycle import VERBS, Judged, Life, describe
from harness.session.case_file import CaseFile
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from harness.user_code import cause
from harness.verdict import AMBIGUOUS, FAIL, NOT_COMPARABLE, PASS, Unjudged, Verdict

#: How the error of a group of ranks begins if a rank, and not upstream, is at fault (`harness.processes.ranks`).
_DIED = re.compile(r"rank \d+ of \d+ (was killed|ended with)|the \d+ ranks had not ended")
