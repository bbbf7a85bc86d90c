"""Texts to vectors by an endpoint, with those methods of `backbone.encoder.Encoder` that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.endpoint.answer import Vectors
from featcache.backbone.endpoint.client import Client
from featcache.backbone.endpoint.errors import BadAnswer
from featcache.backbone.endpoint.model import EndpointModel, EndpointView
from featcache.backbone.endpoint.spending import Spending
from featcache.backbone.tokens.encoded import BYTES_A_TOKEN, Encoded
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import BackboneError, BadRow, UsageError
from featcache.fingerprint import EncoderDocument
from featcache.settings import FeatureSettings

if TYPE_CHECKING:
    from featcache.backbone.tokens.tokenization import TextTokens

UNIT_TOKENS = 4096  # the token budget that commit units are made by: what a request holds may change


@dataclass(frozen=True, eq=False)
class SentTexts:
    """N texts on their way to an endpoint.

    Attributes:
        requests: the rows of each request, and its answer.
        estimated: tokens of each text, float64 `[N]`.
    """

    requests: list[tuple[slice, Future[Vectors]]]
    estimated: np.ndarray

    @property
    def unknown_shares(self) -> np.ndarray:
        """float64 `[N]`: zeros, as the server does not tell."""
        return np.zeros(len(self.estimated))


class EndpointEncoder:
    """An endpoint with everything else that changes a vector: views, prompt, storage.

    Args:
        features: of `EndpointModel.follow`.
        width: numbers that the server sends for one text; None: the first answer decides.

    Raises:
        UsageError: a key or a proxy that cannot be used, or a limit of the cost without a price.
    """

    long_text = "truncate"
    max_length = None  # the server's own, which it does not tell

    def __init__(
        self,
        model: EndpointModel,
        features: FeatureSettings,
        settings: EndpointSettings,
        *,
        width: int | None = None,
    ) -> None:
        self.model, self.features, self.settings = model, features, settings
        self.name = self.model_name = model.name
        self.views = [EndpointView.parse(view) for view in features.views]
        self.storage = np.dtype(features.storage)
        self.spending = Spending.of(settings, model.name)
        self.batch_tokens = UNIT_TOKENS
        self.client = Client(model, settings, width=width, dimensions=self.views[0].dimensions)

    @property
    def document(self) -> EncoderDocument:
        """Everything that turns a text into a vector.

        Raises:
            BackboneError: nothing was encoded yet, so that the width is not known.
        """
        if self.client.width is None:
            raise BackboneError(f"{self.model.name} has not answered yet", hint="encode a text first")
        return self.model.document(self.features, self.client.width)

    @property
    def width(self) -> int:
        """Numbers in the vectors of one text, of all views."""
        whole = self.document.endpoint.width if self.document.endpoint else 0
        return sum(view.first or whole for view in self.views)

    @property
    def notes(self) -> list[str]:
        """For the user."""
        open_key = self.client.key and not self.model.is_local and self.model.address.startswith("http:")
        said = (
            f"{self.client.key.name} and the texts go to {self.model.host} unencrypted: openai+https is safer"
        )
        return [said] if open_key else []

    def with_view(self, view: str) -> EndpointEncoder:
        """The same encoder, through the same connections, in one other view."""
        other = copy(self)
        other.views = [EndpointView.parse(view)]
        return other

    def prepare(self, texts: int) -> None:
        """Nothing: the server decides how it encodes."""

    def measure(self, text: str, pair: str | None = None) -> TextTokens | None:
        """None: the server does not say how much of a text it reads."""
        return None

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> SentTexts:
        """Send texts; `encode` waits for the answers.

        Raises:
            UsageError: pairs of texts.
            CostReached: they would cost more than may be spent.
        """
        if pairs is not None:
            raise UsageError(
                "an endpoint reads single texts, not pairs", hint="join the two columns: --text-column A,B"
            )
        estimated = estimated_tokens(texts, self.features.prompt)
        self.spending.reserve(float(estimated.sum()))
        prompted = [self.features.prompt + text for text in texts] if self.features.prompt else texts
        requests = [(rows, self.client.submit(prompted[rows])) for rows in self._requests(estimated)]
        return SentTexts(requests, estimated)

    def _requests(self, estimated: np.ndarray) -> Iterator[slice]:
        """Neighbouring texts, by tokens and by count."""
        start, tokens = 0, 0.0
        for row, more in enumerate(estimated.tolist()):
            full = row - start >= self.client.most_texts or tokens + more > self.settings.request_tokens
            if full and row > start:
                yield slice(start, row)
                start, tokens = row, 0.0
            tokens += more
        if start < len(estimated):
            yield slice(start, len(estimated))

    def encode(self, sent: SentTexts, on_batch: Callable[[int, int], None] | None = None) -> Encoded:
        """The vectors of texts that were sent, in their order.

        Args:
            on_batch: called after each answer with the number of texts and of tokens in it.

        Raises:
            BadRow: a text that the server refuses, or whose vector cannot be stored.
            BackboneError: no answer, or one that cannot be used; what is still to be sent is not sent.
        """
        whole: np.ndarray | None = None
        n_tokens = np.zeros(len(sent.estimated), np.int32)
        try:
            for rows, future in sent.requests:
                vectors = self._rows_of(rows, future)
                if whole is None:
                    whole = np.empty((len(n_tokens), vectors.rows.shape[1]), np.float32)
                whole[rows] = vectors.rows
                estimated = sent.estimated[rows]
                tokens = self.spending.spent(float(estimated.sum()), vectors.tokens)
                n_tokens[rows] = _shared(tokens, estimated)
                if on_batch:
                    on_batch(len(estimated), tokens)
        except BaseException:
            self.give_up(sent)
            raise
        if whole is None:
            whole = np.empty((0, self.client.width or 0), np.float32)
        views = {view.name: self._view(view, whole) for view in self.views}
        return Encoded(views, n_tokens, np.zeros(len(n_tokens), bool))

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """`encode(tokenize(texts, pairs))`."""
        return self.encode(self.tokenize(texts, pairs))

    def _rows_of(self, rows: slice, future: Future[Vectors]) -> Vectors:
        try:
            return future.result()
        except BadRow as error:
            raise BadRow(error.what, rows.start + error.row, error.hint) from None
        except CancelledError:
            raise BackboneError("the requests were stopped", hint="the same command continues") from None

    def give_up(self, sent: SentTexts) -> None:
        """Send none of the texts that are still waiting; for texts that `encode` is not called for."""
        for rows, future in sent.requests:
            if future.cancel():
                self.spending.release(float(sent.estimated[rows].sum()))

    def _view(self, view: EndpointView, whole: np.ndarray) -> np.ndarray:
        """One view of vectors float32 `[N, D]`, in the storage dtype."""
        values = whole
        if view.first is not None:
            if view.first > whole.shape[1] > 0:
                raise BadAnswer(
                    f"view {view.name}: {self.model.name} sends {whole.shape[1]} numbers a text",
                    hint=f"take fewer: --views vector-first{whole.shape[1] // 2}-normalized",
                )
            values = whole[:, : view.first]
            lengths = np.linalg.norm(values, axis=1, keepdims=True)
            values = values / np.where(lengths > 0, lengths, 1.0)
        fine = np.abs(values) <= np.finfo(self.storage).max  # NaN compares false
        if not fine.all():
            raise BadRow(
                f"its vector has NaN, infinite, or numbers too large for {self.storage.name}",
                int(np.flatnonzero(~fine.all(axis=1))[0]),
                "try --storage float32; if it stays so, the server is at fault",
            )
        stored: np.ndarray = values.astype(self.storage)
        return stored


def estimated_tokens(texts: Sequence[str], prompt: str = "") -> np.ndarray:
    """About how many tokens texts have, by their bytes: float64 `[N]`."""
    own = len(prompt.encode())
    sizes = np.array([len(text.encode("utf-8", "surrogatepass")) + own for text in texts], np.float64)
    tokens: np.ndarray = sizes / BYTES_A_TOKEN + 3
    return tokens


def _shared(tokens: int, estimated: np.ndarray) -> np.ndarray:
    """The tokens of a request as those of its texts, int32 `[n]`, which add up to `tokens`."""
    ends = np.rint(np.cumsum(estimated) * (tokens / estimated.sum())).astype(np.int64)
    shared: np.ndarray = np.diff(ends, prepend=0).astype(np.int32)
    return shared
