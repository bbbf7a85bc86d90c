"""`featcache train-head`: its scores, epochs, seeds and names."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from featcache.settings import options
from featcache_cli.main import main
from tests.support.cli_tools import (
    Cli,
    read_rows,
)

SPLITS = ["train", "validation", "test"]

pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_train_head_reports_the_scores_of_its_predictions(cli: Cli, trained: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    from tests.support.calibration_error import expected_calibration_error

    result = cli.ok("train-head", "--epochs", "5", "--json")
    run = result.json
    assert (run["run"], run["head"], run["view"]) == ("linear-last-cls-2", "linear", "last/cls")
    assert run["seconds"] > 0 and re.fullmatch("[0-9a-f]{64}", run["fingerprint"])
    assert set(run["metrics"]) == set(SPLITS) and run["epochs"] == 5
    for split in ("validation", "test"):
        table = pq.read_table(f"reports/{run['run']}/predictions-{split}.parquet").to_pydict()
        truth = [row["label"] for row in read_rows(f"reviews/{split}.jsonl")]
        assert table["label"] == truth
        names = ["bad", "good"]
        probabilities = np.array([table[f"probability:{name}"] for name in names]).T
        guesses = [names[i] for i in probabilities.argmax(axis=1)]
        assert run["metrics"][split] == pytest.approx(
            {
                "accuracy": accuracy_score(truth, guesses),
                "macro_f1": f1_score(truth, guesses, average="macro"),
                "micro_f1": f1_score(truth, guesses, average="micro"),
                "weighted_f1": f1_score(truth, guesses, average="weighted"),
                "log_loss": log_loss(truth, probabilities, labels=names),
                "ece": expected_calibration_error(probabilities, np.array([names.index(t) for t in truth])),
            }
        )
    assert run["metrics"]["test"]["accuracy"] > 0.6  # the labels can be learned
    plain = cli.ok("train-head", "--epochs", "5")
    for split in SPLITS:
        accuracy = 100 * run["metrics"][split]["accuracy"]
        assert re.search(rf"^ {split} +\d+ +{accuracy:.2f} ", plain.out, re.MULTILINE)


def test_the_best_epoch_is_chosen_on_validation(cli: Cli, trained: Path) -> None:
    run = cli.ok("train-head", "--epochs", "40", "--lr", "0.05", "--json").json
    history = json.loads(Path("reports", run["run"], "run.json").read_text())["history"]
    best = max(history, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert run["best_epoch"] == best["epoch"] < 40
    found = run["calibration"]
    assert found["log_loss_before"] == pytest.approx(best["validation_loss"], rel=1e-3)
    assert run["metrics"]["validation"]["log_loss"] == pytest.approx(found["log_loss_after"])
    assert found["log_loss_after"] <= found["log_loss_before"] + 1e-9


def test_the_same_seed_gives_the_same_head(cli: Cli, trained: Path) -> None:
    one, two, other = (cli.ok("train-head", "--json", "--epochs", "3", "--seed", s).json for s in "001")
    assert one["run"] != two["run"]
    assert one["metrics"] == two["metrics"] != other["metrics"]
    heads = [Path("reports", run["run"], "head.safetensors").read_bytes() for run in (one, two, other)]
    assert heads[0] == heads[1] != heads[2]


def test_without_a_test_split_there_is_no_test_score(cli: Cli, work: Path) -> None:
    cli.ok("extract", "--split", "train", "--split", "validation")
    result = cli.ok("train-head", "--epochs", "2", "--json")
    assert set(result.json["metrics"]) == {"train", "validation"}
    assert "featcache extract --split test" in result.err
    assert " - " in cli.ok("compare").out  # no number where there is none


def test_flags_win_over_the_file_and_the_file_over_defaults(cli: Cli, trained: Path) -> None:
    file = Path("featcache.toml")
    text = file.read_text(encoding="utf-8")

    def epochs(*flags: str) -> int:
        return int(cli.ok("train-head", "--json", *flags).json["epochs"])

    assert epochs() == options()["epochs"].default == 100
    file.write_text(text.replace("epochs = 100", "epochs = 7"), encoding="utf-8")
    assert (epochs(), epochs("--epochs", "3")) == (7, 3)
    file.rename("elsewhere.toml")
    assert epochs("--config", "elsewhere.toml") == 7


def test_concurrent_runs_have_distinct_names(trained: Path) -> None:
    count = 6
    gate = threading.Barrier(count)
    codes: list[int] = []

    def train() -> None:
        gate.wait()
        codes.append(main(["train-head", "--epochs", "2", "--quiet", "--json"]))

    threads = [threading.Thread(target=train) for _ in range(count)]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [0] * count
    runs = sorted(path.parent for path in Path("reports").glob("linear-*/run.json"))
    assert len(runs) == count + 1 and not list(Path("reports").glob(".tmp-*"))
    for folder in runs:
        assert json.loads((folder / "run.json").read_text())["run"] == folder.name
        assert {path.name for path in folder.iterdir()} >= {"head.safetensors", "head.json"}
