"""How long a person waits: from an answer to the next text, with cached features of many texts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featcache.labelling.answers import AnswersFile, AnswersHeader
from featcache.labelling.session import LabelSession
from featcache.labelling.texts import TextsToLabel

WIDTH, CLASSES, ANSWERS = 384, 10, 400  # a multilingual-e5-small, and a day of labelling


def measure_waits(sizes: Sequence[int], answers: int = ANSWERS, seed: int = 0) -> dict[str, float]:
    """Seconds from an answer to the next text, the 95th percentile, by number of texts.

    The features are made up. Each answer is written to the disk, the head is trained, the next text chosen.
    """
    return {f"{size:,}": float(np.percentile(_waits(size, answers, seed), 95)) for size in sizes}


def _waits(size: int, answers: int, seed: int) -> list[float]:
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((CLASSES, WIDTH))
    truth = draw.integers(CLASSES, size=size)
    features = (centres[truth] + 4 * draw.standard_normal((size, WIDTH))).astype(np.float16)
    texts = TextsToLabel.of([f"text {number}" for number in range(size)])
    names = tuple(f"class {number}" for number in range(CLASSES))
    waits = []
    with tempfile.TemporaryDirectory(prefix="featcache-label-") as folder:
        file = AnswersFile(Path(folder) / "answers.jsonl", AnswersHeader(labels=names))
        session = LabelSession(texts, file, "bench", seed=seed)
        session.use_features(features)
        asked = session.question()
        for _ in range(min(answers, size)):
            assert asked is not None
            began = time.perf_counter()
            session.answer(asked.row, [names[truth[asked.row]]])
            asked = session.question()
            session.estimate()  # the page shows it, too
            waits.append(time.perf_counter() - began)
    return waits
