"""The parts of a prediction's output."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.cluster import output_parts as predict_parts
from featcache.errors import SourceError, UsageError
from tests.support.ray_runs import write_parquet


def test_plan_parts_gives_row_groups_or_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_parts, "PART_ROWS", 20)
    table = write_parquet(tmp_path / "a.parquet", 55, 1, group=10)
    lines = tmp_path / "b.csv"
    lines.write_text("text\n好\n")
    parts = predict_parts.plan_parts([str(table), str(lines)])
    assert [(part.groups, part.rows) for part in parts] == [
        ((0, 2), 20), ((2, 4), 20), ((4, 6), 15), (None, None),
    ]  # fmt: skip
    assert [part.name for part in parts] == [
        *(f"part-0000{n}.parquet" for n in range(3)),
        "part-00003.csv",
    ]
    table.write_bytes(b"PAR1 no more")
    with pytest.raises(SourceError, match=r"cannot read .*a\.parquet"):
        predict_parts.plan_parts([str(table)])
    with pytest.raises(SourceError, match=r"does not read .*c\.xyz: it reads csv, tsv"):
        predict_parts.plan_parts([str(tmp_path / "c.xyz")])
    for name in ("c.xlsx", "c.zip", "c.arrow"):
        with pytest.raises(UsageError, match=rf"does not read .*{name}.*\n.*without --engine ray"):
            predict_parts.plan_parts([str(tmp_path / name)])
    with pytest.raises(SourceError, match="no files"):
        predict_parts.plan_parts([])
