"""Heads that may give no answer, from the command line to every place that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache
from featcache.settings import AbstentionSettings
from tests.support.cli_tools import Cli, make_work, plain_terminal, read_rows, widest
from tests.support.review_files import write_reviews

RUN = "exact-last-mean-1"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """Extracted, with one run that answers at least half of the texts."""
    folder = make_work(tmp_path_factory.mktemp("abstain"), tiny("bert"), views="last/mean")
    write_reviews(folder / "reviews", 240)
    with pytest.MonkeyPatch.context() as patch:
        plain_terminal(patch)
        patch.chdir(folder)
        from featcache_cli.main import main

        assert main(["extract", "--all-splits", "--quiet"]) == 0
        level = ["--coverage", "0.5", "--confidence", "0.9"]
        assert main(["train-head", "--head", "exact", *level, "--quiet"]) == 0
    return folder


def test_train_head_shows_what_is_promised(cli: Cli, trained: Path) -> None:
    made = cli.ok("train-head", "--head", "exact", "--max-error", "0.2", "--confidence", "0.9")
    assert "no answer below probability" in made.out and "at most 20 % errors" in made.out
    said = " ".join(made.out.split())
    assert "with 90 % confidence over the draw of" in said
    assert "if new texts come from where the validation rows came from" in said
    assert widest(made.out) <= 80
    found = featcache.load_run(Path("reports"), "exact-last-mean-2")
    assert found.record.abstention is not None and found.record.abstention.max_error == 0.2
    assert found.record.abstention.splits["test"].rows == found.record.rows["test"]


def test_train_head_without_the_flags_writes_what_it_did(cli: Cli, trained: Path) -> None:
    made = cli.ok("train-head", "--head", "exact", "--json").json
    assert made["abstention"] is None
    files = {path.name for path in Path(made["path"]).iterdir()}
    assert "head-abstention.safetensors" not in files
    assert b"abstention" not in (Path(made["path"]) / "head.json").read_bytes()
    assert b"abstention" not in (Path(made["path"]) / "run.json").read_bytes()


def test_levels_that_validation_cannot_support_are_refused(cli: Cli, trained: Path) -> None:
    train = ("train-head", "--head", "exact")
    cli.refused(6, (*train, "--max-error", "0.02"), "--max-error 0.02 with 95 % confidence needs 149")
    cli.refused(2, (*train, "--max-error", "0.1", "--coverage", "0.9"), "cannot be given together")
    cli.refused(2, (*train, "--max-error", "0"), "--max-error 0.0: must be above 0 and below 1")
    cli.refused(2, (*train, "--coverage", "1.2"), "--coverage 1.2: must be above 0 and at most 1")
    ask = ("predict", "--run", RUN, "好")
    cli.refused(6, (*ask, "--max-error", "0.001"), "--max-error 0.001 with 95 %")
    cli.refused(2, (*ask, "--confidence", "0.9"), "give one of --max-error and --coverage")
    cli.ok("train-head", "--head", "exact", "--quiet")
    always = ("predict", "--run", "exact-last-mean-2", "好", "--coverage", "0.9")
    cli.refused(6, always, "trained to answer always")


def test_predict_says_why_there_is_no_answer(cli: Cli, trained: Path) -> None:
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")][:30]
    answers = cli.ok("predict", "--run", RUN, "--json", *texts).json
    held = [one for one in answers if one["abstained"]]
    assert 0 < len(held) < 30
    for one in answers:
        assert 0 <= one["out_of_scope"] <= 1
        assert (one["reason"] is None) != one["abstained"]
        assert (one["label"] == "") == one["abstained"]
    assert all(one["reason"].startswith("no answer: the ") for one in held)
    piped = cli.ok("predict", "--run", RUN, *texts)
    assert [line.split("\t")[0] for line in piped.out.splitlines()] == [one["label"] for one in answers]
    assert f"{len(held)} of 30 texts have no answer" in piped.err
    every = cli.ok("predict", "--run", RUN, "--json", "--coverage", "1", *texts).json
    assert not any(one["abstained"] for one in every)


def test_predict_labels_a_file_with_the_rows_it_does_not_answer(cli: Cli, trained: Path) -> None:
    source = Path("reviews/test.jsonl")
    for kind in ("csv", "jsonl", "parquet", "txt"):
        made = cli.ok("predict", "--run", RUN, "--input", source, "--output", f"out.{kind}", "--json").json
        assert 0 < made["abstained"] == made["rows"] - sum(made["counts"].values())
    rows = read_rows("out.jsonl")
    run = featcache.load_run(Path("reports"), RUN)
    scores = run.record.abstention
    assert scores is not None
    held = [row for row in rows if row["abstained"]]
    assert len(held) == scores.splits["test"].rows - scores.splits["test"].answered
    for row in rows:
        assert (row["prediction"] is None) == row["abstained"] == (row["reason"] is not None)
        assert row["probability"] == max(row["probability:bad"], row["probability:good"])
    labels = Path("out.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert labels == [row["prediction"] or "" for row in rows]
    import pyarrow.parquet as pq

    table = pq.read_table("out.parquet").to_pylist()
    assert [(row["prediction"], row["abstained"]) for row in table] == [
        (row["prediction"], row["abstained"]) for row in rows
    ]
    shown = cli.ok("predict", "--run", RUN, "--input", source, "--output", "again.csv")
    assert "no answer" in shown.out and widest(shown.out) <= 80
    header = Path("again.csv").read_text(encoding="utf-8").split("\n")[0]
    assert header.endswith("truncated,abstained,out_of_scope,reason")


def test_an_unfinished_file_does_not_go_on_at_another_level(trained: Path) -> None:
    """The key of the work has the level in it."""
    from featcache.prediction.file import _head_hash
    from featcache.prediction.predictor import Predictor

    predictor = Predictor.from_run("reports/" + RUN)
    before = _head_hash(predictor)
    predictor.abstain_at(AbstentionSettings(coverage=0.7, confidence=0.9))
    assert _head_hash(predictor) != before


def test_settings_file_has_the_level_and_a_flag_takes_its_place(cli: Cli, trained: Path) -> None:
    path = Path("featcache.toml")
    text = path.read_text(encoding="utf-8")
    assert "[abstention]" in text
    path.write_text(text.replace("# max_error =", "max_error = 0.02"), encoding="utf-8")
    cli.refused(6, ("train-head", "--head", "exact"), "--max-error 0.02 with 95 %")
    made = cli.ok("train-head", "--head", "exact", "--coverage", "0.6", "--json").json["abstention"]
    assert (made["coverage"], made["max_error"]) == (0.6, None)


@pytest.mark.parametrize(
    ("flags", "distance"), [(("--head", "lexical"), "none"), (("--view", "last/mean,lexical"), "")]
)
def test_heads_that_read_words_may_give_no_answer_too(
    flags: tuple[str, ...], distance: str, cli: Cli, trained: Path
) -> None:
    """Words alone have no distance; beside cached views the distance is that of their features."""
    kind = flags if flags[0] == "--head" else ("--head", "exact", *flags)
    made = cli.ok("train-head", *kind, "--coverage", "0.5", "--json").json
    found = made["abstention"]
    assert found["distance"] == distance if distance else found["distance"] in ("mahalanobis", "neighbours")
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    answers = cli.ok("predict", "--run", made["run"], "--json", *texts).json
    assert sum(not one["abstained"] for one in answers) == found["splits"]["test"]["answered"]


def test_compare_shows_how_much_is_answered(cli: Cli, trained: Path) -> None:
    cli.ok("train-head", "--head", "exact", "--quiet")
    shown = cli.ok("compare")
    assert "answered" in shown.out and "all" in shown.out and widest(shown.out) <= 80
    own = next(one for one in cli.ok("compare", "--json").json["runs"] if one["run"] == RUN)
    scores = own["abstention"]["splits"]["test"]
    assert f"{scores['answered'] / scores['rows']:.0%} (" in shown.out
    assert "no answer below probability" in cli.ok("compare", RUN).out


def test_report_has_the_risk_coverage_curve(cli: Cli, trained: Path) -> None:
    pytest.importorskip("matplotlib")
    cli.ok("report", RUN, "--output", "r.html", "--no-inspect", "--quiet")
    page, text = Path("r.html").read_text(encoding="utf-8"), Path("r.md").read_text(encoding="utf-8")
    found = json.loads(Path("r.json").read_bytes())["risk_curve"]
    assert "Wrong answers by coverage" in page and "Dot: where this head stops." in page
    for shown in (page, text):
        assert f"No answer below a probability of {found['threshold']:.4f}" in shown or shown is page
        assert "if new texts come from where the validation rows came from" in shown
    assert found["scores"]["answered"] < found["scores"]["rows"] and found["points"][-1][0] == 1
    cli.ok("train-head", "--head", "exact", "--quiet")
    cli.ok("report", "exact-last-mean-2", "--output", "always.html", "--no-inspect", "--quiet")
    always = json.loads(Path("always.json").read_bytes())["risk_curve"]
    assert always["scores"] is None and always["threshold"] is None
    assert "Dot: where" not in Path("always.html").read_text(encoding="utf-8")


def test_exports_carry_a_threshold_of_the_probability_alone(trained: Path) -> None:
    from featcache.export.reference import RunToExport, model_card

    source = RunToExport(featcache.load_run(Path("reports"), RUN), None)
    found = source.label_config()["featcache_abstention"]
    assert found["coverage"] == 0.5 and found["out_of_scope"] == "not checked"
    guarantee = source.head.abstention.guarantee if source.head.abstention else None
    assert guarantee is not None and (guarantee.probability >= found["threshold"]).mean() >= 0.5
    card = model_card(source, "transformers", "it", [], [])
    assert f"Below a probability of {found['threshold']:.4f} there is no answer" in card


def test_sweep_makes_such_a_head_too(cli: Cli, trained: Path) -> None:
    made = cli.ok("sweep", "--lr", "0.01", "--epochs", "3", "--coverage", "0.5", "--json").json
    content = json.loads((Path("reports") / made["best"]["run"] / "head.json").read_bytes())
    assert content["abstention"]["coverage"] == 0.5
