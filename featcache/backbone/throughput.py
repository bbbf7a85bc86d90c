"""How fast an extraction runs while it runs, beside what the machine can do."""

from __future__ import annotations

import statistics
import time
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from featcache.backbone.encoder import Encoder

MEASURE_AFTER = 1.0  # seconds of encoding before the peak is measured ...
WORTH_MEASURING = 10.0  # ... and seconds still to go, so that it costs no more than a few percent
PEAK_SECONDS = 0.15


class Speedometer:
    """The share of the GEMM peak that useful arithmetic has reached since the first step.

    The peak is measured once, in about a quarter of a second, and only where the work will take long.

    Args:
        encoder: what runs; blocks above its highest view are not counted.
        total: texts to encode.
    """

    def __init__(self, encoder: Encoder, total: int) -> None:
        self.backbone = encoder.backbone
        self.total = total
        self._depth = encoder.views[-1].layer / encoder.backbone.num_blocks
        self._coming = np.zeros(0, dtype=np.int64)
        self._done = 0
        self._flops = 0.0
        self._began = time.perf_counter()
        self._peak: float | None = None

    def expect(self, lengths: np.ndarray) -> None:
        """Tokens of each text (or window of one) encoded next; batches take the longest first."""
        self._coming = np.sort(lengths)[::-1]

    def step(self, texts: int, tokens: int) -> float | None:
        """Count `texts` of so many tokens as encoded; the share, 0 to 1, None where the peak is not known."""
        from featcache.backbone.peak import useful_flops

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


@lru_cache(maxsize=8)
def quick_peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of matrix products, measured once; on CPUs of one shape: `gemm_peak` takes seconds there."""
    import torch
    from torch.nn import functional

    from featcache.backbone.peak import gemm_peak

    if device.type != "cpu":
        return gemm_peak(dtype, device, PEAK_SECONDS)
    rows, inner, columns = 2048, 768, 3072
    with torch.inference_mode():
        a = torch.randn(rows, inner).to(dtype)
        b = torch.randn(columns, inner).to(dtype)
        functional.linear(a, b)
        times: list[float] = []
        while sum(times) < PEAK_SECONDS:
            began = time.perf_counter()
            functional.linear(a, b)
            times.append(time.perf_counter() - began)
    return 2e-9 * rows * inner * columns / statistics.median(times)
