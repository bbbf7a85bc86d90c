"""Heads trained by several workers equal those of one, and no worker waits for one that has ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.heads.distributed import ALONE, ProcessGroup, WorkerLost, join, usable_gpus
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Fit
from featcache.heads.registry import KINDS
from featcache.runs.run import Run, list_runs, load_run
from featcache.runs.train_workers import train_with_workers
from featcache.settings import HeadSettings, load_settings
from featcache.system.sharded_array import ShardedColumn, as_array
from featcache.system.workers import Worker
from featcache_cli.main import main
from tests.support.cli_tools import (
    COMMAND,
    Cli,
    environment,
    make_work,
    plain_terminal,
    start,
)
from tests.support.cli_tools import arrow_in as arrow_cache_in
from tests.support.feature_rows import clusters, tagged
from tests.support.forked import fork_server

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds its workers in /proc")

Case = tuple[str, str, dict[str, Any]]  # data, head, settings

CASES: dict[str, Case] = {
    "exact": ("three", "exact", {"C": 0.1}),
    "exact, weak penalty": ("three", "exact", {"C": 100.0}),
    "exact, correlated features": ("correlated", "exact", {"C": 10.0}),
    "exact, two classes, balanced": ("two", "exact", {"class_weight": "balanced"}),
    "exact, several labels": ("several", "exact", {"C": 1.0}),
    "exact, C by validation": ("three", "exact", {"penalty": "validation"}),
    "exact, C by folds": ("two", "exact", {"penalty": "folds", "folds": 3}),
    "exact, fewer rows than columns": ("wide", "exact", {"C": 1.0}),
    "exact, fewer rows than workers": ("three rows", "exact", {"C": 1.0}),
    "linear": ("three", "linear", {"epochs": 6, "batch_size": 64, "lr": 0.01}),
    "linear, every option": (
        "three", "linear",
        {"epochs": 15, "batch_size": 100, "lr": 0.05, "class_weight": "balanced", "label_smoothing": 0.1,
         "warmup": 0.1, "schedule": "cosine", "patience": 3, "weight_decay": 0.1},
    ),
    "linear, several labels": (
        "several", "linear", {"epochs": 4, "lr": 0.01, "batch_size": 64, "class_weight": "balanced"}
    ),
    "linear, batches smaller than the group": ("two", "linear", {"epochs": 1, "batch_size": 3}),
    "linear, streamed": ("streamed", "linear", {"epochs": 2, "batch_size": 64, "lr": 0.01}),
    "exact, streamed": ("streamed", "exact", {"C": 1.0}),
}  # fmt: skip


def data_of(name: str) -> tuple[LabelledFeatures, LabelledFeatures, int]:
    """Train rows, validation rows, and how many classes."""
    if name == "several":
        return tagged(500, seed=1), tagged(90, seed=2), 4
    if name == "three rows":
        return clusters(3, classes=3), clusters(5, classes=3, seed=2), 3
    if name == "correlated":
        return correlated(5000, 1), correlated(77, 2), 3
    rows, width, classes = {"two": (301, 6, 2), "wide": (40, 64, 3)}.get(name, (603, 12, 3))
    made = [clusters(n, width, classes, seed=seed) for n, seed in ((rows, 1), (77, 2))]
    first, second = (LabelledFeatures(x.astype(np.float16), y) for x, y in made)
    return first, second, classes


def correlated(rows: int, seed: int) -> LabelledFeatures:
    """Few directions hold nearly all of the variance, as in features of a Transformer; float16."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    planes, mix = shared.normal(size=(100, 3)), shared.normal(size=(100, 100)) / 10
    hidden = own.normal(size=(rows, 100))
    labels = (hidden @ planes / 5 + own.gumbel(size=(rows, 3))).argmax(1)
    return LabelledFeatures((hidden * np.logspace(0, -1.5, 100) @ mix).astype(np.float16), labels)


def fit(case: Case, group: ProcessGroup = ALONE) -> Fit:
    """Fit on a copy of the features in which all rows but this worker's own are NaN; streamed: in shards."""
    data, kind, settings = case
    *splits, classes = data_of(data)
    own = []
    for x, y in splits:
        seen = np.full_like(x, np.nan)
        seen[group.share(len(x))] = x[group.share(len(x))]
        own.append(LabelledFeatures(sharded(seen) if data == "streamed" else seen, y))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.heads.registry.PENALTIES", (1e-2, 0.1, 1.0))
        if data == "streamed":
            patch.setattr("featcache.heads.features.IN_MEMORY", 0)
            patch.setattr("featcache.heads.features.NUMBERS_AT_ONCE", 500)
            patch.setattr("featcache.heads.logistic.objective.NUMBERS_AT_ONCE", 400)
        shared = {"group": group} if group.joined else {}
        return KINDS[kind].fit(*own, classes, HeadSettings(**settings), seed=3, **shared)


