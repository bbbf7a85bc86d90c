"""How fast encoding runs beside the machine's limit, the rate at which it multiplies matrices."""

from __future__ import annotations

import statistics
import time
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from featcache.backbone.model import Backbone

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

MEASURE_AFTER = 1.0  # seconds of encoding before the peak is measured ...
WORTH_MEASURING = 10.0  # ... and seconds still to go, so that it costs no more than a few percent
PEAK_SECONDS = 0.15


class Speedometer:
    """The share of the GEMM peak that useful arithmetic has reached since the first step.

    The peak is measured once, in about a quarter of a second, and only if the work will take long.

    Args:
        encoder: the encoder that runs; blocks above its highest view do not count.
        total: texts to encode.
    """

    def __init__(self, encoder: Encoder, total: int) -> None:
        self.backbone = encoder.backbone
        self.total = total
        self._depth = encoder.depth
        self._coming = np.zeros(0, dtype=np.int64)
        self._done = 0
        self._flops = 0.0
        self._began = time.perf_counter()
        self._peak: float | None = None

    def expect(self, lengths: np.ndarray) -> None:
        """Tokens of each text (or window of one) encoded next; batches take the longest first."""
        self._coming = np.sort(lengths)[::-1]

    def step(self, texts: int, tokens: int) -> float | None:
        """Count `texts` with so many tokens as encoded; the share, 0 to 1, or None without a peak."""
        rows = int(np.searchsorted(np.cumsum(self._coming), tokens, "right"))  # windows, of long texts
        now, self._coming = self._coming[:rows], self._coming[rows:]
        self._done += texts
        self._flops += useful_flops(self.backbone, now) * self._depth
        seconds = time.perf_counter() - self._began
        if self._peak is None and self._worth_measuring(seconds):
            self._peak = quick_peak(self.backbone.dtype, self.backbone.device)
            self._began += time.perf_counter() - self._began - seconds  # the measurement is no work
        return self._flops / seconds / 1e9 / self._peak if self._peak and seconds > 0 else None

    def _worth_measuring(self, seconds: float) -> bool:
        left = seconds * (self.total - self._done) / self._done if self._done else 0.0
        return seconds >= MEASURE_AFTER and left >= WORTH_MEASURING


def useful_flops(backbone: Backbone, lengths: np.ndarray) -> float:
    """Floating-point operations that real tokens need in all blocks: 2 for each weight, and attention.

    Attention takes 4 H L for each token of a text of L tokens (H: width of the attention).
    """
    config = backbone.model.config
    if not backbone.num_blocks:  # a table of token vectors: they are added
        return float(lengths.sum() * backbone.width)
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    width: int = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    attention = 4 * width * config.num_attention_heads * backbone.num_blocks
    return float(2 * backbone.block_weights * tokens + attention * squares)


def gemm_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """The fastest matrix product of this machine, GFLOP/s: the best median over a few large shapes."""
    shapes = ((4096, 768, 3072), (4096, 1024, 4096), (4096, 4096, 4096))
    return max(_gemm_rate(shape, dtype, device, seconds / 3, least=3) for shape in shapes)


@lru_cache(maxsize=8)
def quick_peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of matrix products, measured once; on CPUs of one shape: `gemm_peak` takes seconds there."""
    if device.type != "cpu":
        return gemm_peak(dtype, device, PEAK_SECONDS)
    return _gemm_rate((2048, 768, 3072), dtype, device, PEAK_SECONDS, least=1)


def _gemm_rate(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seconds: float, least: int
) -> float:
    """The median GFLOP/s of `[rows, inner] x [inner, columns]`, over `seconds` and `least` products."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(columns, inner, device=device).to(dtype)
    times: list[float] = []
    with torch.inference_mode():
        functional.linear(a, b)
        while sum(times) < seconds or len(times) < least:
            _wait(device)
            began = time.perf_counter()
            functional.linear(a, b)
            _wait(device)
            times.append(time.perf_counter() - began)
    return 2e-9 * rows * inner * columns / statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
