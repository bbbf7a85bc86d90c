"""What slow and failing workers cost an extraction, simulated from measured rates.

Each worker takes the next commit unit that is not claimed. A worker that dies loses its unit, which another
one encodes again, and is replaced after a while. Rates are input; everything else is random.

    python benchmarks/simulate_scale.py --rows 1e9 --workers 64 --texts-per-second 30000
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Cluster:
    """The workers and commit units of a simulation.

    Attributes:
        units: of equal cost.
        unit_seconds: how long a worker takes for one.
        spread: standard deviation of the time of a unit over its mean (log-normal).
        slow_share, slow_factor: this share of the workers takes that many times as long.
        failures: deaths of one worker an hour.
        back_after: seconds until a dead worker is replaced.
        start: seconds until a worker has loaded its model.
    """

    workers: int
    units: int
    unit_seconds: float
    spread: float = 0.1
    slow_share: float = 0.0
    slow_factor: float = 3.0
    failures: float = 0.0
    back_after: float = 120.0
    start: float = 20.0


@dataclass(frozen=True)
class Outcome:
    """Hours until the last unit is committed, the share of them without disturbances, units encoded again."""

    hours: float
    efficiency: float
    repeated: int


def simulate(cluster: Cluster, seed: int = 0) -> Outcome:
    """Simulate one extraction, event by event."""
    dice = np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p(cluster.spread**2))
    slow = dice.random(cluster.workers) < cluster.slow_share
    pace = cluster.unit_seconds * np.where(slow, cluster.slow_factor, 1.0)
    free = [(cluster.start, worker) for worker in range(cluster.workers)]
    heapq.heapify(free)
    dies = dice.exponential(3600 / cluster.failures, cluster.workers) if cluster.failures else None
    lost: list[float] = []  # since when the unit of a dead worker can be claimed again
    left, repeated, end = cluster.units, 0, 0.0
    while left or lost:
        now, worker = heapq.heappop(free)
        if left:
            left -= 1
        elif min(lost) <= now:
            lost.remove(min(lost))
        elif free and now < min(lost):  # nothing to do until a worker dies or all is done
            heapq.heappush(free, (min(lost), worker))
            continue
        done = now + pace[worker] * dice.lognormal(-(sigma**2) / 2, sigma)
        if dies is not None and dies[worker] < done:
            lost.append(max(dies[worker], now))
            repeated += 1
            back = max(dies[worker], now) + cluster.back_after + cluster.start
            dies[worker] = back + dice.exponential(3600 / cluster.failures)
            heapq.heappush(free, (back, worker))
            continue
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    ideal = cluster.units * cluster.unit_seconds / cluster.workers
    return Outcome(end / 3600, ideal / end, repeated)


SCENES = {
    "nothing goes wrong": {},
    "one worker in ten three times as slow": {"slow_share": 0.1},
    "each worker dies every ten hours": {"failures": 0.1},
    "both": {"slow_share": 0.1, "failures": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--texts-per-second", type=float, required=True, help="of one worker, measured")
    parser.add_argument(
        "--unit-texts", type=float, default=7500, help="texts in a commit unit (default: 7500)"
    )
    parser.add_argument("--runs", type=int, default=5, help="seeds (default: 5)")
    asked = parser.parse_args()
    for name, scene in SCENES.items():
        cluster = Cluster(
            asked.workers,
            int(asked.rows / asked.unit_texts),
            asked.unit_texts / asked.texts_per_second,
            **scene,
        )
        found = [asdict(simulate(cluster, seed)) for seed in range(asked.runs)]
        median = {key: float(np.median([one[key] for one in found])) for key in found[0]}
        print(json.dumps({"scene": name, **{key: round(value, 4) for key, value in median.items()}}))


if __name__ == "__main__":
    main()
