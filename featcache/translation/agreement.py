"""English counts of one: `1 row is wrong`, where a sentence is written for many, `{count} rows are wrong`.

Chinese has one form for every count, so the catalogue needs one sentence, and English needs this rule.
"""

from __future__ import annotations

import re

COUNTED = (
    "rows", "texts", "labels", "classes", "runs", "heads", "epochs", "steps", "blocks", "layers", "folds",
    "files", "splits", "words", "tokens", "columns", "lines", "vectors", "numbers", "views", "shards",
    "answers", "workers", "machines", "processes", "queries", "parts", "pieces", "arrays", "seeds",
    "days", "seconds", "comparisons", "neighbours", "characters", "resamples", "embeddings", "thresholds",
    "windows", "pairs", "entries", "bytes", "names", "groups", "annotators", "cells", "cores", "elements",
    "positions", "reviews", "sheets", "sizes", "threads", "tensors", "units", "trainings",
)  # fmt: skip
BEFORE = (  # words between a count and what is counted
    "train", "validation", "test", "clean", "leaked", "different", "other", "more", "shared", "cached",
    "labelled", "imported", "second", "fixed",
)  # fmt: skip
VERBS = {
    "are": "is", "have": "has", "were": "was", "repeat": "repeats", "that do": "that does",
    "that begin": "that begins",
}  # fmt: skip
_ENDINGS = (("ies", "y"), ("sses", "ss"), ("s", ""))
_ONE = re.compile(
    rf"(?<![\w.,'\"/:-])1(?P<whole> of [\d,]+)?(?P<before>(?: (?:{'|'.join(BEFORE)}))*) "
    rf"(?P<noun>{'|'.join(COUNTED)})\b(?![.-]\w)(?P<share> \([^()]*\))?"
    rf"(?: (?P<verb>{'|'.join(VERBS)})\b(?:(?P<between>[^.,;:]* and )(?P<second>are|have|were)\b)?)?"
)


def agreed(sentence: str) -> str:
    """An English sentence, with the noun and the verbs after a count of 1 in the singular.

    `1 of 3 texts were cut` becomes `1 of 3 texts was cut`. Words that are not in COUNTED stay, and names of
    files (`1 rows.csv`).
    """
    return _ONE.sub(_singular, sentence) if "1 " in sentence else sentence


def has_odd_count(text: str) -> bool:
    """Whether `agreed` would change a text."""
    return agreed(text) != text


def _singular(found: re.Match[str]) -> str:
    whole, noun, between = found["whole"] or "", found["noun"], found["between"] or ""
    if whole in ("", " of 1"):
        ending, other = next(one for one in _ENDINGS if noun.endswith(one[0]))
        noun = noun.removesuffix(ending) + other
    verbs = [found["verb"] or "", found["second"] or ""]
    if not found.string[: found.start()].endswith((", ", " and ")):  # else others are counted with it
        verbs = [VERBS.get(verb, verb) for verb in verbs]
    said = f" {verbs[0]}{agreed(between)}{verbs[1]}" if verbs[0] else ""
    return f"1{whole}{found['before']} {noun}{found['share'] or ''}{said}"
