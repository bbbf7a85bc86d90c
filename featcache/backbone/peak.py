"""The machine's limit: how fast it multiplies matrices, and how much multiplying a batch of texts needs."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from torch.nn import functional

from featcache.backbone.model import Backbone


def gemm_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """The fastest matrix product of this machine, GFLOP/s: the best median over a few large shapes."""
    best = 0.0
    for rows, inner, columns in ((4096, 768, 3072), (4096, 1024, 4096), (4096, 4096, 4096)):
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        with torch.inference_mode():
            for _ in range(2):
                functional.linear(a, b)
            times: list[float] = []
            while sum(times) < seconds / 3 or len(times) < 3:
                _wait(device)
                began = time.perf_counter()
                functional.linear(a, b)
                _wait(device)
                times.append(time.perf_counter() - began)
        best = max(best, 2e-9 * rows * inner * columns / statistics.median(times))
    return best


def useful_flops(backbone: Backbone, lengths: np.ndarray) -> float:
    """Floating-point operations that real tokens need in all blocks: 2 a weight, and attention.

    Attention takes 4 H L for each token of a text of L tokens (H: width of the attention).
    """
    config = backbone.model.config
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    width: int = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    attention = 4 * width * config.num_attention_heads * backbone.num_blocks
    return float(2 * backbone.block_weights * tokens + attention * squares)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
