"""A subject that says, from each process that trains, which functions of upstream the harness has replaced there."""

import gc
import json
import os
import sys
from pathlib import Path

from harness import patches
from harness.subjects.hf_trainer import HFTrainer

#: The environment variable with the directory for the reports, one JSON file for each process.
REPORTS = "REPORTS_OF_PATCHES"


def replaced():
    """Return the names of upstream's functions that do not come from upstream's files in this process."""
    import jinja2
    import torch
    from accelerate.utils import imports
    from transformers.utils import logging

    functions = {
        "jinja2:Environment.compile": (jinja2.Environment.compile, "jinja2/environment.py"),
        "accelerate:_is_package_available": (imports._is_package_available, "accelerate/utils/imports.py"),
        "torch.cuda:manual_seed_all": (torch.cuda.manual_seed_all, "torch/cuda/random.py"),
        "torch.xpu:manual_seed_all": (torch.xpu.manual_seed_all, "torch/xpu/random.py"),
    }
    if deepspeed := sys.modules.get("deepspeed.comm.torch"):
        functions["deepspeed:build_shm_op"] = (deepspeed.build_shm_op, "deepspeed/comm/torch.py")
    # A function that functools.cache wraps has no code of its own.
    found = [
        name
        for name, (function, file) in functions.items()
        if not getattr(getattr(function, "__code__", None), "co_filename", "").endswith(file)
    ]
    found += ["gc:freeze"] * (gc.get_freeze_count() > 10_000)
    return found + ["transformers:progress bars"] * (not logging.is_progress_bar_enabled())


class Reporting(HFTrainer):
    """The hf-trainer, with a report from each process that builds a Trainer."""

    def build(self, spec, directory, *args, **kwargs):
        what = "rank" if spec.launch.several else "session"
        report = {"replaced": replaced(), "active": patches.active()}
        Path(os.environ[REPORTS], f"{what}-{os.getpid()}.json").write_text(json.dumps(report))
        return super().build(spec, directory, *args, **kwargs)


def subject():
    return Reporting()
