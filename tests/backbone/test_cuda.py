"""The CUDA path: swapped modules anywhere, all else where there is a GPU.

What a CPU can show of varlen_attn, batches in flight and compiling is in test_varlen, test_device_copies and
test_compile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from featcache.backbone import fused_layers as fusing
from featcache.backbone.attention.packed import packed_attention
from featcache.backbone.attention.sdpa import Scoring, attention_by_runs
from featcache.backbone.attention.varlen import attention_varlen, runs_varlen, varlen
from featcache.backbone.device_copies import DeviceCopier
from featcache.backbone.encoder import Encoder
from featcache.backbone.fused_layers import CudaLinear
from featcache.backbone.model import Backbone
from featcache.backbone.packing import PackedLayout
from featcache.settings import FeatureSettings
from tests.backbone.test_device_copies import lowest_cosine
from tests.support.stock import (
    MIXED,
    Stock,
    assert_features,
    encoder,
    lively,
    load,
    mixed,
    sentence,
    stock,
)
from tests.support.tiny import CONFIGS, PACKED, build

Folder = Callable[[str], Path]
VIEWS = ("last/cls", "last/last", "last/mean", "-2/max")
CUDA = torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def texts_for(family: str) -> list[str]:
    long = CONFIGS[family].get("max_position_embeddings", 0) > 66
    return mixed((*MIXED, 100, 33, 101, 200) if long else MIXED)


def on_cuda(folder: Path, dtype: str = "float32") -> Backbone:
    return load(folder, device="cuda", dtype=dtype)


# ---------------------------------------------------------------- swapped modules, on any device

DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_cuda_linear_equals_torch(device: str, dtype: torch.dtype, gelu: str, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, offset, x = (torch.randn(*shape, generator=draw) for shape in ((24, 16), (24,), (2, 5, 16)))
    weight, offset, x = (values.to(device, dtype) for values in (weight, offset, x))
    found = CudaLinear(weight, offset if bias else None, gelu)(x)
    expected = functional.linear(x.double(), weight.double(), offset.double() if bias else None)
    expected = functional.gelu(expected, approximate="tanh") if gelu == "tanh" else expected
    assert (found.shape, found.dtype) == ((2, 5, 24), dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2 * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


SWAPS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("bert", {}, ["one product for q, k, v (3)"]),  # its erf GELU stays
    ("bert", {"hidden_act": "gelu_new"}, ["one product for q, k, v (3)", "linear + GELU (3)"]),
    ("gpt2", {}, ["linear + GELU (3)"]),
    ("llama", {}, ["one product for q, k, v (3)"]),
    ("modernbert", {}, []),
]


@pytest.mark.parametrize(("family", "changes", "swapped"), SWAPS)
def test_swaps_of_cuda_keep_the_states(
    family: str, changes: dict[str, Any], swapped: list[str], tmp_path: Path
) -> None:
    """The swaps that CUDA gets, made on a CPU in float32, where nothing else is swapped."""
    folder = lively(build(family, tmp_path / "plain", **changes), tmp_path / "lively")
    backbone, texts = load(folder), mixed()
    assert backbone.blocks is not None
    before = encoder(backbone, *VIEWS)(texts).views
    with torch.inference_mode():
        assert fusing._fuse_pairs(backbone.blocks, CudaLinear) == swapped
    after = encoder(backbone, *VIEWS)(texts).views
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=0, atol=1e-5)


def test_the_erf_gelu_is_not_taken_for_the_tanh_one() -> None:
    class Wrong(CudaLinear):
        gelus = ("erf", "tanh")

    block = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)).requires_grad_(False)
    assert fusing._fuse_gelu(block, CudaLinear) == 0
    with pytest.MonkeyPatch.context() as patch:  # a class that computes the tanh one whatever it is asked for
        patch.setattr(fusing, "_gelu_kind", lambda m: "tanh" if isinstance(m, nn.GELU) else None)
        assert fusing._fuse_gelu(block, Wrong) == 0
    assert type(block[0]) is nn.Linear


# ---------------------------------------------------------------- features


@needs_cuda
@pytest.mark.parametrize("family", CONFIGS)
def test_float32_equals_one_text_at_a_time(family: str, lively_tiny: Folder) -> None:
    folder, texts = lively_tiny(family), texts_for(family)
    backbone = on_cuda(folder)
    assert backbone.packing == ("packed" if family in PACKED else "padded")
    expected = stock(folder).matrix(texts, views=VIEWS)
    for budget in (None, 150, 1):
        assert_features(encoder(backbone, *VIEWS, batch_tokens=budget)(texts).views, expected, 3)


@needs_cuda
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_have_the_same_direction(family: str, dtype: str, lively_tiny: Folder) -> None:
    """As near to float32 as the stock model in the same type is, text by text."""
    folder, texts = lively_tiny(family), texts_for(family)
    exact = stock(folder).matrix(texts, views=VIEWS)
    usual = Stock(folder, getattr(torch, dtype)).matrix(texts, views=VIEWS)
    found = encoder(on_cuda(folder, dtype), *VIEWS)(texts).views
    for name, values in found.items():
        least = lowest_cosine(usual[name], exact[name])
        assert 1 - lowest_cosine(values, exact[name]) <= 3 * (1 - least) + 1e-4


@needs_cuda
@pytest.mark.demo
def test_bfloat16_of_the_demo_encoder(demo_model: Path) -> None:
    texts = ["房间很干净，服务也好。", "电池坏了，很失望！", "这本书不错", "a very good book"] * 20
    exact = encoder(load(demo_model), "last/mean", "last/cls")(texts[:4]).views
    found = encoder(on_cuda(demo_model, "bfloat16"), "last/mean", "last/cls")(texts).views
    for name, values in found.items():
        assert lowest_cosine(values, np.tile(exact[name], (20, 1))) >= 0.9999


@needs_cuda
@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_text_sees_another(family: str, dtype: str, lively_tiny: Folder) -> None:
    texts = texts_for(family)
    changed = [*texts]
    changed[5] = sentence(8, 77)  # as long as before: the others' bits must not move
    made = encoder(on_cuda(lively_tiny(family), dtype), *VIEWS)
    before, after = made(texts).views, made(changed).views
    for name, values in before.items():
        same = (values == after[name]).all(axis=1)
        assert same.tolist() == [row != 5 for row in range(len(texts))]


@needs_cuda
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2", "mpnet"])
def test_batches_in_flight_give_the_same_bits(
    family: str, lively_tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over hundreds of batches: a buffer given away too early would show."""
    texts = texts_for(family) * 20
    made = encoder(on_cuda(lively_tiny(family)), *VIEWS, batch_tokens=40)
    flying = made(texts).views
    monkeypatch.setattr("featcache.backbone.encoder.IN_FLIGHT", {})
    for name, values in made(texts).views.items():
        np.testing.assert_array_equal(flying[name], values)


