"""How threads wait: set before torch is loaded, and left alone where the user set it."""

from __future__ import annotations

import pytest

from featcache.system.machine import short_waits


def test_short_waits_by_default() -> None:
    assert short_waits({"OMP_NUM_THREADS": "2"}) == {"GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_short_waits_changes_nothing_that_is_set(name: str) -> None:
    assert short_waits({name: "1"}) == {}
