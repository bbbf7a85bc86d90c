"""What `/predict` answers."""

from __future__ import annotations

from pydantic import BaseModel, Field

from featcache.prediction.explain import Explanation
from featcache.prediction.predictor import NumberPrediction, Prediction


class TextMark(BaseModel):
    """Characters of the text that speak for the label, or against it."""

    begin: int = Field(description="of the first character, counted in code points")
    end: int
    weight: float = Field(description="added to the logit of the label over the mean of all labels")
    share: float | None = Field(description="how much a head of token states looked at it; else null")

    @classmethod
    def all_of(cls, explanation: Explanation) -> list[TextMark]:
        """The tokens that were looked at; of a head without token states the n-grams that decided."""
        if explanation.tokens:
            return [
                cls(begin=one.begin, end=one.end, weight=one.weight, share=one.share)
                for one in explanation.tokens
            ]
        return [cls(begin=a, end=b, weight=weight, share=None) for a, b, weight in explanation.spans]


class PredictAnswer(BaseModel):
    """The prediction for one text."""

    label: str = Field(description="the most probable one; of a multi-label head all predicted ones")
    labels: list[str]
    probability: float
    probabilities: dict[str, float] = Field(description="by label, most probable first")
    truncated: bool = Field(description="the text was longer than the longest length and was truncated")
    unknown_tokens: float = Field(description="share of its tokens that the model's vocabulary does not have")
    abstained: bool = Field(description="the head gives no answer: there is no label")
    reason: str | None = Field(description="why there is no answer")
    out_of_scope: float | None = Field(
        description="share of the validation texts that are nearer to the train texts; null for a head that "
        "always answers"
    )
    marks: list[TextMark] | None = Field(description="what decided; null unless `explain` was asked for")

    @classmethod
    def of(cls, prediction: Prediction, top_k: int | None) -> PredictAnswer:
        """One prediction, with the `top_k` most probable labels."""
        ordered = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        return cls(
            label=prediction.label,
            labels=list(prediction.labels),
            probability=prediction.probability,
            probabilities=dict(ordered[:top_k]),
            truncated=prediction.truncated,
            unknown_tokens=prediction.unknown_tokens,
            abstained=prediction.abstained,
            reason=prediction.reason,
            out_of_scope=prediction.out_of_scope,
            marks=None if prediction.explanation is None else TextMark.all_of(prediction.explanation),
        )


class NumberAnswer(BaseModel):
    """The number that is predicted for one text."""

    number: float
    low: float | None = Field(description="where its interval begins; null for a head without intervals")
    high: float | None = Field(description="where its interval ends")
    truncated: bool
    unknown_tokens: float

    @classmethod
    def of(cls, prediction: NumberPrediction) -> NumberAnswer:
        """One prediction."""
        return cls(
            number=prediction.number,
            low=prediction.low,
            high=prediction.high,
            truncated=prediction.truncated,
            unknown_tokens=prediction.unknown_tokens,
        )


Answer = PredictAnswer | NumberAnswer


class PredictAnswers(BaseModel):
    """The predictions for several texts, in their order."""

    predictions: list[Answer]


def answer_of(prediction: Prediction | NumberPrediction, top_k: int | None) -> Answer:
    """The answer for one text; numbers have no `top_k`."""
    if isinstance(prediction, NumberPrediction):
        return NumberAnswer.of(prediction)
    return PredictAnswer.of(prediction, top_k)
