"""Files of arrays: npy, npz, HDF5 and safetensors. No code in them runs, and none is read whole."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from featcache.data.formats.lines import first_line, reading
from featcache.errors import SourceError
from featcache.importing.vector_file import VectorFile, check_matrix, choose_array, row_ranges
from featcache.system.text import readable

SAFETENSORS = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}
NO_KEYS = "write one key for each row, as in numpy.savez(file, vectors=..., id=...)"
INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}


class _Layout(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def open_npy(path: Path, asked: str | None = None) -> VectorFile:
    """The array of a npy file; `asked` must be None."""
    where = str(path)
    if asked is not None:
        raise SourceError(f"{where} has one array, without a name", hint="leave --array out")
    with _no_other_array(where), reading(where), open(path, "rb") as file:
        layout, offset = _npy_layout(file), file.tell()
    check_matrix(where, layout.shape, layout.dtype.name)
    _check_length(where, path.stat().st_size - offset, layout)
    rows, width = layout.shape

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        if layout.fortran:  # the numbers of a row are far apart
            columns = np.memmap(path, layout.dtype, "r", offset, layout.shape, order="F")
            for begin, end in row_ranges(start, stop, width * layout.dtype.itemsize):
                yield np.ascontiguousarray(columns[begin:end])
            return
        yield from _read_rows(path, offset, width, layout.dtype, (start, stop))

    return VectorFile(where, rows, width, layout.dtype.name, read)


def open_npz(path: Path, asked: str | None = None) -> VectorFile:
    """An array of a npz file, compressed or not."""
    with _no_other_array(str(path)), reading(path), zipfile.ZipFile(path) as archive:
        layouts = {}
        for entry in archive.namelist():
            with archive.open(entry) as file:
                layouts[entry.removesuffix(".npy")] = _npy_layout(file)
    shapes = {name: (one.shape, one.dtype.name) for name, one in layouts.items()}
    name = choose_array(str(path), shapes, asked)
    where, layout = f"array {name} of {path}", layouts[name]
    check_matrix(where, layout.shape, layout.dtype.name)
    if layout.fortran:
        raise SourceError(
            f"{where} has its columns one after the other, so that no row can be read before the last column",
            hint="write its rows one after the other: numpy.ascontiguousarray(vectors)",
        )
    rows, width = layout.shape

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        row_bytes = width * layout.dtype.itemsize
        with reading(where), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            _npy_layout(file)
            for begin, end in row_ranges(0, start, row_bytes):  # a packed entry is read from its beginning
                file.read((end - begin) * row_bytes)
            for begin, end in row_ranges(start, stop, row_bytes):
                yield _array(where, file.read((end - begin) * row_bytes), end - begin, width, layout.dtype)

    def column(other: str) -> Iterable[object]:
        _one_of(where, layouts, other)
        with _no_other_array(where), reading(where), np.load(path, allow_pickle=False) as arrays:
            return _keys(where, other, arrays[other])

    return VectorFile(where, rows, width, layout.dtype.name, read, column=column)


def open_hdf5(path: Path, asked: str | None = None) -> VectorFile:
    """A dataset of an HDF5 file."""
    import h5py

    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = (item.shape, item.dtype.name)

    with _hdf5(path) as file:
        file.visititems(add)  # follows no link to another file
    name = choose_array(str(path), found, asked)
    where, (shape, dtype) = f"array {name} of {path}", found[name]
    check_matrix(where, shape, dtype)
    rows, width = shape
    with _hdf5(path) as file:
        if file[name].external or file[name].is_virtual:
            raise SourceError(f"{where} has its numbers in other files", hint="copy them into one file")

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        with _hdf5(path) as file:
            for begin, end in row_ranges(start, stop, width * np.dtype(dtype).itemsize):
                yield file[name][begin:end]

    def column(other: str) -> Iterable[object]:
        _one_of(where, found, other)
        with _hdf5(path) as file:
            values = file[other]
            text = h5py.check_string_dtype(values.dtype) is not None
            return _keys(where, other, np.asarray(values.asstr()[()] if text else values[()]))

    return VectorFile(where, rows, width, dtype, read, column=column)


def open_safetensors(path: Path, asked: str | None = None) -> VectorFile:
    """A tensor of a safetensors file."""
    header, begin = _safetensors_header(path)
    known = SAFETENSORS | INTEGERS
    shapes = {name: (one["shape"], known.get(one["dtype"], one["dtype"])) for name, one in header.items()}
    name = choose_array(str(path), shapes, asked)
    where, (shape, dtype) = f"array {name} of {path}", shapes[name]
    check_matrix(where, shape, dtype)
    rows, width = shape
    stored, offset = (
        np.dtype("<u2" if dtype == "bfloat16" else dtype),
        begin + header[name]["data_offsets"][0],
    )

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        for block in _read_rows(path, offset, width, stored, (start, stop)):
            # The higher half of a float32 is a bfloat16.
            yield (block.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else block

    def column(other: str) -> Iterable[object]:
        one = header[_one_of(where, header, other)]
        first, end = one["data_offsets"]
        if one["dtype"] not in INTEGERS:
            raise SourceError(
                f"array {other} of {path} holds {one['dtype']}, and keys are whole numbers", hint=NO_KEYS
            )
        with reading(path), open(path, "rb") as file:
            file.seek(begin + first)
            values = np.frombuffer(file.read(end - first), INTEGERS[one["dtype"]]).reshape(one["shape"])
        return _keys(where, other, values)

    return VectorFile(where, rows, width, dtype, read, column=column)


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """What is in the file, by name, and where its bytes begin."""
    from safetensors import SafetensorError, safe_open

    try:
        with reading(path), safe_open(path, "numpy"):  # checks offsets and lengths
            pass
    except SafetensorError as error:
        raise SourceError(
            f"cannot read {path}: {first_line(error)}", hint="is the file whole? write it again"
        ) from None
    with reading(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _npy_layout(file: IO[bytes]) -> _Layout:
    """Shape, order and dtype of an array in a stream, which is then at its first byte.

    Raises:
        ValueError: it is no array.
    """
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return _Layout(*header(file))


def _read_rows(
    path: Path, offset: int, width: int, dtype: np.dtype[Any], rows: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Rows that lie one after the other in a file, by plain reads: a map counts as memory of the process."""
    row_bytes = width * dtype.itemsize
    with reading(path), open(path, "rb", buffering=0) as file:
        file.seek(offset + rows[0] * row_bytes)
        for begin, end in row_ranges(*rows, row_bytes):
            block = np.empty((end - begin, width), dtype)
            if file.readinto(block.reshape(-1).view(np.uint8).data) != block.nbytes:
                raise _cut_short(str(path))
            yield block


