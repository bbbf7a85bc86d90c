"""Predictors of a tiny backbone, one for the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featcache.prediction.predictor import Predictor
from tests.support.stock import one_thread
from tests.support.tiny_predictor import tiny_predictor


@pytest.fixture(scope="module")
def predictor(tiny: Callable[[str], Path]) -> Iterator[Predictor]:
    with one_thread():
        yield tiny_predictor(tiny("bert"))


@pytest.fixture(scope="module")
def several(tiny: Callable[[str], Path]) -> Predictor:
    return tiny_predictor(tiny("bert"), several=True)
