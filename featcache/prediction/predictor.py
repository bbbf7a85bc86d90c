"""Backbone and head together: texts in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featcache.backbone.encoder import Encoder
from featcache.backbone.endpoint.encoder import SentTexts
from featcache.backbone.tokens.tokenization import Tokens
from featcache.data.formats.lines import Row
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import HeadError, SourceError
from featcache.evaluation.costs import cheapest
from featcache.finetuning.run_backbone import BackboneChoice
from featcache.fingerprint import differences
from featcache.heads.abstention.abstention import Judgement
from featcache.heads.head import Head
from featcache.heads.lexical.ngrams import joined_texts
from featcache.prediction.joined_encoder import JoinedEncoder, JoinedTokens, OneEncoder, run_encoder
from featcache.runs.run import Run, load_run
from featcache.settings import AbstentionSettings
from featcache.system.text import check_text

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from featcache.prediction.explain import Explanation

AnyEncoder = OneEncoder | JoinedEncoder


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the most probable one, or of a head with costs the one expected to cost least; of a
            multi-label head all predicted labels, joined by `, `.
        probability: of the label; of a multi-label head the lowest of the predicted labels, or the highest
            of all labels if none is predicted.
        probabilities: by label name, in the head's order; they add up to 1 for a single label.
        truncated: the text was longer than the longest length and was truncated.
        labels: all predicted labels: one for a single label, any number for a multi-label head.
        unknown_tokens: share of the text's tokens that the model's vocabulary does not have.
        abstained: the head gives no answer; there is no label then, and `probability` is that of the label
            that there would be.
        reason: why, as a sentence; None for an answer.
        out_of_scope: share of the validation texts that are nearer to the train texts; None for a head that
            always answers.
        explanation: what speaks for the label; None where it was not asked for.
    """

    text: str
    label: str
    probability: float
    probabilities: dict[str, float]
    truncated: bool
    labels: tuple[str, ...] = ()
    unknown_tokens: float = 0.0
    abstained: bool = False
    reason: str | None = None
    out_of_scope: float | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class NumberPrediction:
    """The number that a head predicts for one text.

    Attributes:
        low, high: ends of the interval around it, see `PredictionInterval`; None for a head without one.
        truncated, unknown_tokens: see `Prediction`.
    """

    text: str
    number: float
    low: float | None = None
    high: float | None = None
    truncated: bool = False
    unknown_tokens: float = 0.0


class Answers(NamedTuple):
    """What a head says of some texts.

    Attributes:
        probabilities: float64 `[N, C]`; `[N, 0]` of numbers.
        truncated: bool `[N]`.
        judgement: which of them have an answer; None for a head that always answers.
        numbers: float64 `[N]`; None of labels.
    """

    probabilities: np.ndarray
    truncated: np.ndarray
    judgement: Judgement | None
    numbers: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PreparedTexts:
    """N texts that are ready for the backbone and for a head of words.

    Attributes:
        tokens: None where no backbone runs; of an endpoint the texts that are on their way.
        words: float32 `[N, V]`, their n-grams; None for a head that does not read words.
    """

    count: int
    tokens: Tokens | SentTexts | JoinedTokens | None
    words: csr_matrix | None

    @property
    def unknown_shares(self) -> np.ndarray:
        """float64 `[N]`, the share of a text's tokens that the model's vocabulary does not have."""
        return np.zeros(self.count) if self.tokens is None else self.tokens.unknown_shares


