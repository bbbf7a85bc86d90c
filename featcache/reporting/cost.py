"""What was computed once, against what a loop that runs the backbone in every epoch computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featcache.cache.catalog import CacheFile
from featcache.inspection.inspection import InspectedSplit
from featcache.runs.run import Run

TUTORIAL_EPOCHS, TUTORIAL_BATCH = 100, 50  # of the ChnSentiCorp tutorials, for heads without epochs


def cost(
    runs: Sequence[Run], parts: Mapping[str, InspectedSplit], files: Mapping[str, CacheFile]
) -> dict[str, Any] | None:
    """What was computed once, against a tutorial that runs the backbone in every epoch.

    The tutorial passes train and validation through the backbone in each epoch and test once, in batches of
    50 in random order, each padded to its longest text. Its seconds are an estimate: its tokens, padding
    counted, at the tokens a second of this extraction (a padded float32 loop is slower than that).
    """
    if not parts:
        return None
    epochs = next((run.record.epochs for run in runs if run.record.epochs), None)
    each = {
        name: (len(part.n_tokens), int(part.n_tokens.sum(dtype=np.int64)), padded(part.n_tokens))
        for name, part in parts.items()
    }
    times = {name: (epochs or TUTORIAL_EPOCHS) if name != "test" else 1 for name in parts}
    made = [file.record.made for file in files.values()]
    known = [one for one in made if one.tokens and one.seconds]
    rate = sum(one.tokens or 0 for one in known) / sum(one.seconds or 0.0 for one in known) if known else None
    tokens = sum(one[1] for one in each.values())
    tutorial = sum(times[name] * one[2] for name, one in each.items())
    extraction = sum(one.seconds or 0.0 for one in made) if known else None
    return {
        "epochs": epochs or TUTORIAL_EPOCHS,
        "assumed_epochs": epochs is None,
        "batch": TUTORIAL_BATCH,
        "texts_once": sum(one[0] for one in each.values()),
        "tokens_once": tokens,
        "tokens_encoded": sum(one.tokens or 0 for one in made) if known else None,
        "extraction_seconds": extraction,
        "heads": len(runs),
        "head_seconds": sum(run.record.seconds for run in runs),
        "texts_tutorial": sum(times[name] * one[0] for name, one in each.items()),
        "tokens_tutorial": tutorial,
        "tokens_a_second": rate,
        "tutorial_seconds": None if rate is None else tutorial / rate,
        "factor": tutorial / tokens if tokens else None,
    }


def padded(tokens: np.ndarray, batch: int = TUTORIAL_BATCH) -> int:
    """Tokens with padding, in batches of random order (one order, the same always)."""
    order = np.random.default_rng(0).permutation(tokens.astype(np.int64))
    return sum(
        int(order[i : i + batch].max()) * len(order[i : i + batch]) for i in range(0, len(order), batch)
    )
