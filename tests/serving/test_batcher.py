"""The queue of the server: batches, limits, deadlines and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from featcache.errors import BadRow
from featcache.prediction.predictor import Prediction, Predictor
from featcache.serving.batcher import Batcher, DeadlinePassed, QueueFull, QueueStopping
from tests.support.tiny_predictor import HeldPredictor


@pytest.fixture
def held(predictor: Predictor) -> Iterator[tuple[HeldPredictor, Batcher]]:
    """With one request inside the model already."""
    holder = HeldPredictor(predictor)
    batcher = Batcher(holder, 10)  # type: ignore[arg-type]
    batcher.submit(["first"], None, time.monotonic() + 60)
    assert holder.inside.wait(30)
    yield holder, batcher
    holder.go_on.set()
    batcher.stop()


def ask(batcher: Batcher, *texts: str, pairs: Any = None, seconds: float = 60) -> Future[list[Prediction]]:
    return batcher.submit(list(texts), pairs, time.monotonic() + seconds)


def test_batcher_answers_waiting_requests_together(
    held: tuple[HeldPredictor, Batcher], predictor: Predictor
) -> None:
    holder, batcher = held
    jobs = [ask(batcher, f"好 {n}") for n in range(5)] + [ask(batcher, "坏", "差")]
    holder.go_on.set()
    found = [one for job in jobs for one in job.result(30)]
    assert holder.calls == [(1, False), (7, False)]
    expected = predictor.predict([one.text for one in found])
    assert [one.text for one in found] == [*(f"好 {n}" for n in range(5)), "坏", "差"]
    assert [one.label for one in found] == [one.label for one in expected]


def test_batcher_does_not_mix_pairs_and_single_texts(held: tuple[HeldPredictor, Batcher]) -> None:
    holder, batcher = held
    jobs = [ask(batcher, "a"), ask(batcher, "b"), ask(batcher, "c", pairs=["d"]), ask(batcher, "e")]
    holder.go_on.set()
    assert [job.result(30)[0].text for job in jobs] == ["a", "b", "c", "e"]
    assert holder.calls == [(1, False), (2, False), (1, True), (1, False)]


def test_batcher_refuses_requests_when_the_queue_is_full(held: tuple[HeldPredictor, Batcher]) -> None:
    holder, batcher = held
    jobs = [ask(batcher, "a") for _ in range(10)]
    with pytest.raises(QueueFull) as caught:
        ask(batcher, "b")
    assert caught.value.retry_after >= 1 and batcher.waiting == 10
    holder.go_on.set()
    assert all(job.result(30) for job in jobs)
    assert ask(batcher, *["c"] * 11).result(30)  # alone, a request may be larger than the queue


def test_batcher_skips_late_and_cancelled_requests(held: tuple[HeldPredictor, Batcher]) -> None:
    holder, batcher = held
    late, gone, fine = ask(batcher, "late", seconds=-1), ask(batcher, "gone"), ask(batcher, "fine")
    assert gone.cancel()
    holder.go_on.set()
    assert fine.result(30)
    with pytest.raises(DeadlinePassed):
        late.result(30)
    assert holder.calls == [(1, False), (1, False)] and batcher.waiting == 0


def test_batcher_stop_answers_queued_requests(held: tuple[HeldPredictor, Batcher]) -> None:
    holder, batcher = held
    jobs = [ask(batcher, "a") for _ in range(5)]
    stopper = threading.Thread(target=batcher.stop)
    stopper.start()
    with pytest.raises(QueueStopping):
        for _ in range(1000):
            ask(batcher, "late")
            time.sleep(0.001)
    holder.go_on.set()
    stopper.join(30)
    assert not stopper.is_alive() and all(job.done() and job.result() for job in jobs)


def test_batcher_continues_after_an_error_of_the_model(predictor: Predictor) -> None:
    class Broken:
        def predict_any(self, texts: list[str], pairs: Any = None) -> list[Prediction]:
            if texts == ["break"]:
                raise ZeroDivisionError
            return predictor.predict(texts, pairs)

    batcher = Batcher(Broken(), 10)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        ask(batcher, "break").result(30)
    assert ask(batcher, "好").result(30)
    batcher.stop()


def test_batcher_gives_the_error_of_a_text_only_to_its_request(predictor: Predictor) -> None:
    """One batch, one bad text: alone it gets the error."""
    predict = predictor.predict

    class Picky:
        def predict_any(self, texts: list[str], pairs: Any = None) -> list[Prediction]:
            if "bad" in texts:
                raise BadRow("its features are NaN", texts.index("bad"))
            return predict(texts, pairs)

    batcher = Batcher(held := HeldPredictor(Picky()), 100)  # type: ignore[arg-type]
    first = batcher.submit(["first"], None, time.monotonic() + 60)
    assert held.inside.wait(30)
    jobs = [batcher.submit([text], None, time.monotonic() + 60) for text in ("好", "bad", "坏")]
    held.go_on.set()
    assert first.result(30) and jobs[0].result(30)[0].text == "好" and jobs[2].result(30)[0].text == "坏"
    with pytest.raises(BadRow):
        jobs[1].result(30)
    batcher.stop()
