"""Fine-tuning above the cut: the loop, the run it leaves, and the model that is put together from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import FeatcacheError, HeadError, UsageError
from featcache.export.huggingface import export_huggingface
from featcache.extraction.api import extract_splits
from featcache.finetuning.finetune import finetune
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.tuning import TrainingStep
from featcache.prediction.predictor import Predictor
from featcache.reporting.build import build_report
from featcache.runs.compare import compare_runs
from featcache.runs.run import Run, choose_run, load_run
from featcache.runs.train import train_head
from featcache.settings import Settings, load_settings
from featcache.system.progress import Progress
from tests.support.cli_tools import Cli, read_rows, widest, write_rows
from tests.support.review_files import write_reviews
from tests.support.stock import one_thread
from tests.support.tiny import build

QUICK = Recipe(epochs=2, lr=1e-3, head_lr=1e-2, batch_size=8)


@pytest.fixture(autouse=True, scope="module")
def on_one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps its Arrow files in a folder of the tests."""
    import datasets

    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
        yield


# ---------------------------------------------------------------- the run


def settings_in(folder: Path, model: Path, rows: int = 60, **changes: Any) -> Settings:
    files = write_reviews(folder / "reviews", rows)
    asked = {
        "model": str(model), "data_files": {name: str(path) for name, path in files.items()},
        "dtype": "float32", "views": "last/mean", "max_length": 40,
        "cache_dir": str(folder / "cache"), "reports_dir": str(folder / "reports"),
    }  # fmt: skip
    return load_settings(asked | changes)


@dataclasses.dataclass
class Made:
    settings: Settings
    run: Run

    def states(self) -> list[Path]:
        return list(Path(self.settings.paths.cache_dir).rglob("states/*.h5"))

    def texts(self, split: str = "test") -> list[str]:
        path = (self.settings.data.data_files or {})[split]
        return [json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    asked = settings_in(tmp_path_factory.mktemp("made"), tiny("bert"))
    return Made(asked, finetune(asked, "top-blocks:2", dataclasses.replace(QUICK, epochs=3)))


@pytest.mark.parametrize("train", ["top-blocks:1", "all"])
def test_texts_in_another_language_are_warned_of(
    train: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    asked, notes = settings_in(tmp_path, tiny("bert"), 20), list[str]()
    path = Path((asked.data.data_files or {})["train"])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row | {"text": f"สวัสดี {row['text'][:1]}"}) + "\n" for row in rows))

    def told(progress: Progress) -> None:
        notes.append(progress.text)

    run = finetune(asked, train, dataclasses.replace(QUICK, epochs=1), report=told)
    assert run.record.unknown_tokens == {"train": 0.5, "validation": 0.0, "test": 0.0}
    (text,) = (text for text in notes if "unknown" in text)
    assert text.startswith("train: 50.0% of the tokens are unknown to the model's vocabulary; is the model")


def test_finetune_saves_a_run_with_a_whole_record(made: Made) -> None:
    about = load_run(Path(made.settings.paths.reports_dir), made.run.name).record.to_json()
    assert about["head"] == "top-blocks:2" and about["view"] == "last/mean" and about["seed"] == 0
    assert set(about["metrics"]) == {"validation", "test"} == set(about["intervals"])
    low, high = about["intervals"]["test"]["accuracy"]
    assert low <= about["metrics"]["test"]["accuracy"] <= high
    files = made.states()
    assert about["bytes_cached"] == sum(path.stat().st_size for path in files) > 0 and len(files) == 3
    assert about["extraction_seconds"] > 0 and about["seconds"] > 0
    assert about["settings"]["lr"] == 1e-3 and about["finetune"]["cut"] == 1
    assert len(about["history"]) == 3 == about["epochs"] and about["finetune"]["steps"] == 24
    assert not list(Path(made.settings.paths.reports_dir).glob(".*"))


