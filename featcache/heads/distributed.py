"""The collective operations by which workers train one head; without other workers they do nothing.

Every worker reads a contiguous share of the rows and adds up over it. `torch.distributed` sums over all
workers: after a sum all hold the same bits, so they decide alike. What a worker computes from these sums may
differ in the last bit (processors, numbers of threads): decisions from such values use the first worker's.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from featcache.errors import HeadError
from featcache.system.sharded_array import part_of
from featcache.system.workers import Worker, require_master

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")
ArrayOrTensor = TypeVar("ArrayOrTensor", "np.ndarray", "torch.Tensor")

WAIT = 1800.0  # seconds that one worker waits for another before it gives up


class WorkerLost(HeadError):
    """Another worker ended, or did not answer in time; its own error says why."""


@dataclass(frozen=True)
class ProcessGroup:
    """The workers of one training, as seen by one of them.

    Attributes:
        rank: number of this worker, from 0; the first one reports and writes.
        size: how many there are.
        device: where tensors are exchanged: `cpu` (gloo), or this worker's GPU (nccl).
        joined: whether there is a `torch.distributed` group; without one, all operations return what they
            are given.
        trains_on: where this worker trains, as `head_device` is asked.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    joined: bool = False
    trains_on: str = "cpu"

    def share(self, count: int) -> slice:
        """Which of `count` rows this worker reads; the shares of all differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def own_rows(self, x: np.ndarray) -> np.ndarray:
        """This worker's share of features `[N, D]`, not read yet."""
        return part_of(x, self.share(len(x)))

    def sum_(self, *parts: torch.Tensor | np.ndarray) -> None:
        """Sum each over all workers, in place and in one exchange; several are summed in float64."""
        if not self.joined:
            return
        import torch
        import torch.distributed as dist

        tensors = [torch.as_tensor(part) for part in parts]  # shares an array's memory
        packed = tensors[0] if len(tensors) == 1 else torch.cat([part.double().ravel() for part in tensors])
        packed = packed.contiguous().to(self.device)
        with _worker_errors():
            dist.all_reduce(packed)
        sums = packed.split([part.numel() for part in tensors]) if len(tensors) > 1 else [packed]
        for part, found in zip(tensors, sums, strict=True):
            if found is not part:
                part.copy_(found.view(part.shape))

    def gather(self, part: ArrayOrTensor, count: int) -> ArrayOrTensor:
        """The rows `[count, ...]` of all workers, from each one's share of them."""
        if not self.joined:
            return part
        import numpy as np

        shape = (count, *part.shape[1:])
        whole = np.zeros(shape, part.dtype) if isinstance(part, np.ndarray) else part.new_zeros(shape)
        whole[self.share(count)] = part
        self.sum_(whole)
        return whole

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The first worker's values of a tensor that has the same shape and dtype in all workers."""
        if not self.joined:
            return tensor
        import torch.distributed as dist

        sent = tensor.contiguous().to(self.device, copy=True)
        with _worker_errors():
            dist.broadcast(sent, 0)
        return sent.to(tensor.device)

    def broadcast_object(self, value: T | None) -> T:
        """The first worker's `value`, any object that can be pickled; the others may pass None."""
        held = [value]
        if self.joined:
            import torch.distributed as dist

            with _worker_errors():
                dist.broadcast_object_list(held, 0)
        assert held[0] is not None
        return held[0]


ALONE = ProcessGroup()


@contextlib.contextmanager
def join(
    worker: Worker, meeting: Path | None = None, *, gpus: int = 0, wait: float = WAIT
) -> Iterator[ProcessGroup]:
    """Meet the other workers, and leave them at the end.

    Args:
        meeting: a file that does not exist yet, on one machine; by default they meet at MASTER_ADDR,
            MASTER_PORT.
        gpus: GPUs of this machine that exchange tensors, one a worker (nccl); 0: none (gloo).
        wait: seconds for which workers wait for each other.

    Raises:
        WorkerLost: the others did not come, or one of them ended later.
    """
    import torch
    import torch.distributed as dist

    if gpus:
        torch.cuda.set_device(worker.local_rank)
    with _worker_errors():
        store = None if meeting is None else dist.FileStore(str(meeting), worker.size)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if gpus else "gloo", rank=worker.rank, world_size=worker.size, store=store,
            timeout=datetime.timedelta(seconds=wait),
        )  # fmt: skip
    try:
        device = f"cuda:{worker.local_rank}" if gpus else "cpu"
        yield ProcessGroup(worker.rank, worker.size, device, joined=True)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def environment_group(device: str = "cpu") -> Iterator[ProcessGroup]:
    """The workers that `torchrun` describes in the environment; `ALONE` where it describes none.

    Args:
        device: as settings have it; with `cuda`, workers that have a GPU each exchange tensors by nccl, and
            heads that can train there do.

    Raises:
        UsageError: variables are missing or out of range.
        WorkerLost: see `join`.
    """
    worker = Worker.from_environment()
    if worker is None:
        yield ALONE
        return
    require_master()
    with join(worker, gpus=usable_gpus(device, worker.local_size)) as group:
        yield group


def usable_gpus(device: str, workers: int) -> int:
    """How many GPUs nccl may use for `workers` on this machine: one each, or none at all."""
    if device != "cuda":
        return 0
    import torch
    import torch.distributed as dist

    return workers if dist.is_nccl_available() and torch.cuda.device_count() >= workers else 0


@contextlib.contextmanager
def _worker_errors() -> Iterator[None]:
    """Raise `WorkerLost` for errors of `torch.distributed`."""
    try:
        yield
    except RuntimeError as error:
        message = re.sub(r"^\[.*?\]:?\s*", "", str(error).partition("\n")[0])  # without torch's source line
        raise WorkerLost(
            f"another worker ended, or cannot be reached: {message.partition('. ')[0]}",
            hint="see the error of that worker; unfinished training is not kept",
        ) from error
