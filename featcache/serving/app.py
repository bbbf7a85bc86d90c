"""A trained head behind HTTP: predictions, files, `/health`, `/info`, `/metrics`, and a page to try it.

A request costs at most what `Limits` allows, whatever it contains, and every refusal has a status and a
message. The server answers only requests for names of this machine, and sends no CORS headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
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
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from featcache.errors import FeatcacheError
from featcache.prediction.predictor import NumberPrediction, Prediction, Predictor
from featcache.serving.answers import Answer, PredictAnswer, PredictAnswers, answer_of
from featcache.serving.batcher import (
    Batcher,
    DeadlinePassed,
    QueuedPredictor,
    QueueFull,
    QueueStopping,
)
from featcache.serving.examples import Example
from featcache.serving.file_jobs import FileJobs
from featcache.serving.file_routes import FileRoutes
from featcache.serving.page_routes import PageRoutes
from featcache.serving.request import JSON, Limits, PredictRequest, Refused, json_body, parsed
from featcache.settings import DataSettings

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")
SWEEP_SECONDS = 60.0
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True)
class RunInfo:
    """What `/info` has about the run.

    Attributes:
        columns: that it was trained on; files of clients that have them are read likewise. Not in `/info`.
    """

    run: str = ""
    head: str = ""
    created: str = ""
    metrics: Mapping[str, float] | None = None
    columns: DataSettings | None = None


class Service:
    """A predictor with its queue, its limits and its metrics; `app` is the ASGI application.

    Args:
        about: the run, for `/info`.
        hosts: names in the Host header that are answered; those of this machine by default.
        examples: finds texts that everybody who opens the page is shown; None shows none.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits | None = None,
        about: RunInfo | None = None,
        hosts: tuple[str, ...] = LOCAL_NAMES,
        examples: Callable[[], Sequence[Example]] | None = None,
    ) -> None:
        limits, about = limits or Limits(), about or RunInfo()
        self.predictor, self.limits, self.about = predictor, limits, about
        self.draining = False
        self._make_metrics()
        self.batcher = Batcher(predictor, limits.queue_texts, self._count_batch)
        self.waiting.set_function(lambda: self.batcher.waiting)
        self.jobs = FileJobs(QueuedPredictor(self.batcher, self.texts.inc), limits, about.columns)
        self.app = self._build(hosts)
        FileRoutes(self.app, self.jobs)
        PageRoutes(self.app, predictor, limits, examples)

    def _build(self, hosts: tuple[str, ...]) -> FastAPI:
        app = FastAPI(
            title="featcache", summary="labels for texts", docs_url=None, redoc_url=None,
            lifespan=self._lifespan,
        )  # fmt: skip
        responses: dict[int | str, dict[str, Any]] = {200: {"model": Answer | PredictAnswers}}
        responses |= {code: {"description": text} for code, text in STATUSES.items()}
        content = {JSON: {"schema": PredictRequest.model_json_schema()}}
        app.add_api_route(
            "/predict", self.predict, methods=["POST"], response_model=None, responses=responses,
            openapi_extra={"requestBody": {"required": True, "content": content}},
        )  # fmt: skip
        app.add_api_route("/health", self.health, response_model=None)
        app.add_api_route("/info", self.info, response_model=None)
        app.add_api_route("/metrics", self.metrics, response_model=None)
        app.add_exception_handler(Refused, self._refused)
        app.add_exception_handler(404, self._no_such_route)
        app.add_exception_handler(405, self._no_such_route)
        app.add_middleware(_AnswerHeaders, service=self)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(self._sweep())
        yield
        sweeping.cancel()
        await asyncio.to_thread(self.jobs.stop)
        await asyncio.to_thread(self.batcher.stop)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.jobs.sweep()

    # -- predictions ------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Labels of one text or of several."""
        began = time.monotonic()
        status, asked = 500, None
        try:
            async with asyncio.timeout(self.limits.seconds):
                asked = parsed(PredictRequest, await json_body(request, self.limits))
                asked.check(self.predictor, self.limits)
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
        numbers, limits = self.predictor.head.numbers, self.predictor.head.thresholds
        return JSONResponse(
            {
                **{name: value for name, value in asdict(self.about).items() if name != "columns"},
                "labels": list(self.predictor.label_names),
                "multi_label": self.predictor.head.multi_label,
                "thresholds": None if limits is None else limits.tolist(),
                "task": self.predictor.head.task,
                "interval": asdict(numbers.interval) if numbers and numbers.interval else None,
                "pairs": self.predictor.pairs,
                "explains": self.predictor.explains,
                "view": self.predictor.head.view,
                "model": encoder.model_name if encoder else None,
                "max_length": encoder.max_length if encoder else None,
                "abstention": None if held is None else asdict(held.asked) | {"threshold": held.threshold},
                "limits": asdict(self.limits),
            }
        )

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

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


STATUSES = {
    400: "no valid JSON",
    408: "the body takes too long",
    413: "more than a request can hold",
    415: "not application/json",
    422: "a text that cannot be labelled",
    429: "the queue is full, see Retry-After",
    503: "no answer in time, or the server is stopping",
}