def test_the_predictor_repeats_the_predictions_of_the_run(made: Made) -> None:
    predictor = Predictor.from_run(made.run)
    found, said = predictor.predict_proba(made.texts()), made.run.predictions("test").probabilities
    np.testing.assert_allclose(found, said, atol=2e-4)  # features are stored in float16
    assert predictor.encoder.document.tuned.part == "top-blocks:2"
    frozen = finetune_free(made)
    assert np.abs(frozen.encoder(made.texts()).views["last/mean"].astype(float)
                  - predictor.encoder(made.texts()).views["last/mean"]).max() > 1e-2  # fmt: skip


def finetune_free(made: Made) -> Predictor:
    """The predictor of a plain head on the same frozen features."""
    extract_splits(made.settings, ["train", "validation", "test"])
    return Predictor.from_run(train_head(made.settings, "logistic"))


def test_words_stand_beside_a_fine_tuned_head(made: Made) -> None:
    recipe = dataclasses.replace(QUICK, epochs=3)
    run = finetune(made.settings, "top-blocks:2", recipe, "last/mean,lexical")
    about = run.record
    assert about.view == "last/mean,lexical" and about.finetune is not None
    assert about.solver["ngrams"] > 0 and {"factor_of_features", "factor_of_words"} <= set(about.solver)
    assert about.seconds > 0 and [line.train_loss for line in about.history] == [
        line.train_loss
        for line in made.run.record.history  # words do not change what is trained
    ]
    predictor = Predictor.from_run(load_run(run.folder.parent, run.name))
    found, said = predictor.predict_proba(made.texts()), run.predictions("test").probabilities
    np.testing.assert_allclose(found, said, atol=2e-4)
    assert np.abs(said - made.run.predictions("test").probabilities).max() > 1e-3
    (why,) = predictor.explain(predictor.predict(made.texts()[:1]))
    assert why.ngrams
    finetune_free(made)
    report = build_report([run, made.run])
    assert report.map and any("before fine-tuning" in note for note in report.notes)
    assert run.head("last").ngrams is not None


def test_blocks_are_not_trained_on_words_alone(made: Made) -> None:
    with pytest.raises(UsageError, match="lexical alone has no blocks") as caught:
        finetune(made.settings, "top-blocks:2", QUICK, "lexical")
    assert caught.value.hint == "e.g. --view last/mean,lexical"


def test_build_report_inspects_the_features_of_the_frozen_backbone(made: Made) -> None:
    finetune_free(made)
    states = [path.rename(path.with_suffix(".gone")) for path in made.states()]
    report = build_report([made.run])  # without the states
    for path in states:
        path.rename(path.with_suffix(".h5"))
    assert report.map and report.map.rows == 20 and report.lengths and report.cost is None
    assert all(one.tokens for one in report.mistakes)
    assert any("before fine-tuning" in note for note in report.notes)
    assert not any("not shown" in note for note in report.notes)


def test_compare_runs_compares_fine_tuned_runs_with_frozen_ones(made: Made) -> None:
    plain = finetune_free(made)
    runs = [made.run, train_head(made.settings, "logistic")]
    compared = compare_runs(runs, base=runs[1])
    assert [each.run.name for each in compared.made] == [made.run.name] and compared.made[0].rows == 20
    assert plain.head.fingerprint != made.run.head().fingerprint
    with pytest.raises(HeadError, match=r"other features.*tuned"):
        Predictor(plain.encoder, made.run.head())
    with pytest.raises(HeadError, match=r"other features.*tuned"):
        Predictor(Predictor.from_run(made.run).encoder, plain.head)


def test_the_predictor_refuses_another_backbone(made: Made, tmp_path: Path) -> None:
    other = build("bert", tmp_path / "other", seed=1)
    with pytest.raises(HeadError, match="trained with other files"):
        Predictor.from_run(made.run, model=str(other))
    for named, kind in (("openai+http://localhost:1/v1#m", "an endpoint"), ("vectors:x", "imported vectors")):
        with pytest.raises(HeadError, match=f"and --model names {kind}"):
            Predictor.from_run(made.run, model=named)


