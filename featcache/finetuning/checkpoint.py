"""Where a training stands: tensors and a note, on disk as one.

The tensors of a checkpoint are written under names of their own; the note that names them, with their
checksums, replaces the one before in one step. A kill at any moment leaves one checkpoint or the other whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from featcache.system.durable import explained, make_folder, write_file

NOTE = "checkpoint.json"
Parts = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given: groups of tensors by name, and a JSON-able note."""

    parts: dict[str, dict[str, torch.Tensor]]
    note: dict[str, Any]


def save_checkpoint(
    folder: Path, parts: Parts, note: Mapping[str, Any], kept: Mapping[str, str]
) -> dict[str, str]:
    """Replace the checkpoint in `folder`; durable on return.

    Args:
        parts: those that changed, each written to a file of its own.
        kept: files of earlier parts that belong to this one, too, by part, as an earlier call returned them.

    Returns:
        The files of all parts.
    """
    from safetensors.torch import save

    with explained(folder):
        make_folder(folder)
    files = dict(kept)
    for name, tensors in parts.items():
        content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        files[name] = f"{name}-{xxhash.xxh3_128_hexdigest(content)}.safetensors"
        write_file(folder / files[name], content)
    write_file(folder / NOTE, json.dumps({"files": files, "note": dict(note)}).encode())
    with explained(folder):
        for path in folder.glob("*.safetensors"):
            if path.name not in files.values():
                path.unlink()
    return files


def load_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, str]] | None:
    """The checkpoint in `folder` and the files of its parts; None where there is none, or a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = json.loads((folder / NOTE).read_bytes())
        parts, files = {}, {str(part): str(name) for part, name in content["files"].items()}
        for part, name in files.items():
            stored = (folder / name).read_bytes()
            if name != f"{part}-{xxhash.xxh3_128_hexdigest(stored)}.safetensors":
                return None
            parts[part] = load(stored)
        return Checkpoint(parts, content["note"]), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def discard_checkpoint(folder: Path) -> None:
    """Remove it, where it is."""
    shutil.rmtree(folder, ignore_errors=True)
