"""A predictor for the tests of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featcache.prediction.predictor import Predictor
from tests.support.stock import one_thread
from tests.support.tiny_predictor import tiny_predictor


@pytest.fixture(scope="module")
def predictor(tiny: Callable[[str], Path]) -> Iterator[Predictor]:
    """A tiny backbone with a made-up head of three labels."""
    with one_thread():
        yield tiny_predictor(tiny("bert"))
