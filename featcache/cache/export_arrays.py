"""Export a view of a cache file for other tools: as numpy arrays or as a parquet table.

`x.npy` is the matrix `[N, D]` as it is stored; beside it are `x.labels.npy`, `x.row_hash.npy` and
`x.about.json`, which describes them. `x.parquet` is one table: `row_hash` (hex), `label` (its name;
for multi-label data a list of names, for regression a number), `features` (a fixed-size list of float32, as
few tools read 16 bits).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.errors import CacheError, UsageError
from featcache.fingerprint import MULTI_LABEL, REGRESSION, SINGLE_LABEL, EncoderDocument, task_of
from featcache.system.documents import json_document
from featcache.system.durable import explained, publish, temporary_beside
from featcache.system.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 16 << 20  # bytes of features in memory at a time
SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class ExportedArrays:
    """What was written: the rows and columns of the matrix, every file, and their bytes."""

    view: str
    shape: tuple[int, int]
    paths: tuple[Path, ...]
    bytes: int


def export(
    file: CacheFile,
    output: Path,
    *,
    view: str | None = None,
    force: bool = False,
    on_progress: OnProgress = ignore,
) -> ExportedArrays:
    """Write one view of `file`, a few rows at a time; each file appears whole or not at all.

    Args:
        output: `.npy` or `.parquet`; of the `.npy` files the one with the features appears last.
        view: as the file names it, or as it was requested; required if the file has several.
        force: replace files that are there.

    Raises:
        UsageError: another suffix, or no `view` although there are several.
        CacheMiss: no such view.
        CacheError: damaged features, an output file exists already, or the file system refuses.
    """
    if output.suffix not in SUFFIXES:
        raise UsageError(f"cannot export to {output}: unknown format", hint="name it x.npy or x.parquet")
    features = file.features(_view(file, view))
    with explained(output):
        if output.suffix == ".npy":
            paths = _export_npy(features, output, force, on_progress)
        else:
            paths = _export_parquet(features, output, force, on_progress)
        size = sum(path.stat().st_size for path in paths)
    rows, width = features.x.shape
    return ExportedArrays(features.view, (rows, width), tuple(paths), size)


def npy_paths(output: Path) -> dict[str, Path]:
    """The paths of the parts of an export to `x.npy`: features, labels, row_hash, about."""
    return {
        "labels": output.with_suffix(".labels.npy"),
        "row_hash": output.with_suffix(".row_hash.npy"),
        "about": output.with_suffix(".about.json"),
        "features": output,
    }


def _view(file: CacheFile, asked: str | None) -> str:
    """The stored name of the view `asked`, or of the only view."""
    if asked is None:
        if len(file.views) == 1:
            return file.views[0]
        raise UsageError(f"{file.path.name} has several views", hint=f"--view {' | '.join(file.views)}")
    return file.stored_view(asked)


@dataclass(frozen=True)
class ArraysDescription:
    """What is beside exported arrays: of which features they are."""

    view: str
    split: str
    rows: int
    label_names: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    encoder: EncoderDocument


def _about(features: Features, **options: Any) -> bytes:
    """The description of the arrays as JSON, with options of `json.dumps`."""
    about = ArraysDescription(
        view=features.view,
        split=features.split,
        rows=len(features.x),
        label_names=features.label_names,
        multi_label=features.y.ndim == 2,
        fingerprint=features.fingerprint,
        encoder=features.encoder,
    )
    return json.dumps(json_document(about), ensure_ascii=False, **options).encode()


def _chunks(features: Features) -> Iterator[slice]:
    """Rows of at most CHUNK bytes of features."""
    count, width = features.x.shape
    step = max(CHUNK // max(4 * width, 1), 1)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


# -- numpy ----------------------------------------------------------------------------------------


def _export_npy(features: Features, output: Path, force: bool, on_progress: OnProgress) -> list[Path]:
    paths = npy_paths(output)
    with _written(list(paths.values()), force) as (labels, row_hash, about, matrix):
        _write_array(labels, features.y)
        _write_array(row_hash, features.row_hash)
        about.write(_about(features, indent=1) + b"\n")
        _write_header(matrix, features.x)
        for rows in _chunks(features):
            matrix.write(np.ascontiguousarray(features.x[rows]).data)
            on_progress(Progress("export", features.path.stem, rows.stop, len(features.x)))
    return list(paths.values())


def _write_array(file: BinaryIO, values: np.ndarray) -> None:
    np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)


def _write_header(file: BinaryIO, values: np.ndarray) -> None:
    descr = np.lib.format.dtype_to_descr(values.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": values.shape}
    np.lib.format.write_array_header_1_0(file, header)


# -- parquet --------------------------------------------------------------------------------------


def _export_parquet(features: Features, output: Path, force: bool, on_progress: OnProgress) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = features.x.shape[1]
    types = {SINGLE_LABEL: pa.string(), MULTI_LABEL: pa.list_(pa.string()), REGRESSION: pa.float64()}
    label = types[task_of(features.y)]
    fields = [("row_hash", pa.string()), ("label", label), ("features", pa.list_(pa.float32(), width))]
    schema = pa.schema(fields, metadata={"featcache": _about(features)})
    with _written([output], force) as (file,):
        with pq.ParquetWriter(file, schema, use_dictionary=["label"], compression="zstd") as writer:
            for rows in _chunks(features):
                writer.write_batch(_record_batch(features, rows, schema))
                on_progress(Progress("export", features.path.stem, rows.stop, len(features.x)))
    return [output]


def _record_batch(features: Features, rows: slice, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    x = np.ascontiguousarray(features.x[rows], dtype=np.float32)
    hashes = [one.tobytes().hex() for one in features.row_hash[rows]]
    columns = [
        pa.array(hashes, pa.string()),
        pa.array(_labels(features, rows), schema.field("label").type),
        pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1]),
    ]
    return pa.record_batch(columns, schema=schema)


def _labels(features: Features, rows: slice) -> list[Any]:
    """Label names of each row, or its number; None where a row has no label."""
    names, y = features.label_names, features.y[rows]
    if task_of(y) == REGRESSION:
        return list(y.tolist())
    if y.ndim == 2:
        return [[names[number] for number in np.flatnonzero(row)] for row in y]
    return [names[number] if number >= 0 else None for number in y]


# -- files ----------------------------------------------------------------------------------------


@contextmanager
def _written(paths: Sequence[Path], force: bool) -> Iterator[list[BinaryIO]]:
    """Open temporary files for `paths`; they get their names, in order, when all are written."""
    if not force:
        there = [str(path) for path in paths if path.exists() or path.is_symlink()]
        if there:
            raise CacheError(f"{', '.join(there)} exists already", hint="--force replaces it")
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    temporaries = [temporary_beside(path) for path in paths]
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(open(temporary, "xb")) for temporary in temporaries]
        for temporary, path in zip(temporaries, paths, strict=True):
            if not publish(temporary, path, replace=force):
                raise CacheError(
                    f"{path} appeared in the meantime; it is not changed",
                    hint="name another folder, or run it again",
                )
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
