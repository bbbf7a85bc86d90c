"""Features that a head reads on a device: kept there where they fit, else sent some rows at a time."""

from __future__ import annotations

import numpy as np
import torch

from featcache.backbone.device_copies import copier_of
from featcache.heads.logistic.objective import FeatureSlices
from featcache.system.sharded_array import slices_of

NUMBERS_AT_ONCE = 1 << 22  # that are sent at once: 16 MB in float32
SHARE_OF_FREE = 0.5  # of a device's free memory, which features that are kept may take


class DeviceFeatures:
    """Features `[N, D]` whose slices are float32 tensors on a device.

    Args:
        x: on the host, already standardised where that is wanted.
        room: bytes that they may take on the device; None: half of what is free on a GPU.

    Attributes:
        kept: all of them on the device, or None: a slice is then sent when it is read.
    """

    def __init__(self, x: FeatureSlices, device: torch.device, room: float | None = None) -> None:
        self.x, self.device = x, device
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

    def _sent(self, rows: slice) -> torch.Tensor:
        values = np.ascontiguousarray(self.x[rows])
        values = values if values.flags.writeable else values.copy()
        return copier_of(self.device).to_device(values).float()


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU; of other devices without a limit."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return float(free)
