"""Vectors with texts and labels that they tell apart, in files of every format."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROWS, WIDTH = 60, 12
LABELS = ("好评", "差评", "物流")


def labelled_vectors(
    rows: int = ROWS, width: int = WIDTH, dtype: str = "float32", seed: int = 0
) -> tuple[np.ndarray, list[str], list[str]]:
    """`[rows, width]` vectors, with texts and labels; those of one label lie together."""
    draw = np.random.default_rng(seed)
    classes = np.arange(rows) % len(LABELS)
    centers = np.random.default_rng(99).normal(size=(len(LABELS), width)) * 3
    vectors = (centers[classes] + draw.normal(size=(rows, width))).astype(dtype)
    texts = [f"评论 {seed} {row}：房间很干净" for row in range(rows)]
    return vectors, texts, [LABELS[one] for one in classes]


def write_texts(path: Path, texts: list[str], labels: list[str], encoding: str = "utf-8") -> Path:
    """A csv file with the columns id, text and label."""
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        writer.writerows(
            (row, text, label) for row, (text, label) in enumerate(zip(texts, labels, strict=True))
        )
    return path


def _npy(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    np.save(path, vectors)


def _npz(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    np.savez(path, vectors=vectors, id=ids)


def _packed_npz(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    np.savez_compressed(path, vectors=vectors, id=ids)


def _hdf5(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["inner/vectors"], file["id"] = vectors, ids


def _safetensors(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"vectors": vectors, "id": ids}, path)


def _parquet(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ids, "vectors": pa.array(list(vectors))})
    pq.write_table(table, path, row_group_size=17)


def _saved(path: Path, vectors: np.ndarray, ids: np.ndarray) -> None:
    import datasets

    datasets.Dataset.from_dict({"id": ids.tolist(), "vectors": list(vectors)}).save_to_disk(path)


FORMATS: dict[str, Callable[[Path, np.ndarray, np.ndarray], None]] = {
    "v.npy": _npy,
    "v.npz": _npz,
    "packed.npz": _packed_npz,
    "v.h5": _hdf5,
    "v.safetensors": _safetensors,
    "v.parquet": _parquet,
    "saved": _saved,
}


def write_vectors(folder: Path, name: str, vectors: np.ndarray, ids: np.ndarray | None = None) -> Path:
    """The file `name` of `FORMATS` with the vectors, and their ids where the format has room for them."""
    path = folder / name
    FORMATS[name](path, vectors, np.arange(len(vectors)) if ids is None else ids)
    return path
