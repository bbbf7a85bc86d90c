"""The answers file: what is on the disk, what a crash leaves, what people do to it by hand, two at a time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.errors import LockHeld, SourceError
from featcache.labelling.answers import AnswerLine, AnswersFile, AnswersHeader, all_labels, default_path
from tests.support.disk import FaultDisk, PowerCut, plant, plugged_in

HEADER = AnswersHeader(labels=("good", "bad"))

WRITER = """
import sys
import time
from pathlib import Path
from featcache.labelling.answers import AnswerLine, AnswersFile, AnswersHeader

path, by, count, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
file = AnswersFile(path, AnswersHeader(labels=("good", "bad")))
with file.writer(by):
    for number in range(count):
        file.append(AnswerLine(answer="labels", text=f"{number:04x}", labels=("good",), by=by, time="now"))
        print(number, flush=True)  # only now it counts
        time.sleep(pause)  # a person is slower: others get their turn
"""


def line(number: int, label: str = "good", by: str = "anna", **more: str) -> AnswerLine:
    return AnswerLine(answer="labels", text=f"{number:04x}", labels=(label,), by=by, time="now", **more)  # type: ignore[arg-type]


def started(path: Path, by: str, count: int, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), by, str(count), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "texts.labels.jsonl"
    file = AnswersFile(path, HEADER)
    file.append(line(1, note="房间很干净"), line(2, "bad"))
    again = AnswersFile(path, AnswersHeader(labels=("other",)))
    assert (again.header, again.lines) == (HEADER, file.lines)
    assert "房间很干净" in path.read_text(encoding="utf-8")  # to be read and edited by hand
    assert not file.refresh() and not again.refresh()


def test_a_line_that_was_cut_off_is_set_aside_and_the_rest_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    AnswersFile(path, HEADER).append(line(1), line(2))
    whole = path.read_bytes()
    for cut in range(1, 40, 7):
        path.write_bytes(whole[:-cut])
        file = AnswersFile(path, HEADER)
        if cut == 1:  # only the line break is missing: the line is whole
            assert file.lines == [line(1), line(2)]
            assert path.read_bytes() == whole
        else:
            assert file.lines == [line(1)]
            assert (
                (tmp_path / "a.jsonl.torn").read_bytes().endswith(whole.splitlines()[-1][: -cut + 1] + b"\n")
            )
        file.append(line(3))
        assert AnswersFile(path, HEADER).lines[-1] == line(3)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("{half", "line 3"),
        ('{"answer":"labels","text":"01","labels":[],"by":"a","time":""}', "labels is empty"),
        ('{"answer":"like","text":"01","by":"a","time":""}', "it can be: labels, skip"),
        ('{"answer":"skip","by":"a","time":""}', "text is missing"),
        ('{"answer":"skip","text":3,"by":"a","time":""}', "text"),
        ("[1, 2]", "line 3"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_changed(tmp_path: Path, broken: str, named: str) -> None:
    path = tmp_path / "a.jsonl"
    AnswersFile(path, HEADER).append(line(1), line(2))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], broken, *lines[2:]]) + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(SourceError) as caught:
        AnswersFile(path, HEADER)
    assert named in caught.value.what and "line 3" in caught.value.what
    assert caught.value.hint and "kept" in caught.value.hint
    assert path.read_bytes() == before


def test_an_edit_by_hand_counts_also_while_the_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = AnswersFile(path, HEADER)
    file.append(line(1), line(2))
    edited = path.read_text(encoding="utf-8").replace('"good"', '"bad"', 2).replace("\n", "\r\n") + "\r\n\r\n"
    path.write_text("\ufeff" + edited, encoding="utf-8", newline="")
    file.append(line(3))
    assert [one.labels for one in file.lines] == [("bad",), ("good",), ("good",)]
    assert AnswersFile(path, HEADER).lines == file.lines


def test_lines_that_an_editor_wrote_over_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = AnswersFile(path, HEADER)
    file.append(line(1))
    opened = path.read_bytes()
    file.append(line(2), line(3))
    path.write_bytes(opened)  # the editor saves what it read
    file.append(line(4))
    assert file.lines == [line(1), line(4)]
    removed = [json.loads(one) for one in (tmp_path / "a.jsonl.removed").read_text("utf-8").splitlines()]
    assert [one["text"] for one in removed] == [line(2).text, line(3).text]


def test_nothing_is_written_into_a_file_that_was_broken_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = AnswersFile(path, HEADER)
    file.append(line(1))
    path.write_bytes(path.read_bytes() + b"oops\n")
    with pytest.raises(SourceError, match="line 3"):
        file.append(line(2))
    assert path.read_bytes().endswith(b"oops\n")
    path.write_bytes(path.read_bytes().replace(b"oops\n", b""))
    file.append(line(2))
    assert AnswersFile(path, HEADER).lines == [line(1), line(2)]


@pytest.mark.parametrize("content", [b"text,label\nfine,good\n", b'{"rows": 3}\n', b"\x00\xff", b"\n\n"])
def test_another_file_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(content)
    with pytest.raises(SourceError):
        AnswersFile(path, HEADER)
    assert path.read_bytes() == content


def test_a_file_that_was_removed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = AnswersFile(path, HEADER)
    path.unlink()
    with pytest.raises(SourceError, match="was removed"):
        file.append(line(1))


def test_nothing_that_counts_is_lost_when_a_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    counted = 0
    for stop in (3, 20, 41):
        with started(path, "anna", 10_000) as writer:
            assert writer.stdout
            for _ in range(stop):
                assert writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
            counted += stop + len(writer.stdout.read().splitlines())
        there = len(AnswersFile(path, HEADER).lines)
        assert counted <= there <= counted + 3  # written, but not yet told


@pytest.mark.parametrize("how", ["least", "all", "names", "data", "any"])
def test_a_power_cut_before_any_operation_loses_no_answer(tmp_path: Path, how: str) -> None:
    draw = random.Random(how)
    given = [line(number, "good" * 200) for number in range(3)]  # longer than a sector
    for cut in range(1, 60):
        (root := tmp_path / f"{how}{cut}").mkdir()
        disk, acknowledged = FaultDisk(root, cut_at=cut), list[AnswerLine]()
        with plugged_in(disk):
            try:
                file = AnswersFile(root / "a.jsonl", HEADER)
                for one in given:
                    file.append(one)
                    acknowledged.append(one)
            except PowerCut:
                pass
        plant(disk.survivors(draw, how), tmp_path / f"{how}{cut}-left")
        left = AnswersFile(tmp_path / f"{how}{cut}-left" / "a.jsonl", HEADER)
        assert left.lines[: len(acknowledged)] == acknowledged
        assert len(left.lines) <= len(acknowledged) + 1
        if acknowledged == given:
            return
    pytest.fail("an uninterrupted run has fewer operations")


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    both = [started(path, by, 60) for by in ("anna", "ben")]
    for writer in both:
        out, error = writer.communicate(timeout=120)
        assert writer.returncode == 0, error
        assert len(out.splitlines()) == 60
    lines = AnswersFile(path, HEADER).lines
    for by in ("anna", "ben"):
        assert [one.text for one in lines if one.by == by] == [f"{number:04x}" for number in range(60)]


def test_one_person_cannot_label_in_two_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with started(path, "anna", 10_000, 0.1) as other:
        assert other.stdout and other.stdout.readline()
        file = AnswersFile(path, HEADER)
        with pytest.raises(LockHeld, match="anna labels with") as caught:
            with file.writer("anna"):
                pass
        assert "--annotator" in (caught.value.hint or "")
        with file.writer("ben"):
            file.append(line(7, by="ben"))
        other.kill()
    with file.writer("anna"):  # a killed process holds nothing
        pass


def test_labels_can_be_added(tmp_path: Path) -> None:
    file = AnswersFile(tmp_path / "a.jsonl", HEADER)
    file.append(AnswerLine(answer="new label", labels=("late",), by="anna", time=""), line(1, "by hand"))
    assert all_labels(file.header, file.lines) == ("good", "bad", "late", "by hand")


def test_the_answers_are_beside_the_texts() -> None:
    assert default_path(Path("data/texts.csv.gz")) == Path("data/texts.labels.jsonl")
    assert default_path(Path("texts.2024.csv")) != default_path(Path("texts.2025.csv"))
    first = json.loads(b'{"featcache": "answers", "format": 1, "labels": ["good", "bad"]}')
    assert first["format"] == HEADER.format
