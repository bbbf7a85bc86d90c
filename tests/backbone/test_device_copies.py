"""What CUDA adds to encoding, as far as a CPU can show it: batches in flight, and varlen_attn's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.backbone import encoder as encoding
from featcache.backbone.device_copies import DeviceCopier, HostCopy, copier_of
from featcache.backbone.model import Backbone
from featcache.errors import BackboneError
from tests.support.stock import MIXED, encoder, load, loaded, mixed, sentence, stock
from tests.support.tiny import CONFIGS, PACKED, one_of_each_kind
from tests.support.varlen_stand_in import STAND_INS, later, varlen_on_cpu

Folder = Callable[[str], Path]
CPU = torch.device("cpu")


# ---------------------------------------------------------------- DeviceCopier on a CPU


def test_to_device_copies_nothing_on_a_cpu() -> None:
    values = np.arange(6)
    assert copier_of(CPU).to_device(values).data_ptr() == values.ctypes.data
    assert copier_of(CPU) is copier_of(torch.device("cpu"))


def test_to_host_is_immediate_on_a_cpu() -> None:
    made = {"a": torch.randn(3, 2), "b": torch.zeros(0, 4)}
    landing = DeviceCopier(CPU).to_host(made)
    assert landing.done is None
    found = landing.wait()
    assert list(found) == ["a", "b"]
    for name, tensor in made.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


# ---------------------------------------------------------------- batches in flight


@dataclass(frozen=True)
class Late(HostCopy):
    """Values that are copied only when they are waited for, as late as a device may do it."""

    made: dict[str, torch.Tensor] = field(default_factory=dict)
    flown: list[str] = field(default_factory=list)

    def wait(self) -> dict[str, np.ndarray]:
        self.flown.append("collect")
        with torch.inference_mode():
            for name, tensor in self.made.items():
                self.host[name].copy_(tensor)
        return super().wait()


class LateCopier(DeviceCopier):
    def __init__(self) -> None:
        super().__init__(CPU)
        self.flown: list[str] = []

    def to_host(self, tensors: dict[str, torch.Tensor]) -> HostCopy:
        self.flown.append("launch")
        host = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
        return Late(host, made=tensors, flown=self.flown)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateCopier:
    copier = LateCopier()
    monkeypatch.setattr(encoding, "copier_of", lambda _: copier)
    monkeypatch.setattr(encoding, "IN_FLIGHT", {"cpu": 2})
    return copier


@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "mpnet"])
def test_batches_in_flight_give_the_same_bits(
    family: str, tiny: Folder, late: LateCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = mixed()
    made = encoder(loaded(tiny(family)), batch_tokens=50)
    flying = made(texts).views
    monkeypatch.undo()
    waiting = made(texts).views
    assert len(late.flown) > 6
    for name, values in waiting.items():
        np.testing.assert_array_equal(flying[name], values)


def test_the_next_batch_is_launched_before_the_last_is_collected(tiny: Folder, late: LateCopier) -> None:
    made, steps = encoder(loaded(tiny("bert")), batch_tokens=20), []
    tokens = made.tokenize([sentence(8, seed) for seed in range(8)])  # two texts a batch, 10 tokens each
    made.encode(tokens, lambda texts, count: steps.append((texts, count, len(late.flown))))
    assert late.flown == ["launch", "launch", *["collect", "launch"] * 2, "collect", "collect"]
    assert [step[:2] for step in steps] == [(2, 20)] * 4
    assert [step[2] for step in steps] == [3, 5, 7, 8]  # reported one by one, not at the end


def test_encode_on_cpu_has_one_batch_in_flight(
    tiny: Folder, late: LateCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "IN_FLIGHT", {"cuda": 2})
    encoder(loaded(tiny("bert")), batch_tokens=20)([sentence(8, seed) for seed in range(6)])
    assert late.flown == ["launch", "collect"] * 3


@pytest.mark.parametrize("texts", [[], ["good"], ["good", "book"]])
def test_few_texts_in_flight(texts: list[str], tiny: Folder, late: LateCopier) -> None:
    found = encoder(loaded(tiny("bert")), "last/cls", batch_tokens=1)(texts).views["last/cls"]
    assert len(found) == len(texts)
    assert np.isfinite(found).all()
    assert late.flown.count("collect") == late.flown.count("launch") == len(texts)


def limit(monkeypatch: pytest.MonkeyPatch, tokens: int, error: BaseException) -> list[list[int]]:
    """Backbones raise `error` for more than `tokens` tokens; the lengths of each batch that ran."""
    ran: list[list[int]] = []
    states = Backbone.states

    def states_or_error(self: Backbone, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if int(batch.lengths.sum()) > tokens:
            raise error
        ran.append(batch.lengths.tolist())
        return states(self, batch, *args, **kwargs)

    monkeypatch.setattr(Backbone, "states", states_or_error)
    return ran


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
    ids=["torch", "cublas", "cuda", "cpu"],
)
def test_out_of_memory_keeps_batches_in_flight(
    error: BaseException, tiny: Folder, late: LateCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short text does not make the long ones before it run again, and all batches after are small."""
    backbone = loaded(tiny("bert"))
    texts = [sentence(words, seed) for seed, words in enumerate([48, 40, *[1] * 20])]
    expected = encoder(backbone)(texts).views
    late.flown.clear()
    made = encoder(backbone, batch_tokens=55)
    ran = limit(monkeypatch, 50, error)  # 50, 42 + 4 * 3 = 54 fails, 27 each
    found = made(texts).views
    assert ran == [[50], [42], [3] * 9, [3] * 9, [3] * 2]
    assert made.batch_tokens == 27
    assert late.flown.count("collect") == late.flown.count("launch") == 5
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)


