"""Heads, comparisons and pages work on imported vectors by their name, and say what they cannot do."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from featcache.data.formats.lines import Row
from featcache.errors import BackboneError, HeadError, SourceError, UsageError
from featcache.evaluation.leaks import NORMALISED
from featcache.heads.head import load_head
from featcache.importing import vector_file
from featcache.prediction.vectors import VectorPredictor
from featcache.runs.run import load_run
from tests.support.cli_tools import Cli
from tests.support.vector_files import labelled_vectors, write_texts

MODEL = ("--model", "vectors:mine")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three imported splits, their files, and one trained run."""
    from featcache_cli.main import main

    folder = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, split in enumerate(("train", "validation", "test")):
            x, texts, labels = labelled_vectors(seed=seed)
            np.save(f"{split}.npy", x)
            write_texts(Path(f"{split}.csv"), texts, labels, encoding="gb18030")
            named = ["--as", "mine", "--describe-model", "ada 3", "--quiet"]
            texts_of = ["--texts", f"{split}.csv", "--split", split]
            assert main(["import", f"{split}.npy", *texts_of, *named]) == 0
        assert main(["train-head", *MODEL, "--epochs", "20", "--quiet"]) == 0
    return folder


@pytest.fixture
def imported(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_head_says_what_it_was_trained_on(cli: Cli, imported: Path) -> None:
    shown = cli.ok("train-head", *MODEL, "--head", "ridge").out
    assert "head on vectors" in shown
    assert "trained on imported vectors mine, 12 numbers each, made by ada 3" in shown
    head = load_head(imported / "reports" / "ridge-vectors-1")
    assert head.encoder.vectors is not None
    assert (head.encoder.vectors.name, head.encoder.vectors.model) == ("mine", "ada 3")
    record = load_run(imported / "reports", "ridge-vectors-1").record
    assert record.backbone.model == "vectors:mine"
    assert record.metrics["test"]["accuracy"] > 0.9


@pytest.mark.parametrize("command", [
    ("train-head", "--head", "logistic"),
    ("train-head", "--head", "auto"),
    ("train-head", "--view", "vectors,lexical", "--head", "exact"),
    ("sweep", "--lr", "0.01,0.001", "--epochs", "5"),
    ("curve", "--points", "2", "--seeds", "1"),
    ("inspect",),
    ("extract", "--all-splits"),
])  # fmt: skip
def test_commands_on_features_take_imported_ones(cli: Cli, imported: Path, command: tuple[str, ...]) -> None:
    cli.ok(*command, *MODEL)


def test_inspect_and_leaks_know_the_texts_without_being_told(cli: Cli, imported: Path) -> None:
    found = cli.ok("inspect", *MODEL, "--json").json
    assert "评论" in str(found)
    record = load_run(imported / "reports", "linear-vectors-1").record
    assert record.clean is not None
    assert record.clean.rule == NORMALISED
    assert record.data is not None
    assert Path((record.data.data_files or {})["test"]).name == "test.csv"


def test_compare_and_report_work_on_runs_of_vectors(cli: Cli, imported: Path) -> None:
    cli.ok("train-head", *MODEL, "--head", "ridge")
    assert len(cli.ok("compare", "--json").json["runs"]) == 2
    cli.ok("report", "--quiet")
    page = "".join(path.read_text("utf-8") for path in imported.glob("reports/**/*.html"))
    assert "vectors:mine" in page


def test_settings_in_a_file_name_them_too(cli: Cli, imported: Path) -> None:
    Path("featcache.toml").write_text('[backbone]\nmodel = "vectors:mine"\n', "utf-8")
    cli.ok("train-head", "--head", "centroid")
    refused = cli("train-head", "--view", "last/mean")
    assert refused.code == UsageError.exit_code
    assert "vectors:mine has one view, vectors" in refused.err


def test_what_is_missing_is_said(cli: Cli, imported: Path) -> None:
    refused = cli("train-head", "--model", "vectors:other")
    assert refused.code == 5
    assert "nothing was imported under that name" in refused.err
    assert "featcache import" in refused.err


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize(("command", "kind"), [
    (("predict", "房间很干净"), HeadError),
    (("predict", "--input", "test.csv", "--output", "out.csv"), HeadError),
    (("serve", "--port", "0"), HeadError),
    (("export", "--output", "out"), HeadError),
    (("plan", *MODEL, "--data-files", "train=train.csv"), BackboneError),
    (("finetune", *MODEL, "--data-files", "train=train.csv"), BackboneError),
])  # fmt: skip
def test_what_encodes_texts_says_that_it_cannot(
    cli: Cli, imported: Path, command: tuple[str, ...], kind: type[BackboneError]
) -> None:
    refused = cli(*command)
    assert refused.code == kind.exit_code, refused.err
    assert "nothing here turns a text into such a vector" in " ".join(refused.err.split())
    assert "featcache predict --input FILE --vectors FILE --output FILE" in " ".join(refused.err.split())


def test_a_file_is_labelled_by_its_vectors(cli: Cli, imported: Path) -> None:
    x, texts, labels = labelled_vectors(rows=50, seed=7)
    texts[3] = ""  # cannot be used; the rows after it keep their vectors
    write_texts(Path("new.csv"), texts, labels)
    np.savez("new.npz", e=x)
    cli.ok("predict", "--input", "new.csv", "--vectors", "new.npz", "--output", "out.csv")
    with open("out.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    head = load_head(imported / "reports" / "linear-vectors-1")
    expected = head.predict_proba(x)
    assert len(rows) == 50
    for row, line in enumerate(rows):
        if row == 3:
            assert not line["prediction"]
            continue
        assert float(line["probability"]) == pytest.approx(expected[row].max(), abs=1e-6)
        assert line["prediction"] == head.label_names[expected[row].argmax()]


def test_batches_of_a_file_take_their_own_vectors(
    cli: Cli, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_file, "BLOCK", 400)
    x, texts, labels = labelled_vectors(rows=2500, seed=8)
    x[2100, 4] = np.nan
    write_texts(Path("new.csv"), texts, labels)
    np.save("new.npy", x)
    cli.ok("predict", "--input", "new.csv", "--vectors", "new.npy", "--output", "out.csv")
    with open("out.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = load_head(imported / "reports" / "linear-vectors-1").predict_proba(np.nan_to_num(x))
    shares = [float(line["probability"] or "nan") for line in rows]
    good = [row for row in range(2500) if row != 2100]
    np.testing.assert_allclose(np.array(shares)[good], expected.max(1)[good], atol=1e-6)
    assert np.isnan(shares[2100])
    assert "not finite" in Path("out.csv.bad.jsonl").read_text("utf-8")


@pytest.mark.bad_input("wrong vectors")
def test_vectors_that_are_written_meanwhile_label_nothing(
    cli: Cli, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VectorPredictor.require_all_read

    def change(predictor: VectorPredictor, rows: int) -> None:
        np.save("test.npy", labelled_vectors(seed=5)[0])
        os.utime("test.npy", ns=(1, 1))
        real(predictor, rows)

    monkeypatch.setattr(VectorPredictor, "require_all_read", change)
    files = ("--input", "test.csv", "--vectors", "test.npy", "--output", "out.csv")
    refused = cli("predict", *files)
    assert refused.code == SourceError.exit_code and "changed while it was read" in refused.err
    assert not Path("out.csv").exists()


def test_rows_that_are_left_out_between_two_batches_shift_no_vector(
    imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_file, "BLOCK", 4 * 12 * 8)  # 8 vectors are read at a time
    x, texts, _ = labelled_vectors(rows=40, seed=9)
    np.save("new.npy", x)
    predictor = VectorPredictor.of_file(load_run(Path("reports"), "linear-vectors-1"), Path("new.npy"))
    rows = [Row(number, number + 1, {}, text) for number, text in enumerate(texts, start=1)]
    for begin, end in ((2, 10), (12, 14), (35, 40)):  # the first batch ends with what was read
        vectors = predictor.prepare_rows(rows[begin:end], None).vectors
        np.testing.assert_array_equal(vectors, x[begin:end])


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(("rows", "width", "said"), [
    (59, 12, "has 59 vectors, and the input has more rows"),
    (61, 12, "has 61 vectors, and the input has 60 rows"),
    (60, 11, "has vectors of 11 numbers, and this head reads 12"),
])  # fmt: skip
def test_vectors_that_are_not_those_of_the_input_are_refused(
    cli: Cli, imported: Path, rows: int, width: int, said: str
) -> None:
    np.save("new.npy", labelled_vectors(rows=rows, width=width)[0])
    refused = cli("predict", "--input", "test.csv", "--vectors", "new.npy", "--output", "out.csv")
    assert refused.code == SourceError.exit_code
    assert said in " ".join(refused.err.split())
    assert not Path("out.csv").exists()


def test_vectors_are_for_files_and_for_heads_on_vectors(cli: Cli, imported: Path) -> None:
    refused = cli("predict", "text", "--vectors", "test.npy")
    assert refused.code == UsageError.exit_code
    assert "--vectors is for the rows of a file" in refused.err
    cli.ok("train-head", *MODEL, "--head", "lexical")
    refused = cli("predict", "--run", "no-backbone-1", "--input", "test.csv", "--vectors", "test.npy",
                  "--output", "out.csv")  # fmt: skip
    assert refused.code == UsageError.exit_code
    assert "leave it out" in refused.err
