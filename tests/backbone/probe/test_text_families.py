"""Every family of text models that transformers can build: none leaks, and the docs say how each runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.text_families import WAYS, Outcome, families, outcomes, table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
NOISE = 1e-5  # of a float32 vector's length
CERTAIN = {  # whatever the version of transformers
    "bert": "packed", "roberta": "packed", "xlm-roberta": "packed", "modernbert": "packed", "qwen3": "packed",
    "llama": "packed", "gpt2": "packed", "t5": "padded", "mt5": "padded", "xlm": "padded",
    "xlnet": "padded", "deberta": "padded", "deberta-v2": "padded", "big_bird": "padded", "luke": "padded",
    "ibert": "padded", "layoutlm": "padded", "longformer": "padded", "squeezebert": "padded",
    "clip": "padded",
    "fnet": "equal lengths", "yoso": "equal lengths", "convbert": "equal lengths", "canine": "equal lengths",
    "xmod": "refused", "reformer": "refused", "tapas": "refused",
}  # fmt: skip


@pytest.mark.parametrize("family", CERTAIN)
@pytest.mark.slow
def test_families_that_many_use_run_as_they_should(family: str) -> None:
    (found,) = outcomes([family])
    assert found.way == CERTAIN[family], found.reason
    assert found.apart < NOISE


def test_the_table_groups_families_by_way_and_reason() -> None:
    found = [
        Outcome("b", "padded", "BModel takes no position_ids"),
        Outcome("a", "packed", ""),
        Outcome("c", "padded", "CModel takes no position_ids"),
    ]
    assert table(found).splitlines()[2:] == ["| packed |  | a |", "| padded | takes no position_ids | b, c |"]


@pytest.mark.slow
def test_no_family_leaks_and_the_page_has_the_table() -> None:
    """Ten minutes. `python -m tests.support.text_families` prints the table for another transformers."""
    found = list(outcomes(families()))
    print(table(found))
    assert {one.way for one in found} <= set(WAYS)
    assert [(one.family, one.apart) for one in found if one.apart >= NOISE] == []
    assert table(found) in PAGE.read_text(encoding="utf-8")
