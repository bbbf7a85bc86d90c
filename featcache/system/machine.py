"""The processor cores, threads and memory of this process."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # how the threads of OpenMP wait
SPINS, SPINS_ALONE = "1000", "10000"  # of some 50 ns each


def available_cores() -> list[int]:
    """Numbers of the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_flags() -> set[str]:
    """Instruction sets of this processor, named as Linux names them; none where /proc does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def core_groups(cores: Sequence[int], count: int) -> list[list[int]]:
    """`cores` in `count` groups of neighbours of nearly equal size; some are empty if there are too few."""
    ends = [len(cores) * number // count for number in range(count + 1)]
    return [list(cores[start:end]) for start, end in itertools.pairwise(ends)]


def keep_to(cores: Sequence[int]) -> None:
    """Run this process on `cores` only, where the system supports that."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def short_waits(environment: Mapping[str, str]) -> dict[str, str]:
    """How long threads that wait for each other in a product spin before they sleep, as a variable.

    Beside other work they spin for some 50 microseconds, on an idle machine for half a millisecond: to sleep
    and to be woken takes longer than many a wait. By default they spin for some 15 ms, which beside other
    work takes the cores from the very threads that they wait for. It is read when torch is loaded. Empty
    where the user set how threads wait.
    """
    if not WAITING.isdisjoint(environment):
        return {}
    return {"GOMP_SPINCOUNT": SPINS if others_run() else SPINS_ALONE}


def others_run(looks: int = 3) -> bool:
    """Whether threads of others want the processor, at each of some looks a few milliseconds apart.

    True where the system does not say it.
    """
    for look in range(looks):
        if look:
            time.sleep(0.002)
        try:
            running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
        except (OSError, IndexError, ValueError):
            return True
        if running <= 1:  # this thread
            return False
    return True


def peak_memory_of(process: int) -> int | None:
    """Bytes that a running process had resident at most; None where the system does not say it."""
    status = Path(f"/proc/{process}/status")
    try:
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
    except OSError:
        return None
    return None if line is None else 1024 * int(line.split()[1])


def peak_memory() -> int | None:
    """Bytes that this process had resident at most, mapped files included; None where it is not known."""
    if Path("/proc/self/status").exists():  # on Linux `ru_maxrss` keeps the parent's peak across exec
        return peak_memory_of(os.getpid())
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


@contextlib.contextmanager
def one_thread_if(small: bool) -> Iterator[None]:
    """One torch thread for small steps.

    A second one hardly makes such steps shorter, and makes them many times longer once other processes want
    the processors too.
    """
    import torch

    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
