"""What the benchmarks share: timings, processes of their own, and the description of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch

from featcache.backbone.private_torch import cpu_capabilities
from featcache.errors import FeatcacheError
from featcache.system.machine import available_cores

T = TypeVar("T")

DIGITS = 6  # significant digits of the results


def timed(act: Callable[[], T]) -> tuple[T, float]:
    """The result of `act` and its seconds."""
    began = time.perf_counter()
    result = act()
    return result, time.perf_counter() - began


def median_seconds(act: Callable[[], object], runs: int) -> float:
    """The median of the seconds of some runs."""
    return statistics.median(timed(act)[1] for _ in range(runs))


class Timings:
    """Seconds of pieces of work that take turns, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def run(self, name: str, act: Callable[[], T]) -> T:
        """The result of `act`; its seconds are added to those of `name`."""
        result, seconds = timed(act)
        self.seconds[name].append(seconds)
        return result

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(seconds) for name, seconds in self.seconds.items()}

    @property
    def sums(self) -> dict[str, float]:
        return {name: sum(seconds) for name, seconds in self.seconds.items()}


def run_module(module: str, *arguments: object, error: type[FeatcacheError] = FeatcacheError) -> Any:
    """Run `python -m module`; what it prints last, as JSON.

    Raises:
        error: the process failed; the message has the last line of its stderr.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise error(f"{module} ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What figures were measured on.

    Attributes:
        device: the name of the GPU, or of the CPU.
        cores: how many this process may use, of `cpu_count`.
        flags: instruction sets that matter for matrix products.
        onednn_max_isa: the instruction set that oneDNN was limited to; empty for none.
        versions: of the packages that are installed.
    """

    device: str
    cpu: str
    cores: int
    cpu_count: int | None
    threads: int
    flags: list[str]
    onednn_max_isa: str
    platform: str
    versions: dict[str, str]


def this_machine(*packages: str, device: torch.device | None = None) -> Machine:
    """The machine, with the versions of torch and of `packages`."""
    versions = {}
    for name in ("torch", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    able = cpu_capabilities()
    cpu = str(getattr(torch.cpu, "get_capabilities", dict[str, Any])().get("cpu_name", platform.machine()))
    return Machine(
        device=torch.cuda.get_device_name(device) if device and device.type == "cuda" else cpu,
        cpu=cpu,
        cores=len(available_cores()),
        cpu_count=os.cpu_count(),
        threads=torch.get_num_threads(),
        flags=[name for name in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2") if name in able],
        onednn_max_isa=os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        platform=platform.platform(),
        versions=versions,
    )
