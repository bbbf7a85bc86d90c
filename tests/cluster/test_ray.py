"""A Ray cluster gives what one machine gives: the same cache file and the same labels, also if actors die."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from featcache.cache.staging import Staging
from featcache.cluster import cluster as ray_cluster
from featcache.cluster import output_parts as predict_parts
from featcache.cluster import private_ray
from featcache.cluster.cluster import ActorPool, Engine, answered, connected, read_answer
from featcache.cluster.encode import put_units, take_units
from featcache.cluster.extract import absolute, extract_with_ray
from featcache.cluster.predict import FilesToLabel, Reading, predict_with_ray
from featcache.errors import BackboneError, BadRow, SourceError, UsageError
from featcache.extraction import partition
from featcache.runs.run import Run, load_run
from featcache.settings import load_settings
from featcache.system.progress import Progress
from featcache.system.stores import Remote, opened
from featcache_cli.main import main
from tests.support.cli_tools import Cli, arrow_in, make_one_run, plain_terminal
from tests.support.extraction import Case, one_thread, some_texts, write_case

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
HEAD = "linear-last-mean-1"
UNIT = 8  # rows


@pytest.fixture(scope="module", autouse=True)
def arrow_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every process keeps the Arrow files of `datasets` in one folder, and computes on one thread."""
    folder = tmp_path_factory.mktemp("arrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        with arrow_in(folder), one_thread():
            yield


@pytest.fixture(scope="module")
def alone(arrow_files: None) -> Iterator[None]:
    """A Ray cluster on this machine, shared by the tests of this module."""
    with connected(None):
        yield


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit units of few rows, so that there are several."""
    monkeypatch.setattr(partition, "UNIT_ROWS", UNIT)


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path) -> Case:
    return write_case(tmp_path / "case", tiny("bert"))


@pytest.fixture(scope="module")
def run(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = make_one_run(tmp_path_factory.mktemp("trained"), tiny("bert"))
    return load_run(folder / "reports", HEAD)


def write_parquet(path: Path, count: int, seed: int, group: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts: list[str | None] = list(some_texts(count, seed))
    texts[3] = "  "  # a row without a usable text
    pq.write_table(pa.table({"id": range(count), "text": texts}), path, row_group_size=group)
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of the output, in order."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def plain(run: Run, source: Path, target: Path) -> list[dict[str, Any]]:
    """The rows that one machine writes for one file."""
    argv = ["predict", "--run", str(run.folder), "--input", str(source), "--output", str(target), "--quiet"]
    assert main([*argv, "--device", "cpu"]) == 0
    return pq.read_table(target).to_pylist()


# --- extraction ---------------------------------------------------------------------------------


@needs_ray
@pytest.mark.enable_socket
def test_extract_with_ray_makes_the_file_of_one_machine(case: Case, alone: None) -> None:
    other = case.fresh()
    before = case.extract("train")
    said: list[Progress] = []
    (made,) = extract_with_ray(other.settings(), ["train"], said.append, workers=1)
    assert made.path.read_bytes() == before.path.read_bytes()
    assert (made.rows, made.encoded, made.cached, made.tokens) == (60, 60, False, before.tokens)
    steps = [event.done for event in said if event.stage == "encode"]
    assert steps[0] == 0 and steps[-1] == 60 and steps == sorted(steps)
    assert len(set(steps)) > 2  # reported during the work
    assert other.leftovers() == []
    record = json.loads(made.path.with_suffix(".json").read_text())["made"]
    assert (record["device"], record["dtype"], record["tokens"]) == ("cpu", "float32", before.tokens)


@needs_ray
@pytest.mark.enable_socket
def test_actors_have_the_niceness_of_the_driver(alone: None) -> None:
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)  # 15 by default in Ray


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_extract_with_ray_encodes_missing_units_and_raises_the_errors_of_one_machine(
    case: Case, alone: None
) -> None:
    broken = case.fresh("broken")
    rows = broken.rows()
    shutil.copy(broken.data / "train.jsonl", broken.data / "kept")

    def spoil(event: Progress) -> None:
        if event.stage == "load":  # the actors find other rows than the driver
            broken.write([*rows[:-1], {**rows[-1], "text": "好" + rows[-1]["text"]}])

    with pytest.raises(SourceError, match="not those that the driver read"):
        extract_with_ray(broken.settings(), ["train"], spoil, workers=1)
    shutil.copy(broken.data / "kept", broken.data / "train.jsonl")
    (partial,) = broken.cache.rglob("*.partial")
    there = sum(len(load_file(path)["n_tokens"]) for path in partial.glob("block-*.safetensors"))
    said: list[Progress] = []
    (made,) = extract_with_ray(broken.settings(), ["train"], said.append, workers=1)
    assert made.encoded == 60 - there
    assert made.path.read_bytes() == case.extract("train").path.read_bytes()


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_units_are_sent_through_the_store_of_the_cache(
    case: Case, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    store = tmp_path / "store"
    sent: set[str] = set()

    def take(place: Remote, staging: Staging) -> None:
        sent.update(path.name for path in store.rglob("block-*.safetensors"))
        take_units(place, staging)

    monkeypatch.setattr("featcache.cluster.extract.take_units", take)
    (made,) = extract_with_ray(case.settings(cache_dir=store.as_uri()), ["train"], workers=2)
    assert made.path.read_bytes() == case.extract("train").path.read_bytes()
    assert len(sent) > 1 and list(store.rglob("block-*.safetensors")) == []


def test_take_units_drops_damaged_units_and_those_of_another_plan(tmp_path: Path) -> None:
    plan = {"fingerprint": "one"}
    there, here = Staging(tmp_path / "there", plan), Staging(tmp_path / "here", plan)
    store = opened((tmp_path / "store").as_uri())
    for number in range(3):
        there.commit(number, {"x": np.arange(number + 1)})
    other = Staging(tmp_path / "other", {"fingerprint": "two"})
    other.commit(5, {"x": np.arange(5)})
    put_units(there, store)
    put_units(other, store)
    assert there.named() == other.named() == set()
    (damaged,) = (tmp_path / "store").glob("block-00000001-*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    (tmp_path / "store" / "note.txt").write_text("not ours")
    take_units(store, here)
    assert here.committed() == {0, 2}
    assert here.read(2)["x"].tolist() == [0, 1, 2]
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["note.txt"]
    take_units(store, here)  # once more changes nothing
    assert here.committed() == {0, 2}


def test_extract_with_ray_uses_finished_files_without_ray(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.extract("train")
    monkeypatch.setattr(ray_cluster, "require_ray", lambda: None)
    monkeypatch.setattr("featcache.cluster.extract.require_ray", lambda: None)
    monkeypatch.setattr("featcache.cluster.extract.connected", lambda address: pytest.fail("Ray was asked"))
    (again,) = extract_with_ray(case.settings(), ["train"])
    assert again.cached


def test_absolute_changes_paths_and_not_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "train.csv").touch()
    monkeypatch.chdir(tmp_path)
    made = absolute(load_settings({"model": "model", "dataset": "some/hub-id", "cache_dir": "cache"}))
    assert (made.backbone.model, made.data.dataset) == (str(tmp_path / "model"), "some/hub-id")
    assert made.paths.cache_dir == str(tmp_path / "cache")
    made = absolute(load_settings({"model": "hub/id", "data_files": {"train": "train.csv"}}))
    assert made.backbone.model == "hub/id"
    assert made.data.data_files == {"train": str(tmp_path / "train.csv")}


# --- actors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "device", "pool"),
    [
        ([8, 8], [0, 0], "auto", "auto", ActorPool(4, 4, 0)),
        ([3, 3], [0, 0], "3", "cpu", ActorPool(3, 1, 0)),  # two cores each would leave the third no node
        ([2], [0], "auto", "auto", ActorPool(1, 2, 0)),
        ([0, 16], [0, 4], "auto", "auto", ActorPool(4, 4, 1)),
        ([16], [4], "2", "cuda", ActorPool(2, 4, 1)),
        ([4], [4], "2", "cpu", ActorPool(2, 2, 0)),
    ],
)
def test_actor_pool_fits_the_nodes(
    cpus: list[int],
    gpus: list[int],
    asked: str,
    device: str,
    pool: ActorPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "_resources", lambda: (cpus, gpus))
    assert ActorPool.of(asked, device) == pool
    monkeypatch.setattr(ray_cluster, "_resources", lambda: (cpus[:1], gpus[:1]))
    smaller = pool.fitting()
    assert smaller == replace(pool, actors=smaller.actors) and 1 <= smaller.actors <= pool.actors


@pytest.mark.parametrize(
    ("asked", "device", "words"),
    [
        ("5", "auto", "has 4 cores"),
        ("0", "auto", "no number"),
        ("-1", "auto", "no number"),
        ("two", "auto", "no number"),
        ("1", "cuda", "has no GPU"),
        ("1", "cuda:1", "--device cuda:1"),
    ],
)
def test_actor_pool_refuses_what_the_cluster_does_not_have(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, words: str
) -> None:
    monkeypatch.setattr(ray_cluster, "_resources", lambda: ([2, 2], [0, 0]))
    with pytest.raises(UsageError, match=words):
        ActorPool.of(asked, device)


@pytest.mark.parametrize(
    ("cpus", "gpus", "pool", "fitting"),
    [
        ([16, 3], [0, 1], ActorPool(1, 3, 1), 1),  # a head without a GPU lends its cores to none
        ([64, 16], [0, 8], ActorPool(8, 2, 1), 8),
        ([2, 32], [4, 4], ActorPool(8, 0, 1), 8),
        ([8, 8], [2, 2], ActorPool(4, 4, 1), 4),
    ],
)
def test_actor_pool_on_gpus_fits_every_node_with_gpus(
    cpus: list[int], gpus: list[int], pool: ActorPool, fitting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_resources", lambda: (cpus, gpus))
    assert ActorPool.of("auto", "auto") == pool and pool.threads >= 1
    assert pool.fitting().actors == fitting
    if pool.cpus:
        monkeypatch.setattr(ray_cluster, "_resources", lambda: ([pool.cpus, 0], [8, 8]))
        assert pool.fitting().actors == 1


def test_read_answer_raises_the_error_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> bytes:
        def work() -> None:
            raise error

        return answered(work)

    assert read_answer(answered(lambda: 3)) == 3
    with pytest.raises(SourceError) as caught:
        read_answer(fail(SourceError("no such row", hint="another")))
    assert (caught.value.what, caught.value.hint) == ("no such row", "another")
    with pytest.raises(BackboneError, match="no token"):
        read_answer(fail(BadRow("no token", 3)))
    with pytest.raises(BackboneError, match="MemoryError: all gone"):
        read_answer(fail(MemoryError("all gone")))
    elsewhere = fail(SourceError("no such row"))
    monkeypatch.setattr("platform.node", lambda: "another-host")
    with pytest.raises(SourceError, match="no such row \\(on "):
        read_answer(elsewhere)


def test_deal_stops_after_a_round_without_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[list[int]] = []

    def lost(actor: type, reference: Any, numbers: list[int], pool: ActorPool) -> Iterator[Any]:
        rounds.append(list(numbers))
        done.update(numbers[: 2 - len(rounds)])  # the first round finishes one unit
        return iter(())

    done: set[int] = set()
    notes: list[str] = []
    monkeypatch.setattr(ray_cluster, "_round", lost)
    monkeypatch.setattr(ray_cluster, "_resources", lambda: ([2], [0]))
    monkeypatch.setitem(__import__("sys").modules, "ray", type("ray", (), {"put": staticmethod(id)}))
    dealt = ray_cluster.deal(
        ray_cluster.Actor, None, lambda: sorted({0, 1, 2} - done), ActorPool(2, 1, 0), notes.append
    )
    with pytest.raises(BackboneError, match="every actor"):
        list(dealt)
    assert rounds == [[0, 1, 2], [1, 2]]
    assert len(notes) == 1 and "2 units" in notes[0]


@given(st.lists(st.integers(0, 999), max_size=300, unique=True), st.integers(1, 70))
def test_tasks_of_gives_every_unit_once_in_tasks_that_shrink_to_one(numbers: list[int], actors: int) -> None:
    tasks = ray_cluster.tasks_of(numbers, actors)
    assert [number for task in tasks for number in task] == numbers
    sizes = [len(task) for task in tasks]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) <= set(range(1, ray_cluster.UNITS_A_TASK + 1))
    assert sizes[-actors:] == [1] * min(actors, len(sizes))


def test_keep_stdout_clean_replaces_the_private_function(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SimpleNamespace(print_to_stdstream=print)
    monkeypatch.setattr(private_ray, "_worker_module", lambda: worker)
    private_ray.keep_stdout_clean()
    assert worker.print_to_stdstream({"lines": []}, False) is None


@pytest.mark.parametrize("worker", [None, SimpleNamespace(), SimpleNamespace(print_to_stdstream=3)])
def test_keep_stdout_clean_warns_once_where_the_function_is_gone(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_ray._warn.cache_clear()
    monkeypatch.setattr(private_ray, "_worker_module", lambda: worker)
    with pytest.warns(UserWarning, match="standard output") as caught:
        private_ray.keep_stdout_clean()
        private_ray.keep_stdout_clean()
    assert len(caught) == 1


@needs_ray
@pytest.mark.enable_socket
def test_connected_fails_at_once_without_a_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1:"), connected("127.0.0.1:1"):
        pass
    assert time.monotonic() - began < 5  # Ray itself would wait for minutes


# --- prediction ---------------------------------------------------------------------------------


@needs_ray
@pytest.mark.enable_socket
def test_prediction_continues_and_gives_the_labels_of_one_machine(
    run: Run, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict_parts, "PART_ROWS", 20)
    plain_terminal(monkeypatch)
    first = write_parquet(tmp_path / "in" / "a.parquet", 50, 1, group=10)
    second = write_parquet(tmp_path / "in" / "b.parquet", 15, 2, group=10)
    want = plain(run, first, tmp_path / "a.parquet") + plain(run, second, tmp_path / "b.parquet")
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
    assert _close(rows_of(out), want)
    (bad,) = [json.loads(line) for line in (out / "part-00003.parquet.bad.jsonl").read_text().splitlines()]
    assert bad["row"] == 4  # of its own file
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    (out / "part-00001.parquet").write_bytes(b"torn")
    (out / "part-00002.parquet").unlink()
    assert main(argv) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["rows"], again["resumed"], again["counts"]) == (65, 35, said["counts"])
    assert _close(rows_of(out), want)
    for name in ("part-00000.parquet", "part-00003.parquet"):
        assert (out / name).stat().st_mtime_ns == written[name]


def _close(rows: list[dict[str, Any]], want: list[dict[str, Any]]) -> bool:
    """Check that the rows and labels are equal, and the probabilities up to the last digits."""
    assert len(rows) == len(want)
    for one, other in zip(rows, want, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert np.isclose(value, other[name], atol=1e-5)
            else:
                assert value == other[name], name
    return True


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
    with pytest.raises(SourceError, match="its ending"):
        predict_parts.plan_parts([str(tmp_path / "c.xyz")])
    with pytest.raises(SourceError, match="no files"):
        predict_parts.plan_parts([])


# --- the command --------------------------------------------------------------------------------


def test_flags_that_do_not_fit_ray_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain_terminal(monkeypatch)
    cli = Cli(capsys)
    cli.refused(2, ["extract", "--split", "test", "--ray-address", "auto"], "--engine ray")
    cli.refused(2, ["predict", "--workers", "2", "好"], "--engine ray")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cli.refused(2, ["extract", "--split", "test", "--engine", "ray"], "pip install 'featcache[ray]'")


# --- two nodes ----------------------------------------------------------------------------------


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_extraction_survives_the_loss_of_a_node(
    case: Case, two_nodes: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "UNIT_ROWS", 40)
    case.write([{"text": text, "label": f"l{n % 2}"} for n, text in enumerate(some_texts(4000, 3))])
    other, notes = case.fresh(), []
    killed: list[int] = []

    def watch(event: Progress) -> None:
        if event.stage == "note":
            notes.append(event.text)
        if event.stage == "encode" and event.done > 300 and not killed:
            killed.append(event.done)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    (made,) = extract_with_ray(other.settings(), ["train"], watch, workers=2, address=two_nodes.address)
    assert killed and made.encoded == 4000
    assert made.path.read_bytes() == case.extract("train").path.read_bytes()
    assert other.leftovers() == []
    assert capfd.readouterr().out == ""  # Ray would tell of the lost node on stdout


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_prediction_between_urls_survives_the_loss_of_a_node(
    run: Run, two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_MIRROR", str(tmp_path / "mirror"))
    files = [write_parquet(tmp_path / "in" / f"{n}.parquet", 200, n, group=200) for n in range(20)]
    want = [row for file in files for row in plain(run, file, tmp_path / file.name)]
    killed: list[int] = []

    def watch(step: Any) -> None:
        if step.done > 600 and not killed:
            killed.append(step.done)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    said = predict_with_ray(
        run, FilesToLabel([file.as_uri() for file in files], (tmp_path / "out").as_uri(), Reading("text")),
        Engine("ray", 2, two_nodes.address), device="cpu", on_progress=watch,
    )  # fmt: skip
    assert killed and said.rows == 4000 and said.bad == 20
    assert _close(rows_of(tmp_path / "out"), want)
