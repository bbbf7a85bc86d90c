"""Runs of the attentive head: states made where they are missing, then a run like any other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from featcache.backbone.model import Backbone
from featcache.errors import CacheError, CorruptCache, HeadError, UsageError
from featcache.export.huggingface import export_huggingface
from featcache.heads.head import load_head
from featcache.heads.scorers import Attentive
from featcache.prediction import attended
from featcache.prediction.explain import explain
from featcache.prediction.predictor import Predictor
from featcache.runs.run import Run, load_run
from featcache.runs.train import train_head
from featcache.settings import Settings, load_settings
from tests.support.cli_tools import Cli, read_rows
from tests.support.review_files import write_reviews
from tests.support.stock import one_thread

VIEW = "last,-2"


@dataclass(frozen=True)
class Work:
    """A working folder with cached states and one run; not to be changed."""

    folder: Path
    settings: Settings
    run: Run
    told: tuple[str, ...]

    def texts(self) -> list[str]:
        return [row["text"] for row in read_rows(str(self.folder / "reviews/test.jsonl"))]


def settings_in(folder: Path, model: Path, **more: object) -> Settings:
    places = {name: str(folder / name.removesuffix("_dir")) for name in ("cache_dir", "reports_dir")}
    given = {"model": str(model), "dataset": str(folder / "reviews"), "dtype": "float32"} | places
    return load_settings(given | {"queries": 8, "lr": 0.01} | more)


@pytest.fixture(scope="module")
def work(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    with one_thread():
        folder, told = tmp_path_factory.mktemp("attentive"), list[str]()
        write_reviews(folder / "reviews", 90)
        settings = settings_in(folder, tiny("bert"), prompt="very good: ", max_length=24)
        run = train_head(settings, "attentive", VIEW, report=lambda step: told.append(step.text))
        yield Work(folder, settings, run, tuple(told))


def test_states_are_made_once_with_their_size_told_first(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [text for text in work.told if "on disk" in text]
    assert [text.split(":")[0] for text in sizes] == [
        f"states of {split} at 2 layers" for split in ("train", "validation", "test")
    ]
    monkeypatch.setattr(Backbone, "states", None)  # nothing runs through the backbone again
    monkeypatch.setattr("featcache.backbone.model.find_packing", lambda _: ("packed", ""))
    monkeypatch.setattr("featcache.backbone.model.probe_layers", lambda _: (0, 64))
    monkeypatch.setattr("featcache.backbone.model.runs_pooled_alone", lambda _: False)
    again = train_head(work.settings, "attentive", VIEW)
    assert again.record.metrics == work.run.record.metrics
    shutil.rmtree(again.folder)


def test_the_run_is_predicted_as_it_was_scored(work: Work) -> None:
    record = work.run.record
    assert work.run.name == "attentive-last--2-1"
    assert record.view == "-2/attentive,last/attentive" and record.asked_view == VIEW
    assert record.rows == {"train": 90, "validation": 30, "test": 30}
    assert record.metrics["test"]["accuracy"] > 0.8 and record.best_epoch
    assert set(record.view_shares or {}) == {"-2/attentive", "last/attentive"}
    assert record.settings["queries"] == 8 and "epochs" not in record.settings
    assert sum(record.truncated.values()) > 0 and record.extraction_seconds > 0
    predictor = Predictor.from_run(load_run(work.folder / "reports", work.run.name))
    scored = work.run.predictions("test").probabilities
    np.testing.assert_allclose(predictor.predict_proba(work.texts()), scored, atol=2e-3)
    alone = np.concatenate([predictor.predict_proba([text]) for text in work.texts()[:4]])
    np.testing.assert_allclose(alone, scored[:4], atol=2e-3)
    assert work.run.head("last").views == work.run.head().views


def test_the_contributions_of_all_tokens_add_up_to_the_logit(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.prediction.attended.SHOWN", 1000)
    head = work.run.head()
    predictor = Predictor.from_run(work.run)
    assert predictor.encoder is not None
    text = "好喜欢房间，服务"
    (found,) = explain(head, [text], [0], encoder=predictor.encoder)
    assert [token.token for token in found.tokens] == list(text)
    assert found.spans == tuple((one.begin, one.end, one.weight) for one in found.tokens)
    encoder, scorer = predictor.encoder, head.scorer
    assert isinstance(scorer, Attentive)
    weights = scorer.weight - scorer.weight.mean(axis=0)
    batch = encoder.tokenize([text]).batch(np.array([0]))
    share, weight = attended._contributions(encoder, head.views, torch.from_numpy(weights[0]), batch)
    logits = head.logits(head.rows(encoder([text]).views))[0]
    bias = scorer.bias
    assert share.sum() == pytest.approx(1, abs=1e-5)
    wanted = (logits[0] - logits.mean()) - (bias[0] - bias.mean())
    assert weight.sum() == pytest.approx(wanted, abs=2e-2)
    inside = share[-len(text) - 1 : -1]  # between the prompt and [SEP]
    assert [one.share for one in found.tokens] == pytest.approx(inside.tolist(), abs=1e-6)


def test_predict_explain_marks_the_tokens(work: Work, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work.folder)
    found = cli.ok("predict", "好喜欢房间", "--run", work.run.name, "--explain", "--json").json[0]
    assert {one["token"] for one in found["explanation"]["tokens"]} == set("好喜欢房间")
    assert found["explanation"]["ngrams"] == []
    shown = cli.ok("predict", "好喜欢房间", "--run", work.run.name, "--explain").out
    assert "looked at" in shown and "n-gram" not in shown


def test_words_abstention_and_few_rows_go_with_it(work: Work) -> None:
    """On the states that are there: all of these read the same files."""
    from dataclasses import replace

    from featcache.settings import AbstentionSettings

    words = train_head(work.settings, "attentive", f"{VIEW},lexical")
    predictor = Predictor.from_run(words)
    scored = words.predictions("test").probabilities
    np.testing.assert_allclose(predictor.predict_proba(work.texts()), scored, atol=2e-3)
    (found,) = explain(words.head(), ["好喜欢房间"], [0], encoder=predictor.encoder)
    assert found.tokens and found.ngrams
    assert found.spans != tuple((one.begin, one.end, one.weight) for one in found.tokens)
    held = replace(work.settings, abstention=AbstentionSettings(coverage=0.5, confidence=0.5))
    run = train_head(held, "attentive", VIEW)
    assert run.record.abstention and run.record.abstention.distance in ("mahalanobis", "neighbours")
    said = Predictor.from_run(run).predict(work.texts())
    judged = sum(one.abstained for one in said)
    about = run.record.abstention.splits["test"]
    assert abs(judged - (about.rows - about.answered)) <= 1
    few = train_head(work.settings, "attentive", VIEW, rows_per_class=10)
    assert few.record.rows["train"] == 20
    for made in (words, run, few):
        shutil.rmtree(made.folder)


@pytest.mark.parametrize(
    ("view", "what"),
    [("last/mean", "pools tokens itself"), ("lexical", "reads token states"), ("9", "has 3 blocks"),
     ("last,", "reads layers"), ("last/cls+mean", "pools tokens itself")],
)  # fmt: skip
def test_layers_that_cannot_be_read_are_refused(work: Work, view: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        train_head(work.settings, "attentive", view)


def test_windows_damage_a_full_disk_and_other_kinds_are_refused(
    work: Work, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = settings_in(work.folder, tiny("bert"), long_text="chunks", overlap=4)
    with pytest.raises(UsageError, match="not windows of long ones"):
        train_head(windows, "attentive", VIEW)
    with pytest.raises(UsageError, match="fitted by one worker"):
        from featcache.heads.distributed import ProcessGroup

        train_head(work.settings, "attentive", VIEW, group=ProcessGroup(0, 2))
    with pytest.raises(HeadError, match="has no place in a stock classification model"):
        export_huggingface(work.run, tmp_path / "stock")
    copied = tmp_path / "copy"
    shutil.copytree(work.folder, copied)
    other = settings_in(copied, tiny("bert"), prompt="very good: ", max_length=24)
    (path,) = copied.rglob("states/train-cut3-*.h5")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCache, match="damaged"):
        train_head(other, "attentive", VIEW)
    path.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 10))
    with pytest.raises(CacheError, match=r"states of train before block 3 needs .* free"):
        train_head(other, "attentive", VIEW)


def test_other_rows_have_states_of_their_own(work: Work, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(work.folder, copied)
    before = set(copied.rglob("states/*.h5"))
    lines = (copied / "reviews/train.jsonl").read_text(encoding="utf-8").splitlines()
    (copied / "reviews/train.jsonl").write_text("\n".join(lines[:60]) + "\n", encoding="utf-8")
    other = settings_in(copied, tiny("bert"), prompt="very good: ", max_length=24)
    run = train_head(other, "attentive", VIEW)
    assert run.record.rows["train"] == 60
    made = set(copied.rglob("states/*.h5")) - before
    assert sorted(path.name.split("-")[0] for path in made) == ["train", "train"]


def test_a_head_that_was_changed_is_refused(work: Work, tmp_path: Path) -> None:
    shutil.copytree(work.run.folder, tmp_path / "run")
    path = tmp_path / "run/head.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for view in ("last/attentive", "-2/attentive,-3/attentive,last/attentive", "-2/mean,last/mean"):
        from featcache.fingerprint import EncoderDocument
        from featcache.heads.head import view_fingerprint

        mark = view_fingerprint(EncoderDocument.from_json(document["encoder"]), view)
        path.write_text(json.dumps(document | {"view": view, "fingerprint": mark}), encoding="utf-8")
        with pytest.raises(HeadError, match="does not fit its view"):
            load_head(tmp_path / "run")
    assert os.listdir(tmp_path / "run")


@pytest.mark.usefixtures("onnx_graphs")
def test_the_exported_graph_gives_the_logits_of_the_run(work: Work, tmp_path: Path) -> None:
    from featcache.export.onnx import export_onnx

    made = export_onnx(work.run, tmp_path / "graph")
    assert made.difference < 1e-4 and (made.own_difference or 0) < 0.01
    note = json.loads((tmp_path / "graph/featcache.json").read_text(encoding="utf-8"))
    assert note["view"] == "-2/attentive,last/attentive"


def test_the_server_marks_what_was_looked_at(work: Work) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from starlette.testclient import TestClient

    from featcache.serving.app import Service

    predictor, text = Predictor.from_run(work.run), "好喜欢房间"
    with TestClient(Service(predictor).app, base_url="http://127.0.0.1") as client:
        assert client.get("/info").json()["explains"] is True
        found = client.post("/predict", json={"text": text, "explain": True}).json()
        plain = client.post("/predict", json={"text": text}).json()
    assert plain["marks"] is None and plain["label"] == found["label"]
    (why,) = predictor.explain(predictor.predict([text]))
    assert [text[one["begin"] : one["end"]] for one in found["marks"]] == [one.token for one in why.tokens]
    shares = [one["share"] for one in found["marks"]]
    assert shares == pytest.approx([one.share for one in why.tokens], abs=1e-5)
