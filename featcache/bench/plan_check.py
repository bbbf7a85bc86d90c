"""A plan beside what then happens: the same rows are planned and extracted, in one process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache.cache import Cache
from featcache.data.split import load_splits
from featcache.errors import UsageError
from featcache.planning.answer import Ask
from featcache.planning.estimate import plan
from featcache.settings import DataSettings, Settings
from featcache.system.progress import OnProgress, Progress, ignore


@dataclass(frozen=True, kw_only=True)
class PlanCheck:
    """Seconds of an extraction as planned, with its interval, and as measured.

    Attributes:
        error: |planned - measured| / measured.
    """

    rows: int
    planned: float
    interval: tuple[float, float]
    measured: float
    error: float


def check_plan(
    settings: Settings, rows: int, *, sample_seconds: float = 20.0, on_progress: OnProgress = ignore
) -> PlanCheck:
    """Plan `rows` rows from a sample of the train split, then extract that many of its rows and compare.

    The model is loaded once before, so that neither of the two includes the imports. All files are written
    into a temporary folder in the cache folder.

    Args:
        settings: the encoder, and the data whose train split has at least `rows` rows.
        on_progress: receives what is done next as a stage.

    Raises:
        UsageError: more rows than the split has, or fewer than 2.
    """
    from featcache.backbone.load import load_backbone
    from featcache.backbone.model_files.find import find_model
    from featcache.extraction.api import extract_splits

    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    if not 2 <= rows <= len(split):
        raise UsageError(f"{rows} rows to check a plan on: 2 to {len(split)}, the rows of train")
    on_progress(Progress("loading the model for the first time"))
    load_backbone(settings.backbone, find_model(settings.backbone))
    ask = Ask(rows=rows, sample_seconds=sample_seconds)
    planned = plan(settings, ["train"], ask, lambda what: on_progress(Progress(what))).seconds
    cache_dir = Cache.open(settings.paths.cache_dir).folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=cache_dir) as name:
        folder = Path(name)
        on_progress(Progress(f"extracting {rows:,} rows"))
        picked = np.linspace(0, len(split) - 1, rows).astype(int)  # evenly spread over the split
        data = write_rows(folder, split.texts(picked), split.pairs(picked))
        paths = replace(settings.paths, cache_dir=str(folder / "cache"))
        (made,) = extract_splits(replace(settings, data=data, paths=paths), ["train"])
    return PlanCheck(
        rows=rows,
        planned=planned.value,
        interval=(planned.low, planned.high),
        measured=made.seconds,
        error=abs(planned.value - made.seconds) / made.seconds,
    )


def write_rows(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> DataSettings:
    """Rows with the labels 0 and 1 in turn as a train file, and two of them as a validation file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    if pairs is not None:
        rows = [{**row, "pair": pair} for row, pair in zip(rows, pairs, strict=True)]
    files = {}
    for name, part in (("train", rows), ("validation", rows[:2])):
        path = folder / f"{name}.jsonl"
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        path.write_text(lines, encoding="utf-8", errors="surrogatepass")
        files[name] = str(path)
    return DataSettings(
        data_files=files,
        text_column="text",
        label_column="label",
        pair_column=None if pairs is None else "pair",
    )