def test_the_predictor_refuses_changed_or_missing_trained_weights(made: Made, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(made.run.folder, folder)
    for path in folder.glob("trained*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(HeadError, match="missing or was changed"):
        Predictor.from_run(load_run(tmp_path, "run"))
    for path in folder.glob("trained*.safetensors"):
        path.unlink()
    with pytest.raises(HeadError, match="missing or was changed"):
        Predictor.from_run(load_run(tmp_path, "run"))


def test_finetune_keeps_the_last_epoch_beside_the_best(made: Made) -> None:
    last = made.run.head("last")
    assert last.fingerprint != made.run.head().fingerprint or made.run.record.best_epoch == 3
    assert (made.run.folder / "trained-last.safetensors").is_file()
    assert last.encoder.tuned.part == "top-blocks:2"


def test_finetune_makes_states_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.extraction import states_cache as states

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("states were made again")

    monkeypatch.setattr(states, "_StatesMaker", never)
    again = finetune(made.settings, "top-blocks:2", QUICK, "last/cls")
    assert again.record.extraction_seconds == made.run.record.extraction_seconds
    assert again.record.view == "last/cls"


def test_finetune_learns_what_frozen_features_do_not_show(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = settings_in(tmp_path, tiny("llama"), rows=120)
    run = finetune(asked, "top-blocks:2", dataclasses.replace(QUICK, epochs=4))
    assert run.metric("test", "accuracy") > 0.9
    losses = [line.train_loss for line in run.history]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("family", "part", "dtype"), [
    ("gpt2", "top-blocks:1", "bfloat16"), ("distilbert", "all", "float32"),
    ("roberta", "positions", "float32"), ("deberta-v2", "top-blocks:2", "float32"),
    ("modernbert", "top-blocks:3", "bfloat16"),
])  # fmt: skip
def test_finetune_of_every_part_can_predict(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, part: str, dtype: str
) -> None:
    asked = settings_in(tmp_path, tiny(family), rows=30, dtype=dtype)
    run = finetune(asked, part, dataclasses.replace(QUICK, epochs=1))
    found = Predictor.from_run(run).predict_proba(Made(asked, run).texts())
    np.testing.assert_allclose(found, run.predictions("test").probabilities, atol=1e-2)
    cached = list((tmp_path / "cache").rglob("*.h5"))
    assert bool(cached) == part.startswith("top")


def test_finetune_with_extended_positions(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    asked = settings_in(tmp_path, tiny("bert"), rows=30, max_length=100, extend_positions="copy")
    long = [("好喜欢" * 30, "good"), ("坏差" * 45, "bad")] * 8
    for split in ("train", "validation", "test"):
        write_rows(Path((asked.data.data_files or {})[split]), long)
    for part in ("positions", "top-blocks:1"):
        run = finetune(asked, part, dataclasses.replace(QUICK, epochs=1))
        found = Predictor.from_run(run).predict_proba([text for text, _ in long])
        np.testing.assert_allclose(found, run.predictions("test").probabilities, atol=2e-4)
        assert run.record.truncated["train"] == 0
        if part == "positions":
            from safetensors.torch import load_file

            (table,) = load_file(run.folder / "trained.safetensors").values()
            assert table.shape == (100, 32)


def test_finetune_with_several_labels(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    asked = settings_in(tmp_path, tiny("bert"), label_separator=";")
    for path in (asked.data.data_files or {}).values():
        write_rows(
            Path(path),
            [("好房间", "good;room"), ("坏房间", "bad;room"), ("好书", "good"), ("坏书", "bad")] * 6,
        )
    run = finetune(asked, "top-blocks:1", QUICK)
    assert run.record.task == "multi-label" and run.head().multi_label
    found = Predictor.from_run(run).predict_proba(["好房间", "坏书"])
    assert found.shape == (2, 3)


def test_finetune_chooses_on_validation_rows_that_do_not_leak(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = settings_in(tmp_path, tiny("bert"))
    files = {name: Path(path) for name, path in (asked.data.data_files or {}).items()}
    turned = {"good": "bad", "bad": "good"}
    leaked = [(f" {row['text']}", turned[row["label"]]) for row in read_rows(files["train"])[:5]]
    own = [(row["text"], row["label"]) for row in read_rows(files["validation"])]
    write_rows(files["validation"], [*leaked, *own])
    one = finetune(asked, "top-blocks:1", QUICK).record
    write_rows(files["validation"], own)
    two = finetune(asked, "top-blocks:1", QUICK).record
    assert one.clean is not None and one.clean.leaked == {"validation": 5, "test": 0}
    assert (one.history, one.best_epoch) == (two.history, two.best_epoch)
    assert one.calibration == two.calibration
    assert one.clean.metrics["validation"] == pytest.approx(two.metrics["validation"])


# ---------------------------------------------------------------- pairs of texts


def paired_settings(folder: Path, model: Path, **changes: Any) -> Settings:
    """Rows whose label depends only on the second text."""
    draw = np.random.default_rng(0)
    files = {}
    for split, count in (("train", 40), ("validation", 16), ("test", 16)):
        lines = [
            json.dumps(
                {"text": "".join(draw.choice(list("房间服务酒店"), 4)), "other": other, "label": label}
            )
            for other, label in [("好喜欢", "good"), ("坏失望", "bad")] * (count // 2)
        ]
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = {
        "model": str(model), "data_files": {name: str(path) for name, path in files.items()},
        "pair_column": "other", "dtype": "float32", "views": "last/cls", "max_length": 40,
        "cache_dir": str(folder / "cache"), "reports_dir": str(folder / "reports"),
    }  # fmt: skip
    return load_settings(asked | changes)


@pytest.fixture(scope="module", params=["top-blocks:2", "all"])
def paired(
    request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run fine-tuned on pairs, with a prompt."""
    asked = paired_settings(tmp_path_factory.mktemp("paired"), tiny("bert"), prompt="very good: ")
    return finetune(asked, request.param, QUICK)


def test_finetune_on_pairs_records_that_they_are_pairs(paired: Run, made: Made) -> None:
    assert json.loads((paired.folder / "run.json").read_bytes())["pairs"] is True
    assert load_run(paired.folder.parent, paired.name).record.pairs is True
    assert made.run.record.pairs is False


def test_the_predictor_of_a_run_finetuned_on_pairs_asks_for_pairs(paired: Run, made: Made) -> None:
    predictor = Predictor.from_run(paired)
    assert predictor.pairs is True
    predictor.check_pairs(True)
    with pytest.raises(HeadError, match=r"trained on pairs of texts[\s\S]*--pair"):
        predictor.check_pairs(False)
    with pytest.raises(HeadError, match="trained on single texts"):
        Predictor.from_run(made.run).check_pairs(True)
    lines = Path((paired.record.data or Settings().data).data_files["test"]).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    found = predictor.predict_proba([row["text"] for row in rows], [row["other"] for row in rows])
    np.testing.assert_allclose(found, paired.predictions("test").probabilities, atol=2e-4)


def test_the_hugging_face_export_of_a_run_finetuned_on_pairs_refuses_the_prompt(
    paired: Run, tmp_path: Path
) -> None:
    with pytest.raises(HeadError, match="before both texts"):
        export_huggingface(paired, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("onnx_graphs")
@pytest.mark.parametrize(
    "paired", ["top-blocks:2", pytest.param("all", marks=pytest.mark.slow)], indirect=True
)
def test_the_onnx_export_of_a_run_finetuned_on_pairs_takes_pairs(paired: Run, tmp_path: Path) -> None:
    from featcache.export.onnx import export_onnx

    folder = export_onnx(paired, tmp_path / "model").folder
    note = json.loads((folder / "featcache.json").read_text(encoding="utf-8"))
    assert note["pairs"] is True and "prompt + text, pair" in note["tokenize"]
    assert "token_type_ids" in note["inputs"]
    assert "pairs = [" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("part", "changes", "words"), [
    ("top-blocks:4", {}, "has 3 blocks"),
    ("top-blocks:1", {"views": "-2/mean"}, "pools the last layer"),
    ("top-blocks:1", {"long_text": "chunks", "overlap": 2}, "windows of long texts"),
    ("all", {"long_text": "chunks", "overlap": 2}, "windows of long texts"),
    ("top-blocks:1", {"dtype": "float16"}, "float32 or bfloat16, not float16"),
    ("some", {}, "no part of a model"),
])  # fmt: skip
def test_finetune_refuses_before_anything_is_made(
    tiny: Callable[[str], Path], tmp_path: Path, part: str, changes: dict[str, Any], words: str
) -> None:
    asked = settings_in(tmp_path, tiny("bert"), **changes)
    with pytest.raises(FeatcacheError, match=words):
        finetune(asked, part, QUICK)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.h5"))
    assert not (tmp_path / "reports").exists()


def test_finetune_refuses_a_single_class(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    asked = settings_in(tmp_path, tiny("bert"))
    for path in (asked.data.data_files or {}).values():
        write_rows(Path(path), [("好", "good")] * 4)
    with pytest.raises(FeatcacheError, match="two classes"):
        finetune(asked, "top-blocks:1", QUICK)


def test_finetune_continues_a_killed_training_and_leaves_no_checkpoint(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = settings_in(tmp_path, tiny("bert"))

    def kill(step: TrainingStep) -> None:
        if step.line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(asked, "top-blocks:1", QUICK, progress=kill)
    reports = tmp_path / "reports"
    assert len(list(reports.glob(".finetune-*"))) == 1
    told: list[str] = []
    run = finetune(asked, "top-blocks:1", QUICK, progress=lambda step: told.append(step.text))
    assert "going on from step 8 of 16" in told and run.record.epochs == 2
    assert [path.name for path in reports.iterdir()] == [run.name]
    whole = finetune(asked, "top-blocks:1", QUICK, resume=False)
    assert whole.history == run.history and whole.record.metrics == run.record.metrics


# ---------------------------------------------------------------- the command


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    from featcache_cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    if "finetune" not in main.COMMANDS:
        monkeypatch.setattr(main, "COMMANDS", (*main.COMMANDS, "finetune"))
    return Cli(capsys)


def arguments(tiny: Callable[[str], Path]) -> list[str]:
    files = write_reviews(Path("reviews"), 30)
    given = ",".join(f"{name}={path}" for name, path in files.items())
    return ["finetune", "--model", str(tiny("bert")), "--data-files", given, "--dtype", "float32",
            "--views", "last/mean", "--max-length", "40", "--epochs", "2", "--batch-size", "8"]  # fmt: skip


def test_finetune_command(tiny: Callable[[str], Path], cli: Cli) -> None:
    argv = arguments(tiny)
    result = cli.ok(*argv, "--train", "top-blocks:1", "--lr", "1e-3")
    assert "top-blocks:1 head on last/mean" in result.out and "states cached" in result.out
    assert "8 steps" in result.out and widest(result.out) <= 80
    answer = cli.ok(*argv, "--train", "top-blocks:1", "--json", "--quiet")
    assert answer.err == ""
    assert answer.json["settings"]["lr"] == 2e-4 and answer.json["finetune"]["steps"] == 8
    assert answer.json["bytes_cached"] > 0
    assert choose_run(Path("reports"), None).record.head == "top-blocks:1"
    said = cli.ok("predict", "好喜欢", "--run", answer.json["run"], "--json")
    assert said.json[0]["label"] in ("good", "bad")
    compared = cli.ok("compare", "--json")
    assert answer.json["run"] in compared.out


def test_finetune_command_for_a_head_equals_train_head(tiny: Callable[[str], Path], cli: Cli) -> None:
    argv = arguments(tiny)
    cli.ok("extract", "--all-splits", *argv[1:11], "--quiet")
    result = cli.ok(*argv, "--train", "head", "--json")
    assert result.json["head"] == "linear" and result.json["epochs"] == 2
    cli.refused(2, [*argv, "--train", "head", "--clip", "1"], "--clip is for blocks")


@pytest.mark.parametrize(("flags", "words"), [
    (("--train", "top-blocks:9"), "has 3 blocks"), (("--train", "top"), "no part of a model"),
    (("--lr", "0"), "--lr"), (("--head-lr", "nan"), "--head-lr"), (("--epochs", "0"), "--epochs"),
    (("--warmup", "1"), "--warmup"), (("--schedule", "steep"), "--schedule"), (("--clip", "x"), "--clip"),
])  # fmt: skip
def test_finetune_command_refuses_values_out_of_range(
    tiny: Callable[[str], Path], cli: Cli, flags: tuple[str, str], words: str
) -> None:
    cli.refused(2, [*arguments(tiny), *flags], words)
