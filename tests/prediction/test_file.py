"""`predict_file`: all rows and all columns of a file, in order, with labels."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featcache.data.formats.lines import ReadLimits
from featcache.data.formats.open import open_rows
from featcache.data.formats.write import OutputForm
from featcache.errors import BadRow, SourceError, UsageError
from featcache.prediction.file import BAD_ROWS, predict_file
from featcache.prediction.journal import partial_folder
from featcache.prediction.predictor import Answers, Predictor
from featcache.settings import DataSettings
from featcache.system.progress import Progress
from tests.support.labelled_files import (
    ADDED,
    KINDS,
    SMALL,
    check_answers,
    label,
    made_rows,
    read_kind,
    texts_of,
    write_kind,
)
from tests.support.source_files import write
from tests.support.tiny_predictor import NAMES


@pytest.mark.parametrize("written", KINDS)
@pytest.mark.parametrize("read", KINDS)
def test_predict_file_keeps_columns_and_order(
    read: str, written: str, predictor: Predictor, tmp_path: Path
) -> None:
    rows = made_rows(70)
    source = write_kind(tmp_path / f"in.{read}", rows)
    made = label(predictor, source, tmp_path / f"out.{written}", limits=SMALL)
    found = read_kind(made.path)
    assert list(found[0]) == ["id", "text", "note", *ADDED]
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    check_answers(found, predictor, [row["text"] for row in rows])
    assert (made.rows, made.bad, made.bad_path, made.resumed) == (70, 0, None, 0)
    assert sum(made.counts.values()) == 70
    assert made.truncated == sum(str(row["truncated"]).lower() == "true" for row in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, made.path.name])


def test_predict_file_keeps_types_and_metadata_of_parquet(predictor: Predictor, tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": pa.array(range(40), pa.int16()),
            "text": pa.array(texts_of(40)).dictionary_encode(),
            "tags": pa.array([["a", None]] * 40),
            "when": pa.array([1] * 40, pa.timestamp("ms", tz="UTC")),
        }
    ).replace_schema_metadata({"who": "me"})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=9)
    made = label(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet", limits=SMALL)
    found = pq.read_table(made.path)
    assert found.select(table.column_names).to_pylist() == table.to_pylist()
    assert found.schema.metadata[b"who"] == b"me"
    assert found.schema.field("probability").type == pa.float64()
    assert found.schema.field("n").type == pa.int16()
    exact = predictor.predict_proba(table["text"].to_pylist())
    stored = np.stack([found[f"probability:{name}"].to_numpy() for name in NAMES], axis=1)
    np.testing.assert_allclose(stored, exact, rtol=0, atol=1e-5)


def test_predict_file_writes_one_label_for_each_line_of_a_txt_file(
    predictor: Predictor, tmp_path: Path
) -> None:
    texts = ["好 房间", "", "坏 电池", "   ", "good \u2028 book", "very"]
    source = write(tmp_path / "in.txt", "\r\n".join(texts))
    made = label(predictor, source, tmp_path / "out.txt")
    lines = made.path.read_text(encoding="utf-8").split("\n")
    usable = [text for text in texts if text.strip()]
    expected = {text: one.label for text, one in zip(usable, predictor.predict(usable), strict=True)}
    assert lines == [*(expected.get(text, "") for text in texts), ""]
    assert made.bad == 2


@pytest.mark.parametrize("written", KINDS)
def test_predict_file_with_a_multi_label_head(written: str, several: Predictor, tmp_path: Path) -> None:
    rows = made_rows(40)
    made = label(several, write_kind(tmp_path / "in.jsonl", rows), tmp_path / f"out.{written}")
    said = [row["prediction"] for row in read_kind(made.path)]
    said = [json.loads(one) if isinstance(one, str) else one for one in said]
    expected = [list(one.labels) for one in several.predict([row["text"] for row in rows])]
    assert said == expected
    assert len({len(one) for one in said}) > 1  # the head does say different numbers of labels
    assert made.counts == {name: sum(name in one for one in expected) for name in NAMES}


def test_predict_file_with_pairs(predictor: Predictor, tmp_path: Path) -> None:
    firsts, seconds = texts_of(20, 1), texts_of(20, 2)
    rows = [{"sentence1": a, "sentence2": b} for a, b in zip(firsts, seconds, strict=True)]
    made = label(predictor, write_kind(tmp_path / "in.csv", rows), tmp_path / "out.jsonl")
    found = [[row[f"probability:{name}"] for name in NAMES] for row in read_kind(made.path)]
    np.testing.assert_allclose(found, predictor.predict_proba(firsts, seconds), rtol=0, atol=2e-5)
    alone = label(
        predictor,
        tmp_path / "in.csv",
        tmp_path / "alone.jsonl",
        columns=DataSettings(text_column="sentence1"),
    )
    check_answers(read_kind(alone.path), predictor, firsts)


def test_predict_file_of_a_stream_and_of_a_gzip_file(predictor: Predictor, tmp_path: Path) -> None:
    rows = made_rows(30)
    plain = write_kind(tmp_path / "in.csv", rows)
    expected = label(predictor, plain, tmp_path / "out.csv").path.read_bytes()
    packed = write(tmp_path / "in.csv.gz", gzip.compress(plain.read_bytes()))
    assert label(predictor, packed, tmp_path / "gz.csv").path.read_bytes() == expected
    stream = open_rows(io.BytesIO(b"\xef\xbb\xbf" + plain.read_bytes()), "csv")
    made = predict_file(predictor, stream, tmp_path / "stream.csv", OutputForm("csv"))
    assert made.path.read_bytes() == expected


def test_predict_file_without_a_header(predictor: Predictor, tmp_path: Path) -> None:
    texts = texts_of(5)
    write(tmp_path / "in.csv", "".join(f"{n},{text}\n" for n, text in enumerate(texts)))
    found = read_kind(label(predictor, tmp_path / "in.csv", tmp_path / "auto.csv").path)
    assert [(row["label"], row["text"]) for row in found] == [(str(n), text) for n, text in enumerate(texts)]
    check_answers(found, predictor, texts)
    write(tmp_path / "other.csv", "".join(f"x{n},{text}\n" for n, text in enumerate(texts)))
    with pytest.raises(SourceError, match=r"no column of texts[\s\S]*--no-header"):
        label(predictor, tmp_path / "other.csv", tmp_path / "out.csv")
    columns = DataSettings(text_column="column2")
    made = label(predictor, tmp_path / "in.csv", tmp_path / "out.csv", columns=columns, header=False)
    check_answers(read_kind(made.path), predictor, texts)


def test_predict_file_keeps_quotes_that_are_characters(predictor: Predictor, tmp_path: Path) -> None:
    """A quote in such a file is a character of the text, as it is for `extract`."""
    lines = ["id\ttext", '1\t"good book', '2\tvery "good" room', "3\tbad"]
    made = label(predictor, write(tmp_path / "in.tsv", "\n".join(lines) + "\n"), tmp_path / "out.tsv")
    assert ["\t".join(line.split("\t")[:2]) for line in made.path.read_text().splitlines()] == lines
    quoted = write(tmp_path / "q.tsv", 'id\ttext\n1\t"good ""book"""\n2\t"bad"\n')
    found = read_kind(label(predictor, quoted, tmp_path / "q.jsonl").path)
    assert [row["text"] for row in found] == ['good "book"', "bad"]


