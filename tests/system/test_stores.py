"""Data and predictions in object stores: an S3 server on loopback, memory, and a folder by URL."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featcache.data.split import describe_source, load_splits
from featcache.errors import SourceError, UsageError
from featcache.prediction.predictor import Predictor
from featcache.settings import DataSettings
from featcache.system import downloads as fetched
from featcache.system import stores as remote
from featcache_cli.commands.predict import file as predict_file
from tests.support.stock import one_thread, sentence
from tests.support.tiny_predictor import tiny_predictor

# -- what is a URL --------------------------------------------------------------------------------


def test_is_remote_is_false_for_paths() -> None:
    for text in ("cache", "/a/b", "C:/data", "C:\\data", "C://data", "a:b", "s3:/x", "", "://x"):
        assert not remote.is_remote(text)
    for text in ("s3://b/x", "gs://b", "hdfs://host:1/x", "memory://x", "file:///x", "S3://b/x"):
        assert remote.is_remote(text)


def test_is_remote_refuses_an_unknown_kind_of_store() -> None:
    with pytest.raises(UsageError, match=r"s4:// is not a known kind of store.*\n.*did you mean"):
        remote.is_remote("s4://bucket/x")


def test_opened_names_the_package_of_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match="gs:// needs a package that is not installed\npip install gcsfs"):
        remote.opened("gs://bucket/x")


@pytest.mark.parametrize("text", ["memory://", "s3://", "file:///"])
def test_opened_refuses_a_url_without_a_path(text: str) -> None:
    pytest.importorskip("s3fs")
    with pytest.raises(UsageError, match="names no file or folder"):
        remote.opened(text)


def test_shown_hides_passwords_and_signatures() -> None:
    assert remote.shown("sftp://me:secret@host/x?token=1") == "sftp://***@host/x?..."


def test_two_that_bring_a_file_at_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees that there is none; a store that can refuses the second one."""
    if url.startswith("file"):
        pytest.skip("a rename replaces: of two at once the last one stays, and both are whole")
    target = remote.opened(f"{url}/x")
    target.write(b"first")
    looked, info = [], remote.Remote.info

    def blind(self: remote.Remote) -> dict[str, Any] | None:
        looked.append(self.url)
        return None if len(looked) == 1 else info(self)

    other = tmp_path / "other"
    other.write_bytes(b"other")
    monkeypatch.setattr(remote.Remote, "info", blind)
    assert target.put(other) is False
    assert target.read() == b"first"


def test_a_store_that_knows_no_exclusive_writing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url.startswith("file"):
        pytest.skip("files are put there in another way")
    target = remote.opened(f"{url}/x")
    put_file = target.fs.put_file

    def limited(source: str, path: str, mode: str) -> None:
        if mode == "create":
            raise OSError(5, "A header you provided implies functionality that is not implemented")
        put_file(source, path, mode=mode)

    monkeypatch.setattr(target.fs, "put_file", limited)
    (tmp_path / "x").write_bytes(b"content")
    assert target.put(tmp_path / "x") and target.read() == b"content"


# -- data -----------------------------------------------------------------------------------------


def put(url: str, content: bytes | str) -> str:
    """Write a file into the store and return its URL."""
    remote.opened(url).write(content.encode() if isinstance(content, str) else content)
    return url


CSV = "text,label\n" + "".join(
    f"房间{number}号很好,{'good' if number % 2 else 'bad'}\n" for number in range(12)
)


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of the mirror."""
    monkeypatch.setenv(fetched.FOLDER, str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def test_data_files_from_urls_equal_local_ones(
    url: str, mirrored: Path, tmp_path: Path, arrow_cache: None
) -> None:
    local = tmp_path / "train.csv"
    local.write_text(CSV, encoding="utf-8")
    there = put(f"{url}/data/train.csv", CSV)
    documents = [
        describe_source(DataSettings(data_files={"train": place}), seed=0) for place in (str(local), there)
    ]
    assert documents[0] == documents[1]  # so that a cache made from either answers for both
    for data in (DataSettings(data_files={"train": there}), DataSettings(dataset=there)):
        split = load_splits(data, ["train"], seed=0)["train"]
        assert (len(split), split.label_names) == (10, ("bad", "good"))


def test_fetched_fetches_again_only_what_has_changed(
    url: str, mirrored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(f"{url}/data/train.csv", CSV)
    get, fetches = remote.Remote.get, []
    monkeypatch.setattr(
        remote.Remote, "get", lambda self, target: (fetches.append(self.url), get(self, target))
    )
    first = fetched.fetched(there)
    assert fetched.fetched(there) == first and first.read_text(encoding="utf-8") == CSV
    assert len(fetches) == 1 and first.name == "train.csv"
    put(there, CSV + "又一个,good\n")
    assert fetched.fetched(there).read_text(encoding="utf-8").endswith("又一个,good\n")
    assert len(fetches) == 2


def test_fetched_names_a_missing_file(url: str, mirrored: Path) -> None:
    for name, words in (("none.csv", "no such file: .*none.csv"), ("folder", "name files, not folders")):
        with pytest.raises(SourceError, match=words):
            describe_source(DataSettings(data_files={"train": f"{url}/{name}"}), seed=0)
    assert not list(mirrored.rglob("*.csv"))


def test_fetched_refuses_an_incomplete_file(
    url: str, mirrored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(f"{url}/data/train.csv", CSV)
    fs = remote.opened(there).fs

    def short(source: str, target: str, **options: Any) -> None:
        Path(target).write_bytes(CSV.encode()[:-3])

    with monkeypatch.context() as patch:
        patch.setattr(fs, "get_file", short)
        with pytest.raises(SourceError, match=r"cannot fetch .*train.csv: \d+ of \d+ bytes arrived"):
            fetched.fetched(there)
    assert not list(mirrored.rglob("*.csv"))
    assert fetched.fetched(there).read_text(encoding="utf-8") == CSV


def test_mirror_size_names_an_invalid_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.SIZE, "much")
    with pytest.raises(UsageError, match="FEATCACHE_MIRROR_SIZE: 'much' is not a size"):
        fetched.mirror_size()


# -- predictions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(tiny: Callable[[str], Path]) -> Iterator[Predictor]:
    with one_thread():
        yield tiny_predictor(tiny("bert"))


def labelled(predictor: Predictor, *argv: str) -> int:
    """Run `featcache predict` with these flags and return its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", nargs="*")
    parser.set_defaults(pair=None, config=None, quiet=True, json=True)
    predict_file.add_file_flags(parser)
    return predict_file.run_file(parser.parse_args(argv), lambda: predictor)


