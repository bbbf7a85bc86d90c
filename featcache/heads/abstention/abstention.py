"""When a head gives no answer: where its probability is too low, or the text is unlike the train texts.

Two parts of the validation rows are kept with the head. The *choice* rows may choose the epoch, the penalty,
the temperature, the distance, its limit and the sequence of thresholds; the *guarantee* rows choose nothing
but the last threshold. So everything that the guarantee is about is fixed before it is tested; with one part
for both it would not hold, as the most probable label of several can change its rank by the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation import abstention as selective
from featcache.evaluation.abstention import ScoredRows, Selection, fewest_rows
from featcache.heads.abstention.scope import DISTANCES, ScopeDistance, distances_of
from featcache.heads.scorers import TensorReader, Tensors, contiguous
from featcache.settings import AbstentionSettings

MORE_ROWS = "use more validation rows"


@dataclass(frozen=True, eq=False)
class JudgedRows:
    """What a head says of some validation rows.

    Attributes:
        probability: float64 `[N]`, of the predicted label.
        distance: float64 `[N]`, see `ScopeDistance`.
        wrong: bool `[N]`.
    """

    probability: np.ndarray
    distance: np.ndarray
    wrong: np.ndarray

    def tensors(self, part: str) -> dict[str, np.ndarray]:
        wrong = self.wrong.astype(np.uint8)
        named = {"probability": self.probability, "distance": self.distance, "wrong": wrong}
        return contiguous(**{f"{part}.{name}": values for name, values in named.items()})

    @classmethod
    def from_tensors(cls, tensors: Tensors, part: str) -> Self:
        read = TensorReader("abstention", tensors)
        return cls(
            read(f"{part}.probability", "N", np.float64),
            read(f"{part}.distance", "N", np.float64),
            read(f"{part}.wrong", "N", np.uint8).astype(bool),
        )


class Judgement(NamedTuple):
    """What becomes of some texts.

    Attributes:
        answered: bool `[N]`.
        out_of_scope: float64 `[N]`, share of the choice rows that are nearer to the train rows.
        probability: float64 `[N]`, of the label that they have or would have.
    """

    answered: np.ndarray
    out_of_scope: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True, kw_only=True)
class AbstentionDocument:
    """The part of a head's JSON that says when it gives no answer; its tensors are in a file of their own.

    Attributes:
        distance: a name in DISTANCES.
        areas: see `choose_distance`.
        threshold: see `Abstention`.
    """

    max_error: float | None = None
    coverage: float | None = None
    confidence: float
    out_of_scope: float
    distance: str
    areas: dict[str, float] = field(default_factory=dict)
    threshold: float

    def __post_init__(self) -> None:
        asked = [share for share in (self.max_error, self.coverage) if share is not None]
        checks = {
            "max_error or coverage": len(asked) == 1 and 0 < asked[0] <= 1,
            "confidence": 0 < self.confidence < 1,
            "out_of_scope": 0 <= self.out_of_scope < 1,
            "distance": self.distance in DISTANCES,
            "threshold": 0 <= self.threshold <= 1,
        }
        if odd := [name for name, fine in checks.items() if not fine]:
            raise ValueError(f"abstention: {odd[0]} does not fit the rest")


@dataclass(frozen=True, eq=False)
class Abstention:
    """When a head gives no answer, with all that another level needs.

    A text has a score: the probability of its predicted label, or 0 if it is out of scope. It is answered
    where the score is at least the threshold.

    Attributes:
        asked: the level, and its confidence.
        distance: from the train rows.
        areas: how well each kind of distance told classes that it had not seen, see `choose_distance`.
        choice, guarantee: validation rows, see above.
        threshold: 0 where every text is answered.
    """

    asked: AbstentionSettings
    distance: ScopeDistance
    areas: dict[str, float]
    choice: JudgedRows
    guarantee: JudgedRows
    threshold: float = 0.0

    def at(self, asked: AbstentionSettings) -> Abstention:
        """The same head at another level, from the same validation rows. Each level holds by itself.

        Raises:
            HeadError: the guarantee rows do not support the level; says what they support.
        """
        found = replace(self, asked=asked)
        return replace(found, threshold=found.fitted_threshold(scope=True))

    @cached_property
    def limit(self) -> float:
        """The largest distance that is in scope; infinite where no text is out of scope."""
        share = self.asked.out_of_scope
        return float(np.quantile(self.choice.distance, 1 - share, method="higher")) if share else np.inf

    def fitted_threshold(self, *, scope: bool) -> float:
        """The threshold that the guarantee rows support.

        Args:
            scope: texts out of scope have no answer; without it the threshold is for the probability alone,
                for programs that know no distance.

        Raises:
            HeadError: as `at`.
        """
        asked = self.asked
        choice, test = (self.scored(rows, scope=scope) for rows in (self.choice, self.guarantee))
        check_rows(asked, len(test.score))
        if asked.coverage is not None:
            found = selective.threshold_for_coverage(test.score, asked.coverage, asked.confidence)
        else:
            found = selective.threshold_for_error(choice, test, asked.max_error or 0.0, asked.confidence)
        if found is None:
            raise HeadError(
                f"{asked.flag}: {len(test.score):,} validation rows do not show with "
                f"{100 * asked.confidence:g} % confidence that the head can do it",
                hint=f"ask for less, {MORE_ROWS}, or train a better head",
            )
        return found

    def scored(self, rows: JudgedRows, *, scope: bool = True) -> ScoredRows:
        """Scores of validation rows, or of any rows whose labels are known."""
        far = rows.distance > self.limit if scope else np.zeros(len(rows.wrong), bool)
        return ScoredRows(np.where(far, 0.0, rows.probability), rows.wrong)

    @property
    def highest_risk(self) -> float:
        """Upper bound of the share of wrong answers at the threshold, from the guarantee rows.

        It is a guarantee of the confidence that was asked for, and never above `max_error`.
        """
        found = Selection.of(self.scored(self.guarantee), self.threshold)
        return selective.highest_risk(found.wrong, found.answered, self.asked.confidence)

    def judge(self, probability: np.ndarray, x: np.ndarray) -> Judgement:
        """What becomes of texts, by the probability `[N]` of the predicted label and what the head reads."""
        distance = distances_of(self.distance, x)
        answered = np.where(distance > self.limit, 0.0, probability) >= self.threshold
        ranks = np.searchsorted(self._known, distance)
        return Judgement(answered, ranks / len(self._known), probability)

    @cached_property
    def _known(self) -> np.ndarray:
        return np.sort(self.choice.distance)

    def reasons(self, judgement: Judgement) -> list[str | None]:
        """A sentence for each text without an answer, None for the others."""
        columns = (column.tolist() for column in judgement)
        return [
            None if answered else self.reason(probability, far)
            for answered, far, probability in zip(*columns, strict=True)
        ]

    def reason(self, probability: float, out_of_scope: float) -> str:
        """Why one text has no answer."""
        if out_of_scope > 1 - self.asked.out_of_scope and self.asked.out_of_scope:
            return (
                "no answer: the text is out of scope, farther from the train texts than "
                f"{100 * out_of_scope:.1f} % of the validation texts"
            )
        shown = [(f"{probability:.{n}f}", f"{self.threshold:.{n}f}") for n in (2, 3, 4, 17)]
        own, limit = next((pair for pair in shown if pair[0] != pair[1]), shown[-1])
        return f"no answer: the probability {own} is below {limit}, the limit for {self.asked.promise}"

    def document(self) -> dict[str, Any]:
        """The fields of an `AbstentionDocument`."""
        return {
            **vars(self.asked), "distance": self.distance.kind, "areas": self.areas,
            "threshold": self.threshold,
        }  # fmt: skip

    def tensors(self) -> dict[str, np.ndarray]:
        """For safetensors."""
        parts = self.choice.tensors("choice") | self.guarantee.tensors("guarantee")
        return parts | {f"distance.{name}": part for name, part in self.distance.tensors().items()}

    @classmethod
    def read(cls, document: AbstentionDocument, tensors: Tensors, width: int) -> Self:
        """What `document` and `tensors` describe, for a head of features `[N, width]`.

        Raises:
            HeadError: tensors that are missing or do not fit.
        """
        start = "distance."
        own = {name.removeprefix(start): part for name, part in tensors.items() if name.startswith(start)}
        distance = DISTANCES[document.distance].from_tensors(own)
        if distance.width != width:
            raise HeadError(
                f"the abstention is for {distance.width} features, and the head for {width}",
                hint="train that head again",
            )
        settings = AbstentionSettings(
            document.max_error, document.coverage, document.confidence, document.out_of_scope
        )
        return cls(
            asked=settings,
            distance=distance,
            areas=document.areas,
            choice=JudgedRows.from_tensors(tensors, "choice"),
            guarantee=JudgedRows.from_tensors(tensors, "guarantee"),
            threshold=document.threshold,
        )


def check_rows(asked: AbstentionSettings, rows: int) -> None:
    """Refuse a level that so many guarantee rows cannot show, whatever a head does with them.

    Raises:
        HeadError: says how many rows are needed.
    """
    share = asked.max_error if asked.coverage is None else 1 - asked.coverage
    needed = fewest_rows(share, asked.confidence) if share else 1
    if rows < needed:
        raise HeadError(
            f"{asked.flag} with {100 * asked.confidence:g} % confidence needs {needed:,} validation rows "
            f"that choose nothing; they are two thirds of those that train does not have, here {rows:,}",
            hint=f"ask for less, or {MORE_ROWS}",
        )
