"""What is exported is what is cached, whole or not there, and nothing is overwritten unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile, add_request
from featcache.cache.export_arrays import export
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.errors import CacheError, CacheMiss, CorruptCache, UsageError
from featcache.system.progress import Progress
from tests.support.cache_files import VIEWS
from tests.support.cache_files import seal as seal_small
from tests.support.documents import cache_document, encoder_document, make_request

NAMES = ("坏", "good", "[red]")


def seal(
    folder: Path, rows: int = 50, width: int = 7, storage: str = "float16", several: bool = False
) -> CacheFile:
    """A cache file of random rows; its row hashes and labels are random, too."""
    draw = np.random.default_rng(rows + width)
    x = draw.normal(size=(rows, width)).astype(storage)
    hashes = draw.integers(0, 256, (rows, 32), dtype=np.uint8)
    labels = draw.integers(0, 2, (rows, 3)).astype(np.uint8) if several else draw.integers(-1, 3, rows)
    document = cache_document(encoder_document(storage=storage), ["last/cls"], hashes, labels, NAMES)
    name = document.fingerprint
    columns = [
        Column("views/last-cls", x.shape, storage, [x]),
        Column("labels", labels.shape, labels.dtype.name, [labels]),
        Column("row_hash", hashes.shape, "uint8", [hashes]),
        Column("truncated", (rows,), "uint8", [np.zeros(rows, np.uint8)]),
    ]
    path = Cache(folder).path("data", "model", "train", name)
    write_sealed(path, {"fingerprint": name, "split": "train", "document": document.to_json()}, columns)
    return CacheFile(path)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few bytes at a time that a small file takes many steps."""
    monkeypatch.setattr("featcache.cache.export_arrays.CHUNK", 300)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("rows", [1, 50, 53])
