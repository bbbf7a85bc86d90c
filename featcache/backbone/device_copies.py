"""Copies between host and device that overlap with computing.

On CUDA, the input of a batch goes to the device on one stream and the output of the batch before it returns
on another, through pinned memory, while the device computes on its own stream. Elsewhere copies are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

# Batches on the device before the oldest one's results are waited for. With two, the next batch is gathered
# and queued while the device works; more would only hold memory.
IN_FLIGHT = {"cuda": 2}


@dataclass(frozen=True)
class HostCopy:
    """Tensors on their way to the host.

    Attributes:
        host: where they arrive, by name; not to be read before `wait`.
        done: recorded when they have arrived; None if they are there already.
    """

    host: dict[str, torch.Tensor]
    done: torch.cuda.Event | None = None

    def wait(self) -> dict[str, np.ndarray]:
        """Wait for the values and return them, by name."""
        if self.done is not None:
            self.done.synchronize()
        return {name: tensor.numpy() for name, tensor in self.host.items()}


class DeviceCopier:
    """Copies to a device and back.

    The stream that is current when a method is called is the one that computes: copies to the device finish
    before its next kernel begins, copies to the host begin when its kernels so far are done, and the memory
    of both is not reused before its users have finished.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        streams = device.type == "cuda"
        self._up = torch.cuda.Stream(device) if streams else None
        self._down = torch.cuda.Stream(device) if streams else None

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        """`values` on the device."""
        return self.send(torch.from_numpy(values))

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device; on the CPU the same one, else a copy of what it holds now."""
        if self._up is None:
            return tensor.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            there = tensor.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(self._up)
        there.record_stream(computing)  # it is made on one stream and read on another
        return there

    def to_host(self, tensors: dict[str, torch.Tensor]) -> HostCopy:
        """Begin to bring `tensors` to the host."""
        if self._down is None:
            return HostCopy({name: tensor.cpu() for name, tensor in tensors.items()})
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        host = {}
        with torch.cuda.stream(self._down):
            for name, tensor in tensors.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._down)
            return HostCopy(host, self._down.record_event())


@lru_cache(maxsize=16)
def copier_of(device: torch.device) -> DeviceCopier:
    """The one DeviceCopier of a device."""
    return DeviceCopier(device)
