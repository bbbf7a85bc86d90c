"""Unusual texts and models, through the command and the API, give a right result or a clear error."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import BackboneError, SourceError
from featcache.extraction.api import extract_splits
from tests.support.cli_tools import (
    Cli,
    Result,
    check_refusal,
    environment,
    start,
    write_rows,
)
from tests.support.extraction import Case, counted, reference_hash, write_case
from tests.support.source_files import jsonl, write

Folder = Callable[[str], Path]
USAGE, DATA, MODEL = 2, 3, 4
GOOD = [("好房间", "good"), ("坏电池", "bad"), ("很好", "good"), ("很差", "bad")]
LONE = "\ud800"
MEGABYTE = "好书" * 170_000  # 1,020,000 bytes

pytestmark = [pytest.mark.usefixtures("arrow_cache"), pytest.mark.bad_input]


@pytest.fixture
def trained(trained: Path) -> Path:
    """The working folder: extracted, with two runs, and `odd/` for what a test brings."""
    for split in ("train", "validation", "test"):
        write_rows(Path(f"odd/{split}.jsonl"), GOOD)
    return trained


@pytest.fixture
def case(tmp_path: Path, tiny: Folder) -> Case:
    return write_case(tmp_path, tiny("bert"))


def process(*argv: str | bytes, stdin: bytes = b"") -> Result:
    """The command as a process of its own, with raw bytes as arguments and input."""
    running = start([os.fsdecode(word) for word in argv], environment())
    out, err = running.communicate(stdin, timeout=120)
    return Result(running.wait(), out.decode(), err.decode())


EXTRACT = ("extract", "--dataset", "odd")
TRAIN = (*EXTRACT, "--split", "train")


def piped(cli: Cli, monkeypatch: pytest.MonkeyPatch, text: str) -> Result:
    """`featcache predict --json` with `text` on standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return cli("predict", "--json")


# ---------------------------------------------------------------- lone surrogates


def test_a_lone_surrogate_names_its_row(cli: Cli, trained: Path) -> None:
    lines = [json.dumps({"text": f"好 {LONE} 书", "label": "good"})]  # ASCII: backslash, u, d, 8, 0, 0
    assert "\\ud800" in lines[0]
    with open("odd/train.jsonl", "a", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    cli.refused(DATA, TRAIN, "row 5 of train", "--skip-bad-rows")
    result = cli(*TRAIN, "--skip-bad-rows", "--json")
    assert result.code == 0 and result.json["splits"][0]["rows"] == len(GOOD)
    assert "row 5 of train" in result.err


@pytest.mark.parametrize("half", ["\ud800", "\udc00", "\ude00\ud83d"])
def test_lone_surrogates_of_any_kind_and_place(half: str, case: Case) -> None:
    rows = case.rows()
    for column in ("text", "label"):
        changed = [dict(row) for row in rows]
        changed[3][column] = f"好{half}"
        write(case.data / "train.jsonl", "\n".join(map(json.dumps, changed)) + "\n")
        with pytest.raises(SourceError, match="row 4 of train") as caught:
            case.extract()
        str(caught.value).encode("utf-8")  # or the message could not be printed
    assert case.files() == []


def test_a_surrogate_pair_is_one_character(case: Case) -> None:
    write(case.data / "train.jsonl", '{"text": "\\ud83d\\ude00 good", "label": "good"}\n'
          + jsonl(*case.rows()[1:]))  # fmt: skip
    case.extract()
    assert case.find().sealed.column("row_hash")[0].tobytes() == reference_hash("\U0001f600 good")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", b"text,label\n\xff\xfe\xfa,good\n\xe5\xa5\xbd,bad\n"),
        ("train.jsonl", b'{"text": "\xff\xfe", "label": "good"}\n'),
    ],
)
def test_bytes_that_are_no_text(name: str, content: bytes, cli: Cli, trained: Path) -> None:
    Path("odd/train.jsonl").unlink()
    Path(f"odd/{name}").write_bytes(content)
    cli.refused(DATA, TRAIN, name, "UTF-8")


def test_predict_refuses_what_is_no_text(trained: Path) -> None:
    """An argument that is not UTF-8 arrives as lone surrogates."""
    check_refusal(process("predict", b"\xe5\xa5\xbd\xff"), DATA, "Unicode")


