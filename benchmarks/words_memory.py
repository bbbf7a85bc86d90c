"""Memory and seconds of a head of words on many texts.

    python benchmarks/words_memory.py --texts 1000000

Texts of 50 Chinese characters, drawn by chance with unlike frequencies. `texts_mb` is what the process takes
with the texts alone, `peak_mb` the most that it took until the head was ready.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from featcache.heads.features import LabelledFeatures
from featcache.heads.lexical.fit import fit_lexical
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.settings import HeadSettings

LETTERS = np.array([chr(0x4E00 + number) for number in range(3000)])
LENGTH = 50


def texts_of(rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts whose letters depend on the label, and the labels."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, len(LETTERS) + 1)
    labels, texts = rng.integers(0, 2, rows), []
    tastes = [np.random.default_rng(label).normal(size=len(LETTERS)) for label in (0, 1)]
    shares = [frequency * np.exp(0.3 * taste) for taste in tastes]
    cumulated = [np.cumsum(share / share.sum()) for share in shares]
    for label in labels:
        texts.append("".join(LETTERS[np.searchsorted(cumulated[label], rng.random(LENGTH) * 0.9999999)]))
    return texts, labels


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000)
    asked = parser.parse_args()
    texts, y = texts_of(asked.texts, 0)
    others, y_others = texts_of(2000, 1)
    alone, began = peak_mb(), time.perf_counter()
    ngrams, words = Ngrams.fit(texts)
    counted = time.perf_counter() - began
    train = LabelledFeatures(WordRows(ngrams, words).as_array(), y)
    held_out = LabelledFeatures(WordRows(ngrams, ngrams(others)).as_array(), y_others)
    fit = fit_lexical(train, held_out, 2, HeadSettings())
    seconds = time.perf_counter() - began
    accuracy = float((fit.best.logits(held_out.x).argmax(axis=1) == y_others).mean())
    document = {
        "texts": asked.texts,
        "columns": ngrams.count,
        "texts_mb": round(alone),
        "peak_mb": round(peak_mb()),
        "seconds_of_ngrams": round(counted),
        "seconds": round(seconds),
        "validation_accuracy": accuracy,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
