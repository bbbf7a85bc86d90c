"""`featcache cache` as it is typed: what it prints, its exit codes, and that one bad file stops nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.cli_tools import (
    COMMAND,
    Cli,
    contents,
    environment,
    interruptible,
    widest,
)
from tests.support.extraction import one_thread
from tests.system.test_lock import holding, leave_holder, unused_pid

CACHE, USAGE = 5, 2


@pytest.fixture(scope="module", autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def work(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three extracted splits of two views, of its own."""
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def cached(split: str) -> Path:
    return next(Path("cache").glob(f"*/*/{split}-*.h5"))


def flip(path: Path, column: str) -> None:
    with h5py.File(path) as file:
        place = file[column].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------- ls, info


def test_ls_prints_model_split_rows_size_and_age(cli: Cli, work: Path) -> None:
    for number, split in enumerate(("train", "validation", "test")):
        os.utime(cached(split), (time.time() - 86400 * (number + 1) - 60,) * 2)
    text = cli.ok("cache", "ls").out
    model = cached("train").parent.name
    lines = text.splitlines()
    for split, age, rows in (("train", "1 d", "60"), ("validation", "2 d", "20"), ("test", "3 d", "20")):
        number = next(n for n, line in enumerate(lines) if cached(split).name in line)
        row = lines[number - 1]
        assert f"reviews/{model}"[:20] in row and age in row and rows in row and "kB" in row, text
    assert "3 files" in lines[-1] or "3 files" in lines[-2]
    assert widest(text) <= 80


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_info_fits_the_terminal(columns: int, cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = cli.ok("cache", "info", cached("train").name).out
    assert widest(text) <= columns and "…" not in text and "{" not in text
    (about,) = cli.ok("cache", "info", cached("train").name, "--json").json["files"]
    made = about["made"]
    squeezed = "".join(text.split())
    for fact in (
        about["path"], about["fingerprint"], "train, 60 rows", "last/cls, last/mean", "good", made["host"],
        made["created"], made["model"], made["dataset"], made["versions"]["torch"], "float16", "packed",
        f"{about['truncated']} truncated to 16 tokens", *about["encoder"]["files"],
    ):  # fmt: skip
        assert "".join(fact.split()) in squeezed, (fact, text)
    every = cli.ok("cache", "info", "--all").out
    every = "".join(every.split())
    assert all(cached(split).stem in every for split in ("train", "validation", "test"))


def test_info_without_a_record(cli: Cli, work: Path) -> None:
    cached("train").with_suffix(".json").unlink()
    text = cli.ok("cache", "info", cached("train").name).out
    assert "record is lost" in text and "60 rows" in text


def test_cache_commands_handle_token_states(cli: Cli, work: Path) -> None:
    cli.ok("finetune", "--epochs", "1", "--view", "last/mean", "--train", "top-blocks:1", "--quiet")
    made = {path.name: path for path in Path("cache").glob("*/*/states/*.h5")}
    listed = cli.ok("cache", "ls", "--json").json["files"]
    assert {Path(one["path"]).name for one in listed if one["kind"] == "states"} == set(made)
    assert len(made) == 3 and sum(one["kind"] == "features" for one in listed) == 3
    result = cli.ok("cache", "ls")
    assert "states before block" in result.out and widest(result.out) <= 80
    train = next(path for name, path in made.items() if name.startswith("train"))
    about = cli.ok("cache", "info", train.name).out
    assert "finetune" in about and widest(about) <= 80

    assert cli.ok("cache", "verify", "--json").json["ok"]
    flip(train, "values")
    said = cli("cache", "verify")
    assert said.code == CACHE
    assert f"damaged  {train.name}" in said.out and said.out.count("damaged  ") == 1

    other = next(path for path in made.values() if path != train)
    cli.ok("cache", "rm", other.name)
    assert not other.exists() and not other.with_suffix(".json").exists()
    assert cli.ok("cache", "gc", "--max-size", "0", "--json").json["bytes"] > 0
    assert not list(Path("cache").rglob("*.h5"))


# ---------------------------------------------------------------- verify


def test_verify_checks_all_by_default(cli: Cli, work: Path) -> None:
    before = contents(work)
    result = cli.ok("cache", "verify")
    assert contents(work) == before
    for split in ("train", "validation", "test"):
        assert f"ok       {cached(split).name}" in result.out
    assert cli.ok("cache", "verify", "--all").out == result.out and widest(result.out) <= 80
    document = cli.ok("cache", "verify", "--json", cached("test").name).json
    size = cached("test").stat().st_size
    assert document == {
        "files": [{"path": str(cached("test")), "ok": True, "bytes": size, "damage": []}],
        "ok": True,
    }


def test_verify_names_damage_and_checks_the_other_files(cli: Cli, work: Path) -> None:
    train, test = cached("train"), cached("test")
    flip(train, "views/last-mean")
    test.write_bytes(b"")
    odd = {
        name: train.with_name(f"odd-00000000000{n}.h5") for n, name in enumerate(("folder", "link", "pipe"))
    }
    odd["folder"].mkdir()
    odd["link"].symlink_to("nowhere")
    os.mkfifo(odd["pipe"])
    result = cli("cache", "verify")
    assert result.code == CACHE and "Traceback" not in result.err
    lines = result.out.splitlines()
    for path in (train, test, *odd.values()):
        assert f"damaged  {path.name}" in lines
    assert any(line.startswith(f"ok       {cached('validation').name}") for line in lines)
    assert f"{train}: chunk 0 of views/last-mean (rows 0 to 59) is damaged" in result.out
    assert "cache rm" in result.err
    document = json.loads(cli("cache", "verify", "--json").out)
    assert not document["ok"] and {Path(one["path"]) for one in document["files"] if one["ok"]} == {
        cached("validation")
    }
    assert cli("cache", "ls").code == 0  # none of these keeps the list from being shown
    assert cli.ok("cache", "verify", cached("validation").name).code == 0


def test_verify_accepts_a_file_outside_the_cache(cli: Cli, work: Path) -> None:
    shutil.copy(cached("train"), "copy.h5")
    result = cli("cache", "verify", "copy.h5", "--json")
    assert result.code == CACHE  # whole, but under a name that is not its own
    assert "name and fingerprint" in json.loads(result.out)["files"][0]["damage"][0]
    Path("elsewhere").mkdir()
    shutil.copy(cached("train"), "elsewhere")
    cli.ok("cache", "verify", f"elsewhere/{cached('train').name}")
    cli.ok("cache", "verify", cached("train").absolute())


def test_verify_accepts_an_empty_cache(cli: Cli, work: Path) -> None:
    shutil.rmtree("cache")
    assert cli.ok("cache", "verify", "--json").json == {"files": [], "ok": True}
    assert cli.ok("cache", "gc", "--max-size", "0", "--json").json["removed"] == []


def test_reencode_prints_the_drift_of_each_view(cli: Cli, work: Path) -> None:
    result = cli.ok("cache", "verify", "--reencode", "8")
    assert result.out.count("agrees   last/cls: 8 rows, off by ") == 3
    assert result.out.count("agrees   last/mean: 8 rows, off by ") == 3 and widest(result.out) <= 80
    (file,) = cli.ok("cache", "verify", cached("train").name, "--reencode", "99", "--json").json["files"]
    for view in file["reencoded"]["views"]:
        assert view["rows"] == 60 and view["ok"] and view["cosine"] > 0.9999 and view["absolute"] < 1e-2


def test_reencode_fails_for_one_file_and_checks_the_others(cli: Cli, work: Path) -> None:
    """The texts of train are gone from the source; those of test are still there."""
    Path("reviews/train.jsonl").write_text(
        '{"text": "别的", "label": "good"}\n{"text": "书", "label": "bad"}\n'
    )
    result = cli("cache", "verify", "--reencode", "5")
    assert result.code == CACHE
    assert (
        f"not encoded again: no row of {cached('train').name}" in result.out and "--data-files" in result.out
    )
    assert result.out.count("agrees") == 4
    files = {
        Path(one["path"]): one
        for one in json.loads(cli("cache", "verify", "--reencode", "5", "--json").out)["files"]
    }
    assert files[cached("train")]["damage"] == [] and "no row" in files[cached("train")]["reencoded"]["error"]
    assert files[cached("test")]["ok"] and not files[cached("train")]["ok"]


def test_reencode_with_another_model_names_what_differs(
    cli: Cli, work: Path, tiny: Callable[[str], Path]
) -> None:
    result = cli("cache", "verify", cached("test").name, "--reencode", "5", "--model", tiny("distilbert"))
    assert result.code == CACHE and "files.model.safetensors" in result.out


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5"])
def test_reencode_refuses_0_rows(count: str, cli: Cli, work: Path) -> None:
    cli.refused(USAGE, ["cache", "verify", f"--reencode={count}"], "reencode")


def test_verify_shows_progress(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "verify train-" not in cli.ok("cache", "verify").err  # it takes less than two seconds
    monkeypatch.setattr("featcache_cli.progress.FIRST_BAR", 0.0)
    assert "verify train-" in cli.ok("cache", "verify").err


# ---------------------------------------------------------------- gc


def test_gc_removes_the_oldest_files_and_prints_them(cli: Cli, work: Path) -> None:
    sizes = {}
    for number, split in enumerate(("test", "train", "validation")):
        path = cached(split)
        os.utime(path, (1000 + number,) * 2)
        sizes[split] = path.stat().st_size + path.with_suffix(".json").stat().st_size
    keys = sum(path.stat().st_size for path in Path("cache").glob("texts/*.keys"))
    most = str(sizes["train"] + sizes["validation"] + keys)
    gone, before = cached("test"), contents(work)
    dry = cli.ok("cache", "gc", "--max-size", most, "--dry-run")
    assert contents(work) == before and gone.exists()
    assert f"would remove {gone.name}" in dry.out and "oldest" in dry.out and "would be freed" in dry.err
    planned = cli.ok("cache", "gc", "--max-size", most, "--dry-run", "--json").json
    done = cli.ok("cache", "gc", "--max-size", most, "--json").json
    assert done == planned | {"dry_run": False}
    assert done["bytes"] == sizes["test"] and done["bytes_left"] == int(most) and done["busy"] == []
    assert {one["kind"] for one in done["removed"]} == {"features", "record", "lock"}
    assert not gone.exists() and cached("train").exists() and cached("validation").exists()
    again = cli.ok("extract", "--all-splits", "--json").json["splits"]
    assert [split["cached"] for split in again] == [True, True, False]


def test_gc_keeps_files_that_a_writer_has_locked(cli: Cli, work: Path) -> None:
    path = cached("train")
    with holding(path):
        result = cli.ok("cache", "gc", "--older-than", "0s")
        assert f"left {path.name}: a writer is at work on it" in result.out
        assert path.exists() and not list(Path("cache").rglob("test-*.h5"))
        rest = cli("cache", "rm", "--all")
        assert rest.code == CACHE and f"writing {path}" in rest.err and path.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-size", "10XB"], ("'10XB'", "10GB")),
        (["--max-size", ""], ("''", "10GB")),
        (["--older-than", "30"], ("'30'", "30d")),
        (["--older-than", "-3d"], ("--older-than",)),
    ],
)
def test_gc_refuses_an_invalid_size_or_age(
    argv: list[str], words: tuple[str, ...], cli: Cli, work: Path
) -> None:
    cli.refused(USAGE, ["cache", "gc", *argv], *words)


