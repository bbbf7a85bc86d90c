"""The settings of a model behind an HTTP endpoint: what a request holds, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.option import setting


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is called, where `--model` is one (`openai+http://HOST/v1#MODEL`)."""

    prices: dict[str, float] | None = setting(
        None, "price of a million tokens by model, in any currency: text-embedding-3-small=0.02"
    )
    max_cost: float | None = setting(
        None, "most that one command may spend at the endpoint, in the currency of --prices", above=0
    )
    connections: int = setting(16, "requests that are sent at a time, at most", least=1)
    request_texts: int = setting(
        32, "texts in a request, at most; fewer where the server takes fewer", least=1
    )
    request_tokens: int = setting(8192, "tokens in a request (estimated), at most", least=1)
    request_timeout: float = setting(60.0, "seconds to wait for an answer", above=0)

    def price_of(self, model: str) -> float | None:
        """Of a million tokens; None where it is not known."""
        return (self.prices or {}).get(model)
