"""How often the error among answered rows exceeds `--max-error`, on seeded splits of cached features.

    python benchmarks/abstention.py --max-error 0.05 --splits 20        (in a folder with cached features)

All cached rows are pooled, each text once, and divided anew for each seed: half train, 20 % validation, 30 %
test. A head is trained, calibrated and given its threshold as `featcache train-head --head exact` does it. A
guarantee of 95 % allows one split of 20 with a true error above the level. `above` counts measured ones,
which also vary by the draw of test rows, `surely_above` those that this does not explain (a binomial test).
A level that the validation rows of a split cannot show counts as refused.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.errors import HeadError
from featcache.evaluation.abstention import ScoredRows, Selection, highest_risk
from featcache.evaluation.costs import cheapest
from featcache.heads.features import LabelledFeatures
from featcache.heads.registry import fit_exact
from featcache.runs.abstain import divide, rows_of, with_abstention
from featcache.runs.finish import calibrate
from featcache.settings import AbstentionSettings, HeadSettings


def pooled(cache: Path, view: str) -> Features:
    """The rows of all splits in a cache folder, each text once."""
    files = [CacheFile(path).features(view) for path in sorted(cache.rglob("*.h5"))]
    x, y, row_hash = (
        np.concatenate([np.asarray(getattr(file, name)) for file in files]) for name in ("x", "y", "row_hash")
    )
    first = np.sort(np.unique(row_hash, axis=0, return_index=True)[1])
    x, y, row_hash = x[first], y[first], row_hash[first]
    return replace(files[0], x=x, y=y, row_hash=row_hash)


def measured(rows: Features, asked: AbstentionSettings, seed: int) -> dict[str, float] | None:
    """Coverage, risk and error in all of one split; None where the level is refused."""
    order = np.random.default_rng(seed).permutation(len(rows.y))
    train, validation, test = (
        rows_of(rows, part) for part in np.split(order, [int(0.5 * len(order)), int(0.7 * len(order))])
    )
    parts = divide(validation, asked)
    chosen = rows_of(validation, parts.choice)
    known = LabelledFeatures(train.x, train.y)
    classes = len(rows.label_names)
    settings = HeadSettings(C=0.1, penalty="fixed")
    fit = fit_exact(known, LabelledFeatures(chosen.x, chosen.y), classes, settings)
    head, _ = calibrate(fit.best, chosen, "exact")
    try:
        head = with_abstention(head, asked, train, validation, parts, seed)
    except HeadError:
        return None
    shares = head.predict_proba(test.x)
    judged = head.judge(shares, test.x)
    assert judged is not None
    wrong = cheapest(shares, head.costs) != test.y
    found = Selection.of(ScoredRows(judged.answered.astype(float), wrong), 1.0)
    right = found.answered - found.wrong
    sure = 1 - highest_risk(right, found.answered, 0.95)  # lower bound of the error
    return {"coverage": found.coverage, "risk": found.risk, "error": float(wrong.mean()), "sure": sure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    parser.add_argument("--view", default="last/mean")
    parser.add_argument("--max-error", type=float, default=0.05)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--splits", type=int, default=20)
    args = parser.parse_args()
    rows = pooled(args.cache_dir, args.view)
    asked = AbstentionSettings(max_error=args.max_error, confidence=args.confidence)
    found = [measured(rows, asked, seed) for seed in range(args.splits)]
    made = [one for one in found if one]
    document = {
        "rows": len(rows.y),
        "splits": args.splits,
        "refused": len(found) - len(made),
        "above": sum(one["risk"] > args.max_error for one in made),
        "surely_above": sum(one["sure"] > args.max_error for one in made),
        "allowed": (1 - args.confidence) * args.splits,
        **{name: mean(one[name] for one in made) for name in ("coverage", "risk", "error") if made},
        "highest": max((one["risk"] for one in made), default=None),
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
