"""Labelled rows on a device: their batches in training, and how well logits fit them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from featcache.backbone.device_copies import copier_of
from featcache.heads.device.choose import CPU
from featcache.heads.device.features import DeviceFeatures
from featcache.heads.features import LabelledFeatures, Standard
from featcache.system.sharded_array import slices_of


class DeviceRows:
    """Standardised features with their labels and weights on a device.

    On the CPU, features are standardised when they are read; see `DeviceFeatures` for other devices.

    Attributes:
        rows: the same on the host.
        labels: int64 `[N]`, or uint8 multi-hot `[N, C]`.
        weight: float32 `[N]`; None where the rows count alike.
    """

    def __init__(self, rows: LabelledFeatures, standard: Standard, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.x = DeviceFeatures(rows.x, device, 0 if device == CPU else None, standard)
        kind = torch.int64 if rows.y.ndim == 1 else torch.uint8
        self.labels = torch.tensor(rows.y, dtype=kind).to(device)
        own = rows.weight
        self.weight = None if own is None else torch.tensor(own, dtype=torch.float32).to(device)

    def batches(
        self, order: np.ndarray, size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """The rows in this order, int64 `[N]`, so many at a time: features, labels, weights.

        The host does not wait for the device.
        """
        there = copier_of(self.device).to_device(order)
        for x, rows in zip(self.x.batches(order, size), there.split(size), strict=True):
            weight = None if self.weight is None else self.weight.index_select(0, rows)
            yield x, self.labels.index_select(0, rows), weight

    @torch.no_grad()
    def scores(self, logits: Callable[[torch.Tensor], torch.Tensor], at_once: int) -> tuple[float, float]:
        """Loss and accuracy, as `score_rows` has them, computed on the device.

        Args:
            logits: features `[B, D]` -> `[B, C]`.
            at_once: rows of which logits are computed at a time.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for rows in slices_of(len(self.labels), at_once):
            found, labels = logits(self.x[rows]), self.labels[rows]
            if labels.dim() == 1:
                true = found.double().softmax(1).gather(1, labels[:, None])
                right = found.argmax(1) == labels
            else:
                has = labels > 0
                true = torch.where(has, found, -found).double().sigmoid()
                right = ((found >= 0) == has).all(1)
            sums += torch.stack([-true.clamp_min(1e-15).log().sum(), right.sum().double()])
        lost, hits = sums.tolist()
        return lost / self.labels.numel(), hits / len(self.labels)
