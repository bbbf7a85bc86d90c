"""Features that a head reads on a device: kept there where they fit, else sent some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from featcache.backbone.device_copies import copier_of
from featcache.heads.features import Standard
from featcache.heads.logistic.objective import FeatureSlices
from featcache.system.sharded_array import slices_of

NUMBERS_AT_ONCE = 1 << 22  # that are sent at once: 16 MB in float32
SHARE_OF_FREE = 0.5  # of a device's free memory, which features that are kept may take


class DeviceFeatures:
    """Features `[N, D]` whose slices are float32 tensors on a device.

    Args:
        x: on the host; for `batches` one that gives rows by their numbers, too.
        room: bytes that they may take on the device; None: half of what is free on a GPU.
        standard: they are standardised by it on the device, in float64 and then rounded as on the host; None:
            as they are.

    Attributes:
        kept: all of them on the device, or None: a slice is then sent when it is read.
    """

    def __init__(
        self,
        x: FeatureSlices,
        device: torch.device,
        room: float | None = None,
        standard: Standard | None = None,
    ) -> None:
        self.x: Any = x
        self.device = device
        self.standard: tuple[torch.Tensor, torch.Tensor] | None = None  # mean and scale
        if standard is not None:
            mean, scale = (torch.from_numpy(part) for part in (standard.mean, standard.scale))
            self.standard = mean.to(device), scale.to(device)
        self.shape = (int(x.shape[0]), int(x.shape[1]))
        rows, width = self.shape
        self.kept: torch.Tensor | None = None
        if 4 * rows * width <= (free_bytes(device) * SHARE_OF_FREE if room is None else room):
            self.kept = torch.empty(rows, width, device=device)
            for part in slices_of(rows, max(1, NUMBERS_AT_ONCE // width)):
                self.kept[part] = self._sent(part)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Some rows, float32 `[B, D]`; not to be written to."""
        return self._sent(rows) if self.kept is None else self.kept[rows]

    def batches(self, order: np.ndarray, size: int) -> Iterator[torch.Tensor]:
        """The rows in this order, int64 `[M]`, so many at a time: float32 `[B, D]`."""
        if self.kept is not None:
            there = copier_of(self.device).to_device(order)
            yield from (self.kept.index_select(0, rows) for rows in there.split(size))
        else:
            yield from (self._sent(order[rows]) for rows in slices_of(len(order), size))

    def _sent(self, rows: slice | np.ndarray) -> torch.Tensor:
        values = np.ascontiguousarray(self.x[rows])
        values = values if values.flags.writeable else values.copy()
        there = copier_of(self.device).to_device(values)
        if self.standard is None:
            return there.float()
        mean, scale = self.standard
        return there.to(torch.float64, copy=True).sub_(mean).div_(scale).float()


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU, with what torch holds for its next tensors; of other devices without a limit."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
