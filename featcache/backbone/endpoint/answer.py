"""The body of an answer as vectors, or as a sentence that says what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from featcache.backbone.endpoint.errors import BadAnswer, HalfAnswer
from featcache.system.text import readable

SHOWN = 200  # characters of what a server says


@dataclass(frozen=True)
class Vectors:
    """The answer to one request.

    Attributes:
        rows: float32 `[n, D]`, in the order of the texts.
        tokens: as the server counts them; None where it does not say.
    """

    rows: np.ndarray
    tokens: int | None


class _Entry(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Usage(msgspec.Struct):
    total_tokens: int | None = None
    prompt_tokens: int | None = None


class _AnswerBody(msgspec.Struct):
    data: list[_Entry]
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_AnswerBody)


def read_vectors(body: bytes, count: int) -> Vectors:
    """The vectors of `count` texts, in the order of the texts whatever the order of the answer.

    Raises:
        HalfAnswer: the body is empty, or ends in the middle.
        BadAnswer: a web page, an error, other vectors than asked for, or numbers that are none.
    """
    start = body.lstrip()[:1]
    if not start:
        raise HalfAnswer("an empty answer")
    if start == b"<":
        raise BadAnswer(
            f"the server answers with a web page: {message_of(body)}",
            hint="is the address right, up to and with /v1? is a proxy or a login page in between?",
        )
    try:
        found = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadAnswer(
            f"the server answers in another form than /v1/embeddings: {error}; it says: {message_of(body)}",
            hint="is the model one for embeddings, with one vector a text?",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HalfAnswer(f"half an answer ({error})") from None
    return Vectors(_in_order(found.data, count), _tokens(found.usage))


def _in_order(entries: list[_Entry], count: int) -> np.ndarray:
    """float32 `[count, D]` by the index of each entry."""
    if len(entries) != count:
        raise BadAnswer(
            f"the server answers {count} texts with {len(entries)} vectors",
            hint="try fewer texts in a request: --request-texts 1",
        )
    places = [0] if count == 1 else [entry.index for entry in entries]
    if sorted(-1 if place is None else place for place in places) != list(range(count)):
        raise BadAnswer(
            "the server does not say which vector belongs to which text: the indexes of its answer are "
            f"{readable(str(places[:8]))}",
            hint="with one text a request there is no doubt: --request-texts 1",
        )
    vectors = [_vector(entry.embedding) for entry in entries]
    widths = sorted({len(vector) for vector in vectors})
    if len(widths) > 1 or widths == [0]:
        raise BadAnswer(
            f"the server sends vectors of {' and '.join(map(str, widths))} numbers in one answer",
            hint="is the model one for embeddings, with one vector a text?",
        )
    rows = np.empty((count, widths[0]), np.float32)
    for place, vector in zip(places, vectors, strict=True):
        rows[place] = vector
    return rows


def _vector(value: list[float] | str) -> np.ndarray:
    """Numbers, or float32 in base64."""
    if isinstance(value, list):
        return np.array(value, np.float32)
    try:
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    except (binascii.Error, ValueError):
        raise BadAnswer(
            f"the server sends a text that is no vector in base64: {readable(value[:SHOWN])}",
            hint="is the model one for embeddings, with one vector a text?",
        ) from None


def _tokens(usage: _Usage | None) -> int | None:
    found = usage and (usage.total_tokens or usage.prompt_tokens)
    return found if found and found > 0 else None


def message_of(body: bytes) -> str:
    """What a server says in an answer, as one short line; `nothing` of an empty one."""
    text = body.decode("utf-8", "replace").strip()
    try:
        text = _said(json.loads(text)) or text
    except (ValueError, RecursionError):
        if title := re.search(r"<title[^>]*>(.*?)</title>", text, re.S | re.I):
            text = title[1]
    line = readable(" ".join(text.split()))
    return (line if len(line) <= SHOWN else f"{line[:SHOWN]}...") or "nothing"


def _said(value: Any) -> str:
    """The message in the forms of errors that servers have."""
    if isinstance(value, dict):
        return next(
            filter(None, (_said(value.get(key)) for key in ("error", "message", "msg", "detail"))), ""
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value else ""
