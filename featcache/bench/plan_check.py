"""A plan beside what then happens: the same rows planned and extracted, in one process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache.cache import Cache
from featcache.data.split import Split, load_splits
from featcache.errors import UsageError
from featcache.planning.answer import Ask, CorpusPlan
from featcache.planning.estimate import plan
from featcache.settings import DataSettings, Settings


@dataclass(frozen=True)
class Checked:
    """Seconds of an extraction as planned and as measured."""

    rows: int
    planned: float
    low: float
    high: float
    measured: float
    plan: CorpusPlan

    @property
    def error(self) -> float:
        """|planned - measured| / measured."""
        return abs(self.planned - self.measured) / self.measured


def check_plan(
    settings: Settings,
    rows: int,
    *,
    sample_seconds: float = 20.0,
    report: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Plan `rows` rows from a sample of the train split, then extract so many of its rows and compare.

    The model is loaded once before, so that neither of the two pays for the imports. All is written into a
    temporary folder beside the cache's own.

    Args:
        settings: the encoder, and the data whose train split has at least `rows` rows.

    Raises:
        UsageError: more rows than the split has, or fewer than 2.
    """
    from featcache.backbone.files import find_model
    from featcache.backbone.load import load_backbone
    from featcache.extraction.api import extract_splits

    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    if not 2 <= rows <= len(split):
        raise UsageError(f"{rows} rows to check a plan on: 2 to {len(split)}, the rows of train")
    report("loading the model for the first time")
    load_backbone(settings.backbone, find_model(settings.backbone))
    foretold = plan(settings, ["train"], Ask(rows=rows, sample_seconds=sample_seconds), report)
    cache_dir = Cache.open(settings.paths.cache_dir).folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=cache_dir) as name:
        folder = Path(name)
        report(f"extracting {rows:,} rows")
        data = _write(split, rows, folder)
        paths = replace(settings.paths, cache_dir=str(folder / "cache"))
        (made,) = extract_splits(replace(settings, data=data, paths=paths), ["train"])
    time = foretold.seconds
    return Checked(rows, time.value, time.low, time.high, made.seconds, foretold)


def _write(split: Split, rows: int, folder: Path) -> DataSettings:
    """`rows` rows spread evenly over the split as a train file, and two of them for validation."""
    picked = np.linspace(0, len(split) - 1, rows).astype(int)
    pairs = split.pairs(picked)
    kept: list[dict[str, object]] = [{"text": text} for text in split.texts(picked)]
    for number, row in enumerate(kept):
        row["label"] = number % 2
        if pairs is not None:
            row["pair"] = pairs[number]
    files = {"train": folder / "train.jsonl", "validation": folder / "validation.jsonl"}
    for name, part in (("train", kept), ("validation", kept[:2])):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        files[name].write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    named = {name: str(path) for name, path in files.items()}
    pair = None if pairs is None else "pair"
    return DataSettings(data_files=named, text_column="text", label_column="label", pair_column=pair)
