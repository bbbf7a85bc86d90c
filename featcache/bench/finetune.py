"""How long an epoch above the cut takes, beside an epoch of a head and of training everything, in one run.

An epoch is estimated from the tokens a second of training steps on real rows: the first steps warm up, and
the median of the others is scaled to all tokens of the train split. With `epochs`, the parts are trained for
that many epochs as well, and scored on test.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from featcache.backbone.throughput import gemm_peak, useful_flops
from featcache.bench.timing import DIGITS, Machine, this_machine, timed
from featcache.data.split import load_splits
from featcache.errors import UsageError
from featcache.extraction.api import extract_splits
from featcache.extraction.job import Job
from featcache.finetuning.finetune import finetune
from featcache.finetuning.job import FrozenBackbone, SplitInputs, TuningJob
from featcache.finetuning.loop import Tuner
from featcache.finetuning.parts import parse_part
from featcache.finetuning.recipe import Recipe
from featcache.runs.run import Run
from featcache.runs.train import train_head
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

PARTS = {"top2": "top-blocks:2", "top4": "top-blocks:4", "all": "all"}
RATES = {"top2": 2e-4, "top4": 1e-4, "all": 5e-5}
WARM = 2  # steps that do not count


@dataclass(frozen=True, kw_only=True)
class FinetuneBenchmark:
    """What `bench_finetune` returns.

    Attributes:
        epoch_seconds: of each part; of the `head` too if it was trained.
        prefix_seconds: for the states below the cut, computed once.
        tokens_per_second: real tokens, of training steps.
        share_of_peak: floating-point operations of real tokens, forward and backward, over those of the
            fastest matrix product of the compute dtype.
        ratios: epoch seconds over those of `all`.
        test_accuracy: by part, if it was trained.
    """

    epoch_seconds: dict[str, float]
    prefix_seconds: dict[str, float]
    tokens_per_second: dict[str, float]
    share_of_peak: dict[str, float]
    gemm_peak_gflops: float
    dtype: str
    tokens: int
    rows: int
    machine: Machine
    test_accuracy: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)


def bench_finetune(
    settings: Settings,
    parts: Sequence[str] = tuple(PARTS),
    *,
    steps: int = 12,
    epochs: int = 0,
    on_progress: OnProgress = ignore,
) -> FinetuneBenchmark:
    """Epoch seconds and share of the GEMM peak of each part; with `epochs` also test accuracies.

    Args:
        parts: of `top2`, `top4`, `all`.
        steps: timed training steps of each part; the parts take turns.
        epochs: how long each part is trained before it is scored on test; 0: steps are timed only.
        on_progress: receives what is measured next as a stage.

    Raises:
        UsageError: an unknown part.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"no part {unknown[0]!r} to measure", hint=f"there are: {', '.join(PARTS)}")
    result = _timed(settings, parts, steps, on_progress)
    if epochs:
        accuracy, seconds = _trained(settings, parts, epochs, on_progress)
        result = dataclasses.replace(result, test_accuracy=accuracy, epoch_seconds=seconds)
    seconds = result.epoch_seconds
    if "all" in seconds:
        ratios = {name: value / seconds["all"] for name, value in seconds.items()}
        result = dataclasses.replace(result, ratios=ratios)
    return tidied(result, digits=DIGITS)


def _timed(
    settings: Settings, parts: Sequence[str], steps: int, on_progress: OnProgress
) -> FinetuneBenchmark:
    """Steps of the parts in turns, so that other load on the machine slows all of them alike."""
    tuners: dict[str, Tuner] = {}
    flops: dict[str, Callable[[np.ndarray], float]] = {}
    prefix: dict[str, float] = {}
    job = Job(settings)
    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    compute = "float32"
    for name in parts:
        on_progress(Progress(f"{PARTS[name]}: states below the cut, and the model above it"))
        encoder = job.encoder("train")
        part = parse_part(PARTS[name], encoder.backbone.num_blocks)
        inputs = SplitInputs.of(split, job, encoder, part.cut)
        prefix[name], compute = inputs.seconds, encoder.backbone.dtype_name
        flops[name] = _training_flops(job, encoder.backbone.num_blocks - (part.cut or 0))
        held = {"train": inputs, "validation": inputs}
        frozen = FrozenBackbone.of(encoder)
        tuning = TuningJob(settings, Recipe(lr=RATES[name]), part, frozen, held)
        tuners[name] = tuning.tuner(job.model)
    on_progress(Progress("training steps"))
    rates = _rates(tuners, flops, steps)
    tokens = float(np.asarray(inputs.texts.lengths).sum())
    peak = gemm_peak(getattr(torch, compute), job.encoder("train").backbone.device)
    return FinetuneBenchmark(
        epoch_seconds={name: tokens / rate for name, (rate, _) in rates.items()},
        prefix_seconds=prefix,
        tokens_per_second={name: rate for name, (rate, _) in rates.items()},
        share_of_peak={name: gflops / peak for name, (_, gflops) in rates.items()},
        gemm_peak_gflops=peak,
        dtype=compute,
        tokens=int(tokens),
        rows=len(split),
        machine=this_machine("transformers", "numpy"),
    )


def _rates(
    tuners: dict[str, Tuner], flops: dict[str, Callable[[np.ndarray], float]], steps: int
) -> dict[str, tuple[float, float]]:
    """Median tokens a second and GFLOP/s of each training."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in tuners}
    for number in range(WARM + steps):
        for name, tuner in tuners.items():
            rows = tuner._rows(tuner.state.step)
            lengths = np.asarray(tuner.data.train.texts.lengths)[rows]
            seconds = timed(tuner._step)[1]
            if number >= WARM:
                seen[name].append((lengths.sum() / seconds, flops[name](lengths) / seconds / 1e9))
    return {
        name: (statistics.median(r for r, _ in found), statistics.median(g for _, g in found))
        for name, found in seen.items()
    }


def _training_flops(job: Job, blocks: int) -> Callable[[np.ndarray], float]:
    """Floating-point operations of a step in the trained blocks: forward, and twice that backward."""
    backbone = job.encoder("train").backbone
    share = 3 * blocks / backbone.num_blocks
    return lambda lengths: share * useful_flops(backbone, lengths)


def _trained(
    settings: Settings, parts: Sequence[str], epochs: int, on_progress: OnProgress
) -> tuple[dict[str, float], dict[str, float]]:
    """Test accuracy and measured epoch seconds of the head and of each part."""
    accuracy, seconds = dict[str, float](), dict[str, float]()

    def note(name: str, run: Run) -> None:
        accuracy[name] = run.metric("test", "accuracy")
        seconds[name] = run.record.seconds / (run.record.epochs or 1)

    with tempfile.TemporaryDirectory() as folder:
        paths = dataclasses.replace(settings.paths, reports_dir=folder)
        own = dataclasses.replace(settings, paths=paths)
        on_progress(Progress("head"))
        extract_splits(own, ["train", "validation", "test"])
        note("head", train_head(own, "linear"))
        for name in parts:
            on_progress(Progress(f"{PARTS[name]}: {epochs} epochs"))
            note(name, finetune(own, PARTS[name], Recipe(epochs=epochs, lr=RATES[name])))
    return accuracy, seconds
