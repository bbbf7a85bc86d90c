"""Private calls into torch are taken away one by one; the public calls give the same results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from featcache.backbone import private_torch
from featcache.backbone.attention.trained import trained_attention
from featcache.backbone.fused_layers import CudaLinear, OneDnnLinear
from featcache.backbone.linear.int8 import FbgemmLinear, Int8Linear
from featcache.backbone.packing import PackedLayout
from featcache.backbone.private_torch import (
    AdamWRates,
    adamw_,
    addmm_gelu,
    gelu_,
    is_emulated,
    softmax_backward,
)
from featcache.heads.registry import fit_linear
from featcache.settings import HeadSettings
from tests.support.feature_rows import clusters
from tests.support.stock import encoder, load, mixed

CPU = torch.device("cpu")
BF16 = torch.bfloat16
CALLS = {  # where each private call is found, and the name its warning has
    "_fused_adamw_": (torch, "fused_adamw"),
    "_softmax_backward_data": (torch, "softmax_backward_data"),
    "_addmm_activation": (torch, "addmm_activation"),
    "_linear_pointwise": (torch.ops.mkldnn, "linear_pointwise"),
    "_reorder_linear_weight": (torch.ops.mkldnn, "linear_pointwise"),
    "qlinear_prepack": (torch.ops.onednn, "qlinear_pointwise"),
    "qlinear_pointwise": (torch.ops.onednn, "qlinear_pointwise"),
    "linear_prepack": (torch.ops.quantized, "linear_fbgemm"),
    "linear_with_input_q_dq_qweight_dq_output_fp32": (torch.ops.quantized, "linear_fbgemm"),
    "gelu_": (torch.ops.aten, "gelu"),
}
ERRORS = [AttributeError, TypeError, RuntimeError]  # absent; other arguments; the same from torch.ops


@pytest.fixture(autouse=True)
def checked_anew() -> Iterator[None]:
    private_torch.checked.cache_clear()
    yield
    private_torch.checked.cache_clear()


@pytest.fixture(params=ERRORS)
def take_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes private calls fail as if torch had dropped or changed them."""

    def take(*names: str) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise request.param("taken away")

        for name in names:
            monkeypatch.setattr(CALLS[name][0], name, fail)

    return take


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny import build

    return build("bert", tmp_path_factory.mktemp("bert"))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped() -> list[torch.Tensor]:
    lists = [[drawn(4, 6, seed=seed), drawn(3, seed=seed + 9)] for seed in range(3)]
    lists.append([part.square() for part in lists[2]])
    for _ in range(3):
        adamw_(*lists, AdamWRates(lr=0.03, beta1=0.9, beta2=0.999, weight_decay=0.1, eps=1e-6))
    return [part for parts in lists for part in parts]


def softmax_gradient(dtype: torch.dtype) -> torch.Tensor:
    return softmax_backward(drawn(2, 5, 7, seed=1).to(dtype), torch.softmax(drawn(2, 5, 7).to(dtype), -1))


def onednn(gelu: str, bias: bool) -> torch.Tensor:
    layer = OneDnnLinear(drawn(12, 16).to(BF16), drawn(12).to(BF16) if bias else None, gelu)
    return layer(drawn(1, 9, 16, seed=2).to(BF16)).float()


def int8(gelu: str) -> torch.Tensor:
    layer = Int8Linear(drawn(12, 16).to(BF16), drawn(12).to(BF16), gelu, drawn(16).abs())
    return layer(drawn(1, 9, 16, seed=2).to(BF16)).float()


def fbgemm(gelu: str) -> torch.Tensor:
    return FbgemmLinear(drawn(12, 17), drawn(12), gelu, drawn(17).abs())(drawn(1, 9, 17, seed=2))


def gelu_of(gelu: str) -> torch.Tensor:
    values = drawn(5, 7)
    gelu_(values, gelu)
    return values


