"""Imports that do not start CUDA, and how ranks are started if they do. The CUDA libraries are fakes."""

import ctypes
import os

import pytest
import torch

from harness.processes import cuda_free_fork, ranks, torchrun
from harness.processes.group import Ended, Group, RanksFailed
from tests import rank_calls


class Library:
    """A fake of libcuda and libnvidia-ml, with the functions that the harness calls."""

    def __init__(self, initialised=False, nvml=0):
        self.initialised, self.nvml = initialised, nvml

    def cuDeviceGetCount(self, count):
        return 0 if self.initialised else 3

    def nvmlInit_v2(self):
        return self.nvml

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.index = index.value
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):
        major._obj.value, minor._obj.value = 9, self.index
        return 0


@pytest.fixture
def driver(monkeypatch):
    def install(**options):
        monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(**options))

    return install


@pytest.mark.parametrize("initialised", [True, False])
def test_the_driver_says_whether_cuda_was_started(driver, initialised):
    driver(initialised=initialised)
    assert cuda_free_fork.cuda_started() is initialised


def test_a_fork_of_a_process_that_started_cuda_counts_as_started(driver, monkeypatch):
    driver(initialised=False)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert cuda_free_fork.cuda_started()


def test_without_a_driver_cuda_was_not_started(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_free_fork.cuda_started() is False


def test_nvml_answers_within_the_block_and_torch_after_it(driver, monkeypatch):
    driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    ask = torch.cuda.get_device_capability
    with cuda_free_fork.cuda_untouched():
        assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
        # The second GPU that this process sees is the machine's GPU 6.
        assert torch.cuda.get_device_capability(torch.cuda.device(1)) == (9, 6)
    assert torch.cuda.get_device_capability is ask and "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


def test_a_variable_that_the_user_set_is_restored(driver, monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")
    with cuda_free_fork.cuda_untouched():
        assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


def test_an_error_of_nvml_is_raised(driver, monkeypatch):
    driver(nvml=9)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with (
        cuda_free_fork.cuda_untouched(),
        pytest.raises(RuntimeError, match=r"compute capability of GPU 0: errors \(9, 0, 0\)"),
    ):
        torch.cuda.get_device_capability(torch.cuda.device(0))


@pytest.mark.parametrize(("unforkable", "by"), [(True, "torchrun"), (False, "the fork server")])
def test_a_group_that_cannot_be_forked_is_started_by_torchrun(tmp_path, monkeypatch, unforkable, by):
    class Server:
        def run(self, group):
            return Ended({}, unforkable=True) if unforkable else Ended({}, error="the fork server")

    monkeypatch.setattr(ranks, "_server", Server)
    monkeypatch.setattr(torchrun, "start", lambda group, preloads: Ended({}, error="torchrun"))
    with pytest.raises(RanksFailed, match=by):
        ranks.run(Group(rank_calls.raise_on_all, 2, tmp_path, backend=None))
