"""The page of `featcache label`: one person, one browser, on this machine.

The limits are those of `featcache serve`: only names of this machine are answered, nothing is sent from other
sites, and a request is small. Every answer is on the disk before the page shows the next text.
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
from featcache.serving.app import LOCAL_NAMES
from featcache.serving.page_routes import PAGE_HEADERS

PAGE = {
    "/": ("featcache.labelling", "index.html", "text/html"),
    "/label.css": ("featcache.labelling", "label.css", "text/css"),
    "/label.js": ("featcache.labelling", "label.js", "text/javascript"),
    "/page.css": ("featcache.serving", "page.css", "text/css"),
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

    Attributes:
        draining: set when the server stops; every answer is on the disk already.
    """

    def __init__(self, session: LabelSession, encoding: BackgroundEncoding) -> None:
        self.session, self.encoding = session, encoding
        self.draining = False
        app = FastAPI(title="featcache label", docs_url=None, redoc_url=None, openapi_url=None)
        for path, (package, name, kind) in PAGE.items():
            app.add_api_route(path, partial(self.page, package, name, kind), response_model=None)
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
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_NAMES), www_redirect=False)
        self.app = app

    def page(self, package: str, name: str, kind: str) -> Response:
        """A file of the page."""
        content = files(package).joinpath("page", name).read_bytes()
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=PAGE_HEADERS)

    def state(self) -> Response:
        """The text that is asked now, and all that the page shows beside it."""
        return self._json(self._state())

    def curve(self) -> Response:
        """The accuracy by number of labels; apart, since the next text does not wait for it."""
        return self._json(asdict(self.session.curve()))

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
        asked, counted = session.question(), session.counted
        estimate = session.estimate()
        return {
            "asked": None if asked is None else asdict(asked),
            "labels": session.labels,
            "multi_label": session.multi_label,
            "by": session.by,
            "strategy": None if session.only_first else session.strategy,
            "texts": len(session.texts.texts),
            "mine": len(counted.touched.get(session.by, ())),
            "labelled": len(counted.labels),
            "conflicts": len(counted.conflicts),
            "elsewhere": counted.unknown,
            "estimate": None if estimate is None else asdict(estimate),
            "encoding": asdict(self.encoding.state),
            "file": self.session.answers.path.name,
        }

    def _json(self, content: Any, status: int = 200) -> Response:
        return JSONResponse(content, status_code=status, headers={"Cache-Control": "no-store"})

    def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, FeatcacheError)
        status = 409 if isinstance(error, UsageError) else 500
        return self._json({"error": error.what, "hint": error.hint}, status)

    def _invalid(self, request: Request, error: Exception) -> Response:
        return self._json({"error": "this is no request of the page", "hint": "load the page again"}, 422)


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
                refusal = 415, "the body is not application/json"
            elif not length.isdigit() or int(length) > BODY_BYTES:
                refusal = 413, f"the body is larger than {BODY_BYTES} bytes"
            if refusal is not None:
                status, what = refusal
                await JSONResponse({"error": what, "hint": None}, status_code=status)(scope, receive, send)
                return
        await self.app(scope, receive, send)
