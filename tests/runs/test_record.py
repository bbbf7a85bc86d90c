"""run.json: what earlier versions wrote is read, and its keys are still written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.runs.record import RUN_FILE, RunRecord, read_run_record

BEFORE = sorted(Path(__file__, "..", "before").resolve().glob("*.json"))
MINIMAL = RunRecord(head="linear", view="last/cls", fingerprint="f", seconds=1.0, metrics={},
                    created="2025-01-01T00:00:00+0000", history=())  # fmt: skip


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_run_records_of_the_version_before_are_read_and_keep_their_keys(path: Path, tmp_path: Path) -> None:
    """`before/` holds a plain run, the best run of a sweep and a fine-tuned run."""
    shutil.copy(path, tmp_path / RUN_FILE)
    record, content = read_run_record(tmp_path), json.loads(path.read_bytes())
    written = record.to_json()
    for name, value in content.items():
        assert kept(written[name], value) == value, name
    assert set(written) - set(content) <= {"pairs", "unknown_tokens"}  # which came later
    assert record.pairs is (None if record.finetune else False)
    assert json.loads(record.to_bytes()) == written


def kept(now: Any, before: Any) -> Any:
    """`now` without the keys that `before` does not have, at any depth."""
    if isinstance(before, dict):
        return {key: kept(now[key], value) for key, value in before.items()}
    return now


def test_a_run_record_with_only_the_fields_of_the_first_version_is_read(tmp_path: Path) -> None:
    needed = ("format", "head", "view", "fingerprint", "seconds", "metrics", "created", "history")
    content = MINIMAL.to_json()
    (tmp_path / RUN_FILE).write_text(json.dumps({name: content[name] for name in needed} | {"later": 1}))
    assert read_run_record(tmp_path) == MINIMAL
    assert read_run_record(tmp_path).to_json() == content


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"view": None}, {"metrics": []}, {"history": [{"epoch": 1}]}]
)
def test_read_run_record_refuses_what_is_no_run_record(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps(MINIMAL.to_json() | change))
    with pytest.raises(HeadError, match=r"cannot read .*run\.json"):
        read_run_record(tmp_path)


def test_to_json_turns_numpy_values_and_paths_into_builtin_types() -> None:
    solver = {"C": np.float64(0.5), "steps": np.int64(3), "norms": np.ones(2), "path": Path("a/b")}
    written = replace(MINIMAL, solver=solver).to_json()["solver"]
    assert written == {"C": 0.5, "steps": 3, "norms": [1.0, 1.0], "path": "a/b"}
    assert "sweep" not in MINIMAL.to_json() and "finetune" not in MINIMAL.to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": {"test": {"confusion": [[1]]}}}, "confusion matrix of test"),
        ({"scores": {"test": {"confusion": [[1, 2], [3]]}}}, "confusion matrix of test"),
        ({"scores": {"test": {"confusion": [[1, 2], [3, -4]]}}}, "confusion matrix of test"),
        ({"scores": {"test": {"confusion": [[1, 2], [3, 1 << 62]]}}}, "confusion matrix of test"),
        ({"backbone": {"model": "a\0b"}}, "no path"),
        ({"caches": {"train": {"path": "\0", "fingerprint": ""}}}, "no path"),
        ({"data": {"data_files": {"train": "\0"}}}, "no path"),
        ({"created": "\ud800"}, r"no valid Unicode - at `\$\.created`"),
        ({"parameters": 10**30}, r"beyond 64 bits - at `\$\.parameters`"),
    ],
    ids=str,
)
def test_read_run_record_refuses_parts_that_do_not_fit(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    content = MINIMAL.to_json() | {"label_names": ["a", "b"]} | change
    (tmp_path / RUN_FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(HeadError, match=words) as refused:
        read_run_record(tmp_path)
    assert str(tmp_path / RUN_FILE) in refused.value.what and refused.value.hint
