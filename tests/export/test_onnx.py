"""Exported graphs, run by onnxruntime with the tokenizer beside them, say what the run's predictor says."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.made_run import NAMES, TEXTS, made_run
from tests.support.stock import encoder, load
from tests.support.text_families import build_family
from tests.support.tiny import CONFIGS

pytest.importorskip("onnxruntime", reason="needs: pip install 'featcache[onnx]'")

import onnxruntime

from featcache.errors import BackboneError, DiskError, HeadError, UsageError
from featcache.export import onnx as onnx_export
from featcache.export import onnx_graph
from featcache.export.onnx import export_onnx
from featcache.export.reference import SAMPLES, ExportedModel
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Neighbours
from featcache.prediction.predictor import Predictor
from featcache.runs.run import Run
from featcache_cli.main import main


@dataclass(frozen=True)
class Example:
    run: Run
    made: ExportedModel


@pytest.fixture(scope="module")
def example(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Everything at once: a prompt, trained blocks, bfloat16, a temperature."""
    folder = tmp_path_factory.mktemp("onnx")
    options: dict[str, Any] = {"view": "last/mean", "prompt": "very good: ", "max_length": 30}
    run = made_run(
        tiny("bert"),
        folder / "run",
        tuned=True,
        dtype="bfloat16",
        storage="float16",
        temperature=1.7,
        **options,
    )
    return Example(run, export_onnx(run, folder / "model"))


@pytest.fixture
def ready(example: Example, monkeypatch: pytest.MonkeyPatch) -> Example:
    """As if the graph of the example had just been traced: what is tested comes after that."""
    graph = example.made.folder / "model.onnx"
    monkeypatch.setattr(onnx_export, "write_graph", lambda _, __, path: shutil.copy(graph, path))
    return example


