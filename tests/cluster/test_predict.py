"""Prediction on a Ray cluster gives the labels of one machine, also when a node is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featcache.cluster import output_parts as predict_parts
from featcache.cluster.cluster import Engine
from featcache.cluster.predict import FilesToLabel, Reading, _absolute, predict_with_ray
from featcache.errors import UsageError
from featcache.finetuning.run_backbone import BackboneChoice
from featcache.runs.record import BackboneRecord
from featcache.runs.run import Run
from featcache_cli.main import main
from tests.support.cli_tools import plain_terminal
from tests.support.ray_runs import needs_ray, rows_of, rows_of_one_machine, same_rows, write_parquet


@needs_ray
@pytest.mark.enable_socket
def test_prediction_continues_and_gives_the_labels_of_one_machine(
    run: Run, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict_parts, "PART_ROWS", 20)
    plain_terminal(monkeypatch)
    first = write_parquet(tmp_path / "in" / "a.parquet", 50, 1, group=10)
    second = write_parquet(tmp_path / "in" / "b.parquet", 15, 2, group=10)
    want = rows_of_one_machine(run, first, tmp_path / "a.parquet") + rows_of_one_machine(
        run, second, tmp_path / "b.parquet"
    )
    out = tmp_path / "out"
    argv = ["predict", "--run", str(run.folder), "--input", str(tmp_path / "in" / "*.parquet")]
    argv += ["--output", str(out), "--engine", "ray", "--workers", "1", "--device", "cpu", "--json"]
    capsys.readouterr()
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["bad_rows"], said["resumed"], said["output"]) == (65, 2, 0, str(out))
    assert sorted(path.name for path in out.glob("part-*.parquet")) == [
        f"part-{n:05d}.parquet" for n in range(4)
    ]
    assert same_rows(rows_of(out), want)
    (bad,) = [json.loads(line) for line in (out / "part-00003.parquet.bad.jsonl").read_text().splitlines()]
    assert bad["row"] == 4  # of its own file
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    (out / "part-00001.parquet").write_bytes(b"torn")
    (out / "part-00002.parquet").unlink()
    assert main(argv) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["rows"], again["resumed"], again["counts"]) == (65, 35, said["counts"])
    assert same_rows(rows_of(out), want)
    for name in ("part-00000.parquet", "part-00003.parquet"):
        assert (out / name).stat().st_mtime_ns == written[name]


def test_actors_get_the_folders_of_several_backbones_by_absolute_paths(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("own", "potion", "moved"):
        Path(folder).mkdir()
    made = {"": "own", "A": "potion", "H": "org/name"}
    named = {name: BackboneRecord(model=model) for name, model in made.items()}
    named["A"] = replace(named["A"], adapter="lora")
    several = replace(run, record=replace(run.record, backbone=BackboneRecord(model="own", named=named)))
    as_made = _absolute(several, BackboneChoice())
    assert as_made.model == f"={tmp_path}/own,A={tmp_path}/potion"
    assert as_made.adapter == f"A={tmp_path}/lora"
    asked = _absolute(several, BackboneChoice("A=moved"))
    assert asked.model == f"A={tmp_path}/moved,={tmp_path}/own"


def test_predict_refuses_the_output_of_other_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(address: str | None) -> Any:
        raise RuntimeError("Ray was started")

    monkeypatch.setattr("featcache.cluster.predict.require_ray", lambda: None)
    monkeypatch.setattr("featcache.cluster.predict.connected", started)
    source = write_parquet(tmp_path / "a.parquet", 10, 1, group=10)

    def predict(folder: str, **changes: Any) -> None:
        predict_with_ray(
            run,
            FilesToLabel([str(source)], str(tmp_path / folder), Reading("text")),
            Engine("ray"),
            **changes,
        )

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "part-00000.parquet").write_bytes(b"precious")
    for force in (False, True):
        with pytest.raises(UsageError, match="holds the output of other rows"):
            predict("theirs", force=force)
    assert (tmp_path / "theirs" / "part-00000.parquet").read_bytes() == b"precious"
    with pytest.raises(RuntimeError, match="Ray was started"):
        predict("ours")
    (tmp_path / "ours" / "part-00000.parquet").write_bytes(b"half")  # killed before its record was written
    with pytest.raises(RuntimeError, match="Ray was started"):
        predict("ours")
    write_parquet(source, 11, 1, group=10)
    with pytest.raises(UsageError, match="holds the output of other rows"):
        predict("ours")
    with pytest.raises(RuntimeError, match="Ray was started"):
        predict("ours", force=True)
    assert (tmp_path / "ours" / "part-00000.parquet").exists()  # removed only when there are actors
    (tmp_path / "file").write_text("a")
    with pytest.raises(UsageError, match="is a file"):
        predict("file")


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_prediction_between_urls_survives_the_loss_of_a_node(
    run: Run, two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    files = [write_parquet(tmp_path / "in" / f"{n}.parquet", 200, n, group=200) for n in range(20)]
    want = [row for file in files for row in rows_of_one_machine(run, file, tmp_path / file.name)]
    killed: list[int] = []

    def watch(step: Any) -> None:
        if step.done > 600 and not killed:
            killed.append(step.done)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    said = predict_with_ray(
        run, FilesToLabel([file.as_uri() for file in files], (tmp_path / "out").as_uri(), Reading("text")),
        Engine("ray", 2, two_nodes.address), backbone=BackboneChoice(device="cpu"), on_progress=watch,
    )  # fmt: skip
    assert killed and said.rows == 4000 and said.bad == 20
    assert same_rows(rows_of(tmp_path / "out"), want)
