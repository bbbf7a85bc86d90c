"""Files whose labelling was interrupted: the same call goes on from what is durable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featcache.data.formats.lines import ReadLimits
from featcache.errors import CacheError, DiskError, SourceError
from featcache.prediction.journal import partial_folder, remembered_quotes
from featcache.prediction.predictor import Predictor
from featcache.system.durable import disk
from featcache.system.progress import Progress
from tests.support.labelled_files import (
    KINDS,
    SMALL,
    label,
    made_rows,
    read_kind,
    write_kind,
)
from tests.support.source_files import write


def interrupted(
    predictor: Predictor, source: Path, target: Path, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is stopped after that many chunks were answered."""
    answer, done = predictor.answer, [0]

    def stop(tokens: Any, progress: Any = None) -> Any:
        if done[0] == chunks:
            raise KeyboardInterrupt
        done[0] += 1
        return answer(tokens, progress)

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "answer", stop)
        with pytest.raises(KeyboardInterrupt):
            label(predictor, source, target, limits=SMALL)
    assert not target.exists()


@pytest.mark.parametrize("written", [*KINDS, "txt"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_an_interrupted_file_ends_with_the_same_bytes(
    written: str,
    chunks: int,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = made_rows(90)
    rows[5]["text"] = rows[70]["text"] = " "
    source = write_kind(tmp_path / "in.csv", rows)
    whole = label(predictor, source, tmp_path / f"whole.{written}", limits=SMALL)
    target = tmp_path / f"out.{written}"
    interrupted(predictor, source, target, chunks, monkeypatch)
    steps: list[Progress] = []
    made = label(predictor, source, target, on_progress=steps.append, limits=SMALL)
    assert made.path.read_bytes() == whole.path.read_bytes()
    assert made.bad_path is not None and whole.bad_path is not None
    assert made.bad_path.read_bytes() == whole.bad_path.read_bytes()
    assert made.resumed == 16 * chunks and steps[0].done > 16 * chunks
    assert replace(
        made, **dict.fromkeys(("path", "bad_path", "resumed", "seconds", "tokens", "first_bad"))
    ) == replace(whole, **dict.fromkeys(("path", "bad_path", "resumed", "seconds", "tokens", "first_bad")))
    assert not partial_folder(target).exists()


def test_a_journal_of_other_rows_or_another_head_is_refused(
    predictor: Predictor,
    several: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = write_kind(tmp_path / "in.csv", made_rows(90)), tmp_path / "out.csv"
    interrupted(predictor, source, target, 2, monkeypatch)
    with pytest.raises(SourceError, match=r"another head[\s\S]*--force"):
        label(several, source, target, limits=SMALL)
    changed = made_rows(90)
    changed[3]["note"] = "changed"  # of a chunk that is done, and no text at that
    with pytest.raises(SourceError, match=r"other rows[\s\S]*rm -r"):
        label(predictor, write_kind(tmp_path / "in.csv", changed), target, limits=SMALL)
    made = label(several, source, target, force=True, limits=SMALL)
    assert made.resumed == 0 and len(read_kind(target)) == 90


@pytest.mark.parametrize("damage", ["state.json", "rows", "bad.jsonl"])
def test_a_damaged_journal_is_begun_again(
    damage: str, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_kind(tmp_path / "in.csv", made_rows(90)), tmp_path / "out.csv"
    whole = label(predictor, source, tmp_path / "whole.csv", limits=SMALL)
    interrupted(predictor, source, target, 2, monkeypatch)
    path = partial_folder(target) / damage
    path.write_bytes(b"{}" if damage == "state.json" else b"") if damage != "bad.jsonl" else path.unlink()
    made = label(predictor, source, target, limits=SMALL)
    assert made.resumed == 0 and target.read_bytes() == whole.path.read_bytes()


def test_a_journal_survives_a_full_disk(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_kind(tmp_path / "in.csv", made_rows(90)), tmp_path / "out.csv"
    whole = label(predictor, source, tmp_path / "whole.csv", limits=SMALL)
    calls = [0]

    def full(file: Any) -> None:
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(28, "No space left on device")
        file.flush()

    with monkeypatch.context() as patch:
        patch.setattr(disk, "fsync", full)
        with pytest.raises(DiskError, match=r"No space left[\s\S]*free some space"):
            label(predictor, source, target, limits=SMALL, commit_every=0.0)
    assert not target.exists()
    made = label(predictor, source, target, limits=SMALL)
    assert made.resumed > 0 and target.read_bytes() == whole.path.read_bytes()


def test_a_second_call_with_the_same_output_is_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_kind(tmp_path / "in.csv", made_rows(30)), tmp_path / "out.csv"
    inside, go_on = threading.Event(), threading.Event()
    answer = predictor.answer

    def slow(tokens: Any, progress: Any = None) -> Any:
        inside.set()
        assert go_on.wait(60)
        return answer(tokens, progress)

    monkeypatch.setattr(predictor, "answer", slow)
    first = threading.Thread(target=label, args=(predictor, source, target))
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(CacheError, match=str(os.getpid())):
            label(predictor, source, target)
    finally:
        go_on.set()
        first.join()
    assert len(read_kind(target)) == 30


KILLED = """
import sys
from pathlib import Path
from featcache.data.formats.lines import ReadLimits
from tests.support.stock import one_thread
from tests.support.tiny_predictor import tiny_predictor
from tests.support.labelled_files import label
with one_thread():
    label(
        tiny_predictor(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]),
        limits=ReadLimits(batch_rows=16), commit_every=0.0,
    )
"""


@pytest.mark.slow
def test_a_killed_process_continues_from_its_journal(
    predictor: Predictor, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """SIGKILL, as an OOM killer does it; the same call goes on from what is durable."""
    source, target = write_kind(tmp_path / "in.csv", made_rows(2000)), tmp_path / "out.csv"
    state = partial_folder(target) / "state.json"
    argv = [sys.executable, "-c", KILLED, str(tiny("bert")), str(source), str(target)]
    reached = [0]
    for _ in range(1):
        process = subprocess.Popen(argv, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None:
            rows = json.loads(state.read_bytes())["rows"] if state.exists() else 0
            if rows > reached[-1] + 100:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
        assert not target.exists()
        reached.append(json.loads(state.read_bytes())["rows"])
    made = label(predictor, source, target, limits=SMALL)
    assert 100 < reached[-1] == made.resumed < 2000
    shutil.rmtree(partial_folder(target), ignore_errors=True)
    assert (
        target.read_bytes()
        == label(predictor, source, tmp_path / "whole.csv", limits=SMALL).path.read_bytes()
    )


def test_a_journal_of_a_json_array_that_is_cut_short(predictor: Predictor, tmp_path: Path) -> None:
    """The rest is not guessed at; when the file is whole, the same call goes on."""
    limits = ReadLimits(sample_rows=16, batch_rows=16, block_chars=64)
    source, target = write_kind(tmp_path / "in.json", made_rows(90)), tmp_path / "out.json"
    whole = label(predictor, source, tmp_path / "whole.json", limits=limits).path.read_bytes()
    content = source.read_bytes()
    write(source, content[: int(len(content) * 0.9)])
    with pytest.raises(SourceError, match=r"line \d+: the array is not closed[\s\S]*cut short"):
        label(predictor, source, target, limits=limits)
    assert not target.exists()
    made = label(predictor, write(source, content), target, limits=limits)
    assert made.resumed >= 16 and target.read_bytes() == whole


def test_read_state_of_an_earlier_version(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state without `quotes`, and one with fields of a later version."""
    source, target = write_kind(tmp_path / "in.csv", made_rows(90)), tmp_path / "out.csv"
    whole = label(predictor, source, tmp_path / "whole.csv", limits=SMALL)
    interrupted(predictor, source, target, 2, monkeypatch)
    path = partial_folder(target) / "state.json"
    state = json.loads(path.read_bytes())
    assert list(state) == [
        "key", "chunks", "rows", "bad", "truncated", "digest", "bytes", "bad_bytes", "counts", "quotes",
        "raw_cells", "mostly_unknown", "abstained",
    ]  # fmt: skip
    assert state.pop("quotes") is None and state["chunks"] == 2
    path.write_text(json.dumps(state | {"later": 1}))
    made = label(predictor, source, target, limits=SMALL)
    assert made.resumed == 32 and target.read_bytes() == whole.path.read_bytes()


def test_remembered_quotes_of_an_unfinished_file(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["id\ttext", *(f'{n}\t"good {n}' for n in range(60))]
    source, target = write(tmp_path / "in.tsv", "\n".join(lines)), tmp_path / "out.tsv"
    assert remembered_quotes(target) is None
    interrupted(predictor, source, target, 2, monkeypatch)
    quotes = remembered_quotes(target)
    assert quotes is not None and not quotes.quoted and quotes.bytes == source.stat().st_size
    made = label(predictor, source, target, limits=SMALL, quotes=quotes)
    assert made.resumed == 32
    assert ["\t".join(line.split("\t")[:2]) for line in target.read_text().splitlines()] == lines