def sharded(x: np.ndarray) -> np.ndarray:
    ends = [*range(0, len(x), 50), len(x)]
    return as_array(
        ShardedColumn(lambda number: x[ends[number] : ends[number + 1]], ends, x.dtype, x.shape[1:])
    )


def numbers(found: Fit) -> dict[str, np.ndarray]:
    about = [value for name, value in sorted((found.about or {}).items()) if name == "C"]
    history = [(line.train_loss, line.validation_loss) for line in found.history]
    rights = [(line.train_accuracy, line.validation_accuracy) for line in found.history]
    return {
        "best": np.hstack([found.best.weight, found.best.bias[:, None]]),
        "last": np.hstack([found.last.weight, found.last.bias[:, None]]),
        "losses": np.array(history).ravel(),
        "exactly": np.array([*about, found.best_epoch, *np.array(rights).ravel()]),
    }


def fit_as_rank(rank: int, size: int, folder: Path, gpus: int) -> None:
    """In a process of its own: fit all cases as one of `size` workers, and keep the numbers in `folder`."""
    import torch

    torch.set_num_threads(1)
    with join(Worker(rank, size, rank, size), folder / "meeting", gpus=gpus, wait=60) as group:
        for number, case in enumerate(CASES.values()):
            np.savez(folder / f"{number}-{rank}.npz", **numbers(fit(case, group)))  # type: ignore[arg-type]
        check_operations(group)


def check_operations(group: ProcessGroup) -> None:
    """The operations themselves, as every worker sees them."""
    import torch

    ranks = list(range(group.size))
    assert group.gather(np.arange(7)[group.share(7)], 7).tolist() == list(range(7))
    assert group.gather(torch.arange(7)[group.share(7)], 7).tolist() == list(range(7))
    one, other = torch.full((2, 2), float(group.rank)), np.full(3, group.rank + 0.5)
    group.sum_(one, other)
    assert one.tolist() == [[sum(ranks)] * 2] * 2 and other.tolist() == [sum(ranks) + group.size / 2] * 3
    turned = torch.arange(6.0).view(2, 3).T  # not contiguous
    group.sum_(turned)
    assert turned.tolist() == (torch.arange(6.0).view(2, 3).T * group.size).tolist()
    assert group.broadcast(torch.tensor([group.rank])).tolist() == [0]
    assert group.broadcast_object({"from": 0} if group.rank == 0 else None) == {"from": 0}
    assert [part.stop - part.start for part in shares(7, group.size)] == [
        len(part) for part in np.array_split(range(7), group.size)[::-1]
    ]


def shares(count: int, size: int) -> list[slice]:
    return [ProcessGroup(rank, size).share(count) for rank in range(size)]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All cases fitted by real processes over gloo: how many, and where their numbers are."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(request.param, folder)
    return request.param, folder


def run_ranks(size: int, folder: Path, gpus: int = 0) -> None:
    ranks = [
        fork_server().Process(target=fit_as_rank, args=(rank, size, folder, gpus)) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * size


@pytest.mark.parametrize("case", CASES)
def test_workers_train_the_head_that_one_process_trains(case: str, fitted: tuple[int, Path]) -> None:
    """Each read its own rows only, all have the same bits, and these are one worker's up to rounding."""
    size, folder = fitted
    number = list(CASES).index(case)
    first, *others = (dict(np.load(folder / f"{number}-{rank}.npz")) for rank in range(size))
    for other in others:
        assert all((other[name] == first[name]).all() for name in first)
    alone = numbers(fit(CASES[case]))
    for name in ("best", "last"):
        away = np.linalg.norm(first[name] - alone[name]) / np.linalg.norm(alone[name])
        assert away < 1e-5, (name, away)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-6)
    np.testing.assert_array_equal(first["exactly"], alone["exactly"])