class Predictor:
    """An encoder and a head that was trained on its features.

    Args:
        encoder: the same encode function that filled the cache; None for a head of words alone.
        head: refused unless its fingerprint is that of the encoder's features.

    Raises:
        HeadError: the head belongs to other features; names the fields that differ.
    """

    inputs: Sequence[object] = ()  # what besides the rows of a file decides its labels

    def __init__(self, encoder: AnyEncoder | None, head: Head) -> None:
        if encoder is not None:
            self._check(encoder, head)
        elif head.views:
            raise HeadError(
                f"this head wants features {head.view}, and there is no encoder",
                hint="Predictor.from_run loads both",
            )
        self.encoder = encoder
        self.head = head
        self.pairs: bool | None = None  # whether it was trained on pairs; None where the run does not say

    @staticmethod
    def _check(encoder: AnyEncoder, head: Head) -> None:
        found = differences(head.encoder.to_json(), encoder.document.to_json())
        if found:
            raise HeadError(
                "this head was trained on other features: " + "; ".join(map(str, found)),
                hint="train a head on these features, or use the model the head was trained with",
            )
        views = [view.name for view in encoder.views]
        if not set(head.views) <= set(views):
            raise HeadError(
                f"this head wants features {head.view}, the encoder makes {', '.join(views)}",
                hint="use the model that the head was trained with",
            )

    @classmethod
    def from_run(
        cls,
        run: str | Path | Run,
        *,
        model: str | None = None,
        revision: str | None = None,
        hub: str | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
        adapter: str | None = None,
        endpoint: EndpointSettings | None = None,
    ) -> Predictor:
        """The predictor of a run in `reports/`, or of a run's folder.

        Args:
            model: where the backbone lies now, if not where it lay when the head was trained.
            revision, hub: of `model`; see `--revision`, `--hub`.
            device: see `--device`; the compute dtype is always the one of the cached features.
            trust_remote_code: let the model's own Python code run; what the run says of that does not count.
            adapter: where the backbone's adapter lies now, if not where it lay then.
            endpoint: how an endpoint is asked, of a head that reads its vectors. One on another machine is
                asked only if `model` names it.

        Raises:
            HeadError: there is no such run, or the backbone is not the one the head was trained with.
            BackboneError: the backbone cannot be loaded.
        """
        found = run if isinstance(run, Run) else load_run(Path("reports"), str(run))
        choice = BackboneChoice(model, revision, hub, device, trust_remote_code, adapter=adapter)
        head = found.head()
        predictor = cls(run_encoder(found, head, choice, endpoint), head)
        predictor.pairs = found.record.pairs
        return predictor

    def abstain_at(self, asked: AbstentionSettings) -> None:
        """Give no answer at another level than the one that the head was trained for.

        Args:
            asked: `max_error` or `coverage`, and `confidence`; `out_of_scope` stays as it is.

        Raises:
            HeadError: the head was trained without a level, or its validation rows do not support this one.
        """
        self.head = self.head.abstaining_at(asked)

    def check_pairs(self, given: bool) -> None:
        """Refuse pairs for a head of single texts and single texts for a head of pairs, if that is known.

        Raises:
            HeadError
        """
        if self.pairs is not None and self.pairs != given:
            raise HeadError(
                f"this head was trained on {'pairs of texts' if self.pairs else 'single texts'}",
                hint="give each text its second one: --pair, or --pair-column"
                if self.pairs
                else "leave --pair and --pair-column out",
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.head.label_names

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """float64 `[N, C]`, columns in the order of `label_names`.

        Raises:
            HeadError: the head predicts numbers.
            SourceError: an empty text, one that is no string or no valid Unicode; names its place.
        """
        self._check_labels()
        prepared = self._prepared(texts, pairs)
        if prepared is None:
            return np.zeros((0, len(self.label_names)))
        return self.answer(prepared).probabilities

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Prediction]:
        """The most probable label of each text, with all probabilities.

        Raises:
            HeadError: the head predicts numbers.
            SourceError: as `predict_proba`.
        """
        self._check_labels()
        prepared = self._prepared(texts, pairs)
        if prepared is None:
            return []
        answers = self.answer(prepared)
        return [
            self._prediction(text, number, answers, float(unknown))
            for number, (text, unknown) in enumerate(zip(texts, prepared.unknown_shares, strict=True))
        ]

    def predict_numbers(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[NumberPrediction]:
        """The number of each text, with its interval.

        Raises:
            HeadError: the head predicts labels.
            SourceError: as `predict_proba`.
        """
        if self.head.numbers is None:
            raise HeadError("this head predicts labels, and no numbers", hint="use predict")
        prepared = self._prepared(texts, pairs)
        if prepared is None:
            return []
        answers = self.answer(prepared)
        assert answers.numbers is not None
        low, high = self.head.numbers.ends(answers.numbers)
        columns = [
            each.tolist() for each in (answers.numbers, low, high, answers.truncated, prepared.unknown_shares)
        ]
        return [NumberPrediction(text, *row) for text, *row in zip(texts, *columns, strict=True)]

    def predict_any(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[Prediction] | list[NumberPrediction]:
        """What the head predicts, labels or numbers."""
        return (self.predict if self.head.numbers is None else self.predict_numbers)(texts, pairs)

    @property
    def explains(self) -> bool:
        """Whether `explain` can say something: of heads that read words or token states."""
        words, looks = self.head.ngrams is not None, bool(self.head.attention)
        own = self.encoder if isinstance(self.encoder, Encoder) else None
        fast = not looks or own is None or own.backbone.tokenizer.is_fast
        return (words or looks) and bool(fast) and self.head.numbers is None

    def explain(
        self, predictions: Sequence[Prediction], pairs: Sequence[str] | None = None
    ) -> list[Explanation]:
        """What speaks for the most probable label of each text; see `featcache.prediction.explain`."""
        from featcache.prediction.explain import explain

        likely = (max(one.probabilities, key=one.probabilities.__getitem__) for one in predictions)
        labels = [self.label_names.index(name) for name in likely]
        encoder = self.encoder if isinstance(self.encoder, Encoder) else None
        return explain(self.head, [one.text for one in predictions], labels, pairs, encoder=encoder)

    def chosen(self, row: np.ndarray) -> list[int]:
        """Numbers of the labels that are predicted at the probabilities `[C]` of one text."""
        if self.head.thresholds is None:
            return [int(cheapest(row[None], self.head.costs)[0])]
        found: list[int] = np.flatnonzero(row >= self.head.thresholds).tolist()
        return found

    def prepare(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> PreparedTexts:
        """The first half of a prediction, for callers that prepare it ahead; the texts are not checked."""
        tokens = None if self.encoder is None else self.encoder.tokenize(texts, pairs)
        words = None if self.head.ngrams is None else self.head.ngrams(joined_texts(texts, pairs))
        return PreparedTexts(len(texts), tokens, words)

    def prepare_rows(self, rows: Sequence[Row], pairs: Sequence[str] | None) -> PreparedTexts:
        """`prepare` of rows of a file, in their order."""
        return self.prepare([row.text for row in rows], pairs)

    def require_all_read(self, rows: int) -> None:
        """Called when all rows of a file are labelled: texts are encoded one by one, so that none is left."""

    def answer(self, prepared: PreparedTexts, progress: Callable[[int, int], None] | None = None) -> Answers:
        """The second half: what the head says of N texts.

        Args:
            progress: called after each batch with the texts and the tokens done in it.
        """
        features, truncated = self._features(prepared, progress)
        x = self.head.rows(features, prepared.words)
        if self.head.numbers is not None:
            none = np.zeros((prepared.count, 0))
            return Answers(none, truncated, None, self.head.predict_numbers(x))
        shares = self.head.predict_proba(x)
        return Answers(shares, truncated, self.head.judge(shares, x))

    def _features(
        self, prepared: PreparedTexts, progress: Callable[[int, int], None] | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """By view what the head reads of a backbone, and which texts were truncated, bool `[N]`."""
        if self.encoder is not None and prepared.tokens is not None:
            encoded = self.encoder.encode(prepared.tokens, progress)  # type: ignore[arg-type]  # of its own
            return encoded.views, encoded.truncated
        if progress is not None:
            progress(prepared.count, 0)
        return {}, np.zeros(prepared.count, dtype=bool)

    def _check_labels(self) -> None:
        if self.head.numbers is not None:
            raise HeadError("this head predicts numbers, and no labels", hint="use predict_numbers")

    def _prediction(self, text: str, number: int, answers: Answers, unknown: float) -> Prediction:
        """The answer for one text, the `number`-th."""
        row, judged, reason = answers.probabilities[number], answers.judgement, None
        chosen = self.chosen(row)
        probability = float(row[chosen].min() if chosen else row.max())
        if judged and self.head.abstention and not judged.answered[number]:
            chosen, reason = [], self.head.abstention.reason(probability, float(judged.out_of_scope[number]))
        labels = tuple(self.label_names[number] for number in chosen)
        return Prediction(
            text=text,
            label=", ".join(labels),
            probability=probability,
            probabilities=dict(zip(self.label_names, map(float, row), strict=True)),
            truncated=bool(answers.truncated[number]),
            labels=labels,
            unknown_tokens=unknown,
            abstained=reason is not None,
            reason=reason,
            out_of_scope=float(judged.out_of_scope[number]) if judged else None,
        )

    def _prepared(self, texts: Sequence[str], pairs: Sequence[str] | None) -> PreparedTexts | None:
        """Texts that are checked; None without texts."""
        if isinstance(texts, str) or isinstance(pairs, str):
            raise SourceError("predict wants a list of texts", hint="predict([text]) for a single one")
        if pairs is not None and len(pairs) != len(texts):
            raise SourceError(
                f"{len(texts)} texts but {len(pairs)} second texts; each needs one",
                hint="one second text for each text",
            )
        texts, pairs = list(texts), None if pairs is None else list(pairs)
        for kind, values in (("text", texts), ("pair", pairs or [])):
            for number, text in enumerate(values, start=1):
                check_text(text, f"{kind} {number}")
        return self.prepare(texts, pairs) if texts else None
