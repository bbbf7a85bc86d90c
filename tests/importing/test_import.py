"""Imported vectors are sealed files like any other, and a name stands for one set of vectors."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import featcache
from featcache.cache import sealed_writer
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.errors import CacheError, CacheMiss, SourceError, UsageError
from featcache.fingerprint import row_hashes
from featcache.importing import arrays, check, vector_file
from featcache.settings import load_settings
from featcache_cli.main import main
from tests.support.cli_tools import Cli
from tests.support.forked import fork_server
from tests.support.vector_files import LABELS, labelled_vectors, write_texts, write_vectors


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow_cache: None) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str = "v.npy", stem: str = "texts", **changes: int) -> tuple[Path, Path]:
    vectors, texts, labels = labelled_vectors(**changes)  # type: ignore[arg-type]
    return write_vectors(folder, name, vectors), write_texts(folder / f"{stem}.csv", texts, labels)


def cached(folder: Path, name: str = "mine") -> dict[str, CacheFile]:
    return Cache.open(folder / "cache").imported(f"vectors:{name}")


def test_a_split_is_sealed_with_the_vectors_labels_and_rows_of_its_files(cli: Cli, here: Path) -> None:
    vectors, texts = write(here)
    said = cli.ok("import", vectors, "--texts", texts, "--split", "train", "--as", "mine",
                  "--describe-model", "text-embedding-3", "--json").json["splits"]  # fmt: skip
    (file,) = cached(here).values()
    assert said[0] == {
        "split": "train", "rows": 60, "width": 12, "dtype": "float32", "storage": "float32",
        "seconds": said[0]["seconds"], "cached": False, "fingerprint": file.fingerprint,
        "path": str(Path("cache", *file.path.parts[-3:])), "labels": dict.fromkeys(sorted(LABELS), 20),
    }  # fmt: skip
    found = file.features("vectors")
    x, texts_of_rows, labels = labelled_vectors()
    np.testing.assert_array_equal(np.asarray(found.x), x)
    assert [found.label_names[one] for one in found.y] == labels
    np.testing.assert_array_equal(found.row_hash, row_hashes(texts_of_rows))
    part = found.encoder.vectors
    assert part is not None
    assert (part.name, part.width, part.model) == ("mine", 12, "text-embedding-3")
    assert cli.ok("cache", "verify").code == 0
    with h5py.File(file.path) as plain:  # any HDF5 library reads it
        np.testing.assert_array_equal(plain["views/vectors"], x)


@pytest.mark.parametrize(("dtype", "asked", "kept"), [
    ("float16", None, "float16"), ("float32", None, "float32"), ("float64", None, "float32"),
    ("float32", "float16", "float16"), ("float16", "float32", "float32"),
])  # fmt: skip
def test_numbers_are_kept_as_it_is_said(
    cli: Cli, here: Path, dtype: str, asked: str | None, kept: str
) -> None:
    x, texts, labels = labelled_vectors(dtype=dtype)
    write_vectors(here, "v.npz", x)
    write_texts(here / "t.csv", texts, labels)
    storage = () if asked is None else ("--storage", asked)
    done = cli.ok("import", "v.npz", "--texts", "t.csv", "--as", "mine", "--split", "train", *storage)
    assert (f"{dtype} -> {kept}" in done.out) == (dtype != kept)
    column = np.asarray(cached(here)["train"].features("vectors").x)
    assert column.dtype == kept
    np.testing.assert_array_equal(column, x.astype(kept))


def test_the_same_import_again_is_recognised_and_others_need_another_name(cli: Cli, here: Path) -> None:
    vectors, texts = write(here)
    base = ("import", vectors, "--texts", texts, "--split", "train", "--json")
    first = cli.ok(*base, "--as", "mine").json["splits"][0]
    write_vectors(here, "v.parquet", labelled_vectors()[0])  # the same numbers in another format
    for again in (vectors, here / "v.parquet"):
        second = cli.ok("import", again, *base[2:], "--as", "mine").json["splits"][0]
        assert second["cached"]
        assert second["fingerprint"] == first["fingerprint"]
    np.save(vectors, labelled_vectors(seed=1)[0])
    refused = cli(*base, "--as", "mine")
    assert refused.code == UsageError.exit_code
    assert "has other vectors of train" in refused.err
    assert "--as" in refused.err
    assert cached(here)["train"].fingerprint == first["fingerprint"]
    assert not cli.ok(*base, "--as", "other").json["splits"][0]["cached"]
    write_texts(texts, *labelled_vectors(seed=1)[1:])
    assert "has other texts of train" in cli("import", here / "v.parquet", *base[2:], "--as", "mine").err


def test_without_a_split_validation_is_held_out(cli: Cli, here: Path) -> None:
    vectors, texts = write(here, rows=90)
    done = cli.ok("import", vectors, "--texts", texts, "--as", "mine", "--test-share", "0.2", "--json").json
    assert [one["split"] for one in done["splits"]] == ["train", "validation", "test"]
    assert sum(one["rows"] for one in done["splits"]) == 90
    x, texts_of_rows, _ = labelled_vectors(rows=90)
    by_hash = {}
    for one, vector in zip(row_hashes(texts_of_rows), x, strict=True):
        by_hash[one.tobytes()] = vector
    for file in cached(here).values():
        found = file.features("vectors")
        for one, vector in zip(np.asarray(found.row_hash), np.asarray(found.x), strict=True):
            np.testing.assert_array_equal(vector, by_hash[one.tobytes()])


def test_labels_of_a_later_split_have_the_order_of_train(cli: Cli, here: Path) -> None:
    vectors, texts = write(here)
    cli.ok("import", vectors, "--texts", texts, "--split", "train", "--as", "mine")
    x, lines, labels = labelled_vectors(seed=1)
    some = [row for row, label in enumerate(labels) if label != LABELS[0]]
    np.save(here / "w.npy", x[some])
    write_texts(here / "w.csv", [lines[row] for row in some], [labels[row] for row in some])
    cli.ok("import", "w.npy", "--texts", "w.csv", "--split", "validation", "--as", "mine")
    file = cached(here)["validation"]
    assert file.document.labels.names == cached(here)["train"].document.labels.names
    names, y = file.document.labels.names, np.asarray(file.features("vectors").y)
    assert [names[one] for one in y] == [labels[row] for row in some]
    write_texts(here / "w.csv", [lines[row] for row in some], ["新"] * len(some))
    refused = cli("import", "w.npy", "--texts", "w.csv", "--split", "test", "--as", "mine")
    assert refused.code == SourceError.exit_code
    assert "'新' of test never occurs in train" in refused.err


def test_splits_of_one_name_are_of_one_kind_of_vectors(cli: Cli, here: Path) -> None:
    write(here)
    base = ("--texts", "texts.csv", "--as", "mine")
    cli.ok("import", "v.npy", *base, "--split", "train", "--describe-model", "A")
    x = labelled_vectors()[0]
    np.save(here / "narrow.npy", x[:, :5])
    np.save(here / "half.npy", x.astype("float16"))
    for name, more, said in (
        ("narrow.npy", ("--describe-model", "A"), "vectors.width (cached 12, wanted 5)"),
        ("half.npy", ("--describe-model", "A"), "--storage float32"),
        ("v.npy", ("--describe-model", "B"), "vectors.model (cached 'A', wanted 'B')"),
    ):
        refused = cli("import", name, *base, "--split", "test", *more)
        assert refused.code == SourceError.exit_code
        assert said in " ".join(refused.err.split())
    cli.ok("import", "half.npy", *base, "--split", "test", "--describe-model", "A", "--storage", "float32")


@pytest.mark.bad_input("wrong vectors")
def test_rows_are_compared_by_count_and_by_order_key(cli: Cli, here: Path) -> None:
    x, texts, labels = labelled_vectors()
    write_texts(here / "t.csv", texts, labels)
    np.save(here / "short.npy", x[:-1])
    refused = cli("import", "short.npy", "--texts", "t.csv", "--as", "mine")
    assert refused.code == SourceError.exit_code
    assert "short.npy has 59 vectors, and the texts have 60 rows" in refused.err
    for name in ("v.npz", "v.parquet", "v.h5", "v.safetensors", "saved"):
        ids = np.arange(60)
        write_vectors(here, name, x, ids)
        base = (
            "import",
            name,
            "--texts",
            "t.csv",
            "--as",
            f"as-{name}",
            "--order-key",
            "id",
            "--split",
            "train",
        )
        assert "60 rows have the same id" in cli.ok(*base).err
    ids[[16, 17]] = ids[[17, 16]]
    write_vectors(here, "v.npz", x, ids)
    refused = cli("import", "v.npz", "--texts", "t.csv", "--as", "mine", "--order-key", "id")
    assert refused.code == SourceError.exit_code
    assert "row 17 of" in refused.err
    assert "has id 17, and of the texts" in " ".join(refused.err.split())
    assert not cached(here)


def test_a_file_of_vectors_alone_has_no_order_key(cli: Cli, here: Path) -> None:
    write(here)
    base = ("import", "v.npy", "--texts", "texts.csv", "--as", "mine")
    assert "only their number was compared" in " ".join(cli.ok(*base).err.split())
    refused = cli(*base, "--order-key", "id")
    assert refused.code == SourceError.exit_code
    assert "has vectors alone, and no keys" in refused.err
    np.savez("v.npz", vectors=labelled_vectors()[0], id=np.arange(60))
    refused = cli("import", "v.npz", *base[2:], "--order-key", "number")
    assert refused.code == SourceError.exit_code
    assert "number" in refused.err


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(("change", "said"), [
    (lambda x: x.__setitem__((6, 3), np.nan), "row 7 of v.npy has a number that is not finite"),
    (lambda x: x.__setitem__((0, 0), np.inf), "row 1 of v.npy has a number that is not finite"),
    (lambda x: x.__setitem__((59, 11), -np.inf), "row 60 of v.npy has a number that is not finite"),
    (lambda x: x.__setitem__(slice(None), 0.5), "all 60 vectors of train in v.npy are equal"),
    (lambda x: x.__setitem__(slice(None), 0.0), "all 60 vectors of train in v.npy are equal"),
    (lambda x: x.__setitem__((8, 1), 1e39), "row 9 of v.npy has a number that is too large for float32"),
])  # fmt: skip
def test_vectors_that_cannot_be_used_are_named_and_nothing_is_written(
    cli: Cli, here: Path, change, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_file, "BLOCK", 500)
    x, texts, labels = labelled_vectors(dtype="float64")
    change(x)
    np.save("v.npy", x)
    write_texts(Path("t.csv"), texts, labels)
    refused = cli("import", "v.npy", "--texts", "t.csv", "--as", "mine", "--split", "train")
    assert refused.code == SourceError.exit_code
    assert said in " ".join(refused.err.split())
    assert not list(here.glob("cache/**/*.h5"))


@pytest.mark.bad_input("wrong vectors")
def test_large_numbers_are_no_infinite_ones(cli: Cli, here: Path) -> None:
    x, texts, labels = labelled_vectors()
    np.save("v.npy", x * np.float32(1e30))  # a sum of their squares is not finite
    write_texts(Path("t.csv"), texts, labels)
    cli.ok("import", "v.npy", "--texts", "t.csv", "--as", "mine", "--split", "train")
    refused = cli("import", "v.npy", "--texts", "t.csv", "--as", "small", "--storage", "float16")
    assert "too large for float16" in refused.err
    assert "--storage float32" in refused.err


@pytest.mark.bad_input("defects")
@pytest.mark.parametrize("name", ["a/b", "../up", "", "-x", "a b", "x" * 65])
def test_a_name_is_one_word(cli: Cli, here: Path, name: str) -> None:
    write(here)
    refused = cli("import", "v.npy", "--texts", "texts.csv", f"--as={name}")
    assert refused.code == UsageError.exit_code
    assert "is no name for vectors" in refused.err


@pytest.mark.bad_input("wrong vectors")
def test_a_file_that_changes_meanwhile_is_not_sealed(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, _ = write(here)
    written = check.CheckedVectors.identity

    def change(checked: check.CheckedVectors) -> str:
        np.save(vectors, labelled_vectors(seed=5)[0])
        os.utime(vectors, ns=(1, 1))
        return written(checked)

    monkeypatch.setattr(check.CheckedVectors, "identity", change)
    refused = cli("import", vectors, "--texts", "texts.csv", "--as", "mine")
    assert refused.code == SourceError.exit_code
    assert "changed while it was read" in refused.err
    assert not list(here.glob("cache/**/*.h5"))


def test_large_vectors_become_shards(cli: Cli, here: Path) -> None:
    write(here, rows=900)
    base = ("import", "v.npy", "--texts", "texts.csv", "--split", "train", "--as", "mine")
    argv = (*base, "--shard-size", "40kB")
    cli.ok(*argv)
    file, vectors = cached(here)["train"], labelled_vectors(rows=900)[0]
    assert len(list(file.path.parent.glob("*.shard-*.h5"))) > 1
    np.testing.assert_array_equal(np.asarray(file.features("vectors").x[:]), vectors)
    assert cli.ok("cache", "verify").code == 0
    assert cli.ok(*argv, "--json").json["splits"][0]["cached"]


def killed_import(publishing: int, argv: list[str]) -> None:
    """An import that is killed while it writes vectors (0), or before it publishes its n-th file."""
    blocks, publish = check.CheckedVectors.blocks, sealed_writer.publish
    left = [publishing]

    def kill_while_reading(self: check.CheckedVectors, part: slice = slice(None)) -> Iterator[np.ndarray]:
        for block in blocks(self, part):
            yield block
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_before_publishing(*args: Any, **more: Any) -> bool:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return publish(*args, **more)

    if publishing:
        sealed_writer.publish = kill_before_publishing
    else:
        check.CheckedVectors.blocks = kill_while_reading  # type: ignore[method-assign]
    main(argv)


@pytest.mark.parametrize(("publishing", "size"), [(0, "4GB"), (1, "4GB"), (2, "40kB")])
def test_a_kill_while_it_is_written_leaves_nothing_that_is_taken_for_vectors(
    cli: Cli, here: Path, publishing: int, size: str
) -> None:
    write(here, rows=900)
    argv = [
        "import",
        "v.npy",
        "--texts",
        "texts.csv",
        "--split",
        "train",
        "--as",
        "mine",
        "--shard-size",
        size,
    ]
    killed = fork_server().Process(target=killed_import, args=(publishing, argv))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert not cached(here)
    assert list(here.glob("cache/*/*/.tmp-*"))  # what the killed process left
    cli.ok(*argv)
    np.testing.assert_array_equal(
        np.asarray(cached(here)["train"].features("vectors").x[:]), labelled_vectors(rows=900)[0]
    )
    left = {path.suffix for path in here.glob("cache/*/vectors_mine/*")}
    assert left <= {".h5", ".json", ".lock"}
    assert not list(here.glob("cache/*/*/.tmp-*"))


def test_each_vector_is_read_once(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here)
    read: list[tuple[int, int]] = []
    real = vector_file.VectorFile

    def counting(*args: Any, **more: Any) -> vector_file.VectorFile:
        file = real(*args, **more)

        def rows(start: int, stop: int) -> Iterator[np.ndarray]:
            read.append((start, stop))
            return file.read(start, stop)

        return dataclasses.replace(file, read=rows)

    monkeypatch.setattr(arrays, "VectorFile", counting)
    cli.ok("import", "v.npy", "--texts", "texts.csv", "--split", "train", "--as", "mine")
    assert read == [(0, 60)]


def test_cache_commands_know_imported_vectors(cli: Cli, here: Path) -> None:
    write(here)
    cli.ok(
        "import",
        "v.npy",
        "--texts",
        "texts.csv",
        "--split",
        "train",
        "--as",
        "mine",
        "--describe-model",
        "ada",
    )
    listed = cli.ok("cache", "ls", "--json").json["files"]
    assert [one["views"] for one in listed] == [["vectors"]]
    shown = cli.ok("cache", "info", "--all").out
    assert "mine, 12 numbers each, float32" in " ".join(shown.split())
    assert "ada" in shown
    assert str(here / "v.npy") in "".join(shown.split())
    again = cli("cache", "verify", "--reencode", "2", "--json")
    assert "which nothing here can make again" in again.json["files"][0]["reencoded"]["error"]
    file = cached(here)["train"]
    cli.ok("cache", "rm", file.fingerprint[:12])
    assert not cached(here)


def test_python_imports_an_array(here: Path) -> None:
    for split, seed in (("train", 0), ("validation", 1)):
        x, texts, labels = labelled_vectors(seed=seed)
        made = featcache.import_vectors(x, texts, labels, name="mine", split=split, model="my own")
        assert not made.cached
        assert featcache.import_vectors(x, texts, labels, name="mine", split=split, model="my own").cached
    own = load_settings({"model": "vectors:mine", "epochs": 20}, path=os.devnull)
    np.testing.assert_array_equal(
        np.asarray(featcache.find_features(own, "train").features("vectors").x), labelled_vectors()[0]
    )
    with pytest.raises(CacheMiss, match="has no test vectors in cache: it has train, validation"):
        featcache.find_features(own, "test")
    run = featcache.train_head(own)
    assert run.record.metrics["validation"]["accuracy"] > 0.9
    probabilities = run.head().predict_proba(labelled_vectors(seed=2)[0])
    truth = [LABELS.index(one) for one in labelled_vectors(seed=2)[2]]
    names = [LABELS.index(one) for one in run.record.label_names]
    assert (np.array(names)[probabilities.argmax(1)] == truth).mean() > 0.9
    with pytest.raises(SourceError, match="60 vectors, and 59 texts"):
        featcache.import_vectors(x, texts[1:], labels[1:], name="mine", split="test")
    with pytest.raises(SourceError, match="holds int64"):
        featcache.import_vectors(np.ones((60, 2), np.int64), texts, labels, name="mine", split="test")


HOLDER = """
import time
from pathlib import Path
from featcache.system.lock import locked
with locked(Path("cache/imports/mine.v1.import")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_import_under_one_name_at_once(cli: Cli, here: Path) -> None:
    write(here)
    argv = ("import", "v.npy", "--texts", "texts.csv", "--as")
    held = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        refused = cli(*argv, "mine.v1")
        assert refused.code == CacheError.exit_code
        assert str(held.pid) in refused.err
        cli.ok(*argv, "mine.v2")
    finally:
        held.kill()
        held.wait()
    cli.ok(*argv, "mine.v1")
    assert not list(here.glob("cache/imports/*"))