def rows_at(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in remote.opened(url).read().decode().splitlines()]


def some_rows(count: int, seed: int = 0) -> str:
    rows = ({"id": number, "text": sentence(3 + number % 9, seed + number)} for number in range(count))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_predict_reads_and_writes_files_of_a_store(
    url: str, mirrored: Path, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = (
        put(f"{url}/in/x.jsonl", some_rows(20) + '{"id": 20, "text": ""}\n'),
        f"{url}/out/y.jsonl",
    )
    assert labelled(predictor, "--input", source, "--output", target) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["output"], said["rows"], said["bad_rows"]) == (target, 21, 1)
    assert said["bad_rows_file"] == f"{target}.bad.jsonl"
    assert [row["row"] for row in rows_at(f"{target}.bad.jsonl")] == [21]
    local = tmp_path / "x.jsonl"
    local.write_bytes(remote.opened(source).read())
    assert labelled(predictor, "--input", str(local), "--output", str(tmp_path / "y.jsonl")) == 0
    assert remote.opened(target).read() == (tmp_path / "y.jsonl").read_bytes()
    assert not list((mirrored / "outputs").rglob("*.jsonl*")) and not list(mirrored.rglob("*.partial"))
    with pytest.raises(UsageError, match=r"y.jsonl is there already\n.*--force"):
        labelled(predictor, "--input", source, "--output", target)
    with pytest.raises(UsageError, match="is the input"):
        labelled(predictor, "--input", source, "--output", source)
    put(source, some_rows(3))
    assert labelled(predictor, "--input", source, "--output", target, "--force") == 0
    assert len(rows_at(target)) == 3
    assert remote.opened(f"{target}.bad.jsonl").info() is None  # that of the file before


def test_predict_keeps_all_rows_if_an_upload_fails(
    url: str,
    mirrored: Path,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = put(f"{url}/in/x.jsonl", some_rows(20)), f"{url}/out/y.jsonl"
    fs = remote.opened(target).fs

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(fs, "put_file", broken)
        with pytest.raises(SourceError, match=r"cannot write .*y.jsonl: connection reset.*\n.*is kept"):
            labelled(predictor, "--input", source, "--output", target)
    assert remote.opened(target).info() is None
    assert labelled(predictor, "--input", source, "--output", target) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 20
    assert len(rows_at(target)) == 20


def test_predict_labels_many_files_of_a_store(
    url: str, mirrored: Path, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 10, 1):
        put(f"{url}/in/part-{number}.jsonl", some_rows(number, number))
    many, out = f"{url}/in/part-*.jsonl", f"{url}/out/"
    with pytest.raises(UsageError, match=r"matches 3 files\nlet --output end in /"):
        labelled(predictor, "--input", many, "--output", f"{url}/out.jsonl")
    with pytest.raises(SourceError, match="no file matches"):
        labelled(predictor, "--input", f"{url}/in/*.csv", "--output", out)
    assert labelled(predictor, "--input", many, "--output", out) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["output"] for one in said["files"]] == [f"{out}part-{n}.jsonl" for n in (1, 10, 2)]
    assert [len(rows_at(f"{out}part-{n}.jsonl")) for n in (1, 2, 10)] == [1, 2, 10]
    remote.opened(f"{out}part-2.jsonl").remove()  # as after a call that was killed before the last
    assert labelled(predictor, "--input", many, "--output", out) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["output"] for one in said["files"]] == [f"{out}part-2.jsonl"]
    assert said["left"] == [f"{out}part-1.jsonl", f"{out}part-10.jsonl"]
