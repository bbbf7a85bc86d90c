"""Logits from n-grams, added to those of a scorer of the backbone's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from featcache.errors import HeadError
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.stored_rows import parts_of
from featcache.heads.scorers import SCORERS, Scorer, TensorReader, Tensors
from featcache.system.sharded_array import slices_of

PREFIX = "dense."  # of the tensors of the scorer of features


@dataclass(frozen=True, eq=False)
class WordScorer:
    """`words W^T + b`, plus `share` times the logits of `dense`.

    Attributes:
        weight: float32 `[C, V]`.
        bias: float32 `[C]`.
        dense: of the features of a backbone; None without one.
        share: what its logits are multiplied by.
    """

    kind: ClassVar[str] = "words"
    weight: np.ndarray
    bias: np.ndarray
    dense: Scorer | None = None
    share: float = 1.0

    @property
    def width(self) -> int:
        return int(self.weight.shape[1]) + (self.dense.width if self.dense else 0)

    @property
    def classes(self) -> int:
        return len(self.bias)

    @property
    def parameters(self) -> int:
        return self.weight.size + self.bias.size + (self.dense.parameters if self.dense else 0)

    def logits(self, x: Any) -> np.ndarray:
        """`WordRows` -> float32 `[N, C]`.

        Raises:
            HeadError: features of another kind or width.
        """
        if not isinstance(x, WordRows) or x.shape[1] != self.width:
            raise HeadError(
                f"this head wants the n-grams of texts [N, {self.width}], got {list(x.shape)}",
                hint="count them with the n-grams of this head",
            )
        found = np.empty((len(x), self.classes), np.float32)
        for rows, part in parts_of(x.words):
            found[rows] = part @ self.weight.T + self.bias
        if self.dense is not None and x.dense is not None:
            for rows in slices_of(len(x), 65536):
                found[rows] += np.float32(self.share) * self.dense.logits(x.dense[rows])
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        own = {
            "weight": np.ascontiguousarray(self.weight),
            "bias": np.ascontiguousarray(self.bias),
        }
        if self.dense is None:
            return own
        number = list(SCORERS).index(self.dense.kind)
        own |= {"share": np.array([self.share], np.float32), "dense": np.array([number], np.int64)}
        return own | {PREFIX + name: part for name, part in self.dense.tensors().items()}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Self:
        read = TensorReader(cls.kind, tensors)
        weight, bias = read("weight", "C V", np.float32), read("bias", "C", np.float32)
        if "dense" not in tensors:
            return cls(weight, bias)
        number, share = int(read("dense", "1", np.int64)[0]), float(read("share", "1", np.float32)[0])
        if not 0 <= number < len(SCORERS):
            raise HeadError(
                f"the words head has a scorer {number} that this version does not know",
                hint="train that head again",
            )
        inner = {name.removeprefix(PREFIX): part for name, part in tensors.items() if name.startswith(PREFIX)}
        dense = list(SCORERS.values())[number].from_tensors(inner)
        if dense.classes != len(bias):
            raise HeadError(
                f"the words head has {len(bias)} labels, the scorer in it {dense.classes}",
                hint="train that head again",
            )
        return cls(weight, bias, dense, share)