def logits_of(folder: Path, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """As a program in any language would do it, out of what is in the folder."""
    from transformers import AutoTokenizer

    note = json.loads((folder / "featcache.json").read_text(encoding="utf-8"))
    coded = AutoTokenizer.from_pretrained(folder)(
        [note["prompt"] + text for text in texts], pairs, padding=True, truncation=True,
        max_length=note["max_length"], return_tensors="np",
    )  # fmt: skip
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    given = {one.name: coded[one.name].astype(np.int64) for one in session.get_inputs()}
    assert list(given) == note["inputs"]
    found: np.ndarray = session.run(["logits"], given)[0]
    return found


def check(run: Run, folder: Path, atol: float = 1e-4, pairs: list[str] | None = None) -> np.ndarray:
    """The graph's probabilities are the predictor's; in one padded batch, and each text alone."""
    predictor = Predictor.from_run(run, device="cpu")
    expected = predictor.predict_proba(TEXTS, pairs)
    together = logits_of(folder, TEXTS, pairs)
    places = range(len(TEXTS))
    alone = [logits_of(folder, [TEXTS[n]], None if pairs is None else [pairs[n]])[0] for n in places]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    assert together.dtype == np.float32 and together.shape == (len(TEXTS), 3)
    found = probabilities_of(together, 1.0, multi_label=predictor.head.multi_label)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    assert expected.std(axis=0).min() > 0.03  # the head does tell texts apart
    return together


# ---------------------------------------------------------------- the logits


@pytest.mark.slow
def test_export_of_a_fine_tuned_run_in_bfloat16(example: Example) -> None:
    found = check(example.run, example.made.folder, atol=0.02)
    assert example.made.difference < 1e-4 and example.made.compared == len(SAMPLES)
    assert example.made.own_difference is not None and 1e-4 < example.made.own_difference < 0.1
    exact = encoder(load(Path(example.run.record.backbone.model)), "last/mean", max_length=30)
    untuned = example.run.head().logits(exact(["very good: " + text for text in TEXTS]).views["last/mean"])
    assert abs(untuned / 1.7 - found).max() > 0.1  # the trained blocks are in the graph


@pytest.mark.usefixtures("onnx_graphs")
def test_export_of_a_decoder_pools_the_last_real_token(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("gpt2"), tmp_path / "run", view="last/last", thresholds=np.array([0.2, 0.5, 0.75]))
    folder = export_onnx(run, tmp_path / "model").folder
    check(run, folder)
    printed = pasted(folder)
    assert len(printed) == 2 and all(set(labels) <= set(NAMES) for labels in printed)
    expected = Predictor.from_run(run, device="cpu").predict(SNIPPET_TEXTS)
    assert printed == [list(one.labels) for one in expected]


@pytest.mark.usefixtures("onnx_graphs")
def test_export_of_a_head_with_costs_decides_by_them(
    tiny: Callable[[str], Path], example: Example, tmp_path: Path
) -> None:
    """The third label is the cheapest answer unless one of the others is nearly certain."""
    costs = np.array([[0.0, 90, 1], [90, 0, 1], [1, 1, 0]])
    run = made_run(tiny("bert"), tmp_path / "run", costs=costs)
    folder = export_onnx(run, tmp_path / "model").folder
    assert json.loads((folder / "featcache.json").read_text(encoding="utf-8"))["costs"] == costs.tolist()
    expected = [one.label for one in Predictor.from_run(run, device="cpu").predict(SNIPPET_TEXTS)]
    assert pasted(folder) == expected
    assert NAMES[2] in expected
    noted = (example.made.folder / "featcache.json").read_text(encoding="utf-8")
    assert "costs" not in json.loads(noted)


@pytest.mark.slow
def test_export_with_extended_positions_a_hidden_layer_and_pairs(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    run = made_run(
        tiny("bert"), tmp_path / "run", scorer="mlp", extend_positions="copy", max_length=100, pairs=True
    )
    pairs = TEXTS[::-1]
    folder = export_onnx(run, tmp_path / "model").folder
    together = check(run, folder, pairs=pairs)
    assert abs(together - logits_of(folder, TEXTS, TEXTS)).max() > 0.01  # the second text counts
    assert "token_type_ids" in json.loads((folder / "featcache.json").read_text())["inputs"]
    assert len(pasted(folder)) == 2


def test_export_of_max_pooling_of_a_middle_layer(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions of this family begin at 2 and skip padding; weights that are too many lie beside it."""
    monkeypatch.setattr(onnx_graph, "ONE_FILE", 0)
    run = made_run(tiny("roberta"), tmp_path / "run", view="-2/max")
    folder = export_onnx(run, tmp_path / "model").folder
    check(run, folder)
    assert (folder / "model.onnx.data").stat().st_size > 4 * 2 * 2 * 32 * 48
    import onnx

    shapes = [sorted(weights.dims) for weights in onnx.load(folder / "model.onnx").graph.initializer]
    assert shapes.count([32, 48]) == 2 * 2  # two matrices of each of the two blocks that are needed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "view"),
    [(family, "last/last" if family in ("mistral", "qwen3") else "last/cls") for family in CONFIGS]
    + [("llama", "-2/last"), ("modernbert", "-2/mean"), ("albert", "-2/mean"), ("electra", "-4/mean")],
)
def test_export_of_every_family(family: str, view: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    view = "last/mean" if family in ("gpt2", "llama") and view == "last/cls" else view
    run = made_run(tiny(family), tmp_path / "run", view=view)
    check(run, export_onnx(run, tmp_path / "model").folder)


# ---------------------------------------------------------------- the folder


SNIPPET_TEXTS = ["房间很干净", "Broke after one day."]


def pasted(folder: Path) -> Any:
    """What the Python of the model card prints, run as it stands."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        exec(card.partition("```python\n")[2].partition("```")[0], {})
    return eval(out.getvalue())


def test_the_card_and_its_snippet(example: Example) -> None:
    card = (example.made.folder / "README.md").read_text(encoding="utf-8")
    assert "| test | 0.8765 |" in card and "| validation | 0.9000 | 0.8900 |" in card
    settings = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert settings["temperature"] == 1.7 and settings["rows"] == {"train": 60}
    data = {"dataset": {"train": "train.csv"}, "validation_share": 0.1, "similar_labels": "ask"}
    data |= {"skip_bad_rows": False}
    assert settings["data"] == data and "/private" not in card
    expected = Predictor.from_run(example.run, device="cpu").predict(SNIPPET_TEXTS)
    printed = pasted(example.made.folder)
    assert [label for label, _ in printed] == [one.label for one in expected]
    np.testing.assert_allclose([p for _, p in printed], [one.probability for one in expected], atol=0.02)


def test_the_exported_folder(example: Example, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = example.made.folder
    private = [str(place).encode() for place in (tmp_path_factory.getbasetemp(), f"{Path.home()}/")]
    for path in folder.iterdir():
        assert not any(place in path.read_bytes() for place in private), path.name
    names = {"model.onnx", "featcache.json", "config.json", "tokenizer.json", "README.md"}
    assert names <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["id2label"] == dict(
        zip("012", NAMES, strict=True)
    )
    note = json.loads((folder / "featcache.json").read_text(encoding="utf-8"))
    assert note["labels"] == list(NAMES) and note["prompt"] == "very good: " and note["max_length"] == 30
    graph = onnxruntime.InferenceSession(folder / "model.onnx")
    given = [(one.name, one.type, one.shape) for one in graph.get_inputs()]
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    assert given == [(name, "tensor(int64)", ["batch", "tokens"]) for name in inputs]
    assert [(one.name, one.shape) for one in graph.get_outputs()] == [("logits", ["batch", 3])]
    content = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b"onnx_graph.py" not in content  # no paths of this machine
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_export_command(ready: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model"
    argv = ["export", str(ready.run.folder), "--format", "onnx", "--output", str(target)]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["folder"], said["class"], said["compared"]) == (str(target), "BertModel", len(SAMPLES))
    assert said["largest_difference"] < 1e-4 < said["largest_difference_own"]
    assert main(argv) == 2 and "--force" in capsys.readouterr().err
    (target / "mine").write_text("mine")
    assert main([*argv, "--force"]) == 0
    assert not (target / "mine").exists() and (target / "model.onnx").exists()


# ---------------------------------------------------------------- refusals, and nothing half-written


@pytest.mark.parametrize("how", ["chunks", "head-tail"])
def test_export_refuses_long_texts_in_parts(how: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=f"--long-text {how}"):
        export_onnx(made_run(tiny("bert"), tmp_path / "run", long_text=how, overlap=8), tmp_path / "model")


def test_export_refuses_a_neighbours_head(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    x, labels = np.eye(3, 32, dtype=np.float32), np.arange(3)
    rows = Neighbours(x, labels, 3, 1, np.zeros(32), np.ones(32))
    with pytest.raises(HeadError, match="neighbours head"):
        export_onnx(made_run(tiny("bert"), tmp_path / "run", scorer=rows), tmp_path / "model")


def test_export_names_missing_packages(
    ready: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match=r"needs no_such_package[\s\S]*featcache\[onnx\]"):
        export_onnx(ready.run, tmp_path / "model")


def fail(error: BaseException) -> Callable[..., None]:
    def write_graph(_: Any, __: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    return write_graph


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            RuntimeError("no such operator\nmore"),
            BackboneError,
            r"BertModel\) cannot be exported[\s\S]*operator",
        ),
        (OSError(28, "No space left on device"), DiskError, "No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failed_export_leaves_nothing(
    error: BaseException,
    kind: type[BaseException],
    words: str | None,
    example: Example,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_export, "write_graph", fail(error))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "before").write_text("mine")
    with pytest.raises(kind, match=words):
        export_onnx(example.run, tmp_path / "model", force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "before"]


def test_export_refuses_a_graph_that_onnxruntime_cannot_read(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "write_graph", lambda _, __, path: path.write_bytes(b"half"))
    with pytest.raises(BackboneError, match="onnxruntime cannot run"):
        export_onnx(example.run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_export_writes_nothing_if_the_logits_differ(
    ready: Example, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The graph is that of another head."""
    run = made_run(tiny("bert"), tmp_path / "run", view="last/mean")
    with pytest.raises(
        BackboneError, match=r"other logits than the run in float32[\s\S]*nothing was written"
    ):
        export_onnx(run, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_writes_nothing_if_the_predictor_gives_other_logits(
    ready: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "OWN_TOLERANCE", {"bfloat16": 1e-4})
    with pytest.raises(BackboneError, match="other logits than the run's predictor"):
        export_onnx(ready.run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_a_model_that_padding_changes(tmp_path: Path) -> None:
    run = made_run(build_family("convbert", tmp_path / "convbert"), tmp_path / "run")
    with pytest.raises(BackboneError, match="reads padded batches, and ConvBertModel lets padding change"):
        export_onnx(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_export_of_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    run = made_run(build_family("t5", tmp_path / "t5"), tmp_path / "run", view="last/mean")
    assert export_onnx(run, tmp_path / "model").model_class == "T5EncoderModel"
