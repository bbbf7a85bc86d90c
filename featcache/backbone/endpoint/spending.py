"""What the requests to an endpoint cost, counted while they are answered."""

from __future__ import annotations

import threading

from featcache.backbone.endpoint.errors import CostReached
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import UsageError
from featcache.system.units import cost_text

MILLION = 1_000_000


class Spending:
    """Tokens and cost so far. The tokens of texts are estimated until the server counts them.

    Args:
        price: of a million tokens; None where it is not known.
        limit: most that may be spent.
    """

    def __init__(self, price: float | None = None, limit: float | None = None) -> None:
        self.price, self.limit = price, limit
        self.tokens = 0
        self._estimated = 0.0  # of the texts that were answered
        self._reserved = 0.0  # estimated tokens of texts that are not answered yet
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: EndpointSettings, model: str) -> Spending:
        """As the settings say.

        Raises:
            UsageError: a limit, and no price.
        """
        price = settings.price_of(model)
        if settings.max_cost is not None and price is None:
            raise UsageError(
                f"--max-cost {settings.max_cost:g}: the price of {model} is not known",
                hint=f'per million tokens, in featcache.toml below [endpoint.prices]: "{model}" = 0.02',
            )
        return cls(price, settings.max_cost)

    @property
    def cost(self) -> float | None:
        """So far; None where the price is not known."""
        return None if self.price is None else self.tokens * self.price / MILLION

    def reserve(self, estimated: float) -> None:
        """Before texts of about so many tokens are sent.

        Raises:
            CostReached: with what is on the way, they would cost more than the limit.
        """
        with self._lock:
            factor = self.tokens / self._estimated if self._estimated else 1.0
            tokens = self.tokens + factor * (self._reserved + estimated)
            cost = tokens * (self.price or 0.0) / MILLION
            if self.limit is not None and cost > self.limit:
                raise CostReached(
                    f"--max-cost {self.limit:g} is reached: {cost_text(self.cost or 0.0)} is spent, and the "
                    "next texts would cost more",
                    hint="what is finished is kept, and the same command continues from it",
                )
            self._reserved += estimated

    def spent(self, estimated: float, tokens: int | None) -> int:
        """Texts are answered; returns their tokens, by the server or else estimated."""
        used = round(estimated) if tokens is None else tokens
        with self._lock:
            self.tokens += used
            self._estimated += estimated
            self._reserved -= estimated
        return used

    def release(self, estimated: float) -> None:
        """Texts that were reserved are not sent."""
        with self._lock:
            self._reserved -= estimated
