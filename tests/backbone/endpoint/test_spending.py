"""What requests cost, and the limit of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.endpoint.errors import CostReached
from featcache.backbone.endpoint.spending import Spending
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import UsageError
from featcache.settings import build_settings, load_settings
from featcache.system.units import cost_text


def test_tokens_of_the_server_count_and_estimates_follow_them() -> None:
    spending = Spending(price=2.0, limit=1.0)
    spending.reserve(100_000)
    assert spending.spent(100_000, 300_000) == 300_000 and spending.cost == 0.6
    with pytest.raises(CostReached, match=r"0\.6 is spent"):
        spending.reserve(100_000)  # which will be 300,000 again
    spending.reserve(60_000)
    assert spending.spent(60_000, None) == 60_000


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(0.3, 3)), max_size=30))
def test_the_limit_is_passed_by_one_reservation_at_most(requests: list[tuple[float, float]]) -> None:
    spending, largest = Spending(price=1.0, limit=0.1), 0.0
    for estimated, factor in requests:
        try:
            spending.reserve(estimated)
        except CostReached:
            break
        spending.spent(estimated, round(estimated * factor))
        largest = max(largest, estimated * factor)
    assert (spending.cost or 0.0) <= 0.1 + largest / 1e6 + 1e-6


def test_a_limit_needs_a_price() -> None:
    with pytest.raises(UsageError, match="price of m is not known") as error:
        Spending.of(EndpointSettings(max_cost=1.0, prices={"other": 1.0}), "m")
    assert '"m" = 0.02' in (error.value.hint or "")
    assert Spending.of(EndpointSettings(), "m").cost is None
    assert Spending.of(EndpointSettings(prices={"m": 0.0}, max_cost=1.0), "m").cost == 0.0


def test_prices_are_a_table_of_the_settings_file_or_a_flag(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "featcache.toml"
    file.write_text('[endpoint]\nmax_cost = 2\n[endpoint.prices]\n"BAAI/bge-m3" = 0.5\nother = 1\n')
    found = load_settings(path=file).endpoint
    assert found.prices == {"BAAI/bge-m3": 0.5, "other": 1.0} and found.max_cost == 2.0
    assert build_settings({"prices": "a=0.02,b=1"}).endpoint.price_of("a") == 0.02
    for wrong in ("a", "a=x", "a=-1", "=1", 3):
        with pytest.raises(UsageError, match="--prices"):
            build_settings({"prices": wrong})


def test_amounts_have_the_digits_that_they_need() -> None:
    assert [cost_text(one) for one in (0, 0.000123, 0.5, 12.3, 1234.5)] == [
        "0.00",
        "0.00012",
        "0.5",
        "12.30",
        "1,234.50",
    ]
