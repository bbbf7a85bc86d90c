"""Every format gives the rows that were written, and says in a sentence what it cannot use."""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from featcache.errors import SourceError
from featcache.importing import vector_file
from featcache.importing.open import open_vectors
from featcache.importing.vector_file import VectorFile
from tests.support.vector_files import FORMATS, labelled_vectors, write_vectors


def rows_of(file: VectorFile, start: int = 0, stop: int | None = None) -> np.ndarray:
    blocks = list(file.read(start, file.rows if stop is None else stop))
    return np.concatenate(blocks)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_rows_of_each_format_are_those_that_were_written(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_file, "BLOCK", 1000)  # several blocks
    vectors, *_ = labelled_vectors(dtype=dtype)
    file = open_vectors(write_vectors(tmp_path, name, vectors))
    assert (file.rows, file.width, file.dtype) == (*vectors.shape, dtype)
    assert file.storage == ("float16" if dtype == "float16" else "float32")
    np.testing.assert_array_equal(rows_of(file), vectors)
    np.testing.assert_array_equal(rows_of(file, 19, 41), vectors[19:41])
    if file.column is not None:
        assert list(file.column("id")) == list(range(len(vectors)))
        with pytest.raises(SourceError, match="nothing"):
            list(file.column("nothing"))
    assert (file.column is None) == (name == "v.npy")


@given(
    st.sampled_from(sorted(set(FORMATS) - {"saved"})),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from(["float16", "float32", "float64"]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_part_of_a_file_is_the_part_of_the_array(
    name: str, rows: int, width: int, dtype: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    vectors = np.random.default_rng(rows).normal(size=(rows, width)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_file, "BLOCK", data.draw(st.integers(1, 200)))
        file = open_vectors(write_vectors(Path(folder), name, vectors))
        np.testing.assert_array_equal(rows_of(file, start, stop), vectors[start:stop])


def test_bfloat16_comes_as_the_float32_that_it_is(tmp_path: Path) -> None:
    vectors = torch.randn(7, 5).to(torch.bfloat16)
    save_file({"e": vectors}, tmp_path / "v.safetensors")
    file = open_vectors(tmp_path / "v.safetensors")
    assert (file.dtype, file.storage) == ("bfloat16", "float32")
    np.testing.assert_array_equal(rows_of(file), vectors.float().numpy())


def test_columns_of_an_array_in_fortran_order_are_put_into_rows(tmp_path: Path) -> None:
    vectors, *_ = labelled_vectors()
    np.save(tmp_path / "v.npy", np.asfortranarray(vectors))
    np.testing.assert_array_equal(rows_of(open_vectors(tmp_path / "v.npy"), 3, 50), vectors[3:50])
    np.savez(tmp_path / "v.npz", v=np.asfortranarray(vectors))
    with pytest.raises(SourceError, match="columns one after the other") as refused:
        open_vectors(tmp_path / "v.npz")
    assert "ascontiguousarray" in str(refused.value.hint)


def test_numbers_of_another_byte_order_are_the_same_numbers(tmp_path: Path) -> None:
    vectors, *_ = labelled_vectors()
    np.save(tmp_path / "v.npy", vectors.astype(">f4"))
    np.testing.assert_array_equal(rows_of(open_vectors(tmp_path / "v.npy")), vectors)


def test_of_several_arrays_one_is_named(tmp_path: Path) -> None:
    a, b = labelled_vectors()[0], labelled_vectors(seed=1)[0]
    np.savez(tmp_path / "v.npz", a=a, b=b, c=np.arange(60))
    with pytest.raises(SourceError, match="has 2 arrays of vectors; its arrays: a, b, c") as refused:
        open_vectors(tmp_path / "v.npz")
    assert "--array a" in str(refused.value.hint)
    np.testing.assert_array_equal(rows_of(open_vectors(tmp_path / "v.npz", "b")), b)
    with pytest.raises(SourceError, match="no array 'd'"):
        open_vectors(tmp_path / "v.npz", "d")
    with pytest.raises(SourceError, match="int64"):
        open_vectors(tmp_path / "v.npz", "c")


def test_of_several_saved_splits_the_one_is_taken_that_is_imported(tmp_path: Path) -> None:
    import datasets

    a, b = labelled_vectors()[0], labelled_vectors(rows=9, seed=1)[0]
    parts = {name: datasets.Dataset.from_dict({"e": list(x)}) for name, x in (("train", a), ("test", b))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    np.testing.assert_array_equal(rows_of(open_vectors(tmp_path / "saved", split="test")), b)
    with pytest.raises(SourceError, match="has the splits train, test"):
        open_vectors(tmp_path / "saved", split="validation")


NO_VECTORS = {
    "objects.npy": (lambda path: np.save(path, np.array([{}, 1], dtype=object)), "Python|pickle|object"),
    "integers.npy": (lambda path: np.save(path, np.ones((3, 2), np.int8)), "holds int8"),
    "complex.npy": (lambda path: np.save(path, np.ones((3, 2), np.complex64)), "holds complex64"),
    "flat.npy": (lambda path: np.save(path, np.ones(3, np.float32)), r"shape \[3\]"),
    "deep.npy": (lambda path: np.save(path, np.ones((3, 1, 2), np.float32)), r"shape \[3, 1, 2\]"),
    "empty.npy": (lambda path: np.save(path, np.ones((0, 2), np.float32)), r"shape \[0, 2\]"),
    "text.npy": (lambda path: path.write_text("1,2,3"), "cannot read"),
    "nothing.npy": (lambda path: path.write_bytes(b""), r"nothing\.npy is empty"),
    "nothing.parquet": (lambda path: path.write_bytes(b""), r"nothing\.parquet is empty"),
    "text.npz": (lambda path: path.write_text("PK no zip"), "cannot read"),
    "text.parquet": (lambda path: path.write_text("PAR1"), "cannot read"),
    "text.h5": (lambda path: path.write_text("no HDF5"), "cannot read"),
    "text.safetensors": (lambda path: path.write_bytes(b"\xff" * 20), "cannot read"),
    "vectors.txt": (lambda path: path.write_text("1 2"), "no file of vectors has this ending"),
    "folder": (lambda path: path.mkdir(), "cannot read"),
    "flat.parquet": (lambda path: pq.write_table(pa.table({"a": [1.0]}), path), "no column of lists"),
    "integers.parquet": (lambda path: pq.write_table(pa.table({"a": [[1]]}), path), "holds int64"),
}


@pytest.mark.bad_input("defects")
@pytest.mark.parametrize("name", NO_VECTORS)
def test_what_is_no_vectors_is_refused(name: str, tmp_path: Path) -> None:
    write, said = NO_VECTORS[name]
    write(tmp_path / name)
    with pytest.raises(SourceError, match=said) as refused:
        open_vectors(tmp_path / name)
    assert refused.value.hint or "cannot read" in refused.value.what


@pytest.mark.bad_input("defects")
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"saved"}))
def test_a_file_that_is_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    path = write_vectors(tmp_path, name, labelled_vectors(rows=400)[0])
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 9):
        path.write_bytes(content[:length])
        with pytest.raises(SourceError):
            rows_of(open_vectors(path))


