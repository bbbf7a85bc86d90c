"""The page, and what it asks for besides predictions: its words, example texts, and counts of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from featcache.errors import FeatcacheError
from featcache.prediction.predictor import Predictor
from featcache.serving.examples import Example
from featcache.serving.request import (
    Limits,
    Refused,
    TextRequest,
    check_characters,
    json_body,
    parsed,
)
from featcache.serving.words import words_in
from featcache.system.text import check_text
from featcache.translation.language import LANGUAGES

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE = ("index.html", "page.css", "page.js", "words.js", "field.js", "answer.js", "files.js")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class PageRoutes:
    """The page and its requests, for one application.

    Args:
        examples: finds texts to be clicked; called once, when a page first asks for them.
    """

    def __init__(
        self,
        app: FastAPI,
        predictor: Predictor,
        limits: Limits,
        examples: Callable[[], Sequence[Example]] | None,
    ) -> None:
        self.predictor, self.limits, self.examples_of = predictor, limits, examples
        app.add_api_route("/tokens", self.tokens, methods=["POST"], include_in_schema=False)
        app.add_api_route("/examples", self.examples, include_in_schema=False, response_model=None)
        app.add_api_route("/words", self.words, include_in_schema=False, response_model=None)
        for name in PAGE:
            path = "/" if name == "index.html" else f"/{name}"
            app.add_api_route(path, partial(self.page, name), include_in_schema=False, response_model=None)

    async def page(self, name: str) -> Response:
        content = files("featcache.serving").joinpath("page", name).read_bytes()
        return Response(content, media_type=KINDS[name[name.rindex(".") :]], headers=PAGE_HEADERS)

    async def words(self, request: Request) -> Response:
        """The words of the page, in the language of the query, else in the one that the browser prefers."""
        asked = request.query_params.get("lang")
        spoken = asked if asked in LANGUAGES else language_of(request.headers.raw)
        return JSONResponse({"language": spoken, "words": words_in(spoken)})

    async def examples(self) -> Response:
        """Texts of the run's test split, as far as they can be read here."""
        return JSONResponse({"examples": [asdict(one) for one in await asyncio.shield(self._found)]})

    @cached_property
    def _found(self) -> asyncio.Future[Sequence[Example]]:
        """Read in a thread, once, for whoever asks first and for all others."""
        return asyncio.ensure_future(asyncio.to_thread(self.examples_of or list))

    async def tokens(self, request: Request) -> Response:
        """How many tokens a text has, and what of it is cut off; nothing for a head of words alone."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                asked = parsed(TextRequest, await json_body(request, self.limits))
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self.limits.seconds:g} s") from None
        except ClientDisconnect:
            return Response(status_code=400)
        check_characters([asked.text, asked.pair or ""], self.limits)
        encoder = self.predictor.encoder
        if encoder is None or not asked.text.strip():
            return JSONResponse(None)
        try:
            check_text(asked.text, "text")
            measured = await asyncio.to_thread(encoder.measure, asked.text, asked.pair or None)
        except FeatcacheError as error:
            raise Refused(422, error.what, error.hint) from None
        if measured is None:  # an endpoint does not say how much it reads
            return JSONResponse(None)
        return JSONResponse({**asdict(measured), "limit": encoder.max_length, "long_text": encoder.long_text})


def language_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one of LANGUAGES that `Accept-Language` prefers; English where it names none of them."""
    asked = b",".join(value for name, value in headers if name == b"accept-language").decode("latin-1")
    best, weight = "en", 0.0
    for part in asked.lower().split(","):
        name, _, quality = part.partition(";")
        found = name.strip().split("-")[0]
        try:
            share = float(quality.partition("=")[2]) if quality else 1.0
        except ValueError:
            share = 0.0
        if found in LANGUAGES and share > weight:
            best, weight = found, share
    return best
