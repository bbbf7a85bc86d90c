"""What is hashed is what is used: a model or data that change under an extraction are refused by name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.backbone.encoder import Encoder
from featcache.data import arrow_table
from featcache.data.split import load_splits
from featcache.errors import BackboneError, SourceError
from featcache.extraction.job import Job
from featcache.settings import FeatureSettings
from featcache.system.progress import Progress
from tests.support.cli_tools import arrow_in, environment
from tests.support.extraction import Case, one_thread, some_texts, write_case
from tests.support.tiny import build

pytestmark = pytest.mark.bad_input("wrong vectors")


@pytest.fixture(autouse=True)
def arrow_files(tmp_path: Path) -> Iterator[None]:
    with arrow_in(tmp_path / "arrow"), one_thread():
        yield


@pytest.fixture
def case(tiny: Callable[[str], Path], tmp_path: Path) -> Case:
    """Data, a model of its own, and an empty cache."""
    return write_case(tmp_path / "case", tiny("bert")).own_model()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of the same shapes with other weights."""
    return build("bert", tmp_path_factory.mktemp("other"), seed=9)


def sealed(case: Case) -> list[Path]:
    return [*case.cache.rglob("*.h5"), *case.cache.rglob("block-*")]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_file_that_is_replaced_after_it_was_hashed(case: Case, other: Path, name: str) -> None:
    before = (case.model / name).read_bytes()
    job = Job(case.settings())
    changed = (other / name).read_bytes() if name == "model.safetensors" else before + b"\n"
    (case.model / name).write_bytes(changed)
    with pytest.raises(BackboneError, match=rf"{name} changed while the model was loaded"):
        job.run(["train"])
    assert sealed(case) == []
    (case.model / name).write_bytes(before)
    assert case.extract().encoded > 0


def test_a_tokenizer_file_that_appears_after_the_others_were_hashed(case: Case) -> None:
    job = Job(case.settings())
    (case.model / "added_tokens.json").write_text('{"hotel": 5}')
    with pytest.raises(BackboneError, match=r"added_tokens.json changed"):
        job.run(["train"])
    assert sealed(case) == []


def test_weights_that_are_overwritten_after_loading_change_no_vector(case: Case, other: Path) -> None:
    settings, encoder_settings = case.settings(device="cpu"), FeatureSettings(views=("last/mean",))
    encoder = Encoder.load(settings.backbone, encoder_settings)
    with (case.model / "model.safetensors").open("r+b") as file:  # the same inode: a memory map would see it
        file.write((other / "model.safetensors").read_bytes())
    found = encoder(some_texts(5, 3)).views["last/mean"]
    (case.folder / "again").mkdir()
    unchanged = build("bert", case.folder / "again")
    wanted = Encoder.load(replace(settings.backbone, model=str(unchanged)), encoder_settings)
    assert np.array_equal(found, wanted(some_texts(5, 3)).views["last/mean"])


@pytest.mark.hostile("wrong vectors")
def test_another_process_replaces_the_weights_while_they_are_loaded(case: Case, other: Path) -> None:
    """The whole command, with the race made certain: see `swapped_on_load` below."""
    import subprocess

    argv = [sys.executable, __file__, case.model / "model.safetensors", other / "model.safetensors"]
    argv += ["extract", "--split", "train", "--model", case.model, "--dataset", case.data]
    argv += ["--cache-dir", case.cache, "--dtype", "float32"]
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, env=environment(), timeout=180
    )
    assert done.returncode == 4, done.stderr
    assert "model.safetensors changed while the model was loaded" in done.stderr
    assert "defect" not in done.stderr and sealed(case) == []


@pytest.mark.parametrize("saved", [False, True], ids=["file", "folder"])
def test_data_that_is_replaced_after_it_was_hashed(case: Case, saved: bool) -> None:
    if saved:
        _save(case, case.folder / "saved", case.rows())
    settings = case.settings(dataset=str(case.folder / "saved" if saved else case.data))
    job, rows = Job(settings), case.rows()
    if saved:
        shutil.rmtree(case.folder / "saved")
        _save(case, case.folder / "saved", rows[::-1])
    else:
        case.write(rows[::-1])
    name = "arrow" if saved else r"train.jsonl \(train\)"
    with pytest.raises(SourceError, match=rf"{name}.* changed while the rows were read"):
        job.run(["train"])
    assert sealed(case) == []
    result = Job(settings).run(["train"])[0]
    texts = load_splits(settings.data, ["train"], seed=0)["train"].texts(slice(None))
    wanted = [row["text"] for row in rows[::-1] if row["text"] in texts]  # some may be held out
    assert result.encoded == len(texts) >= 50 and texts == wanted


def test_rows_of_a_changing_file_are_not_kept(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` would give them to every later call that finds the first content in the file."""
    rows, opened = case.rows(), arrow_table.open_data_file

    def replaced_first(path: Path, data: Any) -> Any:
        case.write(rows[::-1])
        return opened(path, data)

    data = case.settings().data
    with monkeypatch.context() as patch, pytest.raises(SourceError, match="changed while the rows were read"):
        patch.setattr(arrow_table, "open_data_file", replaced_first)
        load_splits(data, ["train"], seed=0)
    case.write(rows)
    texts = load_splits(data, ["train"], seed=0)["train"].texts(slice(None))
    assert texts == [row["text"] for row in rows]


def test_texts_that_change_between_hashing_and_encoding(case: Case) -> None:
    """A saved dataset is memory-mapped: a program can write to the file that its texts are read from."""
    folder = case.folder / "saved"
    _save(case, folder, case.rows())

    def overwrite(event: Progress) -> None:
        if event.stage == "load":  # after the rows were hashed
            (path,) = folder.rglob("*.arrow")
            content = path.read_bytes().replace("好".encode(), "坏".encode())
            with path.open("r+b") as file:
                file.write(content)

    with pytest.raises(SourceError, match="texts of train changed while they were read"):
        Job(case.settings(dataset=str(folder)), overwrite).run(["train"])
    assert sealed(case) == []


def _save(case: Case, folder: Path, rows: list[dict[str, Any]]) -> None:
    import datasets

    labels = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    columns = {name: [row[name] for row in rows] for name in ("text", "label")}
    train = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": train}).save_to_disk(str(folder))


def swapped_on_load(target: str, other: str) -> None:
    """Let another process replace `target` by `other` when transformers begins to load the weights."""
    import subprocess

    from transformers import AutoModel

    load = AutoModel.from_pretrained

    def swapping(*args: Any, **kwargs: Any) -> Any:
        subprocess.run(["cp", other, target], check=True)
        return load(*args, **kwargs)

    AutoModel.from_pretrained = swapping  # type: ignore[method-assign]


if __name__ == "__main__":
    swapped_on_load(*sys.argv[1:3])
    from featcache_cli.main import main

    sys.exit(main(sys.argv[3:]))
