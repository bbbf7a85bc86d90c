"""Heads on a GPU beside the same heads on the CPU: seconds, and how far their logits are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from featcache.bench.timing import median_seconds
from featcache.heads.distributed import ProcessGroup
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Fit, Member
from featcache.heads.linear_stack import fit_stack
from featcache.heads.registry import KINDS
from featcache.settings import HeadSettings
from featcache.system.progress import OnProgress, Progress

STACK = 64
RUNS = 3
EPOCHS_OF_MLP = 5


@dataclass(frozen=True)
class DeviceHead:
    """One kind of head.

    Attributes:
        cpu_seconds, device_seconds: medians of 3 runs.
        apart: the largest difference of a logit of the held-out rows.
    """

    head: str
    cpu_seconds: float
    device_seconds: float
    apart: float


@dataclass(frozen=True)
class DeviceHeads:
    """What `heads_on` returns."""

    device: str
    heads: list[DeviceHead]


def heads_on(
    device: str,
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    on_progress: OnProgress,
) -> DeviceHeads:
    """Fit heads on the CPU and on a device.

    Raises:
        UsageError: no such device.
    """

    def stack(where: str) -> Fit:
        members = [Member("all", lr=float(rate), seed=None) for rate in np.geomspace(1e-4, 1e-1, STACK)]
        group = ProcessGroup(trains_on=where)
        return fit_stack({"all": train}, {"all": validation}, classes, members, settings, group=group)[0]

    def one(kind: str) -> Callable[[str], Fit]:
        own = replace(settings, epochs=min(settings.epochs, EPOCHS_OF_MLP)) if kind == "mlp" else settings
        return lambda where: KINDS[kind].fit(train, validation, classes, own, seed=0, device=where)

    fits: dict[str, Callable[[str], Fit]] = {f"{STACK} linear heads": stack}
    fits |= {kind: one(kind) for kind, known in KINDS.items() if known.on_device}
    return DeviceHeads(
        device, [_measured(name, fit, device, validation, on_progress) for name, fit in fits.items()]
    )


def _measured(
    name: str, fit: Callable[[str], Fit], device: str, rows: LabelledFeatures, on_progress: OnProgress
) -> DeviceHead:
    on_progress(Progress(f"{name} on the CPU and on {device}"))
    fits = {where: fit(where) for where in ("cpu", device)}  # the first use of every kernel does not count

    def run(where: str) -> None:
        fit(where)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    seconds = {where: median_seconds(lambda where=where: run(where), RUNS) for where in fits}  # type: ignore[misc]
    here, there = (fits[where].last.logits(rows.x) for where in ("cpu", device))
    return DeviceHead(name, seconds["cpu"], seconds[device], float(np.abs(here - there).max()))
