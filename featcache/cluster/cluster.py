"""The parts of Ray that featcache needs: a cluster, actors on it, and numbered units of work for them.

Ray Data distributes the units, starts the actors and replaces those of a lost node. Units that a lost actor
has not finished are distributed again in another round.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from featcache.cluster.private_ray import keep_stdout_clean
from featcache.errors import BackboneError, BadRow, FeatcacheError, UsageError
from featcache.system.machine import available_cores
from featcache.system.packages import require_extra
from featcache.system.workers import CORES_A_WORKER, parse_count

UNITS_A_TASK = 4  # at most; the next unit of a task is tokenised while the model encodes the last one
LAST_TASKS = 2  # at least, for each actor; they get smaller as fewer units are left
CONNECT = 10.0  # seconds to wait for a cluster
OWN_STORE = 256 << 20  # bytes of shared memory for the messages of a cluster on this machine

Order = TypeVar("Order")


@dataclass(frozen=True)
class Engine:
    """Where the work is done: on this machine, or on a Ray cluster.

    Attributes:
        name: `local` or `ray`.
        workers: number of processes or actors, or `auto`; None: 1 on this machine, `auto` on a cluster.
        ray_address: of the cluster, as `ray.init` takes it; None: the cluster that this process is already
            connected to, or this machine alone.

    Raises:
        UsageError: an address without `ray`.
    """

    name: str = "local"
    workers: int | str | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.name != "ray" and self.ray_address is not None:
            raise UsageError("--ray-address without --engine ray", hint="--engine ray")


def require_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    require_extra("--engine ray", "ray", ["ray"])


def starts_ray(address: str | None) -> bool:
    """Whether `connected` would start a cluster that is this machine alone."""
    ray = sys.modules.get("ray")  # `connected` sets variables before it is imported
    return address is None and "RAY_ADDRESS" not in os.environ and not (ray and ray.is_initialized())


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, unless this process is connected already; disconnect at the end.

    Args:
        address: as `ray.init` takes it, e.g. `auto` or `ray-head:6379`; None: this machine alone.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at `address`.
    """
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts its workers at niceness 15: beside other work they nearly stop.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        _look_for(address)
        with _muted():
            alone: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OWN_STORE}
            alone["num_cpus"] = len(available_cores())
            own = {} if address else alone
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        what = f"no Ray cluster at {address}" if address else "Ray does not start"
        raise UsageError(f"{what}: {str(error).splitlines()[0]}", hint="ray status says more") from error
    keep_stdout_clean()
    try:
        yield
    finally:
        ray.shutdown()


def _look_for(address: str | None) -> None:
    """Raise OSError if nothing answers at HOST:PORT, where Ray would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


@contextmanager
def _muted() -> Iterator[None]:
    """Discard stderr: Ray's libraries print to it without Python."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# -- actors -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActorPool:
    """The number of actors and the resources of each.

    Attributes:
        cpus: cores of each; 0 if a node has fewer cores than GPUs.
        gpus: of each: 0 or 1.
    """

    actors: int
    cpus: int
    gpus: int

    @classmethod
    def of(cls, asked: int | str, device: str) -> ActorPool:
        """The actors for `--workers` on the cluster as it is now.

        Args:
            asked: a number, or `auto`: one for each GPU, or for every few cores.
            device: as in the settings.

        Raises:
            UsageError: not a number, more than the cluster has room for, or a device that it lacks.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--device {device} with --engine ray", hint="auto, cpu or cuda: Ray says which one"
            )
        cpus, gpus = _resources()
        on_gpus = sum(gpus) > 0 and device != "cpu"
        if device == "cuda" and not on_gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU", hint="--device cpu")
        most = sum(gpus) if on_gpus else sum(cpus)
        if asked == "auto":
            asked = most if on_gpus else max(1, most // CORES_A_WORKER)
        count = parse_count(asked)
        if count > most:
            what = "GPUs" if on_gpus else "cores"
            raise UsageError(f"--workers {asked}: the cluster has {most} {what}", hint=f"--workers {most}")
        if on_gpus:
            # As many cores as every node with GPUs has for each of its GPUs; an actor may have none.
            shares = [node // has for node, has in zip(cpus, gpus, strict=True) if has]
            return cls(count, min(CORES_A_WORKER, *shares), 1)
        return cls(count, _share(cpus, count), 0)

    @property
    def threads(self) -> int:
        """Threads of torch in each actor."""
        return max(1, self.cpus)

    def fitting(self) -> ActorPool:
        """As many of these actors as the cluster has room for now, but at least one."""
        cpus, gpus = _resources()
        cores = [node // self.cpus if self.cpus else most for node, most in zip(cpus, gpus, strict=True)]
        room = sum(map(min, cores, gpus)) if self.gpus else sum(cores)
        return replace(self, actors=max(1, min(self.actors, room)))

    def __str__(self) -> str:
        each = "one GPU" if self.gpus else "one core" if self.cpus == 1 else f"{self.cpus} cores"
        return f"{self.actors} Ray actor{'s' if self.actors > 1 else ''} of {each} each"


def _resources() -> tuple[list[int], list[int]]:
    """CPUs and GPUs of each node that is alive."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [int(node.get("CPU", 0)) for node in alive], [int(node.get("GPU", 0)) for node in alive]