def test_rm_removes_the_others_if_one_is_locked(cli: Cli, work: Path) -> None:
    held, others = cached("validation"), [cached("train"), cached("test")]
    with holding(held):
        result = cli("cache", "rm", "--all", "--json")
    assert result.code == CACHE and "another process is writing" in result.err
    assert set(json.loads(result.out)["removed"]) == set(map(str, others)) and held.exists()


def test_gc_keeps_unfinished_work_that_can_be_resumed(
    cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after two units of four: gc removes the files of the lock and keeps the units."""
    from featcache.cache.staging import Staging

    whole = {path.name: path.read_bytes() for path in Path("cache").rglob("*.h5")}
    shutil.rmtree("cache")
    monkeypatch.setattr("featcache.extraction.partition.UNIT_ROWS", 16)
    with monkeypatch.context() as patch:
        commit = Staging.commit

        def stop(self: Staging, number: int, arrays: Any) -> None:
            if number == 2:
                raise KeyboardInterrupt
            commit(self, number, arrays)

        patch.setattr(Staging, "commit", stop)
        assert cli("extract", "--split", "train").code == 130
    (partial,) = Path("cache").rglob("*.partial")
    leave_holder(partial.with_suffix(".h5"), pid=unused_pid())
    units = set(partial.glob("block-*"))
    removed = cli.ok("cache", "gc", "--json").json["removed"]
    assert [one["kind"] for one in removed] == ["holder"]
    assert units and set(partial.glob("block-*")) == units
    result = cli.ok("extract", "--split", "train")
    assert f"going on from {len(units)} of 4 units" in result.err
    assert cached("train").read_bytes() == whole[cached("train").name]


@pytest.mark.slow
def test_gc_after_a_killed_extraction(cli: Cli, work: Path) -> None:
    """SIGKILL while units are written: gc keeps what can be resumed, and no lock is in the way."""
    shutil.rmtree("cache")
    rows = [{"text": "好房间" + str(n), "label": "good" if n % 2 else "bad"} for n in range(2500)]
    Path("reviews/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = subprocess.Popen(
        [COMMAND, "extract", "--split", "train", "--quiet"],
        stdout=subprocess.DEVNULL,
        env=environment(OMP_NUM_THREADS="1"),
        preexec_fn=interruptible,
    )
    end = time.monotonic() + 60
    while not list(Path("cache").rglob("block-*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = Path("cache").rglob("*.partial")
    kept = set(partial.rglob("block-*"))
    assert kept and partial.with_suffix(".holder").exists()
    removed = cli.ok("cache", "gc", "--json").json["removed"]
    assert str(partial) not in {one["path"] for one in removed} and all(path.exists() for path in kept)
    assert not partial.with_suffix(".holder").exists()
    result = cli.ok("extract", "--split", "train", "--json")
    assert result.json["splits"][0]["rows"] == 2500 and "going on from" in result.err


# ---------------------------------------------------------------- export


def test_export_writes_arrays_and_tables(cli: Cli, work: Path) -> None:
    name, before = cached("train").name, cached("train").read_bytes()
    result = cli.ok("cache", "export", name, "--view", "last/mean", "--output", "out/x.npy")
    assert "60 rows of 32 numbers" in result.err and "out/x.npy" in result.out.splitlines()
    x = np.load("out/x.npy")
    with h5py.File(cached("train")) as file:
        assert np.array_equal(x, file["views/last-mean"][()])
        hashes = [row.tobytes().hex() for row in file["row_hash"][()]]
    document = cli.ok("cache", "export", name, "--view", "last/mean", "--output", "x.parquet", "--json").json
    assert document["files"] == ["x.parquet"] and document["shape"] == [60, 32]
    table = pq.read_table("x.parquet")
    assert table["row_hash"].to_pylist() == hashes
    texts: list[dict[str, Any]] = [
        json.loads(line) for line in Path("reviews/train.jsonl").read_text().splitlines()
    ]
    assert table["label"].to_pylist() == [row["label"] for row in texts]
    cli.refused(
        CACHE,
        ["cache", "export", name, "--view", "last/cls", "--output", "x.parquet"],
        "x.parquet",
        "--force",
    )
    cli.ok("cache", "export", name, "--view", "last/cls", "--output", "x.parquet", "--force")
    assert cached("train").read_bytes() == before


def test_export_refuses_invalid_arguments(cli: Cli, work: Path) -> None:
    name = cached("train").name
    cli.refused(USAGE, ["cache", "export", name, "--output", "x.npy"], "several views", "last/mean")
    cli.refused(
        USAGE, ["cache", "export", name, "--view", "last/cls", "--output", "x.csv"], "x.csv", "parquet"
    )
    cli.refused(
        CACHE, ["cache", "export", name, "--view", "last/max", "--output", "x.npy"], "last/max", "last/mean"
    )
    cli.refused(CACHE, ["cache", "export", "nope", "--view", "last/cls", "--output", "x.npy"], "'nope'")
    cli.refused(USAGE, ["cache", "export", name, "--view", "last/cls"], "--output")
