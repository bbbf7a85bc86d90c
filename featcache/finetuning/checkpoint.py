"""Checkpoints of a training: tensors and a JSON-able state in one folder.

Tensors are written to new files; then one rename replaces the document that names them with their checksums.
So a kill at any moment leaves either the checkpoint before or the new one, whole.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from featcache.errors import CacheError
from featcache.plain_file import LONGEST_ARRAYS, read_plain
from featcache.system.documents import read_document
from featcache.system.durable import TEMPORARY, explained, make_own_folder, remove_own_folder, write_file

DOCUMENT = "checkpoint.json"
_OURS = re.compile(rf".+-[0-9a-f]{{32}}\.safetensors|{re.escape(DOCUMENT)}|{re.escape(TEMPORARY)}.+")
SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch
SHARE = 20  # saving takes at most one part in so many of the time


@dataclass(frozen=True)
class Checkpoint:
    """What `CheckpointFolder.save` was given."""

    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class CheckpointDocument:
    """The content of `DOCUMENT`: the file of each group of tensors, and the state."""

    files: dict[str, str]
    note: dict[str, Any]


class CheckpointFolder:
    """The folder of one training's checkpoint.

    Args:
        every: seconds after which the next checkpoint is due; raised where saving takes long. 0: always.
    """

    def __init__(self, path: Path, every: float = SAVE_EVERY) -> None:
        self.path, self.every = path, every
        self._files: dict[str, str] = {}
        self._saved = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.perf_counter() - self._saved > self.every

    def save(
        self, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any], keep: str = ""
    ) -> None:
        """Replace the checkpoint; durable on return.

        Args:
            tensors: groups of tensors by name, each written to a file of its own.
            keep: a group of the checkpoint before that stays, unless it is in `tensors`.
        """
        from safetensors.torch import save

        began = time.perf_counter()
        files = {name: file for name, file in self._files.items() if name == keep}
        with explained(self.path):
            make_own_folder(self.path)
        for name, group in tensors.items():
            content = save({key: value.detach().cpu().contiguous() for key, value in group.items()})
            files[name] = _file_name(name, content)
            write_file(self.path / files[name], content)
        document = asdict(CheckpointDocument(files, dict(state)))
        write_file(self.path / DOCUMENT, json.dumps(document).encode())
        with explained(self.path):
            for path in self.path.glob("*.safetensors"):
                if _OURS.fullmatch(path.name) and path.name not in files.values():
                    path.unlink()
        self._files, self._saved = files, time.perf_counter()
        if self.every:
            self.every = max(self.every, SHARE * (self._saved - began))

    def load(self) -> Checkpoint | None:
        """The checkpoint; None where there is none, or a damaged one."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = read_plain(self.path / DOCUMENT)
            document = read_document(CheckpointDocument, content, DOCUMENT, ValueError)
            tensors = {}
            for name, file in document.files.items():
                content = read_plain(self.path / file, LONGEST_ARRAYS)
                if file != _file_name(name, content):
                    return None
                tensors[name] = load(content)
        except (OSError, ValueError, SafetensorError):
            return None
        self._files = document.files
        return Checkpoint(tensors, document.note)

    def discard(self) -> None:
        """Remove the folder, if it is there."""
        with suppress(OSError, CacheError):
            remove_own_folder(self.path, _OURS)


def _file_name(group: str, content: bytes) -> str:
    return f"{group}-{xxhash.xxh3_128_hexdigest(content)}.safetensors"