def test_probabilities_in_a_text_file_are_rounded(predictor: Predictor, tmp_path: Path) -> None:
    made = label(predictor, write_kind(tmp_path / "in.csv", made_rows(20)), tmp_path / "out.csv")
    assert all(len(row["probability"]) <= 8 for row in read_kind(made.path))


BAD_CSV = (
    b"id,text\n"
    b"1,good\n"
    b"2,  \n"  # empty
    b"3,good,room\n"  # too many fields
    b"4,\xff\xfe\n"  # no UTF-8
    b'5,"good\n'  # a quote that never closes must swallow nothing
    b"6,bad\n"
    b'7,"two\nlines"\n'
    b'8,"a"b\n'
    b"9,very\n"
)


def test_bad_rows_of_a_csv_file(predictor: Predictor, tmp_path: Path) -> None:
    made = label(predictor, write(tmp_path / "in.csv", BAD_CSV), tmp_path / "out.csv")
    found = read_kind(made.path)
    assert [(row["id"], bool(row["prediction"])) for row in found] == [
        ("1", True), ("2", False), ("6", True), ("7", True), ("9", True),
    ]  # fmt: skip
    assert found[3]["text"] == "two\nlines"
    assert made.bad_path is not None
    bad = [(one["line"], one["problem"]) for one in read_kind(made.bad_path)]
    assert [line for line, _ in bad] == [3, 4, 5, 6, 10]
    words = ["empty", "3 fields", "UTF-8", "quote", "written twice"]
    assert all(word in problem for word, (_, problem) in zip(words, bad, strict=True)), bad
    assert (made.rows, made.bad) == (9, 5)
    assert [one.line for one in made.first_bad] == [3, 4, 5, 6, 10]
    check_answers(
        [row for row in found if row["prediction"]], predictor, ["good", "bad", "two\nlines", "very"]
    )


