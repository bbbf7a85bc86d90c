"""Every private call into torch, each with the public call that can take its place.

The private calls are several times faster, but torch may drop or change them. At its first use each one is
compared with its public counterpart on a few numbers. If it is absent, takes other arguments or returns
other values, the public one is used instead, and a warning names it once. What the processor itself
can multiply is here, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from featcache.system.machine import processor_flags

CPU = torch.device("cpu")
ARITHMETIC = {  # instruction sets for products of a dtype, of x86 and of ARM
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int8": {"avx512_bf16", "amx_bf16", "bf16", "avx2"},  # avx2: the linear layers by FBGEMM
    "float16": {"avx512_fp16", "amx_fp16", "fp16_arith"},
}
APPROXIMATE = {"erf": "none", "tanh": "tanh"}  # how torch calls the two GELUs
Call = Callable[..., Any]


@lru_cache(maxsize=64)
def checked(private: Call, public: Call, sample: Callable[[torch.device], Any], device: torch.device) -> Call:
    """`private` if it does what `public` does, else `public`, with a warning.

    Args:
        private: makes the private call.
        public: makes the public one, with the same arguments.
        sample: the arguments of a trial on a device, made again for each call; the results are compared.
        device: where the trial runs.

    Raises:
        torch.OutOfMemoryError: the trial does not fit, which says nothing about the call.
    """
    expected = public(*sample(device))
    tolerance = 1e-2 if expected.dtype == torch.bfloat16 else 1e-4
    try:
        found = private(*sample(device))
        works = torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError):  # torch.ops raises RuntimeError
        works = False
    if works:
        return private
    name = private.__name__.removeprefix("_private_")
    here = "processor" if device.type == "cpu" else "GPU"
    warnings.warn(
        f"torch {torch.__version__} has no {name} that works as expected on this {here}; a slower public "
        "call replaces it",
        stacklevel=3,
    )
    return public


def is_emulated(dtype: str, device: torch.device) -> bool:
    """Whether a model computes by converting each number, on a processor without such arithmetic.

    False where the instructions of the processor are not known.
    """
    known = cpu_capabilities() if device.type == "cpu" and dtype in ARITHMETIC else set()
    return bool(known) and not ARITHMETIC[dtype] & known


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & cpu_capabilities())


def cpu_capabilities() -> set[str]:
    """Instruction sets of this processor that torch uses, for example `avx2` and `avx512_bf16`."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older torch
        return processor_flags()
    return {name for name, able in torch.cpu.get_capabilities().items() if able is True}


def _wave(*shape: int, device: torch.device = CPU) -> torch.Tensor:
    """Numbers from -2 to 2, the same at each call."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
    return (2 * torch.sin(count)).view(shape).to(device)


# ------------------------------------------------------------------------------------------- AdamW


@dataclass(frozen=True)
class AdamWRates:
    """The numbers of one step of AdamW, as in `torch.optim.AdamW`."""

    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    eps: float


TensorList = list[torch.Tensor]


def adamw_(
    parameters: TensorList, gradients: TensorList, means: TensorList, squares: TensorList, rates: AdamWRates
) -> None:
    """One step of AdamW (arXiv:1711.05101) in place, without the corrections for the first steps.

    Args:
        parameters: float32, on one device; the other lists have tensors of the same shapes there.
        means, squares: running means of the gradients and of their squares.
    """
    step = checked(_private_fused_adamw, _public_adamw, _adamw_sample, parameters[0].device)
    step(parameters, gradients, means, squares, rates)


def _private_fused_adamw(
    parameters: TensorList, gradients: TensorList, means: TensorList, squares: TensorList, rates: AdamWRates
) -> torch.Tensor:
    steps = [_late_step(parameters[0].device)] * len(parameters)
    torch._fused_adamw_(
        parameters, gradients, means, squares, [], steps, amsgrad=False, maximize=False, **vars(rates)
    )
    return parameters[0]


@lru_cache(maxsize=16)
def _late_step(device: torch.device) -> torch.Tensor:
    """A number of steps so large that the corrections for the first steps are 1."""
    return torch.full((), 1e12, device=device)


def _public_adamw(
    parameters: TensorList, gradients: TensorList, means: TensorList, squares: TensorList, rates: AdamWRates
) -> torch.Tensor:
    for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
        parameter.mul_(1 - rates.lr * rates.weight_decay)
        mean.lerp_(gradient, 1 - rates.beta1)
        square.mul_(rates.beta2).addcmul_(gradient, gradient, value=1 - rates.beta2)
        parameter.addcdiv_(mean, square.sqrt().add_(rates.eps), value=-rates.lr)
    return parameters[0]


def _adamw_sample(device: torch.device) -> tuple[Any, ...]:
    values = _wave(3, 5, device=device)
    rates = AdamWRates(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.3, eps=1e-3)
    return [values.clone()], [values + 1], [values + 2], [values.square()], rates


# --------------------------------------------------------------------------- the gradient of softmax


def softmax_backward(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to x of `weights = softmax(x, -1)`, from the one of `weights`; same shape."""
    backward = checked(
        _private_softmax_backward_data, _public_softmax_backward, _softmax_sample, weights.device
    )
    result: torch.Tensor = backward(gradient, weights)
    return result