def test_predict_refuses_a_pipe_that_is_no_text(trained: Path) -> None:
    check_refusal(process("predict", stdin=b"\xe5\xa5\xbd\n\xff\xfe\xfa\n"), DATA)


# ---------------------------------------------------------------- long, many, none


def test_a_megabyte_from_file_to_label(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(Path("odd/train.jsonl"), [*GOOD, (MEGABYTE, "good")])
    began = time.monotonic()
    result = cli(*TRAIN, "--json")
    assert result.code == 0, result
    assert result.json["splits"][0]["truncated"] == 1
    assert time.monotonic() - began < 90
    done = piped(cli, monkeypatch, MEGABYTE + "\n好房间\n")
    assert done.code == 0 and len(done.json) == 2


def test_a_megabyte_without_a_blank_is_encoded_as_its_beginning(case: Case) -> None:
    """What the tokenizer cannot split is one unknown word, not an error, and its neighbours are untouched."""
    rows = case.rows()
    texts = ["a" * 1_000_000, "\u3042" * 340_000, "!" * 1_000_000]
    case.write([*rows, *({"text": text, "label": "good"} for text in texts)])
    result = case.extract()
    assert result.encoded == len(rows) + len(texts)
    values = case.features()
    assert np.isfinite(values).all()
    fresh = case.fresh()
    fresh.write(rows)
    fresh.extract()
    np.testing.assert_allclose(values[: len(rows)], fresh.features(), rtol=0, atol=1e-2)


def test_a_hundred_thousand_equal_texts_are_encoded_once(case: Case) -> None:
    write(
        case.data / "train.jsonl",
        '{"text": "很好", "label": "good"}\n{"text": "很好", "label": "bad"}\n' * 50_000,
    )
    with counted() as passes:
        began = time.monotonic()
        result = case.extract()
        seconds = time.monotonic() - began
    assert (result.rows, result.encoded, passes) == (100_000, 1, [1])
    assert seconds < 60  # 2 s on two idle cores
    file = case.find().features("last/cls")
    assert (np.asarray(file.x) == np.asarray(file.x[0])).all() and len(file.x) == 100_000
    assert np.asarray(file.y).reshape(-1, 2).tolist() == [file.y[:2].tolist()] * 50_000


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "json", "parquet"])
def test_a_split_without_rows(kind: str, split: str, cli: Cli, trained: Path) -> None:
    for path in Path("odd").iterdir():
        path.unlink()
    for name in ("train", "validation", "test"):
        write_kind(Path(f"odd/{name}.{kind}"), [] if name == split else GOOD)
    for argv in (("--split", split), ("--all-splits",)):
        result = cli.refused(DATA, [*EXTRACT, *argv], f"{split}.{kind}")
        assert re.search("no rows|empty", result.err), result.err


def write_kind(path: Path, rows: list[tuple[str, str]]) -> None:
    records = [{"text": text, "label": label} for text, label in rows]
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            table.writerows([("text", "label"), *rows])
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = pa.string()
        pq.write_table(pa.Table.from_pylist(records, pa.schema([("text", text), ("label", text)])), path)
    else:
        path.write_text(json.dumps(records) if path.suffix == ".json" else jsonl(*records), encoding="utf-8")


def test_a_split_of_which_nothing_is_left(cli: Cli, trained: Path) -> None:
    write_rows(Path("odd/test.jsonl"), [("", "good"), (" \n", "bad"), (None, "good")])
    cli.refused(DATA, [*EXTRACT, "--split", "test", "--skip-bad-rows"], "test")