def test_bad_rows_of_json_lines(predictor: Predictor, tmp_path: Path) -> None:
    lines = [
        '{"text": "good", "n": 1}', "", '{"text": null}', "{broken", "[1]", '{"text": 5}', '{"n": 2}',
        '{"text": "\\ud800"}', '{"text": "bad", "odd": "\\udc00", "x": NaN, "deep": {"a": [1]}}',
        "[" * 100000,
    ]  # fmt: skip
    made = label(predictor, write(tmp_path / "in.jsonl", "\n".join(lines)), tmp_path / "out.jsonl")
    found = read_kind(made.path)
    assert [row.get("prediction") is not None for row in found] == [True, False, False, False, False, True]
    assert found[0]["n"] == 1 and found[5]["deep"] == {"a": [1]} and found[5]["odd"] == "\udc00"
    assert (made.rows, made.bad) == (9, 7)
    assert made.bad_path is not None
    assert [one["line"] for one in read_kind(made.bad_path)] == [3, 4, 5, 6, 7, 8, 10]


ARRAY = """\ufeff
[ {"text": "good", "n": [1, {"a": "]}"}]}, {broken},
  {"text": null},
  {"text": "a \\"quote\\", \\\\"}, "text" ,,
  {"text": "good" "n": 1}, {
    "text": "over lines"}
, [{"text": "bad"}], {"text": "bad"},
]
"""


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_bad_rows_of_a_json_array(block: int, predictor: Predictor, tmp_path: Path) -> None:
    """Told apart wherever the file is split for reading; a broken one costs no other."""
    made = label(
        predictor,
        write(tmp_path / "in.json", ARRAY),
        tmp_path / "out.json",
        limits=ReadLimits(block_chars=block),
    )
    found = json.loads(made.path.read_text(encoding="utf-8"))
    said = [(row["text"], row["prediction"] is not None) for row in found]
    assert said == [
        ("good", True),
        (None, False),
        ('a "quote", \\', True),
        ("over lines", True),
        ("bad", True),
    ]
    assert found[0]["n"] == [1, {"a": "]}"}] and "n" not in found[1]
    assert made.bad_path is not None and (made.rows, made.bad) == (9, 5)
    assert [one["line"] for one in read_kind(made.bad_path)] == [2, 3, 4, 5, 7]
    again = label(
        predictor, made.path, tmp_path / "again.json", prefix="new_", limits=ReadLimits(block_chars=block)
    )  # it is such an array itself
    assert again.rows == 5 and again.bad == 1


def test_predict_file_writes_a_json_array_for_a_json_array(predictor: Predictor, tmp_path: Path) -> None:
    array, lines = tmp_path / "array.json", tmp_path / "lines.json"
    write(array, b'\xef\xbb\xbf[{"text":"good"},{"text":" "}]')
    write(lines, '{"text": "good"}\n{"text": " "}\n')
    out = {}
    for source in (array, lines):
        for ending in ("json", "jsonl"):
            out[source, ending] = label(predictor, source, tmp_path / f"{source.stem}-out.{ending}").path
    assert len(json.loads(out[array, "json"].read_bytes())) == 2
    assert (
        out[array, "jsonl"].read_bytes()
        == out[lines, "jsonl"].read_bytes()
        == out[lines, "json"].read_bytes()
    )
    packed = write(tmp_path / "a.json.gz", gzip.compress(array.read_bytes()))
    assert label(predictor, packed, tmp_path / "gz.json").path.read_bytes() == out[array, "json"].read_bytes()
    stream = open_rows(io.BytesIO(array.read_bytes()), "json")
    made = predict_file(predictor, stream, tmp_path / "stream.json", OutputForm("json"))
    assert made.path.read_bytes() == out[array, "json"].read_bytes()


def test_a_json_value_that_is_too_long_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "in.json", '[{"text": "good"},\n{"text": "' + "x" * 5000 + '"}]')
    with pytest.raises(SourceError, match="line 2: a value longer than"):
        label(predictor, source, tmp_path / "out.json", limits=ReadLimits(block_chars=64, row_chars=1000))


