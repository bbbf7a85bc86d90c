"""Faster ways of running a frozen model against the plain ones: swapped modules, buckets, the tail."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from featcache.backbone import fused_layers as fusing
from featcache.backbone import model as backbones
from featcache.backbone.fused_layers import OneDnnLinear, ProjectionPart, fuse, measure_inputs
from featcache.backbone.linear.int8 import FbgemmLinear, Int8Linear
from featcache.backbone.model import Backbone
from featcache.backbone.private_torch import is_emulated
from tests.support.stock import assert_no_farther, encoder, lively, load, loaded, mixed
from tests.support.tiny import build

Folder = Callable[[str], Path]
BF16 = torch.bfloat16

# Modules a tiny model of three blocks has of each kind: (q, k, v), linear + GELU, linear layers left.
SWAPS: dict[str, tuple[int, int, int]] = {
    "bert": (3, 3, 6),  # attention output, feed-forward down
    "roberta": (3, 3, 6),
    "distilbert": (3, 3, 6),
    "electra": (3, 3, 6),
    "gpt2": (0, 3, 9),  # c_attn is one product as it is
    "llama": (3, 0, 12),  # o, gate, up, down; SiLU
    "qwen3": (3, 0, 12),
    "modernbert": (0, 0, 12),  # Wqkv is one product; Wi feeds a gate: its output is split before the GELU
}
UNUSUAL: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "tanh": ("bert", {"hidden_act": "gelu_new"}, (3, 3, 6)),
    "tanh of torch": ("bert", {"hidden_act": "gelu_pytorch_tanh"}, (3, 3, 6)),
    "quick": ("bert", {"hidden_act": "quick_gelu"}, (3, 0, 9)),  # near a GELU, and none
    "relu": ("bert", {"hidden_act": "relu"}, (3, 0, 9)),
    "erf in gpt2": ("gpt2", {"activation_function": "gelu"}, (0, 3, 9)),
    "gate": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}, (3, 3, 9)),
    "one key head": ("llama", {"num_key_value_heads": 1}, (3, 0, 12)),
}

needs_onednn = pytest.mark.skipif(
    not fusing._has_onednn(nn.Linear(1, 1).to(BF16)) or is_emulated("bfloat16", torch.device("cpu")),
    reason="nothing is swapped without products in bfloat16 and oneDNN's calls",
)


def unswapped(folder: Path, dtype: str) -> Backbone:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "fuse", lambda *_, **__: [])
        return load(folder, dtype=dtype)


def counts(fused: list[str]) -> dict[str, int]:
    """`backbone.fused` as numbers."""
    found = [re.fullmatch(r"(.+) \((\d+)\)", text) for text in fused]
    return {match[1]: int(match[2]) for match in found if match}


def expected_counts(numbers: tuple[int, int, int]) -> dict[str, int]:
    names = ("one product for q, k, v", "linear + GELU", "weights laid out once")
    return {name: number for name, number in zip(names, numbers, strict=True) if number}


# ---------------------------------------------------------------- swapped models


def check_swapped(folder: Path, numbers: tuple[int, int, int]) -> None:
    fast, plain, exact = load(folder, dtype="bfloat16"), unswapped(folder, "bfloat16"), loaded(folder)
    assert counts(fast.fused) == expected_counts(numbers)
    assert plain.fused == exact.fused == []
    assert (fast.packing, fast.runs_pooled_alone) == (plain.packing, plain.runs_pooled_alone)
    texts = mixed()
    assert_no_farther(*(encoder(one, "last/mean", "last/cls", "-2/max")(texts).views
                        for one in (fast, plain, exact)))  # fmt: skip


@needs_onednn
@pytest.mark.parametrize("family", SWAPS)
def test_swapped_models_are_as_exact(family: str, lively_tiny: Folder) -> None:
    check_swapped(lively_tiny(family), SWAPS[family])


@needs_onednn
@pytest.mark.parametrize("case", UNUSUAL)
def test_swapped_models_of_unusual_configs_are_as_exact(case: str, tmp_path: Path) -> None:
    family, changes, numbers = UNUSUAL[case]
    check_swapped(lively(build(family, tmp_path / "plain", **changes), tmp_path / "lively"), numbers)


@needs_onednn
def test_every_swapped_module_runs(lively_tiny: Folder) -> None:
    """None of the modules that are counted is dead weight beside the one it stands for."""
    backbone = load(lively_tiny("bert"), dtype="bfloat16")
    ran: set[int] = set()
    swapped = [m for m in backbone.model.modules() if isinstance(m, (OneDnnLinear, ProjectionPart))]
    assert len(swapped) == 3 * (1 + 3) + 3 + 6
    for module in swapped:
        module.register_forward_hook(lambda module, *_: ran.add(id(module)))
    encoder(backbone, "last/mean")(["good book"])
    assert ran == {id(module) for module in swapped}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fuse_replaces_nothing_in_other_dtypes(dtype: str, tiny: Folder) -> None:
    backbone = load(tiny("bert"), dtype=dtype)
    assert backbone.fused == []
    assert not any(
        type(module).__module__ == "featcache.backbone.fused_layers" for module in backbone.model.modules()
    )


def test_fuse_replaces_nothing_in_bfloat16_that_is_emulated(
    tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.backbone.private_torch.cpu_capabilities", lambda: {"avx2"})
    assert load(tiny("bert"), dtype="bfloat16").fused == []


# ---------------------------------------------------------------- single modules


@needs_onednn
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    bias=st.booleans(),
    gelu=st.sampled_from(["none", "erf", "tanh"]),
)
def test_onednn_linear_equals_torch(rows: int, inner: int, outer: int, bias: bool, gelu: str) -> None:
    """Rounded once from the exact result, in any shape."""
    draw = torch.Generator().manual_seed(rows * 5000 + inner * 71 + outer)
    x, weight = (torch.randn(n, inner, generator=draw).to(BF16) for n in (rows, outer))
    b = torch.randn(outer, generator=draw).to(BF16) if bias else None
    found = OneDnnLinear(weight, b, gelu)(x[None])
    assert (found.shape, found.dtype) == ((1, rows, outer), BF16)
    exact = x.double() @ weight.double().T + (0 if b is None else b.double())
    if gelu != "none":
        exact = functional.gelu(exact, approximate="tanh" if gelu == "tanh" else "none")
    torch.testing.assert_close(found[0].double(), exact, rtol=2**-8, atol=2e-4)


def exactly_like(module: nn.Module, x: torch.Tensor, expected: dict[str, int]) -> list[str]:
    """Fuse `module`; which of its children are others now; its output must stay."""
    module = module.to(BF16).requires_grad_(False).eval()
    with torch.inference_mode():
        before = module(x).float()
        children = dict(module.named_children())
        assert counts(fuse(module, module)) == expected
        after = module(x).float()
    tolerance = 2e-2 * float(before.abs().max())
    torch.testing.assert_close(after, before, rtol=0, atol=tolerance)
    return [name for name, child in module.named_children() if child is not children[name]]


def sample(rows: int = 5, width: int = 16) -> torch.Tensor:
    return torch.randn(1, rows, width, generator=torch.Generator().manual_seed(3)).to(BF16)


class Feed(nn.Module):
    """Linear, GELU, linear: what is swapped; the tests below each change one thing about it."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.act, self.down = nn.Linear(16, 24, bias), nn.GELU(), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))