@needs_cuda
@pytest.mark.parametrize("family", ["bert", "llama", "modernbert", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooled_tokens_alone_give_what_all_tokens_give(family: str, dtype: str, lively_tiny: Folder) -> None:
    backbone, texts = on_cuda(lively_tiny(family), dtype), texts_for(family)
    assert backbone.runs_pooled_alone
    alone = encoder(backbone, "last/cls", "last/last")(texts).views
    whole = encoder(backbone, "last/cls", "last/last", "last/mean")(texts).views
    for name, values in alone.items():
        if dtype == "float32":
            np.testing.assert_allclose(values, whole[name], rtol=0, atol=1e-5)
        assert lowest_cosine(values, whole[name]) > 0.9995


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictions_come_from_the_same_features(dtype: str, lively_tiny: Folder) -> None:
    """The extraction's encoder in blocks and full batches; the predictor's on a handful of texts."""
    texts = texts_for("bert") * 8
    features = FeatureSettings(views=("last/mean",), storage="float32")
    cached = Encoder(on_cuda(lively_tiny("bert"), dtype), features)(texts).views["last/mean"]
    fresh = Encoder(on_cuda(lively_tiny("bert"), dtype), features)
    for row in (0, 3, 9):
        vector = fresh([texts[row]]).views["last/mean"]
        if dtype == "float32":
            np.testing.assert_allclose(vector, cached[row : row + 1], rtol=0, atol=1e-5)
        assert lowest_cosine(vector, cached[row : row + 1]) > 0.9995


# ---------------------------------------------------------------- memory


@needs_cuda
def test_out_of_memory_halves_the_budget(tmp_path: Path) -> None:
    """A real one: this process may use a little more than what 500 tokens need."""
    folder = build("llama", tmp_path, intermediate_size=1 << 18, num_hidden_layers=1)  # 1 MB a token
    texts = [sentence(words, seed) for seed, words in enumerate([30] * 60)]
    expected = encoder(load(folder), "last/mean")(texts[:3]).views["last/mean"]
    made = encoder(on_cuda(folder), "last/mean", batch_tokens=100_000)
    used = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (used + 2.5e9) / total))
    try:
        steps: list[int] = []
        found = made.encode(made.tokenize(texts), lambda rows, _: steps.append(rows)).views["last/mean"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.batch_tokens < 1800
    assert sum(steps) == len(texts)
    assert lowest_cosine(found[:3], expected) > 0.9999  # sums of 262,144 products


@needs_cuda
def test_copies_are_ordered_with_computing() -> None:
    """Up, a product that takes a while, and down, many times over the same few sizes of memory."""
    feed, draw = DeviceCopier(CUDA), np.random.default_rng(0)
    factor = torch.eye(2048, device=CUDA)
    given, landings = [], []
    for _ in range(50):
        given.append(draw.standard_normal((2048, 2048)).astype(np.float32))
        there = feed.to_device(given[-1])
        for _ in range(3):
            there = there @ factor
        landings.append(feed.to_host({"x": there}))
        del there
    for values, landing in zip(given, landings, strict=True):
        np.testing.assert_allclose(landing.wait()["x"], values, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- attention


@needs_cuda
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("width", [16, 64, 12, 288])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packed_attention_on_cuda_equals_float64_on_cpu(
    heads: tuple[int, int],
    causal: bool,
    window: int | None,
    scaling: float | None,
    width: int,
    dtype: torch.dtype,
) -> None:
    """Whichever kernel serves; in float64 on the CPU beside it."""
    lengths = np.array([70, 33, 33, 16, 5, 1, 1])
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, n, int(lengths.sum()), width, generator=draw) for n in (*heads, heads[1])]
    states = [part.to(dtype) for part in states]
    module: Any = type("Module", (), {"is_causal": causal})()
    options: dict[str, Any] = {"scaling": scaling, "sliding_window": window}
    found, _ = packed_attention(
        module, *(part.to(CUDA) for part in states), None, packed=PackedLayout.of(lengths, CUDA), **options
    )
    layout = PackedLayout.of(lengths, torch.device("cpu"))
    exact, _ = packed_attention(module, *(part.double() for part in states), None, packed=layout, **options)
    tolerance = 5e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.cpu().double(), exact, rtol=0, atol=tolerance)


