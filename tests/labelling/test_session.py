"""Sessions against people who know the labels, on features that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.labelling.answers import AnswersFile, AnswersHeader
from featcache.labelling.session import LabelSession
from featcache.labelling.texts import RESERVED, TextsToLabel

NAMES = ("good", "bad", "late")
Begin = Callable[..., LabelSession]


def texts_of(count: int = 400) -> TextsToLabel:
    return TextsToLabel.of([f"text {number}" for number in range(count)])


def truth_of(texts: TextsToLabel) -> np.ndarray:
    return np.random.default_rng(3).choice(3, len(texts.texts), p=[0.6, 0.3, 0.1])


def features_of(texts: TextsToLabel) -> np.ndarray:
    draw = np.random.default_rng(4)
    centres = 2 * draw.standard_normal((3, 24))
    return (centres[truth_of(texts)] + 2 * draw.standard_normal((len(texts.texts), 24))).astype(np.float16)


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    def begun(
        by: str = "anna", texts: TextsToLabel | None = None, *, features: bool = True, multi: bool = False,
        **more: object,
    ) -> LabelSession:  # fmt: skip
        texts = texts or texts_of()
        file = AnswersFile(tmp_path / "a.jsonl", AnswersHeader(labels=NAMES, multi_label=multi))
        session = LabelSession(texts, file, by, **more)  # type: ignore[arg-type]
        if features:
            session.use_features(features_of(texts))
        return session

    return begun


def label(session: LabelSession, count: int) -> list[int]:
    """Answer truthfully; the rows that were asked."""
    truth, rows = truth_of(session.texts), []
    for _ in range(count):
        asked = session.question()
        assert asked is not None
        rows.append(asked.row)
        session.answer(asked.row, [NAMES[truth[asked.row]]])
    return rows


def test_one_text_in_five_is_reserved_and_drawn_at_random(begin: Begin) -> None:
    session = begin()
    rows = label(session, 100)
    assert len(set(rows)) == 100
    reserved = session.texts.reserved[rows]
    assert reserved.sum() == 100 // RESERVED
    assert np.flatnonzero(reserved)[:3].tolist() == [4, 9, 14]
    order = session.texts.order
    expected = order[session.texts.reserved[order]][: 100 // RESERVED]
    assert np.array(rows)[reserved].tolist() == expected.tolist()  # whatever the strategy prefers
    assert not set(session.train_rows) & set(session.estimate_rows)
    assert 0.1 < texts_of(5000).reserved.mean() < 0.3


def test_reserved_texts_stay_reserved_when_texts_are_added() -> None:
    few, more = texts_of(100), texts_of(300)
    assert (more.reserved[:100] == few.reserved).all()


def test_the_head_learns_and_the_estimate_is_about_the_reserved_texts_alone(begin: Begin) -> None:
    session = begin()
    assert session.estimate() is None
    label(session, 150)
    session.learn()
    found = session.estimate()
    assert found is not None and session.head is not None and session.pool is not None
    assert (found.labels, found.rows) == (120, 30)
    truth, rows = truth_of(session.texts), session.estimate_rows
    right = session.head.probabilities(session.pool.x[rows]).argmax(axis=1) == truth[rows]
    assert found.accuracy == pytest.approx(right.mean())
    assert found.low < found.accuracy <= found.high
    everything = session.head.probabilities(session.pool.x).argmax(axis=1) == truth
    assert found.low <= everything.mean() <= found.high
    curve = session.curve()
    assert [point.labels for point in curve.points] == [20, 40, 80, 120]
    assert curve.points[-1] == found
    assert curve.more is not None and curve.more.low <= curve.more.gain


def test_a_new_session_goes_on_where_the_last_one_stopped(begin: Begin) -> None:
    whole = begin()
    asked = label(whole, 40)
    again = begin()
    assert again.question() == whole.question()
    assert set(again.counted.labels) == set(asked)
    assert again.estimate() is not None


def test_before_there_are_features_texts_are_drawn_at_random(begin: Begin) -> None:
    session = begin(features=False)
    rows = label(session, 30)
    first = session.question()
    assert first is not None and first.chosen in ("random", "estimate")
    assert session.texts.reserved[rows].sum() == 6
    session.use_features(features_of(session.texts))
    label(session, 5)
    asked = session.question()
    assert asked is not None and asked.chosen not in ("random",)


def test_undo_asks_the_text_again_and_is_a_line_of_its_own(begin: Begin) -> None:
    session = begin()
    rows = label(session, 12)
    before = len(session.answers.lines)
    assert session.undo()
    asked = session.question()
    assert asked is not None and asked.row == rows[-1]
    assert len(session.answers.lines) == before + 1
    assert rows[-1] not in session.counted.labels
    session.answer(asked.row, ["late"])
    assert session.counted.labels[rows[-1]] == {"late"}
    assert session.undo() and session.undo()
    back = session.question()
    assert back is not None and back.row == rows[-2]
    fresh = begin("ben")
    assert not fresh.undo()


def test_an_undone_reserved_text_still_counts_for_the_estimate(begin: Begin) -> None:
    session = begin()
    rows = label(session, 5)
    assert session.texts.reserved[rows[-1]]
    session.undo()
    label(session, 1)
    assert session.estimate_rows.tolist() == [rows[-1]]


def test_skipped_texts_are_not_asked_again_but_others_get_them(begin: Begin) -> None:
    session = begin()
    asked = session.question()
    assert asked is not None
    session.skip(asked.row, note="?")
    second = session.question()
    assert second is not None and second.row != asked.row
    session.skip(second.row, unsure=True)
    assert [line.answer for line in session.answers.lines] == ["skip", "unsure"]
    assert not {asked.row, second.row} & set(label(session, 60))
    ben = begin("ben")
    assert {asked.row, second.row} <= set(ben._open_rows())


def test_two_people_share_the_estimate_and_divide_the_rest(begin: Begin) -> None:
    anna, ben = begin("anna"), begin("ben")
    rows: dict[str, list[int]] = {"anna": [], "ben": []}
    for _ in range(30):
        rows["anna"] += label(anna, 1)
        rows["ben"] += label(ben, 1)
    reserved = anna.texts.reserved
    both = set(rows["anna"]) & set(rows["ben"])
    assert both == {row for row in rows["anna"] if reserved[row]} and len(both) == 6
    anna.refresh()
    assert set(anna.counted.labels) == set(rows["anna"]) | set(rows["ben"])


def test_a_new_label_is_learnt(begin: Begin) -> None:
    session = begin()
    label(session, 30)
    with pytest.raises(UsageError, match="no label 'lost'"):
        session.answer(session.question().row, ["lost"])  # type: ignore[union-attr]
    session.add_label(" lost ")
    with pytest.raises(UsageError, match="already"):
        session.add_label("lost")
    asked = session.question()
    assert asked is not None
    session.answer(asked.row, ["lost"])
    session.estimate(), session.curve()  # the head does not know the label yet
    label(session, 3)
    session.learn()
    assert session.head is not None and len(session.head.bias) == 4
    assert session.estimate() is not None


def test_a_guess_is_given_only_where_it_spoils_no_estimate(begin: Begin) -> None:
    session = begin()
    label(session, 40)
    reserved = int(np.flatnonzero(session.texts.reserved)[0])
    assert session.guesses(reserved) == []
    found = session.guesses(int(session._open_rows()[0]))
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    assert sum(one.probability for one in found) == pytest.approx(1)


def test_texts_are_confirmed_many_at_a_time_and_marked(begin: Begin) -> None:
    session = begin()
    label(session, 60)
    session.learn()
    likely = session.likely(0.7)
    assert likely and not session.texts.reserved[[one.row for one in likely]].any()
    before = session.estimate_rows.tolist()
    reserved = int(np.flatnonzero(session.texts.reserved)[-1])
    wanted = {one.row: one.label for one in likely} | {reserved: "good"}
    assert session.confirm(wanted) == len(likely)
    assert {line.chosen for line in session.answers.lines[-len(likely) :]} == {"bulk"}
    assert session.estimate_rows.tolist() == before
    assert session.confirm(wanted) == 0  # they have labels now


def test_several_labels(begin: Begin) -> None:
    session = begin(multi=True)
    truth = truth_of(session.texts)
    for step in range(60):
        asked = session.question()
        assert asked is not None
        more = ["late"] if step % 3 == 0 and truth[asked.row] != 2 else []
        session.answer(asked.row, [NAMES[truth[asked.row]], *more])
    session.learn()
    assert session.head is not None and session.head.multi_label
    assert session.estimate() is not None and session.curve().points
    assert session.likely(0.5) == []


def test_one_label_is_not_several(begin: Begin) -> None:
    session = begin()
    asked = session.question()
    assert asked is not None
    for labels in ([], ["good", "bad"]):
        with pytest.raises(UsageError):
            session.answer(asked.row, labels)
    with pytest.raises(UsageError, match="another text"):
        session.answer(asked.row + 1, ["good"])
    assert session.answers.lines == []


def test_every_text_can_be_labelled(begin: Begin) -> None:
    session = begin(texts=texts_of(40))
    assert sorted(label(session, 40)) == list(range(40))
    assert session.question() is None
    assert session.undo() and session.question() is not None


def test_answers_about_other_texts_stay_in_the_file(begin: Begin) -> None:
    label(begin(), 30)
    other = begin(texts=TextsToLabel.of(["another", "set", "of texts"]), features=False)
    assert (other.counted.unknown, len(other.answers.lines)) == (30, 30)
    assert other.undo()  # of a text that is not there
    assert other.question() is not None
