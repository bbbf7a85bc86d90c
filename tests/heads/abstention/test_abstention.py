"""When a head gives no answer: levels, scope, reasons, and what is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import HeadError
from featcache.evaluation.abstention import Selection, fewest_rows
from featcache.heads.abstention.abstention import Abstention, check_rows
from featcache.heads.abstention.scope import fit_distance
from featcache.heads.head import Head, load_head
from featcache.settings import AbstentionSettings
from tests.heads.test_head import some_head
from tests.support.abstaining import abstaining, judged
from tests.support.feature_rows import clusters

ROWS = clusters(200, 5, 2)
DISTANCE = fit_distance("neighbours", ROWS, 2, 0)


def abstention(rows: int = 900, **asked: Any) -> Abstention:
    level = AbstentionSettings(**(asked or {"max_error": 0.15}))
    parts = {"choice": judged(rows // 2, 1), "guarantee": judged(rows, 2)}
    return Abstention(level, DISTANCE, {"neighbours": 0.8}, **parts).at(level)


def test_a_level_holds_on_the_guarantee_rows_and_lower_ones_answer_less() -> None:
    found = abstention()
    counts = Selection.of(found.scored(found.guarantee), found.threshold)
    assert 0 < counts.risk < found.highest_risk <= 0.15
    less = found.at(AbstentionSettings(max_error=0.08))
    assert less.threshold > found.threshold and less.highest_risk <= 0.08
    assert less.at(found.asked).threshold == found.threshold


def test_coverage_answers_that_share_and_one_answers_everything() -> None:
    found = abstention(coverage=0.7)
    assert 0.7 < Selection.of(found.scored(found.guarantee), found.threshold).coverage < 0.75
    every = found.at(AbstentionSettings(coverage=1.0))
    assert every.threshold == 0
    assert every.judge(np.array([0.0, 0.5]), 100 * ROWS.x[:2]).answered.all()


def test_texts_out_of_scope_have_no_answer_however_sure_the_head_is() -> None:
    made = abstaining(some_head(2), ROWS.x, kind="mahalanobis").abstention
    assert made is not None
    near, far = ROWS.x[:3], 99 * np.eye(3, 5, dtype=np.float32)
    found = made.judge(np.ones(6), np.concatenate([near, far]))
    assert found.answered[:3].all()
    assert (found.out_of_scope >= 0).all() and (found.out_of_scope <= 1).all()
    assert not found.answered[3:].any() and (found.out_of_scope[3:] == 1).all()
    none = made.at(replace(made.asked, out_of_scope=0.0))
    assert none.limit == np.inf and none.judge(np.ones(6), np.concatenate([near, far])).answered.all()


def test_reasons_are_sentences_with_the_numbers_that_decided() -> None:
    found = replace(abstention(max_error=0.15), threshold=0.8312)
    assert found.reason(0.61, 0.4) == (
        "no answer: the probability 0.61 is below 0.83, the limit for at most 15 % errors"
    )
    assert "probability 0.8311 is below 0.8312, the" in found.reason(0.8311, 0.4)
    outside = "no answer: the text is out of scope, farther from the train texts than 99.5 % of the "
    assert found.reason(0.99, 0.995) == outside + "validation texts"
    share = replace(found, asked=AbstentionSettings(coverage=0.9))
    assert share.reason(0.6, 0.1).endswith("the limit for at least 90 % answers")


def test_levels_that_the_rows_cannot_support_are_refused_with_the_reason() -> None:
    needed = fewest_rows(0.02, 0.95)
    check_rows(AbstentionSettings(max_error=0.02), needed)
    with pytest.raises(HeadError, match=r"--max-error 0\.02 with 95 % .* needs 149 .*here 148"):
        check_rows(AbstentionSettings(max_error=0.02), needed - 1)
    with pytest.raises(HeadError, match=r"--coverage 0\.99 .* needs 299 validation rows"):
        abstention(rows=200, coverage=0.99)
    with pytest.raises(HeadError, match=r"--max-error 0\.01: 900 validation rows do not show") as error:
        abstention(max_error=0.01)
    assert error.value.exit_code == 6 and "ask for less" in str(error.value.hint)


def test_the_threshold_for_programs_that_know_no_distance_is_of_the_probability_alone() -> None:
    found = abstention(max_error=0.15)
    alone = found.fitted_threshold(scope=False)
    every = found.scored(found.guarantee, scope=False)
    assert (every.score == found.guarantee.probability).all()
    assert Selection.of(every, alone).risk < 0.15


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", ["mahalanobis", "neighbours"])
def test_load_head_returns_the_abstention_that_was_saved(kind: str, tmp_path: Path) -> None:
    head = abstaining(some_head(2), ROWS.x, kind=kind)
    head.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"head.json", "head.safetensors", "head-abstention.safetensors"}
    one, other = load_head(tmp_path).abstention, head.abstention
    assert one is not None and other is not None
    assert (one.asked, one.threshold, one.areas, one.limit) == (
        other.asked, other.threshold, other.areas, other.limit,
    )  # fmt: skip
    asked = head.predict_proba(ROWS.x).max(axis=1)
    for part in range(2):
        np.testing.assert_array_equal(one.judge(asked, ROWS.x)[part], other.judge(asked, ROWS.x)[part])
    more = AbstentionSettings(coverage=0.8)
    assert one.at(more).threshold == other.at(more).threshold


def test_a_head_that_always_answers_is_saved_as_before(tmp_path: Path) -> None:
    some_head(2).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"head.json", "head.safetensors"}
    assert "abstention" not in json.loads((tmp_path / "head.json").read_bytes())
    found = load_head(tmp_path)
    assert found.abstention is None
    with pytest.raises(HeadError, match=r"--max-error 0\.05: this head was trained to answer always"):
        found.abstaining_at(AbstentionSettings(max_error=0.05))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"confidence": 0.0}, "confidence"),
        ({"distance": "guess"}, "distance"),
        ({"max_error": 0.1}, "max_error or coverage"),
        ({"out_of_scope": "all"}, "out_of_scope"),
        ({"threshold": None}, "threshold"),
    ],
)
def test_load_head_refuses_a_damaged_abstention(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    abstaining(some_head(2), ROWS.x).save(tmp_path)
    path = tmp_path / "head.json"
    content = json.loads(path.read_bytes())
    content["abstention"] |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(HeadError, match=word):
        load_head(tmp_path)


def test_load_head_refuses_missing_and_foreign_tensors(tmp_path: Path) -> None:
    abstaining(some_head(2), ROWS.x).save(tmp_path)
    path = tmp_path / "head-abstention.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(HeadError, match=r"head-abstention\.safetensors is damaged"):
        load_head(tmp_path)
    narrow: Head = abstaining(some_head(2, 3), ROWS.x[:, :3])
    narrow.save(tmp_path, "narrow")
    path.write_bytes((tmp_path / "narrow-abstention.safetensors").read_bytes())
    with pytest.raises(HeadError, match="for 3 features, and the head for 5"):
        load_head(tmp_path)
    path.unlink()
    with pytest.raises(HeadError, match="is missing"):
        load_head(tmp_path)