@pytest.mark.parametrize("stdin", ["", "\n", " \n\t\n\u3000\n"])
def test_predict_of_no_text(stdin: str, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = piped(cli, monkeypatch, stdin)
    assert result.code == 0 and result.json == []


# ---------------------------------------------------------------- texts of nothing much

NOTHING = [" ", "\n\r\n\t", "\u3000\u2003\u00a0", "\x1c\x1d"]  # white space of every kind
ODD = ["\0", "\0\0\0", "good\0bad", "\u3042\u3044", "\U0001f600", "\ufffd", "\x7f", "\u202e好", "\ufeff"]


@pytest.mark.parametrize("text", NOTHING, ids=ascii)
def test_white_space_is_refused(text: str, case: Case) -> None:
    case.write([*case.rows(), {"text": text, "label": "good"}])
    with pytest.raises(SourceError, match=r"row 61 of train has no .*text"):
        case.extract()
    assert case.extract(skip_bad_rows=True).rows == 60


def test_odd_characters_from_file_to_label(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NUL, characters the model does not know, marks without a letter: rows and labels like any other."""
    write_rows(Path("odd/train.jsonl"), [*GOOD, *((text, "good") for text in ODD)])
    result = cli(*TRAIN, "--json")
    assert result.code == 0, result
    assert result.json["splits"][0]["rows"] == result.json["splits"][0]["encoded"] == len(GOOD) + len(ODD)
    done = piped(cli, monkeypatch, "\n".join(text for text in ODD) + "\n")
    assert done.code == 0, done
    assert len(done.json) == len(ODD)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_unknown_characters_are_told_from_known_ones(family: str, tmp_path: Path, tiny: Folder) -> None:
    """Every unknown character is [UNK]: equal vectors, finite, and none of a known text."""
    case = write_case(tmp_path, tiny(family), views="last/mean")
    texts = ["\u3042", "\u3044", "好"]
    case.write([{"text": text, "label": label} for text, label in zip(texts, ["a", "b", "a"], strict=True)])
    for split in ("validation", "test"):
        case.write([{"text": "好", "label": "a"}], split)
    assert case.extract().encoded == 3
    first, second, known = case.features("last/mean")
    assert np.isfinite([first, second, known]).all()
    assert (first == second).all() and abs(first - known).max() > 1e-3


# ---------------------------------------------------------------- models that are none


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def pickled(folder: Path) -> None:
    import torch

    torch.save({"x": torch.zeros(1), "epoch": 3}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def huge_header(folder: Path) -> None:
    """Says that its header is an exabyte long."""
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def weights_are_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")


def other_shape(folder: Path) -> None:
    change_config(folder, hidden_size=64)


def other_architecture(folder: Path) -> None:
    change_config(folder, model_type="gpt2", architectures=["GPT2Model"])


def unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="no-such-model")


def other_tensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})


def binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(bytes(range(256)))


def binary_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(bytes(range(256)))


SPOILED: dict[Callable[[Path], None], tuple[str, ...]] = {
    empty: ("config.json",),
    pickled: ("'epoch' is a int and no tensor", "save_pretrained"),
    truncated: ("download complete?",),
    huge_header: ("download complete?",),
    weights_are_a_folder: ("safetensors",),
    dangling: ("safetensors",),
    other_shape: ("weights",),
    other_architecture: ("weights",),
    unknown_architecture: ("no-such-model",),
    other_tensors: ("weights",),
    binary_config: ("config.json",),
    binary_tokenizer: ("spoiled",),
}


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_model_is_refused(spoil: Callable[[Path], None], case: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(case.model, tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(BackboneError, match="spoiled") as caught:
        case.extract(model=str(folder))
    for word in SPOILED[spoil]:
        assert word in str(caught.value), caught.value
    assert caught.value.hint or spoil is empty
    assert case.files() == [] and case.leftovers() == []


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(
    "spoil", [pickled, huge_header, other_architecture], ids=lambda spoil: spoil.__name__
)
def test_the_command_refuses_a_spoiled_model(
    spoil: Callable[[Path], None], cli: Cli, trained: Path, tiny: Folder
) -> None:
    folder = shutil.copytree(tiny("bert"), Path("spoiled"))
    spoil(folder)
    cli.refused(MODEL, (*TRAIN, "--model", "./spoiled"), "spoiled", *SPOILED[spoil])


@pytest.mark.usefixtures("mirror")
def test_a_pickle_runs_nothing(case: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(case.model, tmp_path / "spoiled")
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "mark"
    code = f"cos\nsystem\n(S'touch {mark}'\ntR."
    (folder / "pytorch_model.bin").write_bytes(code.encode())
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin"):
        extract_splits(case.settings(model=str(folder)), ["train"])
    assert not mark.exists()
