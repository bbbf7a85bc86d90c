"""Requests that arrive together are answered together: one thread, one model, one queue.

Whenever the model is free it takes everything that waits, up to `BATCH_TEXTS`; nobody waits for company.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from featcache.errors import FeatcacheError
from featcache.prediction.predictor import Prediction, Predictor

BATCH_TEXTS = 256  # of one call of the model, unless one request has more


class Full(Exception):
    """As many texts wait as may; `retry_after` seconds is a guess at when some are done."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """No new requests are taken."""


class TooLate(Exception):
    """The request's time was over before the model was free for it."""


@dataclass
class _Job:
    """One request: N texts, their second texts or None, and where the answers go."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    deadline: float
    answer: Future[list[Prediction]] = field(default_factory=Future)


class Batcher:
    """A predictor behind a bounded queue.

    Args:
        predictor: used from one thread alone.
        queue_texts: that may wait; one request more is taken where none waits.
        watch: told the texts and the seconds of each call of the model.
    """

    def __init__(
        self,
        predictor: Predictor,
        queue_texts: int,
        watch: Callable[[int, float], None] = lambda texts, seconds: None,
    ) -> None:
        self.predictor, self.queue_texts, self.watch = predictor, queue_texts, watch
        self.waiting = 0  # texts in the queue
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._pace = 0.02  # seconds a text takes, as lately seen
        self._thread = threading.Thread(target=self._work, name="featcache-serve", daemon=True)
        self._thread.start()

    def submit(
        self, texts: Sequence[str], pairs: Sequence[str] | None, deadline: float
    ) -> Future[list[Prediction]]:
        """Queue N texts, already checked; N predictions, or the error of these texts alone.

        Args:
            deadline: by `time.monotonic`, when nobody waits for the answer any more.

        Raises:
            Full, Stopping
        """
        job = _Job(texts, pairs, deadline)
        with self._changed:
            if self._stopping:
                raise Stopping
            if self.waiting and self.waiting + len(texts) > self.queue_texts:
                raise Full(max(1, math.ceil(self.waiting * self._pace)))
            self._jobs.append(job)
            self.waiting += len(texts)
            self._changed.notify()
        return job.answer

    def stop(self) -> None:
        """Answer what is queued, take nothing new, and end; twice is once."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            began = time.perf_counter()
            texts = sum(len(job.texts) for job in jobs)
            self._answer(jobs)
            seconds = time.perf_counter() - began
            self._pace += 0.2 * (seconds / texts - self._pace)
            self.watch(texts, seconds)

    def _take(self) -> list[_Job]:
        """What waits, in order, pairs and single texts apart; nothing when there is nothing more to come."""
        with self._changed:
            while True:
                while not self._jobs:
                    if self._stopping:
                        return []
                    self._changed.wait()
                taken: list[_Job] = []
                texts = 0
                while self._jobs and (not taken or texts + len(self._jobs[0].texts) <= BATCH_TEXTS):
                    if taken and (self._jobs[0].pairs is None) != (taken[0].pairs is None):
                        break
                    job = self._jobs.popleft()
                    self.waiting -= len(job.texts)
                    if not job.answer.set_running_or_notify_cancel():
                        continue
                    if job.deadline < time.monotonic():
                        job.answer.set_exception(TooLate())
                        continue
                    taken.append(job)
                    texts += len(job.texts)
                if taken:
                    return taken

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """All at once; where that fails, each alone, so that only the text at fault has no answer."""
        pairs = None if jobs[0].pairs is None else [pair for job in jobs for pair in job.pairs or ()]
        try:
            found = self.predictor.predict([text for job in jobs for text in job.texts], pairs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            if not isinstance(error, FeatcacheError):
                for job in jobs:
                    job.answer.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        start = 0
        for job in jobs:
            job.answer.set_result(found[start : start + len(job.texts)])
            start += len(job.texts)
