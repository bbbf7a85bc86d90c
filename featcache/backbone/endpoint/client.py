"""Requests to an endpoint: several at a time, tried again after what passes, and errors as sentences."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from urllib3.exceptions import HTTPError

from featcache.backbone.endpoint.answer import Vectors, message_of, read_vectors
from featcache.backbone.endpoint.errors import BadAnswer, HalfAnswer, Passing, ServerBusy
from featcache.backbone.endpoint.key import ApiKey
from featcache.backbone.endpoint.model import EndpointModel
from featcache.backbone.endpoint.transport import connection_error, pool_of, status_error, wait_asked
from featcache.backbone.endpoint.window import RequestWindow
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import BadRow

TRIES = 8  # of one request, if the error may pass
FIRST_WAIT, LONGEST_WAIT = 0.1, 20.0  # seconds before a request is sent again
MOST_BUSY = 600.0  # seconds that a request waits for a busy server, and that a server may ask to wait
MOST_BYTES = 256 << 20  # of an answer
IDLE = 2.0  # seconds without orders after which a thread ends
TOO_MUCH = (400, 413, 422)  # of a request with too many texts, or with one that the server refuses


class Stopped(Exception):
    """The client was stopped before the request was sent."""


@dataclass
class _TextsToSend:
    """Texts to send, and where their vectors go."""

    texts: Sequence[str]
    future: Future[Vectors] = field(default_factory=Future)


class Client:
    """Sends texts to one endpoint from threads of its own; the vectors come back by futures.

    The key goes to the address of the model and nowhere else: redirects are not followed.

    Args:
        width: numbers in a vector; None: the first answer decides. Another width later is an error.
        dimensions: asked for with each request; None: the server decides.
    """

    def __init__(
        self,
        model: EndpointModel,
        settings: EndpointSettings,
        *,
        width: int | None = None,
        dimensions: int | None = None,
    ) -> None:
        self.model, self.settings, self.width, self.dimensions = model, settings, width, dimensions
        self.key = ApiKey.from_environment()
        self.most_texts = settings.request_texts  # fewer once the server has refused so many
        self.window = RequestWindow(settings.connections)
        self._answered = False
        self._orders: queue.SimpleQueue[_TextsToSend] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads, self._lock = 0, threading.Lock()
        self._pool = pool_of(model, settings)

    def submit(self, texts: Sequence[str]) -> Future[Vectors]:
        """The vectors of some texts, float32 `[n, D]`, as a future.

        The future raises `BadRow` for a text that the server refuses, and `BackboneError` for all else.
        """
        order = _TextsToSend(texts)
        with self._lock:
            self._orders.put(order)
            if self._threads < 2 * self.settings.connections:  # half of them may be waiting to try again
                self._threads += 1
                threading.Thread(target=self._work, name="featcache-endpoint", daemon=True).start()
        return order.future

    def stop(self) -> None:
        """Send nothing any more; what is on its way is not waited for."""
        self._stopped.set()
        self.window.wake()
        while True:
            try:
                self._orders.get_nowait().future.cancel()
            except queue.Empty:
                return

    # -- in the threads ---------------------------------------------------------------------------

    def _work(self) -> None:
        while (order := self._next()) is not None:
            if not order.future.set_running_or_notify_cancel():
                continue
            try:
                order.future.set_result(self._vectors(order.texts))
            except BaseException as error:  # whoever waits for the future is told
                order.future.set_exception(error)

    def _next(self) -> _TextsToSend | None:
        """The next order; None ends the thread: there is nothing to do for it."""
        with suppress(queue.Empty):
            return self._orders.get(timeout=IDLE)
        with self._lock:  # an order that is put from now on begins a thread
            with suppress(queue.Empty):
                return self._orders.get_nowait()
            self._threads -= 1
        return None

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        """Of texts, in as many requests as the server wants."""
        if len(texts) > 1 and len(texts) > self.most_texts:
            return self._in_parts(texts, self.most_texts)
        found = self._answer_of(texts)
        if isinstance(found, Vectors):
            return found
        if len(texts) == 1:
            raise BadRow(f"the server refuses it: {found}", 0, "shorten the text, or leave its row out")
        half = (len(texts) + 1) // 2
        parts = self._in_parts(texts, half)  # raises where it was a text, and not their number
        self.most_texts = min(self.most_texts, half)
        return parts

    def _in_parts(self, texts: Sequence[str], size: int) -> Vectors:
        parts = []
        for start in range(0, len(texts), size):
            try:
                parts.append(self._vectors(texts[start : start + size]))
            except BadRow as error:
                raise BadRow(error.what, start + error.row, error.hint) from None
        tokens = [part.tokens for part in parts if part.tokens is not None]
        return Vectors(
            np.concatenate([part.rows for part in parts]), sum(tokens) if len(tokens) == len(parts) else None
        )

    def _checked(self, body: bytes, count: int) -> Vectors:
        """The vectors of a whole answer, of the width that all have."""
        found = read_vectors(body, count)
        width = found.rows.shape[1]
        if self.dimensions is not None and width != self.dimensions:
            raise BadAnswer(
                f"{self.model.name} was asked for {self.dimensions} numbers a vector, and sends {width}",
                hint=f"take them here instead: --views vector-first{self.dimensions}-normalized",
            )
        self.width = self.width or width
        if width != self.width:
            raise BadAnswer(
                f"{self.model.name} at {self.model.address} sends vectors of {width} numbers; those "
                f"before had {self.width}",
                hint="another model answers under this name; if that is meant, declare it: --revision NAME",
            )
        return found

    def _answer_of(self, texts: Sequence[str]) -> Vectors | str:
        """The vectors; or what the server says where it refuses a text, or so many of them."""
        failures, waited = 0, 0.0
        content: dict[str, Any] = {"model": self.model.name, "input": list(texts)}
        if self.dimensions is not None:
            content["dimensions"] = self.dimensions
        body = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
        while True:
            try:
                return self._try(body, len(texts), again=bool(failures or waited))
            except ServerBusy as problem:
                wait = problem.wait if problem.wait is not None else self._backoff(failures)
                failures, waited = failures + (problem.wait is None), waited + wait
                if wait > MOST_BUSY or waited > MOST_BUSY:
                    raise problem.error(self.model.address, wait) from None
            except Passing as problem:
                failures += 1
                if failures >= TRIES or (problem.refuses and not self._answered):
                    raise problem.error(failures) from None
                wait = self._backoff(failures - 1)
            if self._stopped.wait(wait):
                raise Stopped

    @staticmethod
    def _backoff(failures: int) -> float:
        return float(min(LONGEST_WAIT, FIRST_WAIT * 2**failures) * random.uniform(0.5, 1.0))

    def _try(self, body: bytes, count: int, *, again: bool) -> Vectors | str:
        """One request; see `_answer_of`.

        Raises:
            ServerBusy, Passing: it may be sent again.
            BackboneError: it may not.
        """
        began = self.window.enter(self._stopped, again=again)
        if began is None:
            raise Stopped
        taken = True
        try:
            status, headers, answer = self._post(body)
            if status == 429 or (status == 503 and "retry-after" in headers):
                if b"insufficient_quota" in answer:  # waiting does not help
                    raise status_error(self.model, status, headers, self._said(answer))
                wait = wait_asked(headers)
                taken = False
                self.window.refused(began, self._backoff(3) if wait is None else wait)
                raise ServerBusy(self._said(answer), wait)
        finally:
            self.window.leave(taken=taken)
        self._answered = True
        if status in (408, 409, 425) or status >= 500:
            raise Passing(f"{self.model.address} answers with {status}: {self._said(answer)}")
        if status in TOO_MUCH:
            return f"{self._said(answer)} ({status})"
        if status != 200:
            raise status_error(self.model, status, headers, self._said(answer))
        try:
            return self._checked(answer, count)
        except HalfAnswer as error:
            raise Passing(f"{self.model.address} sends {error}") from None

    def _post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by their names in lower case, and body."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self.key.headers()}
        try:
            answer = self._pool.urlopen(
                "POST", self.model.url, body=body, headers=headers, redirect=False, preload_content=False
            )  # fmt: skip
            try:
                content = answer.read(MOST_BYTES + 1)
            finally:
                answer.release_conn()
        except (HTTPError, OSError) as error:
            raise connection_error(self.model, self.settings, error) from None
        if len(content) > MOST_BYTES:
            raise BadAnswer(
                f"{self.model.address} sends more than {MOST_BYTES >> 20} MB", hint="is it an endpoint?"
            )
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, content

    def _said(self, body: bytes) -> str:
        return self.key.removed_from(message_of(body))
