"""The page of `featcache label`: one person, one browser, on this machine.

The limits are those of `featcache serve`: only names of this machine are answered, nothing is sent from other
sites, and a request is small. Every answer is on the disk before the page shows the next text. The page is in
the language of the command until the person chooses the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from featcache.errors import FeatcacheError, UsageError
from featcache.labelling.encoding import BackgroundEncoding
from featcache.labelling.session import LONGEST_NOTE, LabelSession
from featcache.labelling.words import (
    WORDS,
    about_session,
    accuracy_sentence,
    counts_sentence,
    encoding_sentences,
    more_sentence,
)
from featcache.serving.app import LOCAL_NAMES
from featcache.serving.page_routes import PAGE_HEADERS, language_of
from featcache.serving.words import WORDS as SHARED_WORDS
from featcache.serving.words import words_in
from featcache.translation.language import LANGUAGES, in_language
from featcache.translation.language import gettext as _
from featcache.translation.sentences import translated, translated_lines

PAGE = {
    "/": ("featcache.labelling", "index.html", "text/html"),
    "/label.css": ("featcache.labelling", "label.css", "text/css"),
    "/label.js": ("featcache.labelling", "label.js", "text/javascript"),
    "/page.css": ("featcache.serving", "page.css", "text/css"),
    "/words.js": ("featcache.serving", "words.js", "text/javascript"),
}
BODY_BYTES = 1 << 16
SURE = 0.95  # probability from which on texts are offered to be confirmed many at a time


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class GivenLabels(_Body):
    """The labels of the text that is asked now."""

    row: int
    labels: list[str] = Field(min_length=1, max_length=100)
    note: str = Field("", max_length=LONGEST_NOTE)
    guess_shown: bool = False


class SkippedText(_Body):
    """The text that is asked now gets no label from this person."""

    row: int
    unsure: bool = False
    note: str = Field("", max_length=LONGEST_NOTE)


class NewLabel(_Body):
    """Another label."""

    name: str


class AskedRow(_Body):
    """A text."""

    row: int = Field(ge=0)


class ConfirmedLabels(_Body):
    """Labels by text, confirmed many at a time."""

    labels: dict[str, str] = Field(max_length=200)


class LabelService:
    """A session behind HTTP; `app` is the ASGI application.

    Args:
        language: one of LANGUAGES, in which the page begins.

    Attributes:
        draining: set when the server stops; every answer is on the disk already.
    """

    def __init__(self, session: LabelSession, encoding: BackgroundEncoding, language: str = "en") -> None:
        self.session, self.encoding, self.language = session, encoding, language
        self.draining = False
        app = FastAPI(title="featcache label", docs_url=None, redoc_url=None, openapi_url=None)
        for path, (package, name, kind) in PAGE.items():
            app.add_api_route(path, partial(self.page, package, name, kind), response_model=None)
        app.add_api_route("/words", self.words, response_model=None)
        app.add_api_route("/state", self.state, response_model=None)
        app.add_api_route("/curve", self.curve, response_model=None)
        acts: dict[str, Callable[..., Response]] = {
            "/answer": self.answer, "/skip": self.skip, "/undo": self.undo, "/label": self.add_label,
            "/guess": self.guess, "/likely": self.likely, "/confirm": self.confirm,
        }  # fmt: skip
        for path, act in acts.items():
            app.add_api_route(path, act, methods=["POST"], response_model=None)
        app.add_exception_handler(FeatcacheError, self._refused)
        app.add_exception_handler(RequestValidationError, self._invalid)
        app.add_middleware(_SmallJson)
        app.add_middleware(_Spoken)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_NAMES), www_redirect=False)
        self.app = app

    def page(self, package: str, name: str, kind: str) -> Response:
        """A file of the page."""
        content = files(package).joinpath("page", name).read_bytes()
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=PAGE_HEADERS)

    def words(self, lang: str = "") -> Response:
        """The words of the page in the language `lang`, else in that of the command."""
        spoken = lang if lang in LANGUAGES else self.language
        return self._json({"language": spoken, "words": words_in(spoken, (*WORDS, *SHARED_WORDS))})

    def state(self) -> Response:
        """The text that is asked now, and all that the page shows beside it."""
        return self._json(self._state())

    def curve(self) -> Response:
        """The accuracy by number of labels; apart, since the next text does not wait for it."""
        found = self.session.curve()
        return self._json({**asdict(found), "sentence": more_sentence(found.more)})

    def answer(self, given: GivenLabels) -> Response:
        self.session.answer(given.row, given.labels, note=given.note, guess_shown=given.guess_shown)
        return self.state()

    def skip(self, given: SkippedText) -> Response:
        self.session.skip(given.row, unsure=given.unsure, note=given.note)
        return self.state()

    def undo(self, _: _Body) -> Response:
        if not self.session.undo():
            raise UsageError("there is no answer to take back")
        return self.state()

    def add_label(self, given: NewLabel) -> Response:
        self.session.add_label(given.name)
        return self.state()

    def guess(self, given: AskedRow) -> Response:
        if given.row >= len(self.session.texts.texts):
            raise UsageError(f"there is no text {given.row}")
        found = self.session.guesses(given.row)[:5]
        return self._json({"guesses": [asdict(one) for one in found]})

    def likely(self, _: _Body) -> Response:
        texts = self.session.texts.texts
        found = self.session.likely(SURE)
        return self._json({"likely": [{**asdict(one), "text": texts[one.row]} for one in found]})

    def confirm(self, given: ConfirmedLabels) -> Response:
        if odd := [row for row in given.labels if not row.isdecimal()]:
            raise UsageError(f"{odd[0]!r} is no number of a text")
        self.session.confirm({int(row): label for row, label in given.labels.items()})
        return self.state()

    def _state(self) -> dict[str, Any]:
        session = self.session
        asked, counted, encoding = session.question(), session.counted, self.encoding.state
        estimate = session.estimate()
        return {
            "asked": None if asked is None else {"row": asked.row, "text": asked.text, "why": asked.why},
            "labels": session.labels,
            "multi_label": session.multi_label,
            "mine": len(counted.touched.get(session.by, ())),
            "labelled": len(counted.labels),
            "estimate": None if estimate is None else asdict(estimate),
            "encoded": encoding.ended,
            "sentences": {
                "about": about_session(session),
                "counts": counts_sentence(session),
                "accuracy": accuracy_sentence(session, estimate),
                "encoding": "\n".join(encoding_sentences(encoding)),
            },
        }

    def _json(self, content: Any, status: int = 200) -> Response:
        return JSONResponse(content, status_code=status, headers={"Cache-Control": "no-store"})

    def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, FeatcacheError)
        status = 409 if isinstance(error, UsageError) else 500
        hint = error.hint and translated_lines(error.hint)
        return self._json({"error": translated(error.what), "hint": hint}, status)

    def _invalid(self, request: Request, error: Exception) -> Response:
        said = {"error": _("this is no request of the page"), "hint": _("load the page again")}
        return self._json(said, 422)


class _Spoken:
    """Speaks the language that a request prefers; the page asks for the one that it is in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with in_language(language_of(scope.get("headers", ()))):
            await self.app(scope, receive, send)


class _SmallJson:
    """Refuses what the page does not send: large bodies, and types that other sites can send unasked."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = {name.lower(): value for name, value in scope["headers"]}
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            length = headers.get(b"content-length", b"")
            refusal = None
            if kind != b"application/json":
                refusal = 415, _("the body is not application/json")
            elif not length.isdigit() or int(length) > BODY_BYTES:
                refusal = 413, _("the body is larger than {bytes} bytes", bytes=BODY_BYTES)
            if refusal is not None:
                status, what = refusal
                await JSONResponse({"error": what, "hint": None}, status_code=status)(scope, receive, send)
                return
        await self.app(scope, receive, send)
