"""A trained head behind HTTP: `/predict`, `/health`, `/info`, `/metrics`, and a page to try it.

A request costs at most what `Limits` allows, whatever it contains, and every refusal has a status and a
message. The server answers only requests for names of this machine, and sends no CORS headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from featcache.errors import FeatcacheError, HeadError, SourceError
from featcache.prediction.predictor import NumberPrediction, Prediction, Predictor
from featcache.serving.answers import Answer, PredictAnswer, PredictAnswers, answer_of
from featcache.serving.batcher import Batcher, DeadlinePassed, QueueFull, QueueStopping
from featcache.system.text import check_text

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"),
        "/page.js": ("page.js", "text/javascript")}  # fmt: skip
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        body_bytes: of a request, counted while they arrive.
        texts: in one request; a pair counts as one.
        characters: of all texts of a request.
        seconds: from the first byte of a request to its answer.
        queue_texts: that can wait for the model, of all requests.
    """

    body_bytes: int = 1 << 20
    texts: int = 64
    characters: int = 64 << 10
    seconds: float = 30.0
    queue_texts: int = 512


@dataclass(frozen=True)
class RunInfo:
    """What `/info` has about the run."""

    run: str = ""
    head: str = ""
    created: str = ""
    metrics: Mapping[str, float] | None = None


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


