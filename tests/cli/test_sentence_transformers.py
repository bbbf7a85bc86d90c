"""Every command with a model that has sentence-transformers settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featcache.cache.catalog import CacheFile
from featcache.runs.run import load_run
from tests.support.cli_tools import Cli, contents
from tests.support.ray_runs import needs_ray
from tests.support.review_files import write_reviews
from tests.support.sentence_models import copy_of, write_json, write_settings
from tests.support.stock import load

VIEW = "last/cls+mean-dense-normalized"
NOTE = (
    "as its sentence-transformers settings say: first token and mean of the last layer, dense, normalised, "
    "at most 24 tokens, prompt 'good ' (by --prompt-name: other)"
)
TEXTS = ["房间很干净", "坏坏坏"]


@pytest.fixture
def work(tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with reviews, `plain`, a tiny BERT, and `model`, the same with settings."""
    write_reviews(tmp_path / "reviews")
    copy_of(tiny("bert"), tmp_path / "plain")
    with_settings(copy_of(tiny("bert"), tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_settings(folder: Path) -> Path:
    write_settings(
        folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, ["Dense", "Normalize"],
        about={"prompts": {"good": "good ", "other": "bad "}, "default_prompt_name": "good"},
        transformer={"max_seq_length": 24},
    )  # fmt: skip
    write_json(folder / "2_Dense" / "config.json", {"in_features": 64, "out_features": 10})
    torch.manual_seed(0)
    weights = {"linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder


def command(cli: Cli, name: str, *flags: str, model: str = "model", **how: Any) -> Any:
    """The JSON that a command prints with the reviews and a model in float32."""
    argv = [name, "--model", model, "--dataset", "reviews", "--dtype", "float32", *flags, "--json"]
    return cli.ok(*argv).json


def extracted(cli: Cli, *flags: str, model: str = "model") -> list[dict[str, Any]]:
    splits: list[dict[str, Any]] = command(cli, "extract", "--all-splits", *flags, model=model)["splits"]
    return splits


def test_every_command_follows_the_settings(cli: Cli, work: Path) -> None:
    argv = ["--model", "model", "--dataset", "reviews", "--dtype", "float32"]
    said = " ".join(cli.ok("extract", "--all-splits", *argv).err.split())
    assert said.count(NOTE) == 1
    again = extracted(cli)
    assert all(split["cached"] and split["views"] == [VIEW] for split in again)
    stored = CacheFile(Path(again[0]["path"])).features(VIEW).x
    assert stored.shape == (60, 10)
    np.testing.assert_allclose(np.linalg.norm(stored.astype(float), axis=1), 1, atol=2e-3)
    run = command(cli, "train-head", "--epochs", "3")
    assert run["view"] == VIEW
    record = load_run(Path("reports"), run["run"]).record
    assert record.features is not None
    assert (record.features.prompt, record.features.max_length) == ("good ", 24)
    assert command(cli, "inspect")["view"] == VIEW
    assert command(cli, "sweep", "--lr", "0.01", "--epochs", "2")["best"]["view"] == VIEW
    for how in (("--sample-seconds", "0.2"), ("--tokens", "20", "--tflops", "1")):
        plan = command(cli, "plan", "--rows", "1M", *how)
        row = plan["cache_bytes"] / 1e6
        assert 10 * 2 + 45 <= row < 10 * 2 + 46  # ten numbers of float16, label, hash, tokens, truncated
    drift = cli.ok("cache", "verify", "--reencode", "5", *argv[2:4], "--json").json["files"]
    assert {view["view"] for file in drift for view in file["reencoded"]["views"]} == {VIEW}
    predicted = cli.ok("predict", "--run", run["run"], *TEXTS, "--json").json
    assert len(predicted) == 2
    cli.ok("report", run["run"], "--output", "report.html")
    assert VIEW in Path("report.html").read_text(encoding="utf-8")


def test_prompts_and_poolings_are_chosen_by_flags(cli: Cli, work: Path) -> None:
    def encoder(*flags: str) -> tuple[tuple[str, ...], str, int]:
        (split,) = command(cli, "extract", "--split", "test", *flags)["splits"]
        document = CacheFile(Path(split["path"])).document
        return document.views, document.encoder.prompt, document.encoder.max_length

    assert encoder() == ((VIEW,), "good ", 24)
    assert encoder("--prompt-name", "other") == ((VIEW,), "bad ", 24)
    assert encoder("--prompt", "", "--max-length", "30") == ((VIEW,), "", 30)
    assert encoder("--pooling", "mean") == (("last/mean",), "", 64)
    assert encoder("--pooling", "auto,max", "--prompt-name", "other") == ((VIEW, "last/max"), "bad ", 24)
    argv = ["extract", "--split", "test", "--model", "model", "--dataset", "reviews"]
    cli.refused(2, [*argv, "--prompt-name", "tusk"], "no prompt named 'tusk'", "it has good, other")
    write_json(Path("model/1_Pooling/config.json"), {"pooling_mode": "attention"})
    cli.refused(4, argv, "its pooling 'attention' is not supported", "--pooling mean")


def test_explicit_poolings_have_the_files_of_a_plain_model(cli: Cli, work: Path) -> None:
    """The same names, and so the same fingerprints, and the same bytes."""
    flags = ("--pooling", "cls")
    plain = [Path(split["path"]) for split in extracted(cli, *flags, model="plain")]
    assert [Path(split["path"]) for split in extracted(cli, model="plain")] == plain  # what auto is there
    with_settings(Path("plain"))
    found = [Path(split["path"]) for split in extracted(cli, *flags, "--cache-dir", "again", model="plain")]
    assert [path.name for path in found] == [path.name for path in plain]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in plain]
    assert all(split["cached"] for split in extracted(cli, *flags, model="plain"))
    assert not any(split["cached"] for split in extracted(cli, model="plain"))


def test_a_head_that_is_trained_already_predicts_as_before(cli: Cli, work: Path) -> None:
    extracted(cli, "--pooling", "cls", model="plain")
    run = command(cli, "train-head", "--pooling", "cls", "--epochs", "3", model="plain")["run"]
    before = cli.ok("predict", "--run", run, *TEXTS, "--json").json
    with_settings(Path("plain"))
    assert cli.ok("predict", "--run", run, *TEXTS, "--json").json == before


def test_a_head_knows_the_modules_that_it_was_made_with(cli: Cli, work: Path) -> None:
    extracted(cli)
    run = command(cli, "train-head", "--epochs", "3")["run"]
    before = contents(Path("reports"))
    save_file({"linear.weight": torch.randn(10, 64)}, Path("model/2_Dense/model.safetensors"))
    result = cli("predict", "--run", run, *TEXTS)
    assert result.code != 0
    assert "2_Dense/model.safetensors" in result.err
    assert contents(Path("reports")) == before


def test_fine_tuning_trains_through_the_steps(cli: Cli, work: Path) -> None:
    flags = ("--train", "top-blocks:1", "--epochs", "2", "--batch-size", "16")
    run = command(cli, "finetune", *flags)
    assert run["view"] == VIEW
    head = load_run(Path("reports"), run["run"]).head()
    assert (head.encoder.prompt, head.encoder.max_length) == ("good ", 24)
    predicted = cli.ok("predict", "--run", run["run"], *TEXTS, "--json").json
    assert len(predicted) == 2
    trained = torch.from_numpy(np.asarray(head.scorer.tensors()["weight"]))
    assert trained.shape[1] == 10
    assert load(Path("model")).num_blocks == 3


@pytest.mark.usefixtures("onnx_graphs")
def test_exports_hold_the_steps_or_say_why_not(cli: Cli, work: Path) -> None:
    extracted(cli)
    run = command(cli, "train-head", "--epochs", "3")["run"]
    said = f"this head reads {VIEW}"
    cli.refused(6, ["export", run, "--output", "out"], "classify the first token", said)
    cli.ok("export", run, "--output", "onnx", "--format", "onnx")
    note = json.loads(Path("onnx/featcache.json").read_text(encoding="utf-8"))
    assert (note["view"], note["prompt"], note["max_length"]) == (VIEW, "good ", 24)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
def test_workers_make_the_file_of_one_process(cli: Cli, work: Path) -> None:
    one = Path(extracted(cli)[0]["path"]).read_bytes()
    argv = ["--model", "model", "--dataset", "reviews", "--dtype", "float32", "--cache-dir", "shared"]
    said = " ".join(cli.ok("extract", "--all-splits", *argv, "--workers", "2").err.split())
    assert said.count(NOTE) == 1
    assert Path(extracted(cli, "--cache-dir", "shared")[0]["path"]).read_bytes() == one


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_ray_makes_the_file_of_one_process(cli: Cli, work: Path) -> None:
    one = Path(extracted(cli)[0]["path"]).read_bytes()
    argv = ["--model", "model", "--dataset", "reviews", "--dtype", "float32", "--cache-dir", "shared"]
    engine = ["--engine", "ray", "--workers", "1"]
    said = " ".join(cli.ok("extract", "--split", "train", *argv, *engine).err.split())
    assert said.count(NOTE) == 1
    (split,) = command(cli, "extract", "--split", "train", "--cache-dir", "shared")["splits"]
    assert split["cached"]
    assert Path(split["path"]).read_bytes() == one