def _array(where: str, content: bytes, rows: int, width: int, dtype: np.dtype[Any]) -> np.ndarray:
    if len(content) != rows * width * dtype.itemsize:
        raise _cut_short(where)
    return np.frombuffer(content, dtype).reshape(rows, width)


def _check_length(where: str, nbytes: int, layout: _Layout) -> None:
    if nbytes < layout.shape[0] * layout.shape[1] * layout.dtype.itemsize:
        raise _cut_short(where)


def _cut_short(where: str) -> SourceError:
    return SourceError(f"{where} is cut short: it has fewer rows than it says", hint="copy or write it again")


def _one_of(where: str, arrays: Iterable[str], name: str) -> str:
    if name not in (known := [*arrays]):
        raise SourceError(
            f"{where}: there is no {name!r} beside it", hint=f"the file has: {', '.join(known)}"
        )
    return name


def _keys(where: str, name: str, values: np.ndarray) -> Iterable[object]:
    if values.ndim != 1:
        raise SourceError(
            f"{where}: {name!r} has the shape {list(values.shape)}, and keys are a list", hint=NO_KEYS
        )
    keys: list[object] = values.tolist()
    return keys


@contextmanager
def _no_other_array(where: str) -> Iterator[None]:
    """What numpy says of bytes that are no array, or one of Python objects, as a sentence."""
    try:
        yield
    except ValueError as error:
        raise SourceError(
            f"cannot read {where}: {readable(first_line(error))}",
            hint="is the file whole? write an array of float numbers with numpy.save",
        ) from None


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise SourceError(
            f"cannot read {path}: {first_line(error)}", hint="is it an HDF5 file, and whole? write it again"
        ) from None
