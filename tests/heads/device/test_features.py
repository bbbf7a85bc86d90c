"""Features on a device are those of the host, kept there or sent some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.errors import UsageError
from featcache.heads.device.choose import CPU, head_device
from featcache.heads.device.features import DeviceFeatures, free_bytes
from featcache.heads.features import Standard
from tests.support.second_device import second_device


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("room", [None, 0])
def test_slices_are_those_of_the_host(dtype: type, room: float | None) -> None:
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
    x.flags.writeable = False  # as memory-mapped features are
    with second_device() as device:
        features = DeviceFeatures(x, device, room)
        assert (features.kept is None) == (room == 0)
        for rows in (slice(0, 50), slice(3, 20), slice(1, 50, 9)):
            part = features[rows]
            assert part.device == device and part.dtype == torch.float32
            np.testing.assert_array_equal(part.cpu().numpy(), x[rows].astype(np.float32))


@pytest.mark.parametrize("room", [None, 0])
def test_batches_are_standardised_as_on_the_host(room: float | None) -> None:
    x = np.random.default_rng(0).normal(3, 2, size=(50, 7)).astype(np.float16)
    stored, standard, order = x.copy(), Standard.of(x), np.random.default_rng(1).permutation(50)
    with second_device() as device:
        features = DeviceFeatures(x, device, room, standard)
        batches = [batch.cpu().numpy() for batch in features.batches(order, 16)]
        np.testing.assert_array_equal(features[slice(5, 9)].cpu().numpy(), standard(x[5:9]))
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate(batches), standard(x[order]))
    np.testing.assert_array_equal(x, stored)


def test_small_work_stays_on_the_cpu_unless_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert head_device("auto", 1e6, least=1e7) == head_device("cpu", 1e9, 1e7) == CPU
    assert head_device("mps", 1e9, 1e7) == CPU
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)  # other threads have 0
    assert head_device("auto", 1e8, least=1e7) == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert head_device("auto", 1e8, least=1e7) == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("asked", ["cuda", "cuda:1"])
def test_a_named_gpu_that_is_not_there_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match=f"--device {asked}: ") as caught:
        head_device(asked, work=1, least=1e7)
    assert caught.value.hint == "try --device auto or --device cpu"


def test_memory_that_torch_holds_for_its_next_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in (("mem_get_info", (30, 100)), ("memory_reserved", 60), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda _, found=found: found)
    assert free_bytes(torch.device("cuda:0")) == 30 + 60 - 20