class NormBetween(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.norm(self.up(x))))


class HalfOfIt(Feed):
    """A gate: half of what the linear layer makes goes into the GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, kept = self.up(x).chunk(2, -1)
        return torch.cat([self.act(gate), kept], -1)


class ActivationFirst(Feed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.act(x)))


class ActivationTwice(Feed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.down(self.act(self.up(x))))


class DropoutBetween(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.dropout(self.up(x))))


class TwoActivations(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.GELU("tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.down(self.act(self.up(x))))


class AlsoUsedRaw(Feed):
    """What goes into the GELU is wanted without it, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = self.up(x)
        return self.act(raw) - raw


class UsedAgain(Feed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.up(x)) - self.up(-x)


class TwoInputs(Feed):
    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        assert other is None
        return super().forward(x)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_fuse_replaces_linear_and_gelu(bias: bool) -> None:
    expected = {"linear + GELU": 1, "weights laid out once": 1}
    assert exactly_like(Feed(bias), sample(), expected) == ["up", "act", "down"]
    assert exactly_like(TwoInputs(bias), sample(), expected) == ["up", "act", "down"]


@needs_onednn
@pytest.mark.parametrize("kind", [NormBetween, HalfOfIt, ActivationFirst, ActivationTwice, TwoActivations])
def test_fuse_keeps_a_gelu_that_no_linear_layer_feeds(kind: type[Feed]) -> None:
    width = 16
    changed = exactly_like(kind(), sample(width=width), {"weights laid out once": 2})
    assert changed == ["up", "down"]