def test_bad_rows_of_a_parquet_file(predictor: Predictor, tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", None, b" ", b"bad"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 5, raw.buffers())
    pq.write_table(pa.table({"text": strings, "n": list(range(5))}), tmp_path / "in.parquet")
    made = label(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(made.path)
    assert [one is not None for one in found["prediction"].to_pylist()] == [True, False, False, False, True]
    assert found["n"].to_pylist() == list(range(5)) and made.bad == 3


def test_a_line_that_is_too_long_is_one_bad_row(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", "good\n" + "x" * 1000 + "\nbad\n" + "y" * 100 + "\nbook")
    made = label(predictor, source, tmp_path / "out.txt", limits=ReadLimits(row_chars=100))
    lines = made.path.read_text(encoding="utf-8").split("\n")
    assert [bool(line) for line in lines] == [True, False, True, False, True, False]
    assert made.bad == 2


def test_a_quote_that_is_never_closed_is_one_bad_row(predictor: Predictor, tmp_path: Path) -> None:
    """The first quote would swallow the rest; what it took is given back, once."""
    body = 'x,"good\n' + "x,good\n" * 3000
    made = label(predictor, write(tmp_path / "in.csv", "id,text\n" + body), tmp_path / "out.csv")
    assert (made.rows, made.bad) == (3001, 1)


def test_predict_file_lists_rows_that_the_model_refuses(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found while encoding or tokenising: the others of the chunk are answered all the same."""
    rows = made_rows(40)
    for n in (3, 20, 21):
        rows[n]["text"] = f"zzz {n}"
    encode, tokenize, refused = predictor.answer, predictor.prepare, []

    def picky(tokens: Any, progress: Any = None) -> Any:
        refused.append(tokens.count)
        if len(refused) == 1:
            raise BadRow("its features are NaN", 4)  # the fifth of those handed over: row 5 of the file
        return encode(tokens, progress)

    def refuse(texts: list[str], pairs: Any = None) -> Any:
        for row, text in enumerate(texts):
            if text.startswith("zzz"):
                raise BadRow(f"no token in {text}", row)
        return tokenize(texts, pairs)

    monkeypatch.setattr(predictor, "answer", picky)
    monkeypatch.setattr(predictor, "prepare", refuse)
    made = label(predictor, write_kind(tmp_path / "in.csv", rows), tmp_path / "out.csv", limits=SMALL)
    assert [n for n, row in enumerate(read_kind(made.path)) if not row["prediction"]] == [3, 5, 20, 21]
    said = [one.problem for one in made.first_bad]
    assert said == ["no token in zzz 3", "its features are NaN", "no token in zzz 20", "no token in zzz 21"]
    assert refused == [15, 14, 14, 8]


def test_predict_file_fails_if_the_model_refuses_all_rows(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(*_: Any) -> Any:
        raise BadRow("its features are NaN", 0)

    monkeypatch.setattr(predictor, "answer", nan)
    with pytest.raises(BadRow, match="NaN"):
        label(predictor, write_kind(tmp_path / "in.csv", made_rows(60)), tmp_path / "out.csv")


def test_predict_file_of_a_file_in_another_encoding(predictor: Predictor, tmp_path: Path) -> None:
    """What Excel writes in China is read, and what Excel reads is written."""
    texts = ["房间很干净，服务也不错", "电池坏了，不会再买"]
    content = "id,text\r\n" + "".join(f"{n},{text}\r\n" for n, text in enumerate(texts))
    source = write(tmp_path / "in.csv", content.encode("gb18030"))
    made = label(predictor, source, tmp_path / "out.csv")
    assert made.path.read_bytes().startswith(codecs.BOM_UTF8 + b"id,text,prediction,")  # type: ignore[union-attr]
    same = label(predictor, write(tmp_path / "utf8.csv", content), tmp_path / "plain.csv")
    assert made.path.read_bytes() == codecs.BOM_UTF8 + same.path.read_bytes()  # type: ignore[union-attr]
    lines = label(predictor, source, tmp_path / "out.jsonl")
    assert not lines.path.read_bytes().startswith(codecs.BOM_UTF8)  # type: ignore[union-attr]


def test_predict_file_asks_for_an_encoding_that_is_not_certain(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "text\nплохо\nхорошо\n".encode("cp1251"))
    with pytest.raises(SourceError, match=r"in\.csv is not UTF-8[\s\S]*cp1252: [\s\S]*--encoding"):
        label(predictor, source, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.csv", b"", "empty"),
        ("in.jsonl", b"\n\n", "empty"),
        ("in.json", b"[]", "empty"),
        ("in.json", b'[{"text": "good"}', "line 1: the array is not closed"),
        ("in.json", b'[{"text": "good"},\n\n {"text": "good}]', "line 3: the array is not closed"),
        ("in.json", b'[{"text": "good"}]\n{"text": "bad"}', "goes on after its array ends"),
        ("in.json", b'[{"text": "good"}}', "a } closes the array"),
        ("in.json", b"[1, [], null]", "no JSON objects"),
        ("in.jsonl", b"{broken\n", "no JSON objects"),
        ("in.csv", b"text,text\na,b\n", "twice"),
        ("in.csv", b"title,headline\na,b\n", "more than one text column"),
        ("in.parquet", b"PAR1 no", "cannot read"),
        ("in.csv.gz", b"not gzip", "gzip"),
        ("in.csv", b"\xff\xfet\x00e\x00x\x00t\x00\n\x00t", "none of the first"),
    ],
)
def test_predict_file_refuses_files_that_cannot_be_read(
    name: str, content: bytes, words: str, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=words):
        label(predictor, write(tmp_path / name, content), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists() and not partial_folder(tmp_path / "out.csv").exists()


def test_predict_file_refuses_columns_with_names_of_added_ones(predictor: Predictor, tmp_path: Path) -> None:
    rows = [{"text": "good", "prediction": "mine"}] * 3
    source = write_kind(tmp_path / "in.csv", rows)
    with pytest.raises(UsageError, match=r"'prediction' already[\s\S]*--prefix"):
        label(predictor, source, tmp_path / "out.csv")
    found = read_kind(label(predictor, source, tmp_path / "out.csv", prefix="new_").path)
    assert found[0]["prediction"] == "mine" and found[0]["new_prediction"] in NAMES
    late = write(tmp_path / "late.jsonl", '{"text": "good"}\n' * 2000 + '{"text": "bad", "new": 1}\n')
    with pytest.raises(SourceError, match=r"'new' is a column that no row before had[\s\S]*jsonl"):
        label(predictor, late, tmp_path / "late.csv")


def test_predict_file_overwrites_only_with_force(predictor: Predictor, tmp_path: Path) -> None:
    source = write_kind(tmp_path / "in.csv", made_rows(5))
    for name in ("out.csv", "out.csv.bad.jsonl"):
        taken = write(tmp_path / name, "mine")
        with pytest.raises(UsageError, match=r"there already[\s\S]*--force"):
            label(predictor, source, tmp_path / "out.csv")
        assert taken.read_text() == "mine"
        taken.unlink()
    write(tmp_path / "out.csv", "mine")
    write(tmp_path / "out.csv.bad.jsonl", "mine")
    assert len(read_kind(label(predictor, source, tmp_path / "out.csv", force=True).path)) == 5
    assert not (tmp_path / f"out.csv{BAD_ROWS}").exists()  # the list of a file that is gone would mislead


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_predict_file_in_bounded_memory(
    kind: str, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model stands still: what is measured is reading, writing and what waits between them."""

    def said(tokens: Any, progress: Any = None) -> Any:
        return Answers(np.full((tokens.count, 3), 1 / 3), np.zeros(tokens.count, dtype=bool), None)

    def tokenized(texts: list[str], pairs: Any = None) -> Any:
        return SimpleNamespace(texts=texts, count=len(texts), unknown_shares=np.zeros(len(texts)))

    monkeypatch.setattr(predictor, "prepare", tokenized)
    monkeypatch.setattr(predictor, "answer", said)
    peaks = []
    for rows in (2_500, 15_000):
        made = [{"id": str(n), "text": "好房间" * 20, "note": ""} for n in range(rows)]
        source = write_kind(tmp_path / f"{rows}.{kind}", made)
        del made
        tracemalloc.start()
        label(
            predictor,
            source,
            tmp_path / f"{rows}-out.{kind}",
            limits=ReadLimits(batch_rows=128, block_chars=1 << 14),
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]  # six times the rows; how many chunks wait is a matter of the moment


def test_predict_file_estimates_the_total_from_the_bytes(predictor: Predictor, tmp_path: Path) -> None:
    steps: list[Progress] = []
    source = write_kind(tmp_path / "in.csv", made_rows(200))
    label(predictor, source, tmp_path / "out.csv", on_progress=steps.append, limits=SMALL)
    assert steps[-1].done == 200
    assert 200 <= steps[-1].total < 300 and sum(step.total > 0 for step in steps) > len(steps) / 2
    pq.write_table(pa.Table.from_pylist(made_rows(50)), tmp_path / "in.parquet")
    label(predictor, tmp_path / "in.parquet", tmp_path / "p.csv", on_progress=steps.append, limits=SMALL)
    assert steps[-1].total == 50


def test_predict_file_counts_texts_that_are_mostly_unknown(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", "好 房间\nสวัสดี\n好 สวัสดี\n好 房间 สวัสดี\n")
    assert label(predictor, source, tmp_path / "out.txt", limits=SMALL).mostly_unknown == 2
