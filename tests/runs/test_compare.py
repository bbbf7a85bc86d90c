"""Predictions on disk, rows matched between runs, and `featcache compare`."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import HeadError
from featcache.evaluation.paired import holm, mcnemar, paired_bootstrap
from featcache.runs.compare import compare_runs, match
from featcache.runs.predictions import Predictions, read_predictions, write_predictions
from featcache.runs.record import RunRecord
from featcache.runs.run import Run, load_run, save_run
from tests.support.cli_tools import Cli, check_refusal, contents, edit_run, plain_terminal, widest
from tests.support.saved_runs import BINARY, NoHead, hashes, noisy, predictions, save

LABELS = np.arange(400) % 2
THREE = ("a", "b", "c")
PARTS = ("row_hash", "labels", "predicted", "probabilities")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    plain_terminal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def same(one: Predictions, other: Predictions) -> bool:
    return one.label_names == other.label_names and all(
        np.array_equal(getattr(one, part), getattr(other, part))
        and getattr(one, part).dtype == getattr(other, part).dtype
        for part in PARTS
    )


# --- predictions on disk ------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=25)
def test_read_predictions_returns_what_write_predictions_wrote(data: Any) -> None:
    name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    names = tuple(data.draw(st.lists(name, min_size=1, max_size=5, unique=True)))
    multi, count = data.draw(st.booleans()), data.draw(st.integers(0, 12))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape, high = ((count, len(names)), 2) if multi else ((count,), len(names))
    kind = np.uint8 if multi else np.int64
    labels, predicted = (draw.integers(0, high, shape).astype(kind) for _ in range(2))
    rows = draw.integers(0, 256, (count, 32), dtype=np.uint8)
    written = Predictions(rows, labels, predicted, draw.random((count, len(names))), names)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        write_predictions(path, written)
        assert same(read_predictions(path), written)
        short = read_predictions(path, probabilities=False)
    assert short.probabilities.shape == (count, 0) and short.label_names == names
    assert np.array_equal(short.labels, labels) and np.array_equal(short.predicted, predicted)


def test_write_predictions_makes_a_parquet_file_that_other_tools_read(tmp_path: Path) -> None:
    write_predictions(
        tmp_path / "p", predictions([[1, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 1, 1]], names=THREE)
    )
    found = pq.read_table(tmp_path / "p").to_pydict()
    assert found["row_hash"] == [row.tobytes().hex() for row in hashes("01")]
    assert found["label"] == [["a", "c"], []] and found["prediction"] == [["a"], ["b", "c"]]
    assert list(found)[3:] == ["probability:a", "probability:b", "probability:c"]
    assert found["probability:b"] == pytest.approx([0.05, 0.9])


def test_predictions_of_hashes_labels_and_probabilities(tmp_path: Path) -> None:
    """The largest probability, the first of equals; multi-label: those from one half on."""
    probabilities = np.array([[0.2, 0.5, 0.5], [0.6, 0.1, 0.3]])
    rows = hashes("01")
    for labels, expected in (
        (np.array([0, 2]), np.array([1, 0])),
        (np.array([[1, 0, 0], [0, 0, 1]], np.uint8), np.array([[0, 1, 1], [1, 0, 0]], np.uint8)),
    ):
        run = save(tmp_path, test=predictions(labels, labels, names=THREE))
        write_predictions(
            run.folder / "predictions-other.parquet", Predictions.of(rows, labels, probabilities, THREE)
        )
        found = run.predictions("other")
        assert same(found, Predictions(rows, labels, expected, probabilities, THREE))
    chosen = Predictions.of(rows, labels, probabilities, THREE, np.array([0.6, 0.6, 0.3]))
    assert chosen.predicted.tolist() == [[0, 0, 1], [1, 0, 1]]


def test_save_run_writes_the_predictions_of_each_split(tmp_path: Path) -> None:
    found = predictions([0, 1, 1], [0, 1, 0])
    record = RunRecord(
        head="linear", view="last/cls", metrics={}, fingerprint="", seconds=0.0, created="", history=()
    )
    again = Predictions.of(found.row_hash, found.labels, found.probabilities, BINARY)
    heads: Any = {"head": NoHead(BINARY)}
    run = save_run(tmp_path, record, heads, {"validation": again, "test": found})
    assert same(run.predictions("validation"), found) and same(run.predictions("test"), found)


def test_run_predictions_names_a_missing_split(tmp_path: Path) -> None:
    run = save(tmp_path, validation=predictions([0, 1], [0, 1]))
    with pytest.raises(HeadError, match="linear-last-mean-1 has no predictions of test") as caught:
        run.predictions("test")
    assert "featcache extract --split test" in str(caught.value)
    with pytest.raises(HeadError, match=r"there is no .*gone\.parquet"):
        read_predictions(tmp_path / "gone.parquet")


@pytest.mark.parametrize("part", [0, 3, 100, -1])
def test_read_predictions_refuses_a_damaged_file(part: int, tmp_path: Path) -> None:
    run = save(tmp_path, test=predictions(LABELS, LABELS))
    path = run.folder / "predictions-test.parquet"
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(HeadError, match=r"cannot read .*predictions-test\.parquet"):
        run.predictions("test")


def changed(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, [values])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["label"]), "its columns are row_hash, prediction"),
        (lambda t: t.drop_columns(["probability:bad", "probability:good"]), "holds no predictions"),
        (lambda t: t.append_column("text", [["x", "y"]]), "its columns are"),
        (lambda t: t.append_column("probability:bad", [[0.5, 0.5]]), "its columns are"),
        (lambda t: t.select([1, 0, 2, 3, 4]), "its columns are label"),
        (lambda t: t.rename_columns([*t.column_names[:4], "score"]), "score"),
        (lambda t: changed(t, "label", ["bad", "ugly"]), "'ugly'"),
        (lambda t: changed(t, "label", ["bad", None]), "an empty label"),
        (lambda t: changed(t, "prediction", [1, 0]), "'1'"),
        (lambda t: changed(t, "prediction", [["bad"], ["good"]]), "lists of labels"),
        (lambda t: changed(t, "label", [["bad"], [None]]), "an empty label|None"),
        (lambda t: changed(t, "row_hash", ["ab" * 32, "ab"]), "64 hexadecimal digits"),
        (lambda t: changed(t, "row_hash", ["ab" * 32, None]), "64 hexadecimal digits"),
        (lambda t: changed(t, "row_hash", ["ab" * 32, "xy" * 32]), "cannot read"),
        (lambda t: changed(t, "row_hash", ["ab" * 32, "a " * 32]), "cannot read"),
        (lambda t: changed(t, "probability:bad", [0.5, None]), "probability"),
        (lambda t: changed(t, "probability:bad", [0.5, float("nan")]), "probability"),
        (lambda t: changed(t, "probability:bad", ["much", "more"]), "cannot read"),
    ],
)
def test_read_predictions_refuses_other_content(change: Any, words: str, tmp_path: Path) -> None:
    run = save(tmp_path, test=predictions([0, 1], [0, 1]))
    path = run.folder / "predictions-test.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(HeadError, match=words) as caught:
        run.predictions("test")
    assert str(path) in str(caught.value)


# --- matching rows ------------------------------------------------------------------------------


def slowly(base: Predictions, run: Predictions) -> list[tuple[str, str, str]]:
    """(label, prediction of the base, of the run) of every shared row, sorted; by a dictionary."""

    def rows(found: Predictions) -> dict[tuple[bytes, str], list[str]]:
        held = defaultdict(list)
        for row, label, guess in zip(found.row_hash, found.labels, found.predicted, strict=True):
            held[row.tobytes(), found.label_names[label]].append(found.label_names[guess])
        return held

    one, other = rows(base), rows(run)
    return sorted(
        (key[1], *pair)
        for key in one.keys() & other.keys()
        for pair in zip(one[key], other[key], strict=False)
    )


@given(st.data())
def test_match_pairs_rows_by_hash_and_occurrence(data: Any) -> None:
    """With texts that come twice, rows that one run alone has, and label names in another order."""
    label_of = data.draw(st.lists(st.integers(0, 2), min_size=8, max_size=8))
    orders = [tuple(data.draw(st.permutations(THREE))) for _ in range(2)]
    made = []
    for names in orders:
        texts = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=12))
        guesses = data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts)))
        labels = [names.index(THREE[label_of[text]]) for text in texts]
        made.append(predictions(labels, guesses, texts, names))
    expected = slowly(*made)
    if not expected:
        with pytest.raises(HeadError, match="no row in common"):
            match(*made)
        return
    found = match(*made)
    triples = np.stack([found.labels, found.base, found.run], axis=1)
    names = found.label_names
    assert sorted((names[a], names[b], names[c]) for a, b, c in triples) == expected
    assert found.only_base == len(made[0]) - len(expected)
    assert found.only_run == len(made[1]) - len(expected)


def shuffled(found: Predictions, seed: int = 0) -> Predictions:
    order = np.random.default_rng(seed).permutation(len(found))
    arrays = (found.row_hash, found.labels, found.predicted, found.probabilities)
    return Predictions(*(part[order] for part in arrays), found.label_names)


@pytest.mark.parametrize("multi", [False, True])
def test_match_ignores_the_order_of_rows(multi: bool) -> None:
    draw = np.random.default_rng(1)
    shape = (300, 3) if multi else (300,)
    labels, first, second = (draw.integers(0, 2, shape) for _ in range(3))
    base, run = (predictions(labels, part, names=THREE) for part in (first, second))
    straight, mixed = match(base, run), match(base, shuffled(run))
    scores = [
        paired_bootstrap(found.labels, found.base, found.run, 3, resamples=100) for found in (straight, mixed)
    ]
    assert scores[0] == scores[1]
    assert len(mixed.labels) == 300 and mixed.only_base == mixed.only_run == 0


def test_match_of_one_text_with_two_labels_in_another_order() -> None:
    base = predictions([0, 1, 0], [0, 1, 1], ["same", "same", "else"])
    run = predictions([1, 0, 0], [1, 0, 1], ["same", "same", "else"])
    found = match(base, run)
    assert len(found.labels) == 3
    assert np.array_equal(found.base, found.run)


def test_match_counts_rows_with_other_labels() -> None:
    base = predictions(LABELS, LABELS)
    labels = noisy(LABELS, 7)
    with pytest.raises(HeadError, match=r"^7 of their 400 shared rows have another label\n"):
        match(base, predictions(labels, labels))
    with pytest.raises(HeadError, match=r"^400 of their 400 .*only one has: bad, good, neg, pos"):
        match(base, predictions(LABELS, LABELS, names=("neg", "pos")))
    more = predictions(labels, labels, [*range(7), *(f"new {i}" for i in range(393))])
    with pytest.raises(HeadError, match=r"^7 of their 7 "):
        match(base, more)


def test_match_with_a_label_that_one_run_does_not_have() -> None:
    """It may be predicted; that is an error of that run, not of the comparison."""
    base = predictions([0, 1, 1], [0, 1, 0])
    run = predictions([1, 2, 2], [1, 0, 2], names=("odd", "bad", "good"))
    found = match(base, run)
    assert found.label_names == ("bad", "good", "odd")
    assert found.labels.tolist() == [0, 1, 1] and found.run.tolist() == [0, 2, 1]


def test_match_compares_label_sets_by_name() -> None:
    base = predictions([[1, 0, 0], [0, 1, 1]], [[1, 0, 0], [0, 1, 0]], names=THREE)
    run = predictions([[0, 0, 1], [1, 1, 0]], [[0, 1, 1], [1, 1, 0]], names=("c", "b", "a"))
    found = match(base, run)
    assert found.run.tolist() == [[1, 1, 0], [0, 1, 1]] and found.label_names == THREE
    with pytest.raises(HeadError, match="other labels: c, d"):
        match(base, predictions([[1, 0, 0]], [[1, 0, 0]], names=("a", "b", "d")))
    with pytest.raises(HeadError, match="single-label"):
        match(base, predictions([0, 1], [0, 1], names=THREE))


# --- comparing runs -----------------------------------------------------------------------------


def binary(wrong: int, *, start: int = 0, labels: np.ndarray = LABELS) -> Predictions:
    return predictions(labels, noisy(labels, wrong, start=start))


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """The best on validation, one as good on test, one that is worse, and one best on test."""
    numbers = [(10, 40, 0), (20, 44, 6), (30, 90, 0), (40, 4, 0)]
    return [
        save(tmp_path / "reports", kind, validation=binary(on_validation), test=binary(on_test, start=start))
        for kind, (on_validation, on_test, start) in zip(
            ("best", "near", "bad", "star"), numbers, strict=True
        )
    ]


def test_compare_runs_chooses_the_base_on_validation_and_corrects_all_p_values(runs: list[Run]) -> None:
    found = compare_runs(runs)
    assert found.base is runs[0] and [made.run for made in found.made] == runs[1:]
    raw = []
    for made in found.made:
        first, second = (run.predictions("test").predicted for run in (runs[0], made.run))
        test = mcnemar(first == LABELS, second == LABELS)
        boot = paired_bootstrap(LABELS, first, second, 2)
        assert made.discordant == test and made.accuracy.p == test.p
        assert made.macro_f1.difference == boot.macro_f1 and made.accuracy.difference == boot.accuracy
        assert made.macro_f1.p == boot.macro_f1.p and made.rows == 400
        assert made.accuracy.difference.value == pytest.approx(
            made.run.metric("test", "accuracy") - runs[0].metric("test", "accuracy")
        )
        raw += [test.p, boot.macro_f1.p]
    corrected = [p for made in found.made for p in (made.accuracy.corrected_p, made.macro_f1.corrected_p)]
    assert corrected == holm(raw).tolist()
    near, bad, star = found.made
    assert near.tie and not near.worse
    assert bad.worse and bad.accuracy.worse and bad.macro_f1.worse and not bad.tie
    assert not star.tie and not star.worse and star.accuracy.difference.value > 0
    assert found.worse == [bad]
    assert compare_runs(runs, split="validation").base is runs[0]


def test_compare_runs_needs_more_evidence_for_more_comparisons(tmp_path: Path) -> None:
    base = save(tmp_path, test=binary(40), validation=binary(0))
    run = save(tmp_path, test=binary(49), validation=binary(1))  # 9 rows, all one way: p = 0.004
    assert compare_runs([base, run]).made[0].accuracy.worse
    ties = [save(tmp_path, test=binary(40), validation=binary(2)) for _ in range(12)]
    made = compare_runs([base, run, *ties]).made
    assert all(one.tie for one in made) and made[0].accuracy.p < 0.01


def test_compare_runs_skips_the_base_itself_but_not_its_copy(runs: list[Run], tmp_path: Path) -> None:
    assert compare_runs(runs[:1]).made == ()
    assert compare_runs(runs[:1], runs[0]).made == ()
    copy = Run(Path(shutil.copytree(runs[0].folder, tmp_path / "copy")), runs[0].record)
    (made,) = compare_runs([runs[0], copy], runs[0]).made
    assert made.tie and made.accuracy.corrected_p == made.macro_f1.corrected_p == 1
    assert made.macro_f1.difference.value == made.macro_f1.difference.low == 0


def test_compare_runs_refuses_or_skips_runs_that_cannot_be_compared(runs: list[Run], tmp_path: Path) -> None:
    bare = save(tmp_path / "reports", "bare", validation=binary(50))
    odd = save(
        tmp_path / "reports", "odd", test=predictions([0, 1], [0, 1], ["x", "y"]), validation=binary(60)
    )
    with pytest.raises(
        HeadError, match=r"^bare-last-mean-1 cannot be compared with best-last-mean-1 on test: "
    ):
        compare_runs([*runs, bare])
    with pytest.raises(HeadError, match="no row in common"):
        compare_runs([*runs, odd])
    found = compare_runs([bare, *runs, odd], skip=True)
    assert [run for run, _ in found.refused] == [bare, odd] and len(found.made) == 3
    assert found.made == compare_runs(runs).made
    with pytest.raises(HeadError, match="bare-last-mean-1 has no predictions of test"):
        compare_runs(runs, bare, skip=True)
    with pytest.raises(HeadError, match="no runs"):
        compare_runs([])


def test_compare_runs_leaves_out_rows_of_one_run_only(tmp_path: Path) -> None:
    base = save(tmp_path, test=binary(40), validation=binary(0))
    texts = [*range(100, 400), *(f"new {i}" for i in range(30))]
    labels = np.concatenate([LABELS[100:], np.zeros(30, int)])
    run = save(tmp_path, test=predictions(labels, noisy(labels, 20), texts), validation=binary(1))
    (made,) = compare_runs([base, run]).made
    assert (made.rows, made.only_base, made.only_run) == (300, 100, 30)
    assert (made.discordant.only_first, made.discordant.only_second) == (20, 0)


def test_compare_runs_with_several_labels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, (300, 4))
    good, bad = (np.where(draw.random(labels.shape) < part, 1 - labels, labels) for part in (0.03, 0.15))
    names = ("a", "b", "c", "d")
    base, run = (
        save(
            tmp_path,
            test=predictions(labels, part, names=names),
            validation=predictions(labels, part, names=names),
        )
        for part in (good, bad)
    )
    (made,) = compare_runs([base, run]).made
    exact = [(labels == part).all(axis=1) for part in (good, bad)]
    assert made.discordant == mcnemar(*exact) and made.accuracy.worse and made.macro_f1.worse
    assert made.macro_f1.difference.value == pytest.approx(
        run.metric("test", "macro_f1") - base.metric("test", "macro_f1")
    )


# --- the command --------------------------------------------------------------------------------

BEST, NEAR, BAD, STAR = (f"{kind}-last-mean-1" for kind in ("best", "near", "bad", "star"))


def row(text: str, name: str) -> str:
    (line,) = [
        line for line in text.splitlines() if name in line and "against" not in line and "alone" not in line
    ]
    return line


@pytest.mark.parametrize("columns", [80, 120])
def test_compare_table_marks_ties_and_fits_the_terminal(
    columns: int, runs: list[Run], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = cli.ok("compare").out
    assert widest(text) <= columns and "…" not in text
    table = text.partition("\n* best")[0]
    assert re.search(r"\brun\b.* val\. +test +95 % +vs \* +F1", table)
    assert re.match(r" \* best-last-mean-1 .*97\.50 +90\.00 81\.2-92\.5 +90\.00 ", row(table, BEST))
    near = r" 95\.00 +89\.00 81\.2-92\.5 +tie -1\.0 \[-\d\.\d, \+?\d\.\d\] +89\.00"
    assert re.search(near, row(table, NEAR))
    assert re.search(r" 77\.50 81\.2-92\.5 +-12\.5 \[-1\d\.\d, -\d\.\d\] ", row(table, BAD))
    assert "tie" not in row(table, BAD)
    assert re.search(r" 99\.00 81\.2-92\.5 +\+9\.0 \[\+\d\.\d, \+1\d\.\d\] ", row(table, STAR))
    assert "best by validation accuracy (97.50)" in text and "tie: the difference may be chance" in text
    assert ("params" in table, "1,538" in table, "last/mean" in table) == (columns == 120,) * 3
    narrow = cli.ok("compare", "--split", "validation").out
    assert " test " not in narrow.partition("\n* best")[0] and "its lead here is too large" in narrow


def test_compare_sorts_and_shows_another_metric(runs: list[Run], cli: Cli) -> None:
    def names(*flags: str) -> list[str]:
        lines = cli.ok("compare", *flags).out.partition("\n* best")[0].splitlines()
        return [name for line in lines for name in line.split() if name in (BEST, NEAR, BAD, STAR)]

    assert names("--sort", "test")[:2] == [STAR, BEST] and names()[0] == BEST
    assert names("--sort", "name") == sorted([BEST, NEAR, BAD, STAR])
    text = cli.ok("compare", "--metric", "macro_f1").out
    assert "val., test: macro F1" in text and "acc.: accuracy on test" in text and " * best-" in text
    cli.refused(2, ["compare", "--sort", "tset"], "did you mean test")


def test_compare_says_in_which_settings_runs_differ(
    runs: list[Run], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert "differs in" not in cli.ok("compare").out
    edit_run(NEAR, settings={"lr": 0.01, "batch_size": 32}, seed=3)
    edit_run(BAD, settings={"lr": 0.1, "batch_size": 32})
    edit_run(STAR, epochs=20, best_epoch=9)
    text = cli.ok("compare").out
    assert "seed 3, epochs 100, lr 0.01" in row(text, NEAR) and "seed 0, epochs 100, lr 0.1" in row(text, BAD)
    assert "batch_size" not in text and "9/20" in row(text, STAR) and "7/100" in row(text, BAD)


def test_compare_shows_a_dash_for_old_runs_and_runs_without_test(runs: list[Run], cli: Cli) -> None:
    edit_run(NEAR, intervals={"test": {}})
    record = json.loads(Path("reports", BAD, "run.json").read_text())
    del record["intervals"]
    Path("reports", BAD, "run.json").write_text(json.dumps(record))
    save(Path("reports"), "bare", validation=binary(50))
    result = cli.ok("compare")
    assert re.search(r" 89\.00 +- +tie -1\.0 ", row(result.out, NEAR))
    assert re.search(r" 77\.50 +- +-12\.5 ", row(result.out, BAD))
    assert re.search(r" 87\.50 +- +- +- +-", row(result.out, "bare-last-mean-1"))
    assert result.err == ""
    alone = cli.ok("compare", "bare-last-mean-1")
    assert " - " in alone.out and alone.err == ""
    best_without = cli.ok(
        "compare", "bare-last-mean-1", save(Path("reports"), "x", validation=binary(60)).name
    )
    assert best_without.err == "" and " - " in best_without.out


def test_compare_notes_once_what_cannot_be_compared(runs: list[Run], cli: Cli) -> None:
    for _ in range(5):
        save(Path("reports"), "odd", test=predictions([0, 1], [0, 1], "xy"), validation=binary(70))
    result = cli.ok("compare")
    assert result.err.count("no row in common") == 1 and "and 2 more" in result.err
    assert cli.ok("compare", "--quiet").err == ""
    document = cli.ok("compare", "--json").json
    assert len(document["not_compared"]) == 5 and len(document["comparisons"]) == 3
    (Path("reports") / BEST / "predictions-test.parquet").write_bytes(b"PAR1")
    damaged = cli.ok("compare")
    assert "cannot read" in damaged.err and "vs *" not in damaged.out
    check_refusal(cli("compare", "--base", BEST), 6, "cannot read")


def test_compare_json_has_all_numbers(runs: list[Run], cli: Cli) -> None:
    document = cli.ok("compare", "--json").json
    assert (document["best"], document["base"], document["split"]) == (BEST, BEST, "test")
    assert [run["intervals"]["test"]["accuracy"] for run in document["runs"]] == [[0.8125, 0.925]] * 4
    found = compare_runs(runs)
    made = {comparison.run.name: comparison for comparison in found.made}
    assert {line["run"] for line in document["comparisons"]} == {NEAR, BAD, STAR}
    for line in document["comparisons"]:
        expected = made[line["run"]]
        assert line["rows"] == 400 and line["left_out"] == {"base": 0, "run": 0}
        assert line["only_right"] == {
            "base": expected.discordant.only_first,
            "run": expected.discordant.only_second,
        }
        assert (line["tie"], line["worse"]) == (expected.tie, expected.worse)
        for metric in ("accuracy", "macro_f1"):
            change = getattr(expected, metric)
            assert line[metric] == {
                "base": change.difference.first,
                "run": change.difference.second,
                "difference": change.difference.value,
                "interval": [change.difference.low, change.difference.high],
                "p": change.p,
                "corrected_p": change.corrected_p,
                "tie": change.tie,
            }


def test_compare_with_another_base(runs: list[Run], cli: Cli, tmp_path: Path) -> None:
    text = cli.ok("compare", "--base", BAD).out
    assert " vs base " in text and f"vs {BAD}" in text
    assert row(text, BEST).startswith(" * ") and "+12.5 [" in row(text, BEST)
    text = cli.ok("compare", NEAR, "--base", BAD).out
    assert BEST not in text and "400 shared test rows" in text
    assert re.search(r"accuracy +\+11\.50 +95 % \+\d+\.\d\d to \+\d+\.\d\d +p <0\.0001, .* better", text)
    assert "right in bad-last-mean-1 alone: 0, in near-last-mean-1 alone: 46" in text
    kept = Path(shutil.copytree(f"reports/{BEST}", tmp_path / "kept" / BEST))  # the same name, elsewhere
    document = cli.ok("compare", BEST, "--base", kept, "--json").json
    assert [line["path"] for line in document["comparisons"]] == [f"reports/{BEST}"]
    shown = cli.ok("compare", BEST, "--base", kept).out
    assert f"reports/{BEST}" in shown and "tie 0.0 [0.0, 0.0]" in shown
    cli.refused(6, ["compare", "--base", "nope"], "'nope'", BEST)
    cli.refused(2, ["compare", "--base", BEST, "--fail-if-worse", BAD], "--fail-if-worse")
    cli.refused(2, ["compare", "--split", "train"], "train")


def test_compare_fail_if_worse(runs: list[Run], cli: Cli) -> None:
    before = contents(Path())
    result = cli("compare", "--fail-if-worse", BEST)
    assert result.code == 7 and result.err == ""
    assert result.out.splitlines()[-1] == f"worse than {BEST}: {BAD}"
    assert f"{BAD} against {BEST}, 400 shared test rows" in result.out
    assert re.search(r"accuracy +-12\.50 .* worse$", result.out, re.MULTILINE)
    assert cli("compare", BAD, NEAR, "--fail-if-worse", BEST).code == 7
    assert cli("compare", BAD, "--fail-if-worse", BEST, "--json").json["comparisons"][0]["worse"] is True
    assert cli("compare", BAD, "--fail-if-worse", BEST, "--json", "--quiet").code == 7
    for argv in ([NEAR], [NEAR, STAR], [BEST, STAR]):
        passed = cli.ok("compare", *argv, "--fail-if-worse", BEST)
        assert f"is significantly worse than {BEST}" in passed.out
    assert cli.ok("compare", BEST, "--fail-if-worse", BAD)
    assert "itself" in cli.ok("compare", BEST, "--fail-if-worse", BEST).out
    assert cli.ok("compare", NEAR, "--fail-if-worse", BEST, "--base", BEST)
    assert cli("compare", BAD, "--fail-if-worse", BEST, "--split", "validation").code == 7
    assert contents(Path()) == before


def test_compare_fail_if_worse_fails_for_runs_it_cannot_compare(runs: list[Run], cli: Cli) -> None:
    save(Path("reports"), "bare", validation=binary(50))
    cli.refused(6, ["compare", "bare-last-mean-1", "--fail-if-worse", BEST], "no predictions of test")
    cli.refused(6, ["compare", "--fail-if-worse", BEST], "no predictions of test", "name the runs")
    for name in ("bare-last-mean-1", NEAR, BAD, STAR):
        shutil.rmtree(f"reports/{name}")
    cli.refused(6, ["compare", "--fail-if-worse", BEST], "no run besides")


def test_compare_fail_if_worse_counts_macro_f1_alone(tmp_path: Path, cli: Cli) -> None:
    """A class that is rarely there: wrong on all of it, yet not many rows."""
    labels = np.array([0] * 480 + [1] * 20)
    base, run = labels.copy(), labels.copy()
    base[20:38], run[482:] = 1, 0  # both wrong on 18 rows: one says too often 1, the other hardly ever
    for predicted, wrong in ((base, 0), (run, 1)):
        save(Path("reports"), test=predictions(labels, predicted), validation=binary(wrong))
    (made,) = cli("compare", "--json").json["comparisons"]
    assert made["accuracy"]["tie"] and not made["macro_f1"]["tie"] and made["worse"] and not made["tie"]
    assert cli("compare", "--fail-if-worse", "linear-last-mean-1").code == 7


@pytest.mark.parametrize("columns", [80, 120])
def test_compare_with_many_classes_and_long_names(
    columns: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = tuple(f"类别 {number}" for number in range(150))
    labels = np.arange(600) % 150
    for wrong in (20, 90):
        found = predictions(labels, noisy(labels, wrong, 150), names=names)
        save(Path("reports"), "logistic", "-4/mean+last/cls+first/max+-2/mean", test=found, validation=found)
    text = cli.ok("compare").out
    assert widest(text) <= columns and "-11.7 [" in text and "…" not in text
    document = cli.ok("compare", "--json").json
    assert document["comparisons"][0]["worse"]


@pytest.mark.parametrize("copies", [38, pytest.param(198, marks=pytest.mark.slow)])
def test_compare_with_many_runs(copies: int, cli: Cli) -> None:
    first = save(Path("reports"), test=binary(40), validation=binary(0))
    second = save(Path("reports"), test=binary(90), validation=binary(3))
    for number in range(copies):
        shutil.copytree(second.folder if number == 0 else first.folder, f"reports/copy-{number}")
    text = cli.ok("compare").out
    assert len(re.findall(r" tie 0\.0 \[0\.0, 0\.0\] ", text)) >= copies - 1
    document = cli.ok("compare", "--json").json
    worse = [line["run"] for line in document["comparisons"] if line["worse"]]
    assert sorted(worse) == ["copy-0", second.name]  # so many comparisons hide no clear difference
    assert max(line["accuracy"]["corrected_p"] for line in document["comparisons"]) == 1


def test_compare_shows_runs_with_several_labels(cli: Cli) -> None:
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    found = predictions(labels, labels, names=THREE)
    run = save(Path("reports"), test=found, validation=found)
    assert "100.00" in cli.ok("compare", run.name).out


def test_save_run_gives_each_run_its_own_name(runs: list[Run], cli: Cli) -> None:
    text = cli.ok("compare", NEAR, BEST, NEAR, f"reports/{BEST}").out
    table: Sequence[str] = text.partition("\n* best")[0].splitlines()
    assert sum(NEAR in line for line in table) == sum(BEST in line for line in table) == 1
    assert load_run(Path("reports"), BEST).name == BEST


def test_predictions_keep_which_rows_leak(tmp_path: Path) -> None:
    found = predictions([0, 1, 1], [0, 1, 0])
    for leaked in (None, np.array([False, False, False]), np.array([False, True, False])):
        write_predictions(tmp_path / "p.parquet", replace(found, leaked=leaked))
        known = leaked is not None and leaked.any()
        assert ("leaked" in pq.read_schema(tmp_path / "p.parquet").names) == known
        for probabilities in (True, False):
            again = read_predictions(tmp_path / "p.parquet", probabilities=probabilities)
            assert (again.leaked is not None) == known
            assert not known or again.leaked.tolist() == leaked.tolist()  # type: ignore[union-attr]
            assert again.label_names == BINARY and len(again) == 3


def test_compare_runs_tests_the_rows_that_leak_for_neither_apart(tmp_path: Path) -> None:
    labels = np.arange(200) % 2
    early, late = np.arange(200) < 60, (np.arange(200) >= 50) & (np.arange(200) < 80)
    one = replace(predictions(labels, noisy(labels, 20)), leaked=early)
    two = replace(predictions(labels, noisy(labels, 60, start=3)), leaked=late)
    base, other = save(tmp_path, "one", test=one), save(tmp_path, "two", test=two)
    (made,) = compare_runs([base, other], base).made
    kept = ~(early | late)
    assert made.rows == 200 and made.clean is not None and made.clean.rows == kept.sum() == 120
    apart = [
        replace(part, leaked=None, **{name: getattr(part, name)[kept] for name in PARTS})
        for part in (one, two)
    ]
    alone = [save(tmp_path / "alone", test=part) for part in apart]
    (expected,) = compare_runs(alone, alone[0]).made
    assert expected.clean is None
    for name in ("discordant", "accuracy", "macro_f1", "tie", "worse"):
        assert getattr(made.clean, name) == getattr(expected, name)