@needs_onednn
def test_a_gelu_behind_dropout_keeps_its_result() -> None:
    """A frozen model's dropout passes on what it gets: whether that is swapped is all the same."""
    module = DropoutBetween().to(BF16).requires_grad_(False).eval()
    with torch.inference_mode():
        before = module(sample())
        assert sum(counts(fuse(module, module)).values()) == 2
        torch.testing.assert_close(module(sample()), before, rtol=2e-2, atol=2e-2)


@needs_onednn
@pytest.mark.parametrize("kind", [AlsoUsedRaw, UsedAgain])
def test_a_linear_layer_that_is_used_without_its_gelu_stays(kind: type[Feed]) -> None:
    assert exactly_like(kind(), sample(), {"weights laid out once": 2}) == ["up", "down"]


class Projections(nn.Module):
    def __init__(self, *linears: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = linears

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


class Scaled(nn.Linear):
    """An adapter: a linear layer that does more than its weights say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@needs_onednn
def test_fuse_projections_of_different_sizes() -> None:
    module = Projections(nn.Linear(16, 24), nn.Linear(16, 8), nn.Linear(16, 8))
    changed = exactly_like(module, sample(), {"one product for q, k, v": 1})
    assert changed == ["q_proj", "k_proj", "v_proj"]


@needs_onednn
@pytest.mark.parametrize(
    ("linears", "left"),
    [
        ((nn.Linear(16, 8), nn.Linear(16, 8, bias=False), nn.Linear(16, 8)), 3),  # as in Whisper
        ((nn.Linear(16, 8), Scaled(16, 8), nn.Linear(16, 8)), 2),
        ((nn.Linear(16, 8), nn.Sequential(nn.Linear(16, 8)), nn.Linear(16, 8)), 3),
    ],
    ids=["biases", "adapter", "nested"],
)
def test_fuse_keeps_projections_that_do_not_match(linears: tuple[nn.Module, ...], left: int) -> None:
    module = Projections(*linears)
    exactly_like(module, sample(), {"weights laid out once": left})
    assert not any(isinstance(child, ProjectionPart) for child in module.modules())


@needs_onednn
def test_shared_projection_of_different_inputs() -> None:
    """Cross-attention, and any order of calls: each gets the product of its own input."""
    module = Projections(*(nn.Linear(16, 8) for _ in range(3))).to(BF16).requires_grad_(False)
    plain = [nn.Linear(16, 8).to(BF16) for _ in range(3)]
    for linear, own in zip(plain, module.children(), strict=True):
        linear.load_state_dict(own.state_dict())
    with torch.inference_mode():
        assert counts(fuse(module, module)) == {"one product for q, k, v": 1}
        parts = list(module.children())
        inputs = [sample(rows) for rows in (4, 9, 9)]
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 0, 2)):
            for x in (inputs, [inputs[1]] * 3, inputs[::-1]):
                for number in order:
                    expected = plain[number](x[number])
                    torch.testing.assert_close(parts[number](x[number]), expected, rtol=2e-2, atol=2e-2)


@needs_onednn
@pytest.mark.parametrize("what", ["all", "gelu", "projections"])
def test_fuse_keeps_modules_whose_replacement_disagrees(
    what: str, lively_tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap that computes something else on this machine is not made, and the result is the plain one."""

    class Wrong(OneDnnLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            right = super().forward(x)
            spoiled = {"all": True, "gelu": self.gelu != "none", "projections": self.out_features == 96}
            return right * 1.1 if spoiled[what] else right

    monkeypatch.setattr(fusing, "OneDnnLinear", Wrong)
    monkeypatch.setattr(fusing.SharedProjection.__init__, "__defaults__", (Wrong,))
    backbone = load(lively_tiny("bert"), dtype="bfloat16")
    left = {"all": (0, 0, 0), "gelu": (3, 0, 9), "projections": (0, 3, 15)}[what]
    assert counts(backbone.fused) == expected_counts(left)
    found = encoder(backbone, "last/mean")(mixed()).views["last/mean"]
    plain = encoder(unswapped(lively_tiny("bert"), "bfloat16"), "last/mean")(mixed()).views["last/mean"]
    assert abs(found - plain).mean() <= 0.03 * abs(plain).mean()


@pytest.mark.parametrize(("kind", "dtype"), [(Int8Linear, BF16), (FbgemmLinear, torch.float32)])
def test_int8_linear_moves_large_inputs_into_the_weights(kind: type[Int8Linear], dtype: torch.dtype) -> None:
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        pytest.skip("a torch without oneDNN's 8-bit products")
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48).to(dtype).requires_grad_(False)
    x = torch.randn(200, 64)
    x[:, 7] *= 60  # as one feature of BERT's layers is
    expected = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    blocks = torch.nn.ModuleList([layer])
    measure_inputs(blocks, lambda: layer(x[:50].to(dtype)))
    peaks = layer.input_peaks
    torch.testing.assert_close(peaks.float(), x[:50].abs().amax(0), rtol=0.01, atol=0)

    def error(given: torch.Tensor | None) -> float:
        made = kind(layer.weight, layer.bias, peaks=given)(x.to(dtype))
        return float((made.double() - expected).norm() / expected.norm())

    assert error(peaks) < 0.4 * error(None)


# ---------------------------------------------------------------- 8 bits without bfloat16


@given(
    rows=st.integers(1, 9),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    largest=st.booleans(),
    bias=st.booleans(),
)
def test_fbgemm_linear_is_near_the_exact_product(
    rows: int, inner: int, outer: int, largest: bool, bias: bool
) -> None:
    """Also where all weights and inputs are as large as they can be, and sums of two in 16 bits are, too."""
    draw = torch.Generator().manual_seed(rows * 5000 + inner * 71 + outer)
    x, weight = (torch.randn(n, inner, generator=draw) for n in (rows, outer))
    x, weight = (x.sign().abs(), weight.sign()) if largest else (x, weight)
    b = torch.randn(outer, generator=draw) if bias else None
    found = FbgemmLinear(weight, b)(x[None])
    assert (found.shape, found.dtype) == ((1, rows, outer), torch.float32)
    exact = x.double() @ weight.double().T
    steps = x.abs().amax(1)[:, None] * weight.abs().sum(1) / 254 + x.abs().sum(1)[:, None] * (
        weight.abs().amax(1) / 127
    )  # half a step of each input and each weight, of which two neighbours share the size
    assert bool(((found[0].double() - (0 if b is None else b.double()) - exact).abs() <= 1.01 * steps).all())


@pytest.mark.parametrize("gelu", ["none", "erf"])
def test_a_row_in_int8_does_not_depend_on_the_others(gelu: str) -> None:
    """The same bits alone, beside far larger rows, and in whichever piece of `ROWS` it lies."""
    draw = torch.Generator().manual_seed(0)
    layer = FbgemmLinear(torch.randn(32, 48, generator=draw), torch.randn(32, generator=draw), gelu)
    x = torch.randn(layer.ROWS + 9, 48, generator=draw)
    together = layer(x)
    for row in (0, 5, layer.ROWS - 1, layer.ROWS, len(x) - 1):
        others = 1e4 * torch.randn(len(x), 48, generator=draw)
        others[row] = x[row]
        assert torch.equal(layer(others)[row], together[row])
        assert torch.equal(layer(x[row : row + 1])[0], together[row])


def test_int8_without_bfloat16_keeps_float32_between_its_layers(
    lively_tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.backbone.private_torch.cpu_capabilities", lambda: {"avx2"})
    backbone = load(lively_tiny("bert"), dtype="int8")
    assert (backbone.dtype, backbone.dtype_name, backbone.notes) == (torch.float32, "int8", [])
    assert counts(backbone.fused) == expected_counts(SWAPS["bert"])
    texts, encode = mixed(), encoder(backbone, "last/mean", "-2/max")
    together = encode(texts).views
    exact = encoder(load(lively_tiny("bert"), dtype="float32"), "last/mean", "-2/max")(texts).views
    for name, values in together.items():
        alone = torch.cat([torch.from_numpy(encode([text]).views[name]) for text in texts])
        # other shapes of attention round otherwise, and a rounding can move an input by a step of 8 bits
        torch.testing.assert_close(alone, torch.from_numpy(values), rtol=0, atol=0.02)
        cosine = functional.cosine_similarity(*(torch.from_numpy(v).double() for v in (values, exact[name])))
        assert 0.99 < cosine.min() < 1 - 1e-7
