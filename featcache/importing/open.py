"""From a path to its vectors, by the ending of its name."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from featcache.data.formats.lines import reading
from featcache.errors import SourceError
from featcache.importing.arrays import open_hdf5, open_npy, open_npz, open_safetensors
from featcache.importing.tables import open_parquet, open_saved
from featcache.importing.vector_file import VectorFile
from featcache.system.hashes import FileState

READERS: dict[str, Callable[[Path, str | None], VectorFile]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".parquet": open_parquet,
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".safetensors": open_safetensors,
}


def open_vectors(path: Path, array: str | None = None, split: str | None = None) -> VectorFile:
    """The vectors in a file or folder; nothing but their shape is read.

    Args:
        array: name of the array or column, where there are several.
        split: of a folder of several splits.

    Raises:
        SourceError: there is no such file, it is damaged, of an unknown kind, or holds no vectors.
    """
    path = path.expanduser()
    with reading(path):
        about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        return open_saved(path, array, split)
    if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
        raise SourceError(f"{path} is a device or a pipe", hint="write the vectors into a file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SourceError(
            f"{path}: no file of vectors has this ending",
            hint=f"endings: {' '.join(READERS)}; or a folder of dataset.save_to_disk",
        )
    if not about.st_size:
        raise SourceError(f"{path} is empty", hint="write the vectors again")
    return replace(reader(path, array), path=path, opened=FileState.of(about))
