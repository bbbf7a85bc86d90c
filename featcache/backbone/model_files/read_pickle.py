"""Write the tensors of a pickled weight file to a safetensors file: `python read_pickle.py SOURCE TARGET`.

`pickled_weights.py` runs this script in a process of its own, with little memory, because anybody may have
made SOURCE. torch's unpickler for weights builds tensors and containers only, and calls nothing that the file
names. The script imports nothing of featcache.

It prints one JSON object: `{"sha256": of SOURCE, "tensors": their names}`, `{"refused": reason}` or
`{"damaged": reason}`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from typing import Any, BinaryIO

ROOM = 1 << 30  # bytes for torch's own needs
COPIES = 4  # of the file that reading it and writing it may hold at once


class MoreThanTensors(Exception):
    """The file holds more than tensors."""


def main(source: str, target: str) -> dict[str, Any]:
    from safetensors.torch import save_file

    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        file.seek(0)
        limit_memory(COPIES * size + ROOM)
        try:
            tensors = separate(checked(read(file), COPIES * size))
        except MoreThanTensors as error:
            return {"refused": str(error)}
        except Exception as error:  # torch raises errors of all kinds for bytes that mean nothing
            return {"damaged": first_line(error)}
    save_file(tensors, target, metadata={"format": "pt"})
    return {"sha256": digest, "tensors": list(tensors)}


def read(file: BinaryIO) -> Any:
    """What the file holds; only tensors and containers are built."""
    import pickle

    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise MoreThanTensors(f"it asks for {wanted[1]}") from None
        raise


def checked(content: Any, most: int) -> dict[str, Any]:
    """`content` if it is a dictionary of ordinary tensors with at most `most` bytes."""
    import torch

    if not isinstance(content, dict) or not content:
        raise MoreThanTensors(f"it holds a {type(content).__name__}, not weights by name")
    for name, value in content.items():
        if not isinstance(name, str):
            raise MoreThanTensors(f"one of its names is a {type(name).__name__}")
        if not isinstance(value, torch.Tensor):
            raise MoreThanTensors(f"its {name!r} is a {type(value).__name__} and no tensor")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise MoreThanTensors(f"its {name!r} is a tensor of a kind that is not used for weights")
    total = sum(value.numel() * value.element_size() for value in content.values())
    if total > most:
        raise MoreThanTensors(f"its tensors would take {total:,} bytes")
    return content


def separate(content: dict[str, Any]) -> dict[str, Any]:
    """The tensors, each with memory of its own: safetensors has no shared memory."""

    seen: set[int] = set()
    apart = {}
    for name, value in content.items():
        place = value.untyped_storage().data_ptr()
        own = value.detach().contiguous()
        apart[name] = own.clone() if place in seen else own
        seen.add(place)
    return apart


def limit_memory(more: int) -> None:
    """Let this process allocate `more` bytes and no more, where the system can hold it to that."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass  # Windows and macOS; `checked` bounds what is written there


def first_line(error: Exception) -> str:
    """The first line of a message that says something about the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    advice = ("Weights only load failed", "Please file", "(", "Check")  # of torch, about loading it otherwise
    told = [line for line in lines if not line.startswith(advice)]
    return f"{type(error).__name__}: {(told or lines or [''])[0][:200]}"


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
