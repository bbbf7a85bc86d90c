"""Which n-grams and tokens of a text decided, for heads that read words or token states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import UsageError
from featcache.heads.lexical.letters import WORDS, normalise
from featcache.heads.lexical.ngrams import Ngrams, joined_texts
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.lexical.stored_rows import parts_of
from featcache.prediction.attended import TokenWeight, attended

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.heads.head import Head

SHOWN = 12  # n-grams of a text


@dataclass(frozen=True)
class NgramWeight:
    """An n-gram of a text, and what it adds to the logit of the predicted label over the mean of all labels.

    Attributes:
        weight: divided by the temperature; above 0 it speaks for the label, below 0 against it.
    """

    ngram: str
    weight: float


@dataclass(frozen=True)
class Explanation:
    """Why a text has its label.

    Attributes:
        words: sum of the weights of all n-grams.
        ngrams: those of the largest weights, largest first by size.
        spans: for and against: `[begin, end)` of characters of the text that one of `ngrams` covers, and the
            sum of their weights; of a head without words, its tokens.
        tokens: those that count most for a head that reads token states, in their order; none for others.
    """

    label: str
    words: float
    ngrams: tuple[NgramWeight, ...]
    spans: tuple[tuple[int, int, float], ...]
    tokens: tuple[TokenWeight, ...] = ()


def explain(
    head: Head,
    texts: Sequence[str],
    labels: Sequence[int],
    pairs: Sequence[str] | None = None,
    *,
    encoder: Encoder | None = None,
) -> list[Explanation]:
    """What the words, or the tokens, of each text say for its predicted label.

    Args:
        labels: number of the predicted label of each text.
        encoder: of the head; needed for one that reads token states.

    Raises:
        UsageError: the head reads neither, or the tokenizer does not say where its tokens are.
    """
    if head.ngrams is None and not head.attention:
        raise UsageError(
            "this head reads no words and no token states, so there are none to show",
            hint="train one that does: featcache train-head --head exact --view depth,lexical, or "
            "--head attentive",
        )
    if head.ngrams is None:
        found = [Explanation(head.label_names[label], 0.0, (), ()) for label in labels]
    else:
        found = _of_words(head, head.ngrams, joined_texts(texts, pairs), labels)
    if not head.attention or encoder is None:
        return found
    tokens = attended(head, encoder, texts, labels, pairs)
    return [_with_tokens(one, marked) for one, marked in zip(found, tokens, strict=True)]


def _with_tokens(explanation: Explanation, tokens: tuple[TokenWeight, ...]) -> Explanation:
    own = tuple((token.begin, token.end, token.weight) for token in tokens)
    return replace(explanation, tokens=tokens, spans=explanation.spans or own)


def _of_words(head: Head, ngrams: Ngrams, whole: Sequence[str], labels: Sequence[int]) -> list[Explanation]:
    """What the words of each text say for its label."""
    assert isinstance(head.scorer, WordScorer)
    weights = (head.scorer.weight - head.scorer.weight.mean(axis=0)) / np.float32(head.temperature)
    found = []
    rows = chain.from_iterable(part for _, part in parts_of(ngrams(whole)))
    for text, row, label in zip(whole, rows, labels, strict=True):
        values = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
        columns = ngrams.columns_of(text)
        parts = [
            NgramWeight(gram, float(values.get(column, 0.0) * weights[label, column]))
            for gram, column in columns.items()
        ]
        parts.sort(key=lambda part: -abs(part.weight))
        top = tuple(part for part in parts[:SHOWN] if part.weight)
        total = sum(part.weight for part in parts)
        whole_words = ngrams.settings.analyzer == WORDS
        spans = spans_of(text, top, whole_words=whole_words)
        found.append(Explanation(head.label_names[label], total, top, spans))
    return found


def spans_of(
    text: str, ngrams: Sequence[NgramWeight], *, whole_words: bool = False
) -> tuple[tuple[int, int, float], ...]:
    """Neighbouring characters of `text` that n-grams cover with the same sign, and the sum of their weights.

    Characters are compared after `normalise`, one by one.

    Args:
        whole_words: the n-grams are of words, with any white space between them.
    """
    letters = [normalise(letter) for letter in text]
    places = [place for place, letter in enumerate(letters) for _ in letter]  # of each normalised character
    flat, weight = "".join(letters), np.zeros(len(text))
    for part in ngrams:
        for found in re.finditer(_pattern(part.ngram, whole_words), flat):
            covered = sorted({places[place] for place in range(*found.span(1))})
            weight[covered] += part.weight / len(covered)
    signs = np.sign(weight)
    edges = [0, *(np.flatnonzero(np.diff(signs)) + 1).tolist(), len(text)]
    return tuple(
        (begin, end, float(weight[begin:end].sum()))
        for begin, end in pairwise(edges)
        if end > begin and signs[begin]
    )


def _pattern(ngram: str, whole_words: bool) -> str:
    """Its places, which may overlap, as group 1."""
    if not whole_words:
        return f"(?=({re.escape(ngram.strip() or ngram)}))"
    words = r"\s*".join(map(re.escape, ngram.split(" ")))
    before = r"(?<!\w)" if ngram[0].isalnum() else ""
    after = r"(?!\w)" if ngram[-1].isalnum() else ""
    return f"{before}(?=({words}){after})"
