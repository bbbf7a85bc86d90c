"""Links, pipes, devices and folders where a cache has its documents: no wait, no harm, and what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli_tools import Cli, arrow_in, contents, make_one_run, shell
from tests.system.test_durable import limited  # noqa: F401 - a fixture

pytestmark = pytest.mark.bad_input("files touched outside")


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "theirs": lambda path: path.symlink_to(Path("theirs", "letter").absolute()),
}
LONGER = pytest.mark.hostile("files touched outside")
KINDS = ["pipe", *(pytest.param(kind, marks=LONGER) for kind in ODD if kind != "pipe")]


@pytest.fixture(scope="module")
def made(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_one_run(tmp_path_factory.mktemp("odd"), tiny("bert"))


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of a folder with a cache and a run, and somebody's own folder beside it."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    Path("theirs").mkdir()
    for name in ("letter", "plan.json", "block-00000000-" + "0" * 32 + ".safetensors"):
        Path("theirs", name).write_bytes(b"precious")
    with arrow_in(tmp_path / "arrow"):
        yield tmp_path / "work"
    assert all(path.read_bytes() == b"precious" for path in Path("theirs").iterdir())
    assert len(list(Path("theirs").iterdir())) == 3


def features(split: str = "test") -> Path:
    (path,) = Path("cache").rglob(f"{split}-*.h5")
    return path


def test_unfinished_work_that_is_a_link_is_not_emptied(work: Path, cli: Cli) -> None:
    partial = features().with_suffix(".partial")
    partial.symlink_to(Path("theirs").absolute())
    features().unlink()
    cli.refused(5, ["extract", "--split", "test"], "is a link", "remove the link")
    cli.ok("cache", "gc", "--older-than", "0s")
    assert not partial.is_symlink()
    cli.ok("extract", "--split", "test")


def test_rm_removes_a_link_and_not_what_it_points_at(work: Path, cli: Cli) -> None:
    path = features()
    path.with_suffix(".partial").symlink_to(Path("theirs").absolute())
    cli.ok("cache", "rm", path.name)
    assert not os.path.lexists(path.with_suffix(".partial"))


def test_files_of_others_in_unfinished_work_stay(work: Path, cli: Cli) -> None:
    path, partial = features(), features().with_suffix(".partial")
    partial.mkdir()
    (partial / "letter").write_bytes(b"precious")
    result = cli("cache", "rm", path.name)
    assert result.code == 5 and "letter, which featcache did not make" in result.err, result
    assert not path.exists() and (partial / "letter").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".json", ".lock", ".holder", ".partial"])
def test_odd_documents_beside_a_cache_file(work: Path, cli: Cli, kind: str, ending: str) -> None:
    """Every command answers or refuses, and never with a wait, a traceback or an unexpected error."""
    place = features().with_suffix(ending)
    if place.exists():
        place.unlink()
    ODD[kind](place)
    for argv in (
        ["cache", "ls"], ["cache", "gc"], ["extract", "--split", "test"], ["cache", "rm", features().name],
    ):  # fmt: skip
        if features_there():
            result = cli(*argv)
            assert result.code in (0, 5), (argv, result)
            assert "unexpected" not in result.err and "Traceback" not in result.err, (argv, result)


def features_there() -> bool:
    return bool(list(Path("cache").rglob("test-*.h5")))


@pytest.mark.parametrize("kind", list(ODD))
def test_odd_cache_files_are_listed_and_removed(work: Path, cli: Cli, kind: str) -> None:
    path = features()
    path.unlink()
    ODD[kind](path)
    for argv in (["cache", "ls"], ["cache", "verify"], ["cache", "info", path.name], ["cache", "gc"]):
        result = cli(*argv)
        assert result.code in (0, 5) and "unexpected" not in result.err, (argv, result)
    result = cli("cache", "rm", path.name)
    assert "unexpected" not in result.err, result
    if kind == "folder":
        assert result.code == 5 and path.is_dir()  # it was not made here
    else:
        assert result.code == 0 and not os.path.lexists(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["run.json", "head.json"])
def test_odd_documents_of_a_run(work: Path, cli: Cli, kind: str, name: str) -> None:
    (run,) = [path.parent for path in Path("reports").glob("*/run.json")]
    (run / name).unlink()
    ODD[kind](run / name)
    for argv in (["run"], ["predict", "好"], ["compare"], ["export", "--output", "out"]):
        result = cli(*argv)
        assert "unexpected" not in result.err and "Traceback" not in result.err, (argv, result)
        assert result.code in (0, 6), (argv, result)


@pytest.mark.parametrize("name", ["rows", "bad.jsonl", "state.json"])
def test_predict_writes_through_no_link(work: Path, cli: Cli, name: str) -> None:
    partial = Path("out.jsonl.partial")
    partial.mkdir()
    (partial / name).symlink_to(Path("theirs", "letter").absolute())
    cli.ok("predict", "--input", "reviews/test.jsonl", "--output", "out.jsonl")
    assert not partial.exists()


def test_predict_refuses_an_unfinished_output_that_is_a_link(work: Path, cli: Cli) -> None:
    Path("out.jsonl.partial").symlink_to(Path("theirs").absolute())
    before = contents(work)
    cli.refused(5, ["predict", "--input", "reviews/test.jsonl", "--output", "out.jsonl"], "is a link")
    assert contents(work) == before


def test_a_real_process_waits_for_no_pipe(work: Path) -> None:
    """Once as a process of its own, with everything that imports do."""
    record = features().with_suffix(".json")
    record.unlink()
    os.mkfifo(record)
    result = shell("cache", "ls", "--json")
    assert result.code == 0 and len(result.json["files"]) == 3
