"""How many actors fit a cluster, how tasks are dealt to them, and what their errors become."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.cluster import cluster as ray_cluster
from featcache.cluster.cluster import ActorPool, answered, connected, read_answer
from featcache.errors import BackboneError, BadRow, SourceError, UsageError
from tests.support.cli_tools import Cli, plain_terminal
from tests.support.ray_runs import needs_ray


@needs_ray
@pytest.mark.enable_socket
def test_actors_have_the_niceness_of_the_driver(alone: None) -> None:
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)  # 15 by default in Ray


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


@needs_ray
@pytest.mark.enable_socket
def test_connected_fails_at_once_without_a_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1:"), connected("127.0.0.1:1"):
        pass
    assert time.monotonic() - began < 5  # Ray itself would wait for minutes


def test_flags_that_do_not_fit_ray_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain_terminal(monkeypatch)
    cli = Cli(capsys)
    cli.refused(2, ["extract", "--split", "test", "--ray-address", "auto"], "--engine ray")
    cli.refused(2, ["predict", "--workers", "2", "好"], "--engine ray")
    monkeypatch.setattr("featcache.system.packages.find_spec", lambda name: None)
    cli.refused(2, ["extract", "--split", "test", "--engine", "ray"], "pip install 'featcache[ray]'")