# What is worked out, by which private calls, and how closely the public way gives the same.
CASES: dict[str, tuple[Callable[[], Any], tuple[str, ...], float]] = {
    "AdamW": (stepped, ("_fused_adamw_",), 1e-6),
    "softmax": (lambda: softmax_gradient(torch.float32), ("_softmax_backward_data",), 1e-6),
    "softmax in float64": (lambda: softmax_gradient(torch.float64), ("_softmax_backward_data",), 1e-12),
    "softmax in 16 bits": (lambda: softmax_gradient(BF16).float(), ("_softmax_backward_data",), 5e-3),
    **{
        f"oneDNN {gelu}, bias {bias}": (lambda gelu=gelu, bias=bias: onednn(gelu, bias), (call,), 1e-2)
        for gelu, bias, call in [
            ("none", True, "_linear_pointwise"),
            ("erf", False, "_reorder_linear_weight"),
            ("tanh", True, "_linear_pointwise"),
        ]
    },
    **{
        f"int8 {gelu}": (lambda gelu=gelu: int8(gelu), calls, 1e-2)
        for gelu, calls in [
            ("none", ("qlinear_prepack",)),
            ("erf", ("qlinear_pointwise",)),
            ("tanh", ("qlinear_pointwise", "gelu_")),
        ]
    },
    "FBGEMM none": (lambda: fbgemm("none"), ("linear_prepack",), 1e-5),
    "FBGEMM erf": (lambda: fbgemm("erf"), ("linear_with_input_q_dq_qweight_dq_output_fp32",), 1e-5),
    "GELU erf": (lambda: gelu_of("erf"), ("gelu_",), 1e-6),
    "GELU tanh": (lambda: gelu_of("tanh"), ("gelu_",), 1e-6),
}


@pytest.mark.parametrize(
    ("able", "emulated"),
    [
        ({"avx2"}, {"bfloat16", "float16"}),
        ({"neon"}, {"bfloat16", "int8", "float16"}),
        ({"avx512_bf16"}, {"float16"}),
        ({"amx_bf16", "avx512_fp16"}, set()),
        ({"neon", "bf16", "fp16_arith"}, set()),
        (set(), set()),  # not known
    ],
)
def test_a_dtype_without_instructions_is_emulated(
    able: set[str], emulated: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_torch, "cpu_capabilities", lambda: able)
    dtypes = ("float32", "bfloat16", "int8", "float16")
    assert {dtype for dtype in dtypes if is_emulated(dtype, CPU)} == emulated
    assert not any(is_emulated(dtype, torch.device("cuda")) for dtype in dtypes)


def skip_if_emulated(case: str) -> None:
    """Without such arithmetic the processor has no private call that could be taken away."""
    if case.startswith(("oneDNN", "int8")) and is_emulated("bfloat16", CPU):
        pytest.skip("this processor only emulates bfloat16")
    if case.startswith("FBGEMM") and "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("a torch without FBGEMM")


@pytest.mark.parametrize("case", CASES)
def test_public_calls_give_the_same_and_a_warning_says_so_once(
    case: str, take_away: Callable[..., None]
) -> None:
    skip_if_emulated(case)
    work, calls, tolerance = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this torch has them all
        expected = work()
    take_away(*calls)
    private_torch.checked.cache_clear()
    with pytest.warns(UserWarning) as told:
        found, again = work(), work()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    assert sorted(str(warning.message).split(" has no ")[1].split()[0] for warning in told) == sorted(
        {CALLS[call][1] for call in calls}
    )


