"""How long an epoch above the cut takes, beside a head's and beside training everything, in one run.

Rows are real ones. An epoch of blocks is timed by its steps' rate in tokens: the first steps warm up, the
median of the others is scaled to all tokens of the train split. With `epochs`, the parts are trained in
earnest instead, and scored on test.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from featcache.backbone.throughput import gemm_peak
from featcache.data.split import load_splits
from featcache.errors import UsageError
from featcache.extraction.api import Job
from featcache.finetuning.finetune import finetune
from featcache.finetuning.job import FrozenBackbone, SplitInputs, TuningJob
from featcache.finetuning.loop import Tuner
from featcache.finetuning.parts import parse_part
from featcache.finetuning.recipe import Recipe
from featcache.runs.train import train_head
from featcache.settings import Settings

PARTS = {"top2": "top-blocks:2", "top4": "top-blocks:4", "all": "all"}
RATES = {"top2": 2e-4, "top4": 1e-4, "all": 5e-5}
WARM = 2  # steps that are not counted


def bench_finetune(
    settings: Settings,
    parts: Sequence[str] = tuple(PARTS),
    *,
    steps: int = 12,
    epochs: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Epoch seconds and share of the GEMM peak of each part; with `epochs` also test accuracies.

    Args:
        parts: of `top2`, `top4`, `all`.
        steps: timed training steps of each part (one part after the other, in turns of one step).
        epochs: train each part so long and score it on test; 0: time steps only.
        report: told what is measured next.

    Returns:
        A JSON-able document: `epoch_seconds` (`head` where it was trained, and the parts),
        `prefix_seconds` (once), `share_of_peak` (floating-point operations of real tokens, forward and
        backward, over what the fastest matrix product of the compute dtype reaches), `ratios` to `all`,
        `test_accuracy` where trained, `machine`.

    Raises:
        UsageError: a part that is none.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"no part {unknown[0]!r} to measure", hint=f"there are: {', '.join(PARTS)}")
    result = _timed(settings, parts, steps, report)
    if epochs:
        result |= _trained(settings, parts, epochs, report)
    seconds = result["epoch_seconds"]
    if "all" in seconds:
        result["ratios"] = {name: round(value / seconds["all"], 4) for name, value in seconds.items()}
    result["machine"] = {
        "threads": torch.get_num_threads(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", ""),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }
    return result


def _timed(
    settings: Settings, parts: Sequence[str], steps: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Steps of each part in turns, so that what else the machine does slows all of them alike."""
    tuners: dict[str, Tuner] = {}
    flops: dict[str, Callable[[np.ndarray], float]] = {}
    prefix: dict[str, float] = {}
    job = Job(settings)
    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    compute = "float32"
    for name in parts:
        report(f"{PARTS[name]}: states below the cut, and the model above it")
        encoder = job.encoder("train")
        part = parse_part(PARTS[name], encoder.backbone.num_blocks)
        inputs = SplitInputs.of(split, job, encoder, part.cut)
        prefix[name], compute = inputs.seconds, encoder.backbone.dtype_name
        flops[name] = _training_flops(job, encoder.backbone.num_blocks - (part.cut or 0))
        held = {"train": inputs, "validation": inputs}
        frozen = FrozenBackbone.of(encoder)
        tuning = TuningJob(settings, Recipe(lr=RATES[name]), part, frozen, held)
        tuners[name] = tuning.tuner(job.model)
    report("training steps")
    rates = _rates(tuners, flops, steps)
    tokens = float(np.asarray(inputs.texts.lengths).sum())
    peak = gemm_peak(getattr(torch, compute), job.encoder("train").backbone.device)
    return {
        "epoch_seconds": {name: round(tokens / rate, 2) for name, (rate, _) in rates.items()},
        "prefix_seconds": {name: round(value, 2) for name, value in prefix.items()},
        "share_of_peak": {name: round(gflops / peak, 4) for name, (_, gflops) in rates.items()},
        "gemm_peak_gflops": round(peak, 1),
        "dtype": compute,
        "tokens": int(tokens),
        "rows": len(split),
    }


def _rates(
    tuners: dict[str, Tuner], flops: dict[str, Callable[[np.ndarray], float]], steps: int
) -> dict[str, tuple[float, float]]:
    """Median tokens a second and GFLOP/s of each training."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in tuners}
    for number in range(WARM + steps):
        for name, tuner in tuners.items():
            rows = tuner._rows(tuner.state.step)
            lengths = np.asarray(tuner.data.train.texts.lengths)[rows]
            began = time.perf_counter()
            tuner._step()
            seconds = time.perf_counter() - began
            if number >= WARM:
                seen[name].append((lengths.sum() / seconds, flops[name](lengths) / seconds / 1e9))
    return {
        name: (statistics.median(r for r, _ in found), statistics.median(g for _, g in found))
        for name, found in seen.items()
    }


def _training_flops(job: Job, blocks: int) -> Callable[[np.ndarray], float]:
    """Floating-point operations of a step in the trained blocks: forward, and twice that backward."""
    from featcache.backbone.throughput import useful_flops

    backbone = job.encoder("train").backbone
    share = 3 * blocks / backbone.num_blocks
    return lambda lengths: share * useful_flops(backbone, lengths)


def _trained(
    settings: Settings, parts: Sequence[str], epochs: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Test accuracy and measured epoch seconds of each part, trained in earnest; the head's, too."""
    from featcache.extraction.api import extract_splits

    accuracy: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = dataclasses.replace(settings.paths, reports_dir=folder)
        own = dataclasses.replace(settings, paths=paths)
        report("head")
        extract_splits(own, ["train", "validation", "test"])
        run = train_head(own, "linear")
        accuracy["head"] = run.metric("test", "accuracy")
        seconds["head"] = run.record.seconds / (run.record.epochs or 1)
        for name in parts:
            report(f"{PARTS[name]}: {epochs} epochs")
            run = finetune(own, PARTS[name], Recipe(epochs=epochs, lr=RATES[name]))
            accuracy[name] = run.metric("test", "accuracy")
            seconds[name] = run.record.seconds / (run.record.epochs or 1)
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    return {"test_accuracy": accuracy, "epoch_seconds": rounded}