@pytest.mark.bad_input("defects")
def test_rows_of_other_lengths_and_empty_places_are_named(tmp_path: Path) -> None:
    cases = {
        "row 3 .* has a vector of 1 numbers, and row 1 has 2": [[1.0, 2.0], [3.0, 4.0], [5.0]],
        "row 2 .* has no vector": [[1.0, 2.0], None],
        "row 2 .* has an empty place": [[1.0, 2.0], [3.0, None]],
    }
    for number, (said, rows) in enumerate(cases.items()):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"e": pa.array(rows, pa.list_(pa.float32()))}), path)
        with pytest.raises(SourceError, match=said):
            rows_of(open_vectors(path))


@pytest.mark.bad_input("files touched outside")
def test_an_hdf5_file_reads_no_other_file(tmp_path: Path) -> None:
    outside = write_vectors(tmp_path, "v.h5", labelled_vectors()[0])
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["e"] = h5py.ExternalLink(outside, "inner/vectors")
    with pytest.raises(SourceError, match="has no array"):
        open_vectors(tmp_path / "link.h5")
    with h5py.File(tmp_path / "map.h5", "w") as file:
        layout = h5py.VirtualLayout((60, 12), "f4")
        layout[:] = h5py.VirtualSource(outside, "inner/vectors", (60, 12))
        file.create_virtual_dataset("e", layout)
    with pytest.raises(SourceError, match="in other files"):
        open_vectors(tmp_path / "map.h5")
