"""How much of the texts is not in a model's vocabulary: the sign of a model for another language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MANY = 0.05  # of a split's tokens; above it the user is warned
MOST = 0.5  # of a text's tokens; from it on the text is mostly unknown
WRONG_MODEL = "is the model meant for the language of these texts?"


@dataclass(frozen=True)
class UnknownTokens:
    """Unknown tokens of N texts.

    Attributes:
        unknown: int32 `[N]`, tokens that stand for something that the vocabulary does not have.
        own: int32 `[N]`, tokens of the text without special tokens and the prompt.
    """

    unknown: np.ndarray
    own: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[UnknownTokens]) -> UnknownTokens:
        """Those of several groups of texts, in order."""
        return cls(np.concatenate([one.unknown for one in parts]), np.concatenate([one.own for one in parts]))

    @property
    def shares(self) -> np.ndarray:
        """Unknown tokens of each text's own, float64 `[N]`."""
        shares: np.ndarray = self.unknown / np.maximum(self.own, 1)
        return shares

    @property
    def share(self) -> float | None:
        """Unknown tokens of all texts' own; None without tokens."""
        return float(self.unknown.sum() / self.own.sum()) if self.own.sum() else None


class UnknownCounter:
    """Counts a tokenizer's unknown tokens in texts that have special tokens and a prompt around them.

    A tokenizer of bytes has no unknown token, or one that it uses for something else.
    """

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        unknown = tokenizer.unk_token_id
        self.unknown = -1 if unknown is None or unknown in tokenizer("")["input_ids"] else unknown

    def count(
        self, ids: np.ndarray, lengths: np.ndarray, *, pairs: bool, dropped: Sequence[int] | None = None
    ) -> UnknownTokens:
        """Of N texts, or pairs of texts.

        Args:
            ids: of all texts, end to end.
            lengths: tokens of each text, int64 `[N]`, none of them 0.
            dropped: unknown tokens of each text that are not among its tokens; None where all are.
        """
        prompt = self.tokenizer(self.prompt, add_special_tokens=False)["input_ids"] if self.prompt else []
        around = self.tokenizer.num_special_tokens_to_add(pair=pairs) + len(prompt)
        begins = np.cumsum(lengths) - lengths
        found = np.add.reduceat(ids == self.unknown, begins, dtype=np.int32)
        own = np.maximum(lengths - around, 0).astype(np.int32)
        if dropped is not None:
            left_out = np.array(dropped, dtype=np.int32)
            return UnknownTokens(left_out, own + left_out)
        return UnknownTokens(np.clip(found - prompt.count(self.unknown), 0, own), own)


def unknown_text(what: str, share: float) -> str:
    """The sentence about the unknown tokens of `what`; with a question where there are many."""
    text = f"{what}: {share:.1%} of the tokens are unknown to the model's vocabulary"
    return f"{text}; {WRONG_MODEL}" if share > MANY else text


def mostly_unknown_text(count: int, texts: int) -> str:
    """The sentence about texts that are mostly unknown."""
    return f"{count:,} of {texts:,} texts are mostly unknown to the model's vocabulary; {WRONG_MODEL}"