def test_fbgemm_that_adds_other_pairs_in_16_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would if it added the first and the third product, the second and the fourth."""
    x, weight, scale = private_torch._fbgemm_sample(CPU)
    expected = functional.linear(x.round(), weight * scale[:, None])

    def other_pairs(values: torch.Tensor, limit: int) -> torch.Tensor:
        products = (values.round() + 128)[:, None] * weight
        one, two, three, four = products.unflatten(2, (-1, 4)).unbind(3)
        sums = (one + three).clamp(-limit, limit) + (two + four).clamp(-limit, limit)
        return (sums.sum(2) - 128 * weight.sum(1)) * scale

    torch.testing.assert_close(other_pairs(x, limit=2**20), expected)  # right, if sums were never too large
    name = "linear_with_input_q_dq_qweight_dq_output_fp32"
    monkeypatch.setattr(torch.ops.quantized, name, lambda values, *_: other_pairs(values, limit=2**15))
    with pytest.warns(UserWarning, match="linear_fbgemm"):
        laid_out = private_torch.lay_out_fbgemm(weight, scale)
    torch.testing.assert_close(private_torch.linear_fbgemm(x, laid_out), expected)


def test_a_call_that_gives_other_values_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = softmax_gradient(torch.float32)
    private_torch.checked.cache_clear()
    monkeypatch.setattr(torch, "_softmax_backward_data", lambda gradient, *_: gradient)
    with pytest.warns(UserWarning, match="softmax_backward_data"):
        torch.testing.assert_close(softmax_gradient(torch.float32), expected)


def test_memory_that_ran_out_says_nothing_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = softmax_gradient(torch.float32)
    private_torch.checked.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_softmax_backward_data", fail)
        with pytest.raises(torch.OutOfMemoryError):
            softmax_gradient(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(softmax_gradient(torch.float32), expected)


def test_addmm_gelu_checks_the_private_call(
    monkeypatch: pytest.MonkeyPatch, take_away: Callable[..., None]
) -> None:
    """CPUs take `_addmm_activation` to mean the erf GELU: a stand-in does what CUDA does."""

    def as_on_cuda(bias: Any, rows: Any, weight: Any, *, use_gelu: bool) -> torch.Tensor:
        assert use_gelu
        return functional.gelu(bias + rows @ weight, approximate="tanh")

    arguments = drawn(8), drawn(16, 4), drawn(4, 8)
    expected = as_on_cuda(*arguments, use_gelu=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_addmm_activation", as_on_cuda)
        assert addmm_gelu(CPU) is private_torch._private_addmm_activation
        torch.testing.assert_close(addmm_gelu(CPU)(*arguments), expected)
    private_torch.checked.cache_clear()
    take_away("_addmm_activation")
    with pytest.warns(UserWarning, match="addmm_activation"):
        torch.testing.assert_close(addmm_gelu(CPU)(*arguments), expected)


def test_cuda_linear_without_the_private_call(take_away: Callable[..., None]) -> None:
    """As on CUDA, where the layer asks for it; its tanh GELU is the same."""
    take_away("_addmm_activation")
    layer = CudaLinear(drawn(12, 16), drawn(12), "tanh")
    plain = layer(drawn(1, 9, 16, seed=2))
    with pytest.warns(UserWarning, match="addmm_activation"):
        layer.addmm_gelu = addmm_gelu(CPU)
    torch.testing.assert_close(layer(drawn(1, 9, 16, seed=2)), plain)


@pytest.mark.filterwarnings("ignore:torch .* has no")
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_features_without_any_private_call(folder: Path, take_away: Callable[..., None], dtype: str) -> None:
    texts = mixed()
    expected = encoder(load(folder, dtype=dtype))(texts).views
    take_away(*CALLS)
    private_torch.checked.cache_clear()
    found = encoder(load(folder, dtype=dtype))(texts).views
    for name, values in expected.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=0.03 * scale, err_msg=name)


@pytest.mark.filterwarnings("ignore:torch .* has no")
def test_head_without_the_private_call(take_away: Callable[..., None]) -> None:
    rows = clusters(60)
    settings = HeadSettings(epochs=5, lr=0.05)
    expected = fit_linear(rows, rows, 3, settings, seed=0)
    take_away("_fused_adamw_")
    private_torch.checked.cache_clear()
    found = fit_linear(rows, rows, 3, settings, seed=0)
    np.testing.assert_allclose(found.best.weight, expected.best.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch .* has no")
def test_trained_attention_without_the_private_call(take_away: Callable[..., None]) -> None:
    def gradients() -> list[torch.Tensor]:
        states = [drawn(1, 2, 14, 8, seed=seed).requires_grad_() for seed in range(3)]
        layout = PackedLayout.of(np.array([9, 4, 1]), CPU)
        attended, _ = trained_attention(torch.nn.Identity(), *states, None, packed=layout, is_causal=True)
        attended.square().sum().backward()
        return [part.grad for part in states if part.grad is not None]

    expected = gradients()
    take_away("_softmax_backward_data")
    private_torch.checked.cache_clear()
    torch.testing.assert_close(gradients(), expected, rtol=1e-5, atol=1e-6)
