"""Where a head trains."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def head_device(asked: str, work: float, least: float) -> torch.device:
    """The device that a head trains on; a GPU by its number, which means the same in each thread.

    Args:
        asked: as the settings have it: `cuda` or `cuda:N` take that GPU; `auto` takes one that is there if
            the work pays for it; all others mean the CPU.
        work: floating-point operations, of a step or of all, by the solver.
        least: so many from which on a GPU pays.

    Raises:
        UsageError: that GPU is not there.
    """
    if asked.startswith("cuda"):
        from featcache.backbone.load import resolve_device  # it takes a while to import

        device = resolve_device(asked)
    elif asked == "auto" and work >= least and torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        return CPU
    unnumbered = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if unnumbered else device