def _private_softmax_backward_data(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


def _public_softmax_backward(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    exact = torch.promote_types(weights.dtype, torch.float32)
    g, w = gradient.to(exact), weights.to(exact)
    return (w * (g - (g * w).sum(-1, keepdim=True))).to(weights.dtype)


def _softmax_sample(device: torch.device) -> tuple[torch.Tensor, ...]:
    return _wave(2, 3, 5, device=device), torch.softmax(_wave(2, 3, 5, device=device), -1)


# ------------------------------------------------------------------------- linear layers and GELUs


def addmm_gelu(device: torch.device) -> Call:
    """On CUDA: the function that gives `gelu_tanh(bias + rows @ weight)` by one call of cuBLAS.

    The function itself is returned, so that `torch.compile` meets no check in it.
    """
    return checked(_private_addmm_activation, _public_addmm_gelu, _addmm_sample, device)


def _private_addmm_activation(bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch._addmm_activation(bias, rows, weight, use_gelu=True)


def _public_addmm_gelu(bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.gelu(torch.addmm(bias, rows, weight), approximate="tanh")


def _addmm_sample(device: torch.device) -> tuple[torch.Tensor, ...]:
    return _wave(8, device=device), _wave(16, 8, device=device), _wave(8, 8, device=device)


def lay_out(weight: torch.Tensor) -> torch.Tensor:
    """`[out, in]` bfloat16 as `linear` takes it: laid out for oneDNN once, instead of at every call."""
    if checked(_private_linear_pointwise, _public_linear, _linear_sample, CPU) is _public_linear:
        return weight
    result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return result


def linear(x: torch.Tensor, laid_out: torch.Tensor, bias: torch.Tensor | None, gelu: str) -> torch.Tensor:
    """`gelu(x W^T + b)` of a weight from `lay_out`, in one call of oneDNN; `gelu`: `none`, `erf`, `tanh`."""
    if not laid_out.is_mkldnn:
        return _public_linear(x, laid_out, bias, gelu)
    operation = "none" if gelu == "none" else "gelu"
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        x, laid_out, bias, operation, [], APPROXIMATE.get(gelu, "none")
    )
    return result


def _private_linear_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gelu: str
) -> torch.Tensor:
    return linear(x, torch.ops.mkldnn._reorder_linear_weight(weight, None), bias, gelu)


def _public_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: str
) -> torch.Tensor:
    product = functional.linear(x, weight, bias)
    return product if gelu == "none" else functional.gelu(product, approximate=APPROXIMATE[gelu])


def _linear_sample(device: torch.device) -> tuple[Any, ...]:
    values = _wave(4, 8, device=device).bfloat16()
    return values, values, _wave(4, device=device).bfloat16(), "erf"


def lay_out_int8(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """int8 `[out, in]` as `linear_int8` takes it, for inputs of about `rows` rows."""
    if checked(_private_qlinear_pointwise, _public_linear_int8, _int8_sample, CPU) is _public_linear_int8:
        return weight.float()
    result: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, [rows, weight.shape[1]])
    return result


def linear_int8(
    x: torch.Tensor, laid_out: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The product of 8-bit integers, `(x - 128) W^T * scale`, in `dtype`.

    Args:
        x: uint8 `[T, in]`, 128 stands for 0.
        laid_out: from `lay_out_int8`.
        scale: float32 `[out]`.
        zero: int32 `[out]`, zeros.
    """
    if not laid_out.is_mkldnn:
        return _public_linear_int8(x, laid_out, scale, zero, dtype)
    result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, laid_out, scale, zero, None, 1.0, 0, dtype, "none", [], ""
    )
    return result


def _private_qlinear_pointwise(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    laid_out = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    return linear_int8(x, laid_out, scale, zero, dtype)


def _public_linear_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return (functional.linear(x.float() - 128, weight.float()) * scale).to(dtype)


def _int8_sample(device: torch.device) -> tuple[Any, ...]:
    x = (_wave(4, 8, device=device) * 50 + 128).to(torch.uint8)
    weight = (_wave(4, 8, device=device) * 60).to(torch.int8)
    return x, weight, torch.ones(4), torch.zeros(4, dtype=torch.int32), torch.float32


def lay_out_fbgemm(weight: torch.Tensor, scale: torch.Tensor) -> Any:
    """`weight * scale[:, None]` as `linear_fbgemm` takes it.

    Args:
        weight: int8 `[out, in]`; no two neighbours of one sign in a row sum to more than 128.
        scale: float32 `[out]`.
    """
    call = checked(_private_linear_fbgemm, _public_linear_fbgemm, _fbgemm_sample, CPU)
    return weight * scale[:, None] if call is _public_linear_fbgemm else _packed(weight, scale)


def linear_fbgemm(x: torch.Tensor, laid_out: Any) -> torch.Tensor:
    """float32 `round(x) W^T` in 8-bit integers, for `x` from -127 to 127 and W from `lay_out_fbgemm`."""
    if isinstance(laid_out, torch.Tensor):
        return functional.linear(x.round(), laid_out)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    result: torch.Tensor = multiply(x, 1.0, 128, laid_out)  # step 1; 128 stands for 0
    return result


def _packed(weight: torch.Tensor, scale: torch.Tensor) -> Any:
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch means to drop quantized tensors
        quantized = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
        return torch.ops.quantized.linear_prepack(quantized, None)


def _private_linear_fbgemm(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return linear_fbgemm(x, _packed(weight, scale))


def _public_linear_fbgemm(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return functional.linear(x.round(), weight * scale[:, None])


def _fbgemm_sample(device: torch.device) -> tuple[torch.Tensor, ...]:
    """With sums that 16 bits just hold, if the inputs are added in the pairs that are expected."""
    x = torch.cat([torch.full((2, 64), 127.0), 60 * _wave(2, 64)]).to(device)
    largest = torch.tensor([127, 1, 64, 64] * 16, dtype=torch.int8, device=device)
    return x, torch.stack([largest, -largest, largest // 3]), torch.tensor([0.5, 1.0, 2.0], device=device)


def gelu_(values: torch.Tensor, gelu: str) -> None:
    """The GELU of `values` in their place; `erf` or `tanh`."""
    checked(_private_gelu, _public_gelu, _gelu_sample, values.device)(values, gelu)


def _private_gelu(values: torch.Tensor, gelu: str) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten.gelu_(values, approximate=APPROXIMATE[gelu])
    return result


def _public_gelu(values: torch.Tensor, gelu: str) -> torch.Tensor:
    return values.copy_(functional.gelu(values, approximate=APPROXIMATE[gelu]))


def _gelu_sample(device: torch.device) -> tuple[Any, ...]:
    return _wave(3, 5, device=device), "tanh"
