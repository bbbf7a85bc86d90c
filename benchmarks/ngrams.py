"""Seconds to count n-grams, beside scikit-learn's CountVectorizer on the same texts.

    python benchmarks/ngrams.py reviews.tsv

Each line of the file is a text; the n-grams are those that suit the texts. `fit` finds a vocabulary and
counts it, `count` counts a known one. Seconds are those of the processor, the least of three runs in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from featcache.heads.lexical.counting import NgramCounter
from featcache.heads.lexical.letters import TOKENS, WORDS, normalise
from featcache.heads.lexical.ngrams import MOST_NGRAMS, NgramSettings, ignore_text
from featcache.heads.lexical.vocabulary import LEAST, find_vocabulary

RUNS = 3


def measure(texts: list[str], settings: NgramSettings) -> dict[str, Any]:
    """Both ways in turns; their counts must be the same."""
    analyzer, lengths = settings.analyzer, (settings.shortest, settings.longest)
    pattern = {"token_pattern": TOKENS} if analyzer == WORDS else {}
    options = {"analyzer": analyzer, "ngram_range": lengths, "preprocessor": normalise, "dtype": np.float32}
    peer = CountVectorizer(min_df=LEAST, max_features=MOST_NGRAMS, **options, **pattern)
    seconds: dict[str, list[float]] = {"fit": [], "count": [], "peer_fit": [], "peer_count": []}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        seconds[name].append(time.process_time() - began)
        return result

    for _ in range(RUNS):
        names, counts = timed(
            "fit", lambda: find_vocabulary(texts, analyzer, lengths, MOST_NGRAMS, ignore_text)
        )
        wanted = timed("peer_fit", lambda: peer.fit_transform(texts))
        counter = NgramCounter(names, analyzer)
        again = timed("count", partial(counter, texts))
        timed("peer_count", lambda: peer.transform(texts))
        assert names == tuple(peer.get_feature_names_out())
        assert (counts != wanted).nnz == (again != wanted).nnz == 0
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "analyzer": analyzer,
        "texts": len(texts),
        "ngrams": len(names),
        **{f"seconds_{name}": round(value, 3) for name, value in best.items()},
        **{f"{name}_faster": round(best[f"peer_{name}"] / best[name], 1) for name in ("fit", "count")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    texts = parser.parse_args().file.read_text(encoding="utf-8").split("\n")
    for settings in NgramSettings.candidates(texts):
        print(json.dumps(measure(texts, settings)), flush=True)


if __name__ == "__main__":
    main()
