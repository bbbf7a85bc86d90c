"""The words that decided: their weights add up to what the words say, and they are marked in the text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from featcache.prediction.explain import NgramWeight, explain, spans_of
from featcache.runs.run import Run
from featcache.runs.train import train_head
from featcache.settings import load_settings
from tests.support.cli_tools import Cli
from tests.support.review_files import write_reviews

TEXTS = ["房间喜欢，很干净", "房间太差，Ｂａｄ 失望"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    write_reviews(Path("reviews"), 90)
    return train_head(load_settings({"model": "none/at-all", "dataset": "reviews"}), "lexical")


def test_weights_of_ngrams_add_up_to_the_logits(run: Run) -> None:
    head = run.head()
    assert head.ngrams is not None
    found = explain(head, TEXTS, [1, 0])
    logits = head.logits(head.rows({}, head.ngrams(TEXTS))) / head.temperature
    bias = head.scorer.tensors()["bias"] / head.temperature
    for number, (explanation, label) in enumerate(zip(found, [1, 0], strict=True)):
        of_words = logits[number] - bias
        np.testing.assert_allclose(explanation.words, of_words[label] - of_words.mean(), atol=1e-4)
        sizes = [abs(part.weight) for part in explanation.ngrams]
        assert sizes == sorted(sizes, reverse=True)
    assert [one.label for one in found] == ["good", "bad"]
    assert set(found[0].ngrams[0].ngram) & set("喜欢干净") and found[0].ngrams[0].weight > 0


def test_spans_are_characters_of_the_text_as_it_was_given() -> None:
    text = "ＢＡＤ room, not bad"
    found = spans_of(text, [NgramWeight("bad", -1.0), NgramWeight("room", 2.0)])
    assert [(text[begin:end], weight) for begin, end, weight in found] == [
        ("ＢＡＤ", -1.0), ("room", 2.0), ("bad", -1.0),
    ]  # fmt: skip
    assert spans_of("", [NgramWeight("a", 1.0)]) == ()
    assert spans_of("ﬁne", [NgramWeight("fi", 1.0)]) == ((0, 1, 1.0),)  # one character, two letters


def test_a_head_without_words_is_refused(trained: Path, cli: Cli) -> None:
    cli.refused(2, ["predict", "好", "--explain"], "reads no words", "--view depth,lexical")


def test_explain_in_the_terminal(cli: Cli, run: Run) -> None:
    shown = cli.ok("predict", *TEXTS, "--explain").out
    assert re.search(r"喜欢.*\+\d", shown) or re.search(r"干净.*\+\d", shown)
    (first, second) = cli.ok("predict", *TEXTS, "--explain", "--json").json
    assert first["explanation"]["label"] == first["label"] == "good"
    assert second["explanation"]["ngrams"][0]["weight"] > 0


def test_ngrams_of_words_cover_whole_words_with_any_space_between() -> None:
    def marked(text: str, ngram: str) -> list[str]:
        spans = spans_of(text, [NgramWeight(ngram, 1.0)], whole_words=True)
        return [text[begin:end] for begin, end, _ in spans]

    assert marked("A bad room, a cat", "a") == ["A", "a"]
    assert marked("not  good, not good!", "not good") == ["not  good", "not good"]
    assert marked("knot good", "not good") == []
    assert marked("good! Really good !", "good !") == ["good!", "good !"]