def test_npy_has_the_cached_values(
    rows: int, storage: str, several: bool, tmp_path: Path, small_chunks: None
) -> None:
    file, output = seal(tmp_path, rows, 7, storage, several), tmp_path / "out" / "x.npy"
    steps: list[tuple[int, int]] = []
    made = export(file, output, on_progress=lambda step: steps.append((step.done, step.total)))
    features = file.features("last/cls")
    x, y = np.load(output), np.load(tmp_path / "out" / "x.labels.npy")
    assert x.dtype == np.dtype(storage) and x.tobytes() == features.x.tobytes() and x.shape == (rows, 7)
    assert y.dtype == features.y.dtype and np.array_equal(y, features.y)
    assert np.array_equal(np.load(tmp_path / "out" / "x.row_hash.npy"), features.row_hash)
    assert np.array_equal(np.load(output, mmap_mode="r"), x)  # bigger than memory, it can be mapped
    about = json.loads((tmp_path / "out" / "x.about.json").read_text(encoding="utf-8"))
    assert about["label_names"] == list(NAMES) and about["multi_label"] is several
    assert (about["view"], about["split"], about["rows"]) == ("last/cls", "train", rows)
    assert about["fingerprint"] == file.fingerprint and about["encoder"] == file.document.encoder.to_json()
    assert set(made.paths) == set((tmp_path / "out").iterdir()) and made.shape == (rows, 7)
    assert made.bytes == sum(path.stat().st_size for path in made.paths)
    assert steps[-1] == (rows, rows) and len(steps) == -(-rows // 10)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_parquet_has_one_row_a_text(storage: str, several: bool, tmp_path: Path, small_chunks: None) -> None:
    file = seal(tmp_path, 53, 7, storage, several)
    made = export(file, tmp_path / "x.parquet")
    features = file.features("last/cls")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["row_hash", "label", "features"] and table.num_rows == 53
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[7]"
    assert table["row_hash"].to_pylist() == [one.tobytes().hex() for one in features.row_hash]
    x = np.array(table["features"].to_pylist())
    assert np.array_equal(x, features.x.astype(np.float64))  # float32 holds every float16
    if several:
        labels: list[Any] = [[NAMES[i] for i, on in enumerate(row) if on] for row in features.y]
    else:
        labels = [NAMES[i] if i >= 0 else None for i in features.y]
        assert None in labels
    assert table["label"].to_pylist() == labels
    about = json.loads(table.schema.metadata[b"featcache"])
    assert about["label_names"] == list(NAMES) and about["fingerprint"] == file.fingerprint
    assert made.paths == (tmp_path / "x.parquet",)


def test_pandas_reads_the_parquet_export(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    file = seal(tmp_path, 20, 4)
    export(file, tmp_path / "x.parquet")
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    x = np.stack(frame["features"].to_list())
    assert np.array_equal(x, file.features("last/cls").x.astype(np.float32)) and len(frame) == 20


def test_export_needs_a_view_where_there_are_several(tmp_path: Path) -> None:
    path = seal_small(tmp_path)
    with pytest.raises(UsageError, match="several views") as caught:
        export(CacheFile(path), tmp_path / "x.npy")
    assert all(view in str(caught.value) for view in VIEWS)
    with pytest.raises(CacheMiss, match="not last/max"):
        export(CacheFile(path), tmp_path / "x.npy", view="last/max")
    assert list(tmp_path.glob("*.*")) == []
    add_request(CacheFile(path), make_request(views={"9/mean": "-4/mean", "last/cls": "last/cls"}))
    for asked, number in (("last/cls", 0), ("-4/mean", 1), ("9/mean", 1)):  # as it was asked for, too
        made = export(CacheFile(path), tmp_path / "x.npy", view=asked, force=True)
        assert made.view == VIEWS[number] and (np.load(tmp_path / "x.npy") == number).all()


@pytest.mark.parametrize("name", ["x", "x.csv", "x.npz", ".npy"])
def test_export_refuses_another_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format"):
        export(seal(tmp_path), tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_export_overwrites_only_with_force(name: str, tmp_path: Path) -> None:
    first, second = seal(tmp_path, 5), seal(tmp_path, 6)
    made = export(first, tmp_path / name)
    before = {path: path.read_bytes() for path in made.paths}
    with pytest.raises(CacheError, match="exists already") as caught:
        export(second, tmp_path / name)
    assert "--force" in str(caught.value) and all(path.read_bytes() == before[path] for path in made.paths)
    again = export(second, tmp_path / name, force=True)
    assert again.shape == (6, 7) and all(path.read_bytes() != before[path] for path in again.paths)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("beside", ["x.labels.npy", "x.row_hash.npy", "x.about.json"])
def test_export_does_not_overwrite_the_files_beside(beside: str, tmp_path: Path) -> None:
    (tmp_path / beside).write_text("mine")
    with pytest.raises(CacheError, match=f"{beside} exists already"):
        export(seal(tmp_path), tmp_path / "x.npy")
    assert (tmp_path / beside).read_text() == "mine" and not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_export_leaves_a_file_that_appears_meanwhile(name: str, tmp_path: Path) -> None:
    def appear(progress: Progress) -> None:
        (tmp_path / name).write_text("theirs")

    with pytest.raises(CacheError, match="in the meantime"):
        export(seal(tmp_path), tmp_path / name, on_progress=appear)
    assert (tmp_path / name).read_text() == "theirs" and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "full"]
)
def test_interrupted_export_leaves_no_file(name: str, error: Any, tmp_path: Path, small_chunks: None) -> None:
    file = seal(tmp_path)

    def fail(progress: Progress) -> None:
        if progress.done > 20:
            raise error

    with pytest.raises((KeyboardInterrupt, CacheError)) as caught:
        export(file, tmp_path / "out" / name, on_progress=fail)
    assert list((tmp_path / "out").iterdir()) == []
    if isinstance(error, OSError):
        assert "cannot write" in str(caught.value) and "No space" in str(caught.value)


def test_export_names_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    file = seal(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot write"):
        export(file, tmp_path / "file" / "x.npy")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(CacheError, match="exists already"):
        export(file, tmp_path / "folder.parquet")
    with pytest.raises(CacheError, match="cannot write"):
        export(file, tmp_path / "folder.parquet", force=True)
    assert not list(tmp_path.glob(".tmp-*"))


def test_export_refuses_damaged_features(tmp_path: Path) -> None:
    path = seal(tmp_path).path
    content = bytearray(path.read_bytes())
    place = content.find(CacheFile(path).features("last/cls").x.tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    for name in ("x.npy", "x.parquet"):
        with pytest.raises(CorruptCache, match="views/last-cls"):
            export(CacheFile(path), tmp_path / name)
        assert not (tmp_path / name).exists()


MEMORY = """
import resource, sys
from pathlib import Path
import featcache.cache.export_arrays
from featcache.cache.export_arrays import export
from featcache.cache.catalog import CacheFile

featcache.cache.export_arrays.CHUNK = 1 << 20

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

file, most = CacheFile(Path(sys.argv[1])), 0
def look(progress):
    global most
    most = max(most, anonymous())
export(CacheFile(Path(sys.argv[3])), Path(sys.argv[2]).with_name("warm" + Path(sys.argv[2]).suffix))
before = anonymous()
export(file, Path(sys.argv[2]), on_progress=look)
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_export_memory_is_bounded(name: str, tmp_path: Path) -> None:
    """24 MB of features, 48 MB as float32, a megabyte at a time."""
    file, small = seal(tmp_path, 6000, 2000), seal(tmp_path, 10, 2000)
    argv = [sys.executable, "-c", MEMORY, str(file.path), str(tmp_path / name), str(small.path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16e6, done.stdout
