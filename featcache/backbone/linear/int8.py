"""Linear layers that multiply 8-bit integers, by oneDNN in bfloat16 and by FBGEMM in float32."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from featcache.backbone import private_torch


class Int8Linear(nn.Module):
    """`gelu(x W^T + b)` or without the GELU, multiplied in 8-bit integers (u8 x s8) by oneDNN.

    Weights are rounded once, with a scale for each output, activations at each call, with a scale for each
    token, so that the vector of a text never depends on the texts beside it. A few inputs of a Transformer's
    layers are far larger than the others and would take all the steps of that scale: part of their size is
    moved into the weights beforehand (SmoothQuant, arXiv:2211.10438, with exponent 1/2), in steps of a
    quarter octave, so that small differences between machines seldom show.

    Args:
        weight: `[out, in]`, in the dtype of the inputs: bfloat16; of a `FbgemmLinear` float32.
        bias: `[out]` or None.
        gelu: `none`, `erf` or `tanh`.
        peaks: `[in]`, about the largest value of each input; None: all alike.
    """

    gelus: ClassVar[tuple[str, ...]] = ("erf", "tanh")
    ROWS = 512  # tokens at once: what they take stays in the processor's cache

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        gelu: str = "none",
        peaks: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        exact = weight.detach().float()
        moved = None if peaks is None else _moved(peaks, exact)
        exact = exact if moved is None else exact * moved
        self.smaller = None if moved is None else (1 / moved).to(weight.dtype)
        self.bias = torch.zeros(self.out_features) if bias is None else bias.detach().float()
        self.gelu = gelu
        self.scale = self._steps(exact).clamp_min(1e-12)
        self.zero = torch.zeros(self.out_features, dtype=torch.int32)
        self.laid_out = self._laid_out((exact / self.scale[:, None]).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out = rows.new_empty(len(rows), self.out_features)
        for part, result in zip(rows.split(self.ROWS), out.split(self.ROWS), strict=True):
            product, scale = self._product(part if self.smaller is None else part * self.smaller)
            torch.addcmul(self.bias.to(part.dtype), product, scale, out=result)
            if self.gelu != "none":
                private_torch.gelu_(result, self.gelu)
        return out.view(*x.shape[:-1], self.out_features)

    def _steps(self, weight: torch.Tensor) -> torch.Tensor:
        """The step that the weights of each output are rounded to, `[out]`."""
        return weight.abs().amax(1) / 127

    def _laid_out(self, rounded: torch.Tensor) -> Any:
        return private_torch.lay_out_int8(rounded, self.ROWS)

    def _product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[n, out]` and `[n, 1]`, to be multiplied with each other."""
        # 126: in bfloat16 a quotient can come out half a step above what it should be
        scale = x.abs().amax(1, keepdim=True).float().clamp_min_(1e-12).div_(126).to(x.dtype)
        whole = x.div(scale).round_().add_(128).to(torch.uint8)
        return private_torch.linear_int8(whole, self.laid_out, self.scale, self.zero, x.dtype), scale


class FbgemmLinear(Int8Linear):
    """An `Int8Linear` in float32, by FBGEMM, for processors without bfloat16.

    AVX2 adds the products of two inputs that are neighbours in 16 bits. So that the sums fit, and inputs keep
    8 bits, weights are rounded in steps of which two neighbours of one sign have at most 128.
    """

    def _steps(self, weight: torch.Tensor) -> torch.Tensor:
        pairs = functional.pad(weight, (0, self.in_features % 2)).unflatten(1, (-1, 2))
        most, least = pairs.clamp_min(0).sum(2).amax(1), pairs.clamp_max(0).sum(2).amin(1)
        return torch.maximum(most, -least) / 127  # rounding adds up to 1 to a sum

    def _laid_out(self, rounded: torch.Tensor) -> Any:
        return private_torch.lay_out_fbgemm(rounded, self.scale)

    def _product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # without a tensor of the sizes, which takes twice as long
        largest = torch.maximum(x.amax(1, keepdim=True), x.amin(1, keepdim=True).neg_())
        scale = largest.clamp_min_(1e-12).div_(127)
        return private_torch.linear_fbgemm(x * scale.reciprocal(), self.laid_out), scale


def _moved(peaks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the weights of each input are multiplied by, `[in]`; the geometric mean is about 1."""
    wanted = (peaks.float().clamp_min(1e-5) / weight.abs().amax(0).clamp_min(1e-5)).log2() / 2
    return ((wanted - wanted.mean()) * 4).round().div(4).clamp(-8, 8).exp2()
