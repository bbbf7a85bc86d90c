"""If memory runs out, the same texts are tried again in smaller batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from featcache.backbone.packing import plan_batches
from featcache.errors import BackboneError

# How a RuntimeError says that memory ran out: CUDA and its libraries, then the CPU's allocator twice.
MEMORY_WORDS = ("out of memory", "status_alloc_failed", "can't allocate memory", "not enough memory")
SHORTER = "use a smaller --max-length, or another --device"


class BatchQueue:
    """Rows in batches, longest first, under a token budget that shrinks when memory runs out.

    Args:
        lengths: tokens of each row, int `[N]`.
        budget: tokens in one batch.

    Attributes:
        budget: tokens in the batches that are left.
    """

    def __init__(self, lengths: np.ndarray, budget: int) -> None:
        self._lengths = lengths
        self._plan(np.arange(len(lengths)), budget)

    def _plan(self, rows: np.ndarray, budget: int) -> None:
        self.budget = budget
        self._pending = [rows[batch] for batch in plan_batches(self._lengths[rows], budget)][::-1]

    def __bool__(self) -> bool:
        """Whether batches are left."""
        return bool(self._pending)

    def run_next(self, work: Callable[[np.ndarray], None], hint: str) -> None:
        """Do `work` on the rows of the next batch; if memory runs out, split what is left into smaller ones.

        Raises:
            BackboneError: a single row does not fit; with `hint`.
        """
        rows = self._pending.pop()
        tokens = int(self._lengths[rows].sum())
        if not fits(work, rows, tokens, hint):
            self._plan(np.concatenate([rows, *self._pending[::-1]]), max(tokens // 2, 1))


def smaller_batches(
    lengths: np.ndarray, budget: int, work: Callable[[np.ndarray], None], hint: str = SHORTER
) -> int:
    """Do `work` on all rows, see `BatchQueue`; the budget that fitted in the end."""
    batches = BatchQueue(lengths, budget)
    while batches:
        batches.run_next(work, hint)
    return batches.budget


def fits(work: Callable[[np.ndarray], None], rows: np.ndarray, tokens: int, hint: str = SHORTER) -> bool:
    """Do `work` on a batch of `rows`; False if memory ran out, once what failed is freed.

    Raises:
        BackboneError: a single row does not fit; with `hint`.
    """
    try:
        work(rows)
        return True
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:  # which holds what failed
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise BackboneError(f"out of memory on one text of {tokens} tokens", hint=hint) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error).lower() for words in MEMORY_WORDS)