def test_memory_of_a_failed_batch_is_freed_before_the_next(
    tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error's traceback holds the failed batch's tensors: it must be gone when the next one begins."""
    import weakref

    backbone, held = loaded(tiny("bert")), []
    states = Backbone.states

    def states_or_error(self: Backbone, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if len(batch.lengths) > 2:
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("out of memory")
        assert [ref() for ref in held] == [None] * len(held)
        return states(self, batch, *args, **kwargs)

    monkeypatch.setattr(Backbone, "states", states_or_error)
    encoder(backbone, "last/cls")(["good", "book", "room", "the"])
    assert held


def test_a_bad_row_is_named_while_batches_are_in_flight(tiny: Folder, late: LateCopier) -> None:
    backbone = load(tiny("bert"))
    word = int(stock(tiny("bert")).token_ids("坏")[1])
    backbone.model.get_input_embeddings().weight[word] = float("nan")
    with pytest.raises(BackboneError) as caught:
        encoder(backbone, "last/mean", batch_tokens=1)(["good book", "坏", "room", "the room book"])
    assert caught.value.row == 1  # type: ignore[attr-defined]


# ---------------------------------------------------------------- whole families through varlen_attn


VIEWS = ("last/cls", "last/last", "-2/mean")


def texts_for(family: str) -> list[str]:
    long = CONFIGS[family].get("max_position_embeddings", 0) > 66
    return mixed((*MIXED, 100, 33, 101) if long else MIXED)


def lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.mark.parametrize("family", one_of_each_kind(PACKED))
@pytest.mark.parametrize("version", STAND_INS)
def test_families_through_varlen(version: str, family: str, lively_tiny: Folder) -> None:
    folder, texts = lively_tiny(family), texts_for(family)
    usual = encoder(loaded(folder, dtype="bfloat16"), *VIEWS)(texts).views
    with varlen_on_cpu(STAND_INS[version]) as calls:
        backbone = load(folder, dtype="bfloat16")
        calls.clear()
        found = encoder(backbone, *VIEWS, batch_tokens=300)(texts).views
    assert backbone.packing == "packed"
    windowed = version == "torch 2.10" and family == "mistral"  # in all blocks, which 2.10 does not know
    assert bool(calls) != windowed
    exact = stock(folder).matrix(texts, views=VIEWS)
    for name, values in found.items():
        assert lowest_cosine(values, usual[name]) > 0.9995
        assert lowest_cosine(values, exact[name]) > lowest_cosine(usual[name], exact[name]) - 5e-4


@pytest.mark.parametrize("family", ["bert", "modernbert", "mistral", "gpt2"])
def test_no_text_sees_another_through_varlen(family: str, lively_tiny: Folder) -> None:
    texts = texts_for(family)
    changed = [*texts]
    changed[5] = sentence(8, 77)
    with varlen_on_cpu(later) as calls:
        made = encoder(load(lively_tiny(family), dtype="bfloat16"), *VIEWS)
        before, after = made(texts).views, made(changed).views
    assert calls
    for name, values in before.items():
        same = (values == after[name]).all(axis=1)
        assert same.tolist() == [row != 5 for row in range(len(texts))]
