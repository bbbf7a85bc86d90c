"""What clients send: requests with their limits, and the error that answers one that is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featcache.errors import HeadError, SourceError
from featcache.prediction.predictor import Predictor
from featcache.system.text import check_text

JSON = "application/json"
OCTETS = "application/octet-stream"
Model = TypeVar("Model", bound=BaseModel)
EXAMPLE = 'e.g. {"text": "..."} or {"texts": ["...", "..."]}'


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        body_bytes: of a request, counted while they arrive.
        texts: in one request; a pair counts as one.
        characters: of all texts of a request; of one text of a file.
        seconds: from the first byte of a request to its answer; of a file that is labelled, to its last byte
            `file_seconds`.
        queue_texts: that can wait for the model, of all requests.
        file_bytes: of a file to be labelled, counted while they arrive; unpacked it may have four times as
            many. 0: no files are taken.
        file_rows: of such a file.
        files: held at the same time, with those that are labelled already.
    """

    body_bytes: int = 1 << 20
    texts: int = 64
    characters: int = 64 << 10
    seconds: float = 30.0
    queue_texts: int = 512
    file_bytes: int = 32 << 20
    file_rows: int = 100_000
    file_seconds: float = 600.0
    files: int = 8


class Refused(Exception):
    """A request that is answered with an error status and a message."""

    def __init__(
        self, status: int, error: str, hint: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.hint, self.retry_after = status, error, hint, retry_after


class TextRequest(BaseModel):
    """One text, and its second one for a head that was trained on pairs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    pair: str | None = None


class PredictRequest(BaseModel):
    """One text, or several; for a head that was trained on pairs, each with a second text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(None, description="one text; the answer is one prediction")
    texts: list[str] | None = Field(None, min_length=1, description="several; `predictions` has one for each")
    pair: str | None = Field(None, description="second text of `text`")
    pairs: list[str] | None = Field(None, description="second texts of `texts`")
    top_k: int | None = Field(None, ge=1, description="only the most probable labels; all by default")
    explain: bool = Field(False, description="mark what decided, of heads that read words or token states")

    @property
    def all_texts(self) -> tuple[list[str], list[str] | None]:
        """The texts, and their second texts or None."""
        if self.text is not None:
            return [self.text], None if self.pair is None else [self.pair]
        return self.texts or [], self.pairs

    def check(self, predictor: Predictor, limits: Limits) -> None:
        """Everything about a request that its fields alone do not say, before anything is queued.

        Raises:
            Refused
        """
        if (self.text is None) == (self.texts is None):
            raise Refused(422, "one of text and texts is needed", EXAMPLE)
        if (self.pair is not None and self.text is None) or (self.pairs is not None and self.texts is None):
            raise Refused(422, "pair belongs to text, pairs to texts")
        texts, pairs = self.all_texts
        if pairs is not None and len(pairs) != len(texts):
            raise Refused(422, f"{len(texts)} texts but {len(pairs)} pairs; each needs one")
        if self.explain and not predictor.explains:
            raise Refused(422, "this head cannot explain: it reads no words and no token states")
        if len(texts) > limits.texts:
            raise Refused(413, f"{len(texts)} texts; at most {limits.texts} in one request")
        check_characters([*texts, *(pairs or [])], limits)
        try:
            predictor.check_pairs(pairs is not None)
            for kind, values in (("text", texts), ("pair", pairs or [])):
                for number, text in enumerate(values, start=1):
                    check_text(text, f"{kind} {number}")
        except (SourceError, HeadError) as error:
            raise Refused(422, error.what, error.hint) from None


def check_characters(texts: list[str], limits: Limits) -> None:
    """
    Raises:
        Refused: the texts of one request are too long.
    """
    characters = sum(map(len, texts))
    if characters > limits.characters:
        raise Refused(413, f"{characters} characters; at most {limits.characters} in one request")


def parsed(kind: type[Model], body: bytes) -> Model:
    """The JSON body of a request.

    Raises:
        Refused: says what is wrong, in words that are not the parser's.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        broken = first["type"] == "json_invalid"
        what = f"{where}: {first['msg']}" if where else first["msg"]
        what = "the body is no valid JSON" if broken else what  # the parser's words are for programmers
        raise Refused(400 if broken else 422, what, EXAMPLE) from None


async def json_body(request: Request, limits: Limits) -> bytes:
    """The body of a request, as it came."""
    too_large = Refused(
        413, f"the body is larger than {limits.body_bytes} bytes", "send fewer texts at a time"
    )
    return b"".join([part async for part in body_parts(request, JSON, limits.body_bytes, too_large)])


async def body_parts(request: Request, kind: str, most: int, too_large: Refused) -> AsyncIterator[bytes]:
    """The body of a request while it arrives, up to the limit.

    Other sites can send forms and plain text without asking first (a CORS preflight), but not `kind`.

    Raises:
        Refused: another content type, or more than `most` bytes.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != kind:
        raise Refused(415, f"the body is {found or 'of no type'}, not {kind}")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    arrived = 0
    async for part in request.stream():
        arrived += len(part)
        if arrived > most:
            raise too_large
        yield part
