"""The limit of requests at a time follows what the server takes."""

from __future__ import annotations

import threading
import time

import pytest

from featcache.backbone.endpoint import window as module
from featcache.backbone.endpoint.window import RequestWindow

LONG = 60.0  # seconds; nothing here waits so long, also on a busy machine


@pytest.fixture(autouse=True)
def nobody_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 10 * LONG)


def full(most: int) -> tuple[RequestWindow, list[float]]:
    """A window with as many requests inside as it allows, and when each was sent."""
    window = RequestWindow(most)
    began = [window.enter(threading.Event()) for _ in range(most)]
    return window, [one for one in began if one is not None]


@pytest.mark.parametrize(("refused", "allowed"), [(1, 15), (3, 13), (8, 8), (16, 8)])
def test_a_burst_of_refusals_leaves_what_was_taken_and_half_at_least(refused: int, allowed: int) -> None:
    window, began = full(16)
    for one in began[:refused]:
        window.refused(one, wait=0.0)
        window.leave(taken=False)
    assert window.allowed == allowed


def test_the_limit_grows_by_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST", 0.0)
    window, began = full(4)
    window._patience = 0.0
    window.refused(began[0], wait=0.0)
    window.leave(taken=False)
    assert window.allowed == 3
    for grown in (4, 4):
        window.leave(taken=True)
        assert window.allowed == grown


def test_places_are_given_in_order_and_first_to_what_is_sent_again() -> None:
    window, _ = full(1)
    order: list[str] = []
    entered, stopped = threading.Semaphore(0), threading.Event()

    def enter(name: str, again: bool) -> None:
        window.enter(stopped, again=again)
        order.append(name)
        entered.release()

    for count, name in enumerate(("first", "second", "again"), start=1):
        threading.Thread(target=enter, args=(name, name == "again"), daemon=True).start()
        while len(window._waiting) < count:
            time.sleep(0.001)
    assert not order
    for _ in range(3):
        window.leave(taken=True)
        assert entered.acquire(timeout=LONG)
    assert order == ["again", "first", "second"]


def test_who_waits_is_told_of_the_end() -> None:
    window, _ = full(1)
    stopped = threading.Event()
    found: list[float | None] = []
    thread = threading.Thread(target=lambda: found.append(window.enter(stopped)), daemon=True)
    thread.start()
    stopped.set()
    window.wake()
    thread.join(LONG)
    assert found == [None] and not window._waiting
