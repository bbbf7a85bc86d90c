"""Ray with data, cache, input and output in buckets of an S3 server, and without a shared folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featcache.cluster import output_parts as predict_parts
from featcache.system.stores import opened
from tests.support.cli_tools import Cli, make_one_run
from tests.support.extraction import some_texts
from tests.support.ray_runs import rows_of

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.slow,
    pytest.mark.enable_socket,
]
FLAGS = ["--engine", "ray", "--workers", "2"]


def test_extract_and_predict_from_bucket_to_bucket(
    s3_bucket: str,
    cli: Cli,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    work = make_one_run(tmp_path / "trained", tiny("bert"))
    monkeypatch.chdir(work)
    root = f"{s3_bucket}/{tmp_path.name}"

    opened(f"{root}/data/train.jsonl").put(work / "reviews" / "train.jsonl")
    data = ["--data-files", f"train={root}/data/train.jsonl", "--split", "train"]
    (made,) = cli.ok("extract", *data, "--cache-dir", f"{root}/cache", *FLAGS, "--json").json["splits"]
    (alone,) = cli.ok("extract", *data, "--cache-dir", "alone", "--json").json["splits"]
    name = Path(alone["path"]).name
    (there,) = [path for path in opened(f"{root}/cache").listing() if path.endswith(".h5")]
    assert Path(there).name == name and Path(made["path"]).name == name
    assert opened(f"{root}/cache/{there}").read() == Path(alone["path"]).read_bytes()
    assert not [path for path in opened(f"{root}/cache").listing() if ".partial" in path]

    monkeypatch.setattr(predict_parts, "PART_ROWS", 20)
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": some_texts(90, 1)}), source, row_group_size=20)
    opened(f"{root}/in/a.parquet").put(source)
    argv = ["predict", "--input", f"{root}/in/*.parquet", "--output", f"{root}/out", *FLAGS, "--json"]
    said = cli.ok(*argv).json
    assert (said["rows"], said["labelled"], said["resumed"]) == (90, 90, 0)
    assert cli.ok(*argv).json["resumed"] == 90
    cli.ok("predict", "--input", str(source), "--output", "plain.parquet", "--quiet")
    fetched = tmp_path / "out"
    fetched.mkdir()
    for part in (path for path in opened(f"{root}/out").listing() if path.startswith("part-")):
        opened(f"{root}/out/{part}").get(fetched / part)
    labels = [row["prediction"] for row in rows_of(fetched)]
    assert labels == pq.read_table("plain.parquet")["prediction"].to_pylist()
