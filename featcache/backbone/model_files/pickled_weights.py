"""Models whose weights are pickled (`.bin`): a folder with the same weights as safetensors, made once.

A pickle is a program. Another process reads it (`read_pickle.py`), which builds tensors only. What it writes
is kept in the mirror, with the model's other files. A fingerprint takes the hash of the `.bin` as it was
published, so it is the same on every machine and does not depend on the conversion.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.weight_files import PICKLED, SAFETENSORS, is_pickled, weight_files
from featcache.errors import BackboneError, CacheError
from featcache.fingerprint import file_hash, fingerprint
from featcache.system.documents import json_document, parse_document
from featcache.system.downloads import FOLDER, entry_lock, evict, mirror_root, used
from featcache.system.durable import publish, temporary_beside, write_file

READER = Path(__file__).with_name("read_pickle.py")
CONVERTED = "converted.json"
VERSION = 1  # of the conversion; raised when it writes other tensors
RESAVE = "save it as safetensors where you trust it: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)"
UNSAFE = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")


@dataclass(frozen=True)
class ConvertedModel:
    """What is in a folder of converted weights.

    Attributes:
        version: see `VERSION`.
        source: SHA-256 by name of the files that it was made from.
        files: SHA-256 by name of the files in it.
    """

    version: int
    source: dict[str, str]
    files: dict[str, str]


def loadable_folder(files: ModelFiles) -> Path:
    """The folder that transformers loads the model from: its own, or one with its weights as safetensors.

    Raises:
        BackboneError: a pickled file is damaged, holds more than tensors, or is not the one that was hashed.
        CacheError: the converted weights cannot be written.
    """
    weights = weight_files(files.folder)
    if not is_pickled(weights):
        return files.folder
    key = fingerprint({"conversion": VERSION, "files": files.hashes})[:24]
    folder = mirror_root() / "data" / key
    with entry_lock(folder / CONVERTED):
        if not _is_whole(folder, files):
            _convert(files, weights, folder)
        for path in folder.iterdir():
            used(path)
    evict(keep=folder / SAFETENSORS.single)
    return folder


def _is_whole(folder: Path, files: ModelFiles) -> bool:
    """Whether the folder was made of exactly these files, and its own are as they were written."""
    try:
        content = json.loads((folder / CONVERTED).read_bytes())
        made = parse_document(ConvertedModel, content, CONVERTED, CacheError)
        return made.source == files.hashes and made.files == {
            name: file_hash(folder / name) for name in made.files
        }
    except (OSError, ValueError, CacheError):
        return False


def _convert(files: ModelFiles, weights: list[Path], folder: Path) -> None:
    """Write the model's files to `folder`, its weights as safetensors; `CONVERTED` comes last."""
    made, places = {}, {}
    for source in weights:
        if source.suffix == PICKLED.suffix:
            name = SAFETENSORS.single if len(weights) == 1 else f"{source.stem}.safetensors"
            for tensor in convert_file(source, files.hashes[source.name], folder / name):
                places[tensor] = name
            made[name] = file_hash(folder / name)
    if len(weights) > 1:
        index = json.dumps({"metadata": {}, "weight_map": places}, sort_keys=True).encode()
        write_file(folder / SAFETENSORS.index, index)
        made[SAFETENSORS.index] = hashlib.sha256(index).hexdigest()
    for name in files.hashes.keys() - {path.name for path in weights}:
        content = (files.folder / name).read_bytes()
        made[name] = hashlib.sha256(content).hexdigest()
        if made[name] != files.hashes[name]:
            raise _changed(files.folder / name)
        write_file(folder / name, content)
    document = json_document(ConvertedModel(VERSION, files.hashes, made))
    write_file(folder / CONVERTED, json.dumps(document, indent=1, sort_keys=True).encode())


def convert_file(source: Path, sha256: str, target: Path) -> list[str]:
    """Write the tensors of the pickled file `source` to `target`; returns their names.

    Args:
        sha256: of the file that is meant.
    """
    temporary = temporary_beside(target)
    try:
        answer = _read_in_another_process(source, temporary)
        if reason := answer.get("refused"):
            raise BackboneError(
                f"{source} is refused: {reason}; weights are tensors alone. Nothing in it was run",
                hint=RESAVE,
            )
        if reason := answer.get("damaged"):
            raise BackboneError(f"cannot read {source}: {reason}", hint="is the download complete?")
        if answer["sha256"] != sha256:
            raise _changed(source)
        publish(temporary, target, replace=True)
    finally:
        temporary.unlink(missing_ok=True)
    names: list[str] = answer["tensors"]
    return names


def _read_in_another_process(source: Path, target: Path) -> Mapping[str, Any]:
    """What `read_pickle.py` answers.

    Raises:
        CacheError: `target` cannot be written.
        BackboneError: the process ended without an answer.
    """
    environment = {name: value for name, value in os.environ.items() if name not in UNSAFE}
    done = subprocess.run(
        [sys.executable, "-P", str(READER), str(source.absolute()), str(target)],
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    try:
        answer: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if "No space" in said or "Permission" in said or "Read-only" in said:
        raise CacheError(
            f"cannot write the converted weights to {target.parent}: {said}",
            hint=f"choose another folder: export {FOLDER}=FOLDER",
        )
    raise BackboneError(
        f"cannot read {source}: the process that read it ended with {done.returncode} ({said})",
        hint="is it a file of weights, and is there memory for it?",
    )


def _changed(path: Path) -> BackboneError:
    return BackboneError(f"{path} was changed while it was read", hint="run the same command again")
