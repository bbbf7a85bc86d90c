"""Fixtures: tiny random backbones, small review files, the real demo encoder; never the network."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this only once
os.environ["TOKENIZERS_PARALLELISM"] = "true"

from tiny import build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("bert")`: the folder of a tiny random backbone, built once a session."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            built[family] = build(family, tmp_path_factory.mktemp(family))
        return built[family]

    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> dict[str, Path]:
    """Small train, validation and test files whose labels a linear head can learn."""
    return write_reviews(tmp_path / "reviews")


def write_reviews(folder: Path, rows: int = 60, seed: int = 0) -> dict[str, Path]:
    """`rows` train rows and a third of that in validation and test, as jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    files = {}
    for split, count in (("train", rows), ("validation", rows // 3), ("test", rows // 3)):
        lines = []
        for number in range(count):
            good = number % 2 == 0
            words = draw.choices("好喜欢干净便宜快" if good else "坏差失望慢贵", k=draw.randint(2, 12))
            text = "".join(words) + "".join(draw.choices("房间服务酒店电池书", k=draw.randint(1, 20)))
            lines.append(json.dumps({"text": text, "label": "good" if good else "bad"}, ensure_ascii=False))
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


@pytest.fixture
def arrow_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its Arrow files in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real encoder as a folder: the repository's where that is whole, else built for the session."""
    from featcache.demo import MODEL_NAME, MODEL_SOURCE, build_model, model_is_built

    kept = Path(__file__).resolve().parents[1] / "cache" / "models" / MODEL_NAME
    if model_is_built(kept):
        return kept
    if importlib.util.find_spec(MODEL_SOURCE.package) is None:
        pytest.skip(f"{MODEL_SOURCE.package} is not installed: pip install 'featcache[demo]'")
    return build_model(tmp_path_factory.mktemp("models") / MODEL_NAME)