def test_workers_with_a_gpu_each_use_nccl(tmp_path: Path) -> None:
    """As many workers as there are GPUs, one at least: the same numbers as without."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    assert usable_gpus("cuda", torch.cuda.device_count()) == torch.cuda.device_count()
    run_ranks(torch.cuda.device_count(), tmp_path, torch.cuda.device_count())
    for number, case in enumerate(CASES.values()):
        found, alone = np.load(tmp_path / f"{number}-0.npz"), numbers(fit(case))
        assert np.linalg.norm(found["best"] - alone["best"]) < 1e-5 * np.linalg.norm(alone["best"])


def test_shares_cover_all_rows_once() -> None:
    for count in (0, 1, 5, 64, 1001):
        for size in (1, 2, 3, 7):
            parts = shares(count, size)
            assert [row for part in parts for row in range(count)[part]] == list(range(count))
            lengths = {part.stop - part.start for part in parts}
            assert max(lengths) - min(lengths) <= 1


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """A folder in which all splits are extracted."""
    folder = tmp_path_factory.mktemp("extracted")
    with pytest.MonkeyPatch.context() as patch:
        plain_terminal(patch)
        make_work(folder / "work", tiny("bert"), views="last/mean")
        with arrow_cache_in(folder / "arrow"), contextlib.chdir(folder / "work"):
            assert main(["extract", "--all-splits", "--quiet"]) == 0
    return folder / "work"


@pytest.fixture
def work(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "work"


def runs() -> list[Run]:
    return list_runs(Path("reports"))


def assert_same_head(run: Run, other: Run) -> None:
    for which in ("head", "last") if run.history else ("head",):
        one, two = run.head(which).scorer, other.head(which).scorer
        away = np.linalg.norm(one.weight - two.weight) / np.linalg.norm(two.weight)  # type: ignore[union-attr]
        assert away < 1e-5
    for split, scores in run.record.metrics.items():
        assert scores == pytest.approx(other.record.metrics[split], abs=1e-5)


@pytest.mark.parametrize("kind", ["linear", pytest.param("exact", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("forked_workers")
def test_train_head_with_workers_prints_what_train_head_prints(kind: str, work: Path, cli: Cli) -> None:
    options = ["--head", kind, "--epochs", "12", "--batch-size", "16", "--seed", "5", "--json"]
    alone = cli.ok("train-head", *options).json
    shared = cli.ok("train-head", *options, "--workers", "2").json
    assert shared.keys() == alone.keys() and shared["rows"] == alone["rows"]
    assert shared["run"] == f"{kind}-last-mean-2" and len(runs()) == 2
    assert_same_head(load_run(Path("reports"), shared["run"]), load_run(Path("reports"), alone["run"]))


def test_workers_that_torchrun_describes_train_the_same_head(work: Path, cli: Cli) -> None:
    """Of them only the first prints, and one run is written."""
    alone = cli.ok("train-head", "--epochs", "6", "--json").json
    options = ["--epochs", "6", "--json"]
    with as_by_torchrun(options, options) as ranks:
        said = [rank.communicate(timeout=180) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0] and said[1][0] == b"" and len(runs()) == 2
    made = json.loads(said[0][0])
    assert_same_head(load_run(Path("reports"), made["run"]), load_run(Path("reports"), alone["run"]))


@pytest.mark.slow
def test_train_head_under_torchrun_trains_the_same_head(work: Path, cli: Cli) -> None:
    """Of its processes only the first prints, and one run is written."""
    alone = cli.ok("train-head", "--epochs", "6", "--json").json
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node=2",
         str(COMMAND), "train-head", "--epochs", "6", "--json"],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert len(runs()) == 2 and done.stderr.count("no cached test") == 0
    assert_same_head(load_run(Path("reports"), made["run"]), load_run(Path("reports"), alone["run"]))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--head", "mlp", "--workers", "2"], ("mlp head", "linear, exact")),
        (["--head", "logistic", "--workers", "2"], ("logistic head",)),
        (["--workers", "0"], ("--workers 0", "from 1 to")),
        (["--workers", "-1"], ("--workers -1",)),
        (["--workers", "1000000"], ("--workers 1000000",)),
        (["--workers", "two"], ("--workers", "two")),
    ],
)
def test_train_head_refuses_impossible_numbers_of_workers(
    argv: list[str], words: tuple[str, ...], work: Path, cli: Cli
) -> None:
    cli.refused(2, ["train-head", *argv], *words)


@pytest.mark.parametrize(
    ("described", "argv", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], "MASTER_ADDR and MASTER_PORT"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            [],
            "out of range",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, [], "RANK='x'"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "99999"}, [], "out of range"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["--workers", "2"], "RANK and WORLD_SIZE are set"),
    ],
)
def test_train_head_refuses_impossible_torchrun_variables(
    described: dict[str, str],
    argv: list[str],
    words: str,
    work: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in described.items():
        monkeypatch.setenv(name, value)
    cli.refused(2, ["train-head", *argv], words)


@pytest.mark.usefixtures("forked_workers")
def test_an_error_of_all_workers_is_reported_once(work: Path, cli: Cli) -> None:
    diverged = ["train-head", "--lr", "1e30", "--workers", "2"]
    cli.refused(6, diverged, "diverged", "smaller --lr")
    cli.refused(5, ["train-head", "--cache-dir", "elsewhere", "--workers", "2"], "extract")


# ---------------------------------------------------------------- workers that end


def workers_of(process: int) -> list[int]:
    """The children of a process, the first started first: numbers begin again when they have run out."""
    lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return sorted((int(number) for text in lists for number in text.split()), key=started)


def started(process: int) -> int:
    """When it started, in ticks since the machine did; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def is_worker(process: int) -> bool:
    """Whether it trains; other tests leave processes of other kinds behind."""
    try:
        return b"featcache.runs.train_workers" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def gone(process: int) -> bool:
    """Whether it has ended; a zombie has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def assert_all_end(processes: list[int], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not all(map(gone, processes)):
        assert time.monotonic() < until, [number for number in processes if not gone(number)]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("blow", "error", "words", "grace", "wait"),
    [
        # It is heard of at once. While they start on a busy machine, one may wait seconds for the other.
        (signal.SIGKILL, HeadError, "worker 2 of 2 was ended by SIGKILL", 15.0, 60.0),
        pytest.param(signal.SIGSTOP, WorkerLost, "another worker", 1.0, 3.0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_ends_the_others(
    blow: signal.Signals, error: type[HeadError], words: str, grace: float, wait: float, work: Path
) -> None:
    seen: list[int] = []

    def strike(line: Any) -> None:
        if not seen:
            seen.extend(number for number in workers_of(os.getpid()) if is_worker(number))
            os.kill(seen[1], blow)

    with pytest.raises(error, match=words):
        train_with_workers(load_settings({"epochs": 10**7}), 2, progress=strike, wait=wait, grace=grace)
    assert len(seen) == 2 and all(map(gone, seen))
    assert not runs() and not list(Path().glob("reports/*"))


@pytest.fixture
def endless(work: Path) -> Iterator[tuple[Any, list[int]]]:
    """The command with two workers at a training without end, and these workers."""
    process = start(["train-head", "--epochs", "10000000", "--workers", "2"], environment())
    try:
        while len(found := workers_of(process.pid)) < 2 or not all(map(in_touch, found)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        yield process, found
    finally:
        process.kill()
        process.communicate()


def in_touch(process: int) -> bool:
    """Whether a worker has met the others: it holds TCP connections."""
    try:
        held = [str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return False
    return sum(name.startswith("socket:") for name in held) > 1


def test_ctrl_c_ends_all_workers(endless: tuple[Any, list[int]]) -> None:
    process, workers = endless
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130 and out == b"" and err.count(b"interrupted") == 1, err
    assert_all_end(workers)
    assert not list(Path().glob("reports/*"))


def test_workers_end_with_the_process_that_started_them(endless: tuple[Any, list[int]]) -> None:
    process, workers = endless
    process.kill()
    process.wait()
    assert_all_end(workers)
    assert not runs()


@contextlib.contextmanager
def as_by_torchrun(*argv: list[str]) -> Iterator[list[Any]]:
    """Workers as torchrun describes them, without torchrun: neither ends the other."""
    port = str(random.SystemRandom().randint(20000, 32000))
    common = {"WORLD_SIZE": str(len(argv)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        start(
            ["train-head", *options],
            environment(RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo", **common),
        )
        for rank, options in enumerate(argv)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_worker_ends_the_others_under_torchrun(killed: int, work: Path) -> None:
    endless = ["--epochs", "10000000"]
    with as_by_torchrun(endless, endless) as ranks:
        while not all(in_touch(rank.pid) for rank in ranks):
            assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
            time.sleep(0.05)
        time.sleep(0.5)
        ranks[killed].kill()
        out, err = ranks[1 - killed].communicate(timeout=180)
        assert ranks[1 - killed].returncode == 6 and out == b"" and b"another worker ended" in err, err
        assert b"Traceback" not in err and not runs()


def test_workers_with_different_settings_are_refused(work: Path) -> None:
    with as_by_torchrun(["--seed", "1"], ["--seed", "2"]) as ranks:
        said = [rank.communicate(timeout=180) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [6, 6] and not runs()
        assert b"another worker ended" in said[0][1] and b"worker 2 of 2 has other settings" in said[1][1]
