"""A grid of linear heads trained as one stack; the best by validation is kept and scored on test."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.cache.view_names import require_cached
from featcache.errors import UsageError
from featcache.evaluation.calibration import fit_temperature
from featcache.evaluation.metrics import score
from featcache.heads.blend import blend_linear
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Epoch, Fit, Member
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Linear, Scorer
from featcache.runs.record import SweepRecord, Trial
from featcache.runs.run import Run
from featcache.runs.train import load_data, read_costs_for, save_fit
from featcache.runs.weighted_rows import weighted_rows
from featcache.settings import Settings

RANGE_POINTS = 7  # values of a range by default
MOST_HEADS = 4096
BLENDED = 64  # heads among which those of a blend are chosen
RECORDED = 100  # trials in run.json


@dataclass(frozen=True)
class Grid:
    """What a sweep tries: every combination of these.

    Attributes:
        views: as they are asked for.
        seeds: 1: the weights of every head start at zero, as in `train_head`. More: so many random starts
            of each setting, counted from the settings' own seed, to show how much they matter.
        blend: how many of the heads are averaged at most; 1: the best one is kept alone.
    """

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    label_smoothing: tuple[float, ...]
    class_weight: tuple[str, ...]
    views: tuple[str, ...]
    seeds: int
    blend: int = 1

    @property
    def size(self) -> int:
        parts = (self.lr, self.weight_decay, self.label_smoothing, self.class_weight, self.views)
        return math.prod(map(len, parts)) * self.seeds


@dataclass(frozen=True)
class Sweep:
    """What `sweep` returns.

    Attributes:
        trials: best first.
        best: the saved run of the first trial; the only one that was scored on test.
        seconds: the training of all heads.
    """

    trials: tuple[Trial, ...]
    best: Run
    seconds: float

    def best_by(self, field: str) -> dict[Any, Trial]:
        """The best trial of each value of a field, best first, e.g. of each `view`."""
        found: dict[Any, Trial] = {}
        for trial in self.trials:
            found.setdefault(getattr(trial, field), trial)
        return found


def sweep(
    settings: Settings,
    grid: Grid,
    *,
    progress: Callable[[int, Sequence[Member], list[Epoch]], None] | None = None,
) -> Sweep:
    """Train all heads of `grid` on the same batches, keep the best by validation as a run.

    Args:
        progress: called after each epoch with its number, the heads, and a line for each head.

    Raises:
        CacheMiss: a view that is not cached.
        HeadError: data no head can be trained on.
        UsageError: an empty grid, or one of more than 4,096 heads.
    """
    if not 1 <= grid.size <= MOST_HEADS:
        raise UsageError(f"a sweep of {grid.size:,} heads", hint=f"ask for 1 to {MOST_HEADS:,}")
    for view in grid.views:
        require_cached(view, "a sweep")
    data = load_data(settings, grid.views)
    costs = read_costs_for(settings, data.features[grid.views[0]]["train"])
    from featcache.heads.linear_stack import fit_stack

    members = _members(grid, settings.seed)
    head = dataclasses.replace(settings.head, class_weight="none")  # the grid has its own
    plain = dataclasses.replace(settings, head=head)
    train = {view: weighted_rows(plain, "linear", data.features[view]["train"])[0] for view in grid.views}
    held_out = {view: data.rows(view, "validation") for view in grid.views}
    report = None if progress is None else (lambda lines: progress(lines[0].epoch, members, lines))
    began = time.perf_counter()
    fits = fit_stack(
        train, held_out, len(data.features[grid.views[0]]["train"].label_names), members, head,
        seed=settings.seed, on_epoch=report,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    ranked = sorted(
        zip((_trial(member, fit) for member, fit in zip(members, fits, strict=True)), fits, strict=True),
        key=lambda pair: pair[0].rank,
        reverse=True,
    )
    trials = tuple(trial for trial, _ in ranked)
    best, fit = ranked[0]
    own = _settings_of(settings, best)
    record = SweepRecord(len(trials), trials[:RECORDED])
    if grid.blend > 1:
        alike = [other for trial, other in ranked if trial.view == best.view]
        fit = _blended(fit, alike[:BLENDED], held_out[best.view], grid.blend)
        seconds = time.perf_counter() - began
    saved = save_fit(own, "linear", data, best.view, fit, seconds, record, costs)
    return Sweep(trials, saved, seconds)


def _blended(best: Fit, fits: Sequence[Fit], held_out: LabelledFeatures, most: int) -> Fit:
    """The heads averaged, where validation finds that better than the best of them; else `best`."""
    scorers = [fit.best for fit in fits if isinstance(fit.best, Linear)]
    blended, chosen = blend_linear(scorers, held_out, most)
    names = tuple(map(str, range(blended.classes)))

    def rank(scorer: Scorer) -> tuple[float, float]:
        logits, y = scorer.logits(held_out.x), held_out.y
        temperature = fit_temperature(logits, y)  # both as they would be used
        found = score(probabilities_of(logits, temperature, multi_label=y.ndim == 2), y, names)
        return found.accuracy, -found.log_loss

    if len(set(chosen)) == 1 or rank(blended) <= rank(best.best):
        return best
    return Fit(best=blended, last=blended, about={"blended_heads": len(set(chosen))})


def parse_values(text: str, *, least: float = 0.0) -> tuple[float, ...]:
    """`0,0.01` or `1e-4..1e-1` (7 values, log-spaced) or `1e-4..1e-1:10` (10 of them).

    Raises:
        UsageError: not numbers, below `least`, or a range that cannot be spaced.
    """
    values: list[float] = []
    for part in text.split(","):
        low, dots, rest = part.partition("..")
        high, colon, points = rest.partition(":")
        try:
            if not dots:
                values.append(float(low))
                continue
            values += _spaced(float(low), float(high), int(points) if colon else RANGE_POINTS)
        except ValueError:
            raise UsageError(
                f"{part.strip()!r} is no number and no range", hint="e.g. 1e-4,1e-3 or 1e-4..1e-1:7"
            ) from None
    if not all(math.isfinite(value) and value >= least for value in values):
        raise UsageError(f"{text}: numbers from {least:g} are needed")
    return tuple(dict.fromkeys(values))


def _spaced(low: float, high: float, points: int) -> list[float]:
    """Log-spaced, both ends included, rounded to 6 digits."""
    if not (0 < low < high and math.isfinite(high) and 2 <= points <= MOST_HEADS):
        raise ValueError
    step = math.log(high / low) / (points - 1)
    return [float(f"{low * math.exp(step * number):.6g}") for number in range(points)]


def _members(grid: Grid, seed: int) -> list[Member]:
    seeds = [None] if grid.seeds == 1 else range(seed, seed + grid.seeds)
    return [
        Member(
            view, lr, decay, seed=number, label_smoothing=smoothing, class_weight=weight
        )
        for view, lr, decay, smoothing, weight, number in itertools.product(
            grid.views, grid.lr, grid.weight_decay, grid.label_smoothing, grid.class_weight,
            seeds,
        )
    ]  # fmt: skip


def _trial(member: Member, fit: Fit) -> Trial:
    line = fit.history[fit.best_epoch - 1]
    return Trial(
        **dataclasses.asdict(member),
        best_epoch=fit.best_epoch,
        validation_accuracy=line.validation_accuracy,
        validation_loss=line.validation_loss,
    )


def _settings_of(settings: Settings, trial: Trial) -> Settings:
    """The settings under which `train_head` would train this head."""
    head = dataclasses.replace(
        settings.head, lr=trial.lr, weight_decay=trial.weight_decay,
        label_smoothing=trial.label_smoothing, class_weight=trial.class_weight,
    )  # fmt: skip
    return dataclasses.replace(settings, head=head)
