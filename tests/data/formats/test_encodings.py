"""Encodings are told by the bytes of a whole file, or the user is asked."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.data.formats.encodings import BLOCK, UTF8, find_encoding, named_codec
from featcache.data.formats.open import open_rows
from featcache.errors import SourceError, UsageError
from featcache.settings import DataSettings
from tests.support.source_files import rows_of, train, write

pytestmark = [pytest.mark.usefixtures("arrow_cache"), pytest.mark.bad_input]

SIMPLIFIED = ["房间很干净，服务也不错，下次还会来住", "电池用了两天就坏了", "书的内容很好，孩子喜欢"]
TRADITIONAL = ["房間很乾淨，服務也不錯，下次還會來住", "電池用了兩天就壞了", "書的內容很好"]
JAPANESE = ["部屋はとても綺麗で、サービスも良かったです", "電池がすぐに切れてしまう", "面白い本です"]
KOREAN = ["방이 아주 깨끗하고 서비스도 좋았어요", "배터리가 너무 빨리 닳아요", "이 책은 정말 재미있다"]
WESTERN = ["Le café était fermé, quelle déception", "Größe passt, schöne Qualität", "¡El niño está aquí!"]
WRITTEN = [
    (SIMPLIFIED, "gb18030"),
    (SIMPLIFIED, "gbk"),
    (TRADITIONAL, "cp950"),
    (JAPANESE, "cp932"),
    (JAPANESE, "euc_jp"),
    (KOREAN, "cp949"),
    (WESTERN, "latin-1"),
    (WESTERN, "cp1252"),
    *((texts, codec) for texts in (SIMPLIFIED, TRADITIONAL, JAPANESE, KOREAN, WESTERN, ["good", "bad"])
      for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")),
]  # fmt: skip


def blocks_of(content: bytes, size: int = BLOCK) -> Callable[[], Iterator[bytes]]:
    return lambda: (content[at : at + size] for at in range(0, len(content), size))


@pytest.mark.parametrize(("texts", "codec"), WRITTEN)
def test_texts_are_read_as_they_were_written(texts: list[str], codec: str, tmp_path: Path) -> None:
    content = ("text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)).encode(codec)
    path = write(tmp_path / "dev.tsv", content)
    split = train(path)
    assert split.texts(slice(None)) == texts
    name = {"utf-8": "", "utf-8-sig": "", "gbk": "GB18030", "cp950": "Big5", "cp932": "Shift-JIS"}.get(codec)
    assert (split.read_as[0].startswith("dev.tsv is read as ")) == (name != "")
    assert name is None or name in split.read_as[0]
    for source in (path, io.BytesIO(content)):
        rows = [row for batch in open_rows(source, "tsv").batches for row in batch.rows]
        assert [row.text for row in rows] == texts
    assert train(path, encoding=codec).texts(slice(None)) == texts


@pytest.mark.parametrize(("texts", "codec"), [one for one in WRITTEN if not one[1].startswith("utf")])
@pytest.mark.parametrize("size", [512, BLOCK])
def test_no_file_is_taken_for_another_encoding(texts: list[str], codec: str, size: int) -> None:
    """Whatever rows a file has, it is read right, or the user is asked; a long one is read right."""
    draw = random.Random(0)
    for count in (1, 2, 3, 20):
        content = "".join(f"{text},1\n" for text in draw.choices(texts, k=count)).encode(codec)
        try:
            found = find_encoding(blocks_of(content, size), "a file")
        except SourceError:
            assert count < 20
            continue
        assert content.decode(found) == content.decode(codec)


def test_a_question_shows_a_line_in_each_encoding() -> None:
    with pytest.raises(SourceError) as caught:
        find_encoding(blocks_of("text\n好坏\n".encode("gb18030")), "reviews.csv")
    assert "reviews.csv is not UTF-8" in caught.value.what
    assert "  gb18030: 好坏" in caught.value.what.splitlines()
    assert "--encoding" in (caught.value.hint or "")


@pytest.mark.parametrize("codec", ["cp1251", "koi8-r", "cp1254", "cp1250"])
def test_languages_without_a_model_are_asked_about(codec: str) -> None:
    turkish, polish = "Çok güzel bir otel, ışıklar şahane, değmez", "Świetny hotel, żółta książka, źle"
    text = {"cp1254": turkish, "cp1250": polish}.get(codec, "Отличный отель, всё понравилось")
    content = (text + "\n").encode(codec) * 30
    with pytest.raises(SourceError, match="not certain"):
        find_encoding(blocks_of(content), "a file")


def test_the_end_of_a_file_counts(tmp_path: Path) -> None:
    """Chinese after a megabyte of ASCII; and UTF-8 with some broken lines stays UTF-8."""
    plain = "a plain english line,1\n" * 60_000
    late = (plain + "".join(f"{text},0\n" for text in SIMPLIFIED)).encode("gb18030")
    assert find_encoding(blocks_of(late), "a file") == "gb18030"
    content = ("".join(f"{text},0\n" for text in SIMPLIFIED) + plain).encode() + b"\xff\xfe\xfa,1\n"
    assert find_encoding(blocks_of(content), "a file") == UTF8


def test_a_broken_line_of_another_encoding_is_named(tmp_path: Path) -> None:
    content = b"text,label\n" + "".join(f"{text},1\n" for text in SIMPLIFIED * 9).encode("gbk")
    path = write(tmp_path / "dev.csv", content + b"\xb7\xff\xff,0\n")
    with pytest.raises(SourceError, match=r"line 29: not GB18030 at character 1") as caught:
        train(path)
    assert "--encoding" in (caught.value.hint or "")
    rows = [row for batch in open_rows(path, "csv").batches for row in batch.rows]
    assert [row.problem for row in rows[-2:]] == [None, "not GB18030 at character 1"]


def test_a_stream_that_turns_out_to_be_no_utf8_names_its_lines() -> None:
    """Only the beginning of a stream is looked at, so that it need not be kept."""
    content = b"text\n" + b"plain\n" * 10_000 + "房间很干净\n".encode("gbk")
    rows = [row for batch in open_rows(io.BytesIO(content), "csv").batches for row in batch.rows]
    assert rows[-1].problem is not None and "not UTF-8" in rows[-1].problem
    named = open_rows(io.BytesIO(content), "csv", DataSettings(encoding="gbk"))
    assert [row.text for batch in named.batches for row in batch.rows][-1] == "房间很干净"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.integers(1, 40))
def test_utf8_is_always_utf8(text: str, size: int) -> None:
    assert find_encoding(blocks_of(text.replace("\0", "").encode(), 2 * size), "a file") == UTF8


@given(st.binary(max_size=300))
def test_any_bytes_have_an_encoding_or_a_question(content: bytes) -> None:
    try:
        content.decode(find_encoding(blocks_of(content), "a file"), "replace")
    except SourceError as error:
        assert error.hint


@pytest.mark.parametrize("name", ["gb99", "base64", "rot13", ""])
def test_names_that_are_no_encoding(name: str) -> None:
    with pytest.raises(UsageError, match="no such encoding"):
        named_codec(name)


def test_names_of_smaller_sets_mean_what_programs_write() -> None:
    assert [named_codec(name) for name in ("GB2312", "gbk", "Shift_JIS", "big5")] == [
        "gb18030", "gb18030", "cp932", "cp950",
    ]  # fmt: skip


def test_labels_are_as_written(tmp_path: Path) -> None:
    labels = ["好评", "差评", "好评"]
    rows = "".join(f"{text},{label}\n" for text, label in zip(SIMPLIFIED, labels, strict=True))
    split = train(write(tmp_path / "dev.csv", ("评论,情感\n" + rows).encode("gbk")))
    assert [label for _, label in rows_of(split)] == labels


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (b"PK\x03\x04\x14\x00\x06\x00", "Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "old document"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"\xff\xd8\xff\xe0", "picture"),
    ],
)
def test_a_file_of_another_kind_is_named(begin: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_bytes(begin + bytes(range(256)) * 40)
    with pytest.raises(SourceError, match=words) as caught:
        train(path)
    assert "reviews.csv is no text file" in caught.value.what and caught.value.hint


def test_a_text_that_begins_like_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("PAR1,label\n好,1\n", encoding="utf-8")
    assert find_encoding(blocks_of(path.read_bytes()), "reviews.csv") == UTF8
