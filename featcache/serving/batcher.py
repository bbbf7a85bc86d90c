"""Requests that wait at the same time are answered as one batch: one thread, one model, one queue.

Whenever the model is free, it takes everything that waits, up to `BATCH_TEXTS`; it does not wait for more.
Files that are labelled have their turn between two such batches.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from featcache.errors import FeatcacheError
from featcache.prediction.predictor import Answers, NumberPrediction, Prediction, Predictor, PreparedTexts

BATCH_TEXTS = 256  # in one call of the model, unless one request has more
Result = TypeVar("Result")


class QueueFull(Exception):
    """The queue has no room for the texts; in about `retry_after` seconds it has."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class QueueStopping(Exception):
    """The queue accepts no new requests."""


class DeadlinePassed(Exception):
    """The deadline of the request passed before the model was free for it."""


@dataclass
class _QueuedRequest:
    """N texts, their second texts or None, and the future for their predictions."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    deadline: float
    explain: bool = False
    answer: Future[list[Prediction] | list[NumberPrediction]] = field(default_factory=Future)


@dataclass
class _QueuedCall:
    """Other work for the thread that may use the model."""

    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self.work())
            except BaseException as error:
                self.answer.set_exception(error)


class Batcher:
    """A predictor behind a bounded queue.

    Args:
        predictor: used by one thread only.
        queue_texts: how many can wait; a request with more is accepted if no other waits.
        on_batch: receives the texts and the seconds of each call of the model.
    """

    def __init__(
        self,
        predictor: Predictor,
        queue_texts: int,
        on_batch: Callable[[int, float], None] = lambda texts, seconds: None,
    ) -> None:
        self.predictor, self.queue_texts, self.on_batch = predictor, queue_texts, on_batch
        self.waiting = 0  # texts in the queue
        self._queue: deque[_QueuedRequest] = deque()
        self._calls: deque[_QueuedCall] = deque()
        self._call_is_next = False
        self._changed = threading.Condition()
        self._stopping = False
        self._pace = 0.02  # seconds a text takes, a moving average
        self._thread = threading.Thread(target=self._work, name="featcache-serve", daemon=True)
        self._thread.start()

    def submit(
        self, texts: Sequence[str], pairs: Sequence[str] | None, deadline: float, *, explain: bool = False
    ) -> Future[list[Prediction] | list[NumberPrediction]]:
        """Queue N checked texts; the future gets N predictions, or the error that these texts cause.

        Args:
            deadline: by `time.monotonic`; after it, the texts are not encoded any more.
            explain: each prediction gets its explanation.

        Raises:
            QueueFull: too many texts wait.
            QueueStopping: `stop` was called.
        """
        request = _QueuedRequest(texts, pairs, deadline, explain)
        with self._changed:
            if self._stopping:
                raise QueueStopping
            if self.waiting and self.waiting + len(texts) > self.queue_texts:
                raise QueueFull(max(1, math.ceil(self.waiting * self._pace)))
            self._queue.append(request)
            self.waiting += len(texts)
            self._changed.notify()
        return request.answer

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Do `work` in the one thread that may use the model, in turn with the batches of requests.

        Raises:
            QueueStopping: `stop` was called.
        """
        queued = _QueuedCall(work)
        with self._changed:
            if self._stopping:
                raise QueueStopping
            self._calls.append(queued)
            self._changed.notify()
        return queued.answer

    def stop(self) -> None:
        """Answer what is queued, accept nothing new, and end; can be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while requests := self._take():
            if isinstance(requests, _QueuedCall):
                requests.run()
                continue
            began = time.perf_counter()
            texts = sum(len(request.texts) for request in requests)
            self._answer(requests)
            seconds = time.perf_counter() - began
            self._pace += 0.2 * (seconds / texts - self._pace)
            self.on_batch(texts, seconds)

    def _take(self) -> list[_QueuedRequest] | _QueuedCall:
        """The next batch, in order, either of pairs or of single texts, or the next call.

        Empty once the queue has stopped.
        """
        with self._changed:
            while True:
                while not self._queue and not self._calls:
                    if self._stopping:
                        return []
                    self._changed.wait()
                if self._calls and (self._call_is_next or not self._queue):
                    self._call_is_next = False
                    return self._calls.popleft()
                self._call_is_next = True
                taken: list[_QueuedRequest] = []
                texts = 0
                while self._queue and (not taken or texts + len(self._queue[0].texts) <= BATCH_TEXTS):
                    if taken and (self._queue[0].pairs is None) != (taken[0].pairs is None):
                        break
                    request = self._queue.popleft()
                    self.waiting -= len(request.texts)
                    if not request.answer.set_running_or_notify_cancel():
                        continue
                    if request.deadline < time.monotonic():
                        request.answer.set_exception(DeadlinePassed())
                        continue
                    taken.append(request)
                    texts += len(request.texts)
                if taken:
                    return taken

    def _answer(self, requests: Sequence[_QueuedRequest]) -> None:
        """Answer in one batch; if a text is refused, each request alone, so that only one gets the error."""
        pairs = None
        if requests[0].pairs is not None:
            pairs = [pair for request in requests for pair in request.pairs or ()]
        try:
            texts = [text for request in requests for text in request.texts]
            found = self.predictor.predict_any(texts, pairs)
        except Exception as error:
            for request in requests:
                if len(requests) > 1 and isinstance(error, FeatcacheError):
                    self._answer([request])
                else:
                    request.answer.set_exception(error)
            return
        start = 0
        for request in requests:
            own = found[start : start + len(request.texts)]
            try:
                request.answer.set_result(self._explained(own, request.pairs) if request.explain else own)
            except Exception as error:
                request.answer.set_exception(error)
            start += len(request.texts)

    def _explained(self, found: Any, pairs: Sequence[str] | None) -> list[Prediction]:
        """Predictions with their explanations; the model runs here, in the one thread that may use it."""
        whys = self.predictor.explain(found, pairs)
        return [replace(one, explanation=why) for one, why in zip(found, whys, strict=True)]


class QueuedPredictor(Predictor):
    """A predictor for other threads: the model runs in the thread of the batcher, in turn with requests.

    Args:
        on_texts: receives the number of texts of each call of the model.
    """

    def __init__(self, batcher: Batcher, on_texts: Callable[[int], None]) -> None:
        super().__init__(batcher.predictor.encoder, batcher.predictor.head)
        self.pairs, self.batcher, self.on_texts = batcher.predictor.pairs, batcher, on_texts

    def answer(self, prepared: PreparedTexts, progress: Callable[[int, int], None] | None = None) -> Answers:
        answers = self.batcher.call(partial(super().answer, prepared, progress)).result()
        self.on_texts(prepared.count)
        return answers
