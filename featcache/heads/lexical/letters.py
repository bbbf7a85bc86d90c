"""Texts as arrays of letters: the code points of their characters, or the numbers of their words.

Characters, words and blanks are those of scikit-learn's `CountVectorizer`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

CHARACTERS, WITHIN_WORDS, WORDS = "char", "char_wb", "word"  # scikit-learn's names
TOKENS = r"\w+|[^\w\s]"  # words, and signs one by one
AT_ONCE = 1 << 18  # letters that are counted together: what a processor's cache holds

_TOKENS, _BLANKS = re.compile(TOKENS), re.compile(r"\s\s+")


@dataclass(frozen=True, eq=False)
class Letters:
    """The letters of some texts, in segments; no n-gram reaches beyond its segment.

    Attributes:
        codes: int32 `[P]`, the letters of all segments.
        lengths: int64 `[S]`, how many letters each segment has.
        rows: int64 `[S]`, the number of its text.
        texts: N, the number of texts.
    """

    codes: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    texts: int

    def left(self) -> np.ndarray:
        """int64 `[P]`: how many letters there are from each one to the end of its segment."""
        return np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.codes))

    def row(self) -> np.ndarray:
        """int64 `[P]`: the number of each letter's text."""
        return np.repeat(self.rows, self.lengths)


def normalise(text: str) -> str:
    """NFKC, which makes full-width letters ordinary ones, and lower case."""
    return unicodedata.normalize("NFKC", text).lower()


def read_letters(texts: Sequence[str], analyzer: str, numbers: Mapping[str, int]) -> Letters:
    """The letters of texts after `normalise`.

    Characters: blanks in a row are one space. Within words: each word is a segment, with a space at each end.

    Args:
        numbers: of words; not used for characters.
    """
    clean, rows = map(normalise, texts), np.arange(len(texts))
    if analyzer == WORDS:
        words = [_TOKENS.findall(text) for text in clean]
        lengths = np.fromiter(map(len, words), np.int64, len(texts))
        codes = np.fromiter(map(numbers.__getitem__, chain.from_iterable(words)), np.int32, lengths.sum())
        return Letters(codes, lengths, rows, len(texts))
    if analyzer == CHARACTERS:
        lines = [_BLANKS.sub(" ", text) for text in clean]
        lengths = np.fromiter(map(len, lines), np.int64, len(texts))
        return Letters(code_points(lines), lengths, rows, len(texts))
    words = [text.split() for text in clean]
    codes = code_points(f" {'  '.join(some)} " for some in words if some)
    space = codes == ord(" ")
    starts = np.flatnonzero(space & np.append(True, space[:-1])[: len(space)])  # after the last word's space
    counts = np.fromiter(map(len, words), np.int64, len(texts))
    return Letters(codes, np.diff(starts, append=len(codes)), np.repeat(rows, counts), len(texts))


def code_points(texts: Iterator[str] | Sequence[str]) -> np.ndarray:
    """int32 `[P]`, of all texts one after the other."""
    content = "".join(texts).encode("utf-32-le", "surrogatepass")
    return np.frombuffer(content, "<i4").astype(np.int32, copy=False)


def text_of(codes: np.ndarray) -> str:
    """The characters of code points."""
    return codes.astype("<i4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")


def parts_of_texts(texts: Sequence[str]) -> Iterator[slice]:
    """Neighbouring texts that are counted together: of some `AT_ONCE` letters, at least one."""
    begin = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= AT_ONCE or end == len(texts):
            yield slice(begin, end)
            begin, size = end, 0