@needs_cuda
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="flash attention wants Ampere or newer",
)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 7])
def test_varlen_is_used_here_and_equals_sdpa(causal: bool, window: int | None) -> None:
    lengths = np.array([70, 33, 33, 16, 5, 1, 1])
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, n, int(lengths.sum()), 64, generator=draw).to(CUDA, torch.bfloat16) for n in (4, 2, 2)
    )
    layout = PackedLayout.of(lengths, CUDA)
    _, arguments = varlen()
    if window and "window_size" not in arguments:
        pytest.skip("this torch's varlen_attn has no windows")
    scoring = Scoring(None, causal, window)
    assert runs_varlen(query, key, value, scoring)
    found = attention_varlen(query, key, value, layout, scoring)
    runs = attention_by_runs(query, key, value, layout, scoring)
    torch.testing.assert_close(found.float(), runs.float(), rtol=0, atol=3e-2)


# ---------------------------------------------------------------- compiling


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_parts_give_the_same_features(family: str, dtype: str, lively_tiny: Folder) -> None:
    from functools import partial

    from featcache.backbone.compile import OPTIONS, compile_parts

    backbone, texts = on_cuda(lively_tiny(family), dtype), texts_for(family)
    before = encoder(backbone, *VIEWS)(texts).views
    assert backbone.blocks is not None
    batches = [backbone.probe_batch([40] * count) for count in (64, 11)]
    runs = [partial(backbone.states, batch, [backbone.num_blocks]) for batch in batches]
    notes = compile_parts(backbone.blocks, runs, gain=0.0, options=OPTIONS)
    assert notes
    assert all(note.startswith("compiled") for note in notes)
    after = encoder(backbone, *VIEWS)(texts).views
    for name, values in before.items():
        if dtype == "float32":
            np.testing.assert_allclose(after[name], values, rtol=0, atol=1e-5)
        assert lowest_cosine(after[name], values) > 0.9999