def _share(cpus: Sequence[int], count: int) -> int:
    """The most cores that each of `count` actors can have; an actor is on one node."""
    return next(each for each in range(max(cpus), 0, -1) if sum(node // each for node in cpus) >= count)


# -- their work -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DoneTask:
    """A task that an actor has finished.

    Attributes:
        numbers: the numbers of its units.
        answer: what `Actor.work` returned.
    """

    numbers: list[int]
    answer: Any


class Actor(Generic[Order]):
    """The class that Ray runs; a subclass implements `work`.

    Args:
        order: a list with the reference to the order; Ray would resolve a bare reference.
    """

    def __init__(self, order: Sequence[Any]) -> None:
        import ray

        self.order: Order = ray.get(order[0])

    def work(self, numbers: list[int]) -> Any:
        """Make the results of these units durable; returns a small answer."""
        raise NotImplementedError

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"answer": [self._answer([int(number) for number in task]) for task in batch["numbers"]]}

    def _answer(self, numbers: list[int]) -> bytes:
        """The pickled answer; errors are answers too, because Ray would wrap them in its own."""
        return answered(lambda: DoneTask(numbers, self.work(numbers)))


def answered(work: Callable[[], Any]) -> bytes:
    """Pickle what `work` returns or the error that it raises, for `read_answer` on another machine."""
    try:
        value = work()
    except BadRow as error:
        value = BackboneError(error.what, hint=error.hint)
    except FeatcacheError as error:
        value = error
    except Exception as error:
        value = BackboneError(f"{type(error).__name__}: {error}")
    return pickle.dumps((platform.node(), value))


def read_answer(answer: bytes) -> Any:
    """What `work` returned on another machine; raises the error that it raised there."""
    host, value = pickle.loads(answer)
    if not isinstance(value, FeatcacheError):
        return value
    if host == platform.node():
        raise value
    raise type(value)(f"{value.what} (on {host})", hint=value.hint)


def deal(
    actor: type[Actor[Order]],
    order: Order,
    missing: Callable[[], Sequence[int]],
    pool: ActorPool,
    note: Callable[[str], None],
) -> Iterator[DoneTask]:
    """Have actors work on units until none is missing.

    Args:
        order: the argument of the actors; sent to each node once.
        missing: returns the numbers of the units that are not durable yet.
        pool: the actors; fewer are used if the cluster has shrunk.
        note: called with a message when actors were lost.

    Yields:
        Each finished task; the units of a lost one are distributed again in the next round.

    Raises:
        FeatcacheError: the error that an actor raised.
        BackboneError: no unit was finished in a round.
    """
    import ray

    reference = ray.put(order)
    left = missing()
    while left:
        yield from _round(actor, reference, left, pool.fitting())
        now = missing()
        if len(now) >= len(left):
            raise BackboneError(
                "every actor that Ray started was lost at work",
                hint="was memory short? finished work is kept: run the same command again",
            )
        if now:
            note(f"an actor was lost; {len(now)} units are given to others")
        left = now


def tasks_of(numbers: Sequence[int], actors: int) -> list[list[int]]:
    """Units in tasks that get smaller towards the end, so that actors are done at about the same time."""
    tasks: list[list[int]] = []
    start = 0
    while start < len(numbers):
        left = len(numbers) - start
        size = min(max(left // (actors * LAST_TASKS), 1), UNITS_A_TASK)
        tasks.append(list(numbers[start : start + size]))
        start += size
    return tasks


def _round(actor: type, reference: Any, numbers: Sequence[int], pool: ActorPool) -> Iterator[DoneTask]:
    import ray.data

    tasks = [{"numbers": task} for task in tasks_of(numbers, pool.actors)]
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray will rename the two numbers below
        answers = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            actor,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(tasks))),
            fn_constructor_kwargs={"order": [reference]},
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            max_restarts=-1,
            max_task_retries=0,  # a retry would wait for its own actor, whose node may be lost for ever
        )
        try:
            for row in answers.iter_rows():
                done: DoneTask = read_answer(row["answer"])
                yield done
        except ray.exceptions.RayError as error:
            raise BackboneError(
                f"Ray's actors cannot work: {str(error).splitlines()[0]}",
                hint="every node needs the same featcache with its extras; finished work is kept",
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the progress bars and logs of Ray Data; a lost task does not end a round."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "max_errored_blocks": -1}
    before, level = {name: getattr(context, name) for name in wanted if hasattr(context, name)}, log.level
    for name in before:
        setattr(context, name, wanted[name])
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)