class Refused(Exception):
    """A request that is answered with an error status and a message."""

    def __init__(
        self, status: int, error: str, hint: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.hint, self.retry_after = status, error, hint, retry_after


class Service:
    """A predictor with its queue, its limits and its metrics; `app` is the ASGI application.

    Args:
        about: the run, for `/info`.
        hosts: names in the Host header that are answered; those of this machine by default.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits = Limits(),
        about: RunInfo = RunInfo(),
        hosts: tuple[str, ...] = LOCAL_NAMES,
    ) -> None:
        self.predictor, self.limits, self.about = predictor, limits, about
        self.draining = False
        self._make_metrics()
        self.batcher = Batcher(predictor, limits.queue_texts, self._count_batch)
        self.waiting.set_function(lambda: self.batcher.waiting)
        self.app = self._build(hosts)

    def _build(self, hosts: tuple[str, ...]) -> FastAPI:
        app = FastAPI(
            title="featcache", summary="labels for texts", docs_url=None, redoc_url=None,
            lifespan=self._lifespan,
        )  # fmt: skip
        responses: dict[int | str, dict[str, Any]] = {200: {"model": Answer | PredictAnswers}}
        responses |= {code: {"description": text} for code, text in STATUSES.items()}
        content = {"application/json": {"schema": PredictRequest.model_json_schema()}}
        app.add_api_route(
            "/predict", self.predict, methods=["POST"], response_model=None, responses=responses,
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )  # fmt: skip
        app.add_api_route("/health", self.health, response_model=None)
        app.add_api_route("/info", self.info, response_model=None)
        app.add_api_route("/metrics", self.metrics, response_model=None)
        for path, (name, kind) in PAGE.items():
            app.add_api_route(
                path, partial(self.page, name, kind), include_in_schema=False, response_model=None
            )
        app.add_exception_handler(Refused, self._refused)
        app.add_exception_handler(404, self._no_such_route)
        app.add_exception_handler(405, self._no_such_route)
        app.add_middleware(_AnswerHeaders, service=self)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.batcher.stop)

    # -- predictions ------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Labels of one text or of several."""
        began = time.monotonic()
        status, asked = 500, None
        try:
            async with asyncio.timeout(self.limits.seconds):
                asked = self._parse(await self._body(request))
                predictions = await self._answers(asked, began + self.limits.seconds)
            status = 200
        except TimeoutError:
            limit = f"within {self.limits.seconds:g} s"
            status = 408 if asked is None else 503
            if asked is None:
                raise Refused(status, f"the body did not arrive {limit}") from None
            raise Refused(status, f"no answer {limit}", "send fewer texts, or later", retry_after=1) from None
        except Refused as refusal:
            status = refusal.status
            raise
        except ClientDisconnect:
            status = 499
            return Response(status_code=400)
        finally:
            self.requests.labels(str(status)).inc()
            self.seconds.observe(time.monotonic() - began)
        answers = [answer_of(one, asked.top_k) for one in predictions]
        self.abstained.inc(sum(isinstance(one, PredictAnswer) and one.abstained for one in answers))
        answer = answers[0] if asked.text is not None else PredictAnswers(predictions=answers)
        return JSONResponse(answer.model_dump())

    async def _body(self, request: Request) -> bytes:
        """The body, read up to the limit."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # other sites can send forms and plain text without a CORS preflight
            raise Refused(415, f"the body is {kind or 'of no type'}, not application/json")
        limit = self.limits.body_bytes
        too_large = Refused(413, f"the body is larger than {limit} bytes", "send fewer texts at a time")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise too_large
        return bytes(body)

    def _parse(self, body: bytes) -> PredictRequest:
        """The request, checked in full before anything is queued."""
        try:
            asked = PredictRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            broken = first["type"] == "json_invalid"
            what = f"{where}: {first['msg']}" if where else first["msg"]
            what = "the body is no valid JSON" if broken else what  # the parser's words are for programmers
            raise Refused(400 if broken else 422, what, EXAMPLE) from None
        if (asked.text is None) == (asked.texts is None):
            raise Refused(422, "one of text and texts is needed", EXAMPLE)
        if (asked.pair is not None and asked.text is None) or (
            asked.pairs is not None and asked.texts is None
        ):
            raise Refused(422, "pair belongs to text, pairs to texts")
        texts, pairs = asked.all_texts
        if pairs is not None and len(pairs) != len(texts):
            raise Refused(422, f"{len(texts)} texts but {len(pairs)} pairs; each needs one")
        if asked.explain and not self.predictor.explains:
            raise Refused(422, "this head cannot explain: it reads no words and no token states")
        if len(texts) > self.limits.texts:
            raise Refused(413, f"{len(texts)} texts; at most {self.limits.texts} in one request")
        characters = sum(map(len, texts)) + sum(map(len, pairs or []))
        if characters > self.limits.characters:
            raise Refused(413, f"{characters} characters; at most {self.limits.characters} in one request")
        try:
            self.predictor.check_pairs(pairs is not None)
            for kind, values in (("text", texts), ("pair", pairs or [])):
                for number, text in enumerate(values, start=1):
                    check_text(text, f"{kind} {number}")
        except (SourceError, HeadError) as error:
            raise Refused(422, error.what, error.hint) from None
        return asked

    async def _answers(
        self, asked: PredictRequest, deadline: float
    ) -> list[Prediction] | list[NumberPrediction]:
        try:
            queued = self.batcher.submit(*asked.all_texts, deadline, explain=asked.explain)
            return await asyncio.wrap_future(queued)
        except QueueFull as full:
            raise Refused(429, str(full), retry_after=full.retry_after) from None
        except QueueStopping:
            raise Refused(503, "the server is stopping", retry_after=5) from None
        except DeadlinePassed:
            raise TimeoutError from None
        except FeatcacheError as error:
            raise Refused(422, error.what, error.hint) from None

    # -- the state of the server ------------------------------------------------------------------

    async def health(self) -> Response:
        """Whether requests are accepted: 200, or 503 while the server stops."""
        return JSONResponse({"status": "stopping"}, 503) if self.draining else JSONResponse({"status": "ok"})

    async def info(self) -> Response:
        """The run, its labels and the limits of a request."""
        encoder, held = self.predictor.encoder, self.predictor.head.abstention
        numbers = self.predictor.head.numbers
        return JSONResponse(
            {
                **asdict(self.about),
                "labels": list(self.predictor.label_names),
                "multi_label": self.predictor.head.multi_label,
                "task": self.predictor.head.task,
                "interval": asdict(numbers.interval) if numbers and numbers.interval else None,
                "pairs": self.predictor.pairs,
                "explains": self.predictor.explains,
                "view": self.predictor.head.view,
                "model": encoder.backbone.files.name if encoder else None,
                "max_length": encoder.max_length if encoder else None,
                "abstention": None if held is None else asdict(held.asked) | {"threshold": held.threshold},
                "limits": asdict(self.limits),
            }
        )

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self, name: str, kind: str) -> Response:
        content = files("featcache.serving").joinpath("page", name).read_bytes()
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    def _make_metrics(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("featcache_requests", "requests to /predict", ["status"], registry=own)
        self.seconds = Histogram("featcache_request_seconds", "to the answer", buckets=BUCKETS, registry=own)
        self.texts = Counter("featcache_texts", "texts answered", registry=own)
        self.abstained = Counter("featcache_abstained", "texts without an answer", registry=own)
        self.batches = Histogram("featcache_batch_texts", "texts of a batch", buckets=SIZES, registry=own)
        self.model_seconds = Histogram("featcache_model_seconds", "of a batch", buckets=BUCKETS, registry=own)
        self.waiting = Gauge("featcache_waiting_texts", "texts in the queue", registry=own)

    def _count_batch(self, texts: int, seconds: float) -> None:
        self.texts.inc(texts)
        self.batches.observe(texts)
        self.model_seconds.observe(seconds)

    async def _refused(self, request: Request, error: Any) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        content = {"error": error.error} | ({"hint": error.hint} if error.hint else {})
        if error.status in (408, 413):  # the rest of the body is not read
            headers["Connection"] = "close"
        return JSONResponse(content, error.status, headers)

    async def _no_such_route(self, request: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail.lower()}, error.status_code, error.headers)


class _AnswerHeaders:
    """Adds the headers of every answer; while the server stops, one that closes the connection."""

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                headers.append((b"x-content-type-options", b"nosniff"))
                if self.service.draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


EXAMPLE = 'e.g. {"text": "..."} or {"texts": ["...", "..."]}'
STATUSES = {
    400: "no valid JSON",
    408: "the body takes too long",
    413: "more than a request can hold",
    415: "not application/json",
    422: "a text that cannot be labelled",
    429: "the queue is full, see Retry-After",
    503: "no answer in time, or the server is stopping",
}
