"""From texts to TF-IDF features of their n-grams: a sparse matrix.

A text's vector is `(1 + log count) * idf`, of length 1, with
`idf = log((1 + N) / (1 + texts with the n-gram)) + 1`, as `TfidfVectorizer(sublinear_tf=True)` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from featcache.errors import HeadError
from featcache.heads.lexical.counting import NgramCounter
from featcache.heads.lexical.letters import (
    CHARACTERS,
    TOKENS,
    WITHIN_WORDS,
    WORDS,
    normalise,
    parts_of_texts,
)
from featcache.heads.lexical.stored_rows import SparseRows, StoredRows, parts_of
from featcache.heads.lexical.vocabulary import find_vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LENGTHS = {CHARACTERS: (1, 3), WITHIN_WORDS: (1, 5), WORDS: (1, 2)}  # of n-grams, shortest and longest
MOST_NGRAMS = 200_000  # the most frequent ones are kept
MOST_COUNTED = 200_000  # texts; of more, n-grams are hashed instead of listed, and rows are stored
HASHED = 1 << 18  # columns of hashed n-grams
NO_SPACES = 0.2  # share of Chinese, Japanese or Thai letters from which words have no spaces around them
_SAMPLE = 2000  # texts that are looked at for that

OnText = Callable[[int], None]


def ignore_text(count: int) -> None:
    """The callback that does nothing."""


@dataclass(frozen=True)
class NgramSettings:
    """Which n-grams are counted.

    Attributes:
        analyzer: `char`; `char_wb`: within words, with a space at each end; or `word`.
        shortest, longest: characters of an n-gram, or words.
        hashed: number of columns of hashed n-grams; None where the vocabulary is listed.
    """

    analyzer: str
    shortest: int
    longest: int
    hashed: int | None = None

    def __post_init__(self) -> None:
        known = self.analyzer in LENGTHS and 1 <= self.shortest <= self.longest <= 16
        if not known or (self.hashed is not None and not 1 <= self.hashed <= 1 << 24):
            raise ValueError("the settings of its n-grams are not known to this version")

    @classmethod
    def of(cls, texts: Sequence[str]) -> NgramSettings:
        """By the script of train texts, and by how many there are."""
        step = max(1, len(texts) // _SAMPLE)
        letters = [letter for text in texts[::step] for letter in text[:500] if letter.isalpha()]
        dense = sum(map(_is_written_without_spaces, letters))
        analyzer = CHARACTERS if dense > NO_SPACES * len(letters) else WITHIN_WORDS
        return cls(analyzer, *LENGTHS[analyzer], hashed=HASHED if len(texts) > MOST_COUNTED else None)

    @classmethod
    def candidates(cls, texts: Sequence[str]) -> tuple[NgramSettings, ...]:
        """Those of `of`, and where words have spaces around them n-grams of words: validation chooses."""
        first = cls.of(texts)
        words = first.analyzer == WITHIN_WORDS and first.hashed is None
        return (first, cls(WORDS, *LENGTHS[WORDS])) if words else (first,)


@dataclass(frozen=True, eq=False)
class Ngrams:
    """The n-grams of some train texts, with what each weighs.

    Attributes:
        vocabulary: V n-grams, sorted; empty where they are hashed.
        idf: float32 `[V]`.
    """

    settings: NgramSettings
    vocabulary: tuple[str, ...]
    idf: np.ndarray

    @classmethod
    def fit(
        cls, texts: Sequence[str], settings: NgramSettings | None = None, on_text: OnText = ignore_text
    ) -> tuple[Self, SparseRows]:
        """The n-grams of train texts, and the features `[N, V]` of these texts.

        Args:
            on_text: called with how many texts more were counted.

        Raises:
            HeadError: no n-gram is in two texts.
        """
        settings = settings or NgramSettings.of(texts)
        names: tuple[str, ...] = ()
        if settings.hashed:
            counts = _counted(_hasher(settings).transform, texts, on_text)
        else:
            lengths = settings.shortest, settings.longest
            names, counts = find_vocabulary(texts, settings.analyzer, lengths, MOST_NGRAMS, on_text)
            if not names:
                raise HeadError(
                    "no n-gram is in two train texts: there are no words to learn from",
                    hint="train on more texts, or without the view lexical",
                )
        found = np.zeros(counts.shape[1], np.int64)
        for _, part in parts_of(counts):
            found += np.bincount(part.indices, minlength=len(found))
        idf = (np.log((1 + counts.shape[0]) / (1 + found)) + 1).astype(np.float32)
        made = cls(settings, names, idf)
        return made, made._weigh(counts)

    def __call__(self, texts: Sequence[str], on_text: OnText = ignore_text) -> SparseRows:
        """float32 features `[N, V]` of texts; a text without a known n-gram is a row of zeros."""
        count = _hasher(self.settings).transform if self.settings.hashed else self._counter
        return self._weigh(_counted(count, texts, on_text))

    @property
    def count(self) -> int:
        """V, the number of columns."""
        return len(self.idf)

    def equals(self, other: Ngrams) -> bool:
        """Whether the same n-grams weigh the same."""
        same = (self.settings, self.vocabulary) == (other.settings, other.vocabulary)
        return same and np.array_equal(self.idf, other.idf)

    def columns_of(self, text: str) -> dict[str, int]:
        """The column of each n-gram of `text` that has one."""
        if not self.settings.hashed:
            return {self.vocabulary[column]: column for column in self._counter.columns_of(text)}
        from sklearn.feature_extraction import FeatureHasher

        grams = dict.fromkeys(_hasher(self.settings).build_analyzer()(text))
        hasher = FeatureHasher(self.settings.hashed, input_type="string", alternate_sign=False)
        return dict(zip(grams, hasher.transform([[gram] for gram in grams]).indices.tolist(), strict=True))

    def tensors(self) -> dict[str, np.ndarray]:
        """Its arrays for safetensors: idf, and the vocabulary as UTF-8 bytes and their ends."""
        encoded = [gram.encode("utf-8", "surrogatepass") for gram in self.vocabulary]
        ends = np.cumsum([len(gram) for gram in encoded], dtype=np.int64)
        return {
            "ngrams.idf": self.idf,
            "ngrams.text": np.frombuffer(b"".join(encoded), np.uint8),
            "ngrams.ends": ends,
        }

    @classmethod
    def from_tensors(cls, settings: NgramSettings, tensors: Mapping[str, np.ndarray]) -> Self:
        """What `tensors` wrote.

        Raises:
            HeadError: an array is missing or does not fit the others.
        """
        try:
            idf, text, ends = (tensors[f"ngrams.{name}"] for name in ("idf", "text", "ends"))
            names = _pieces(text, ends)
            columns = settings.hashed or len(names)
            if idf.dtype != np.float32 or idf.shape != (columns,) or not np.isfinite(idf).all():
                raise ValueError(f"idf is {idf.dtype} {list(idf.shape)} for {columns} columns")
            made = cls(settings, names, idf)
            _ = made._counter  # which checks the vocabulary
        except (KeyError, ValueError) as error:
            raise HeadError(
                f"the n-grams of the head cannot be read: {error}", hint="train that head again"
            ) from error
        return made

    @cached_property
    def _counter(self) -> NgramCounter:
        return NgramCounter(self.vocabulary, self.settings.analyzer)

    def _weigh(self, counts: SparseRows) -> SparseRows:
        """TF-IDF of counts `[N, V]`, in place."""
        if isinstance(counts, StoredRows):
            counts.change(self._weighed)
        else:
            counts.sort_indices()
            counts.data = self._weighed(counts)
        return counts

    def _weighed(self, counts: csr_matrix) -> np.ndarray:
        values = np.log(counts.data) + 1
        values *= self.idf[counts.indices]
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        lengths = np.sqrt(np.bincount(rows, values.astype(np.float64) ** 2, minlength=counts.shape[0]))
        return np.asarray(values / lengths[rows], np.float32)


def joined_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """Each text with the second one of its pair below it."""
    if pairs is None:
        return list(texts)
    return [f"{text}\n{pair}" for text, pair in zip(texts, pairs, strict=True)]


def _pieces(text: np.ndarray, ends: np.ndarray) -> tuple[str, ...]:
    """The pieces of UTF-8 text that end at these bytes.

    Raises:
        ValueError: ends that are out of order or within a character, or bytes that are no text.
    """
    content = text.tobytes()
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise ValueError(f"their ends are {ends.dtype} {list(ends.shape)}")
    if not len(ends):
        return ()
    edges = np.concatenate([[0], ends]).astype(np.int64)
    if edges[-1] != len(content) or (np.diff(edges) <= 0).any():
        raise ValueError("their ends are out of order")
    begins = (np.frombuffer(content, np.uint8) & 0xC0) != 0x80  # all but the further bytes of a character
    if not begins[edges[:-1]].all():
        raise ValueError("an end is within a character")
    places = np.concatenate([[0], np.cumsum(begins)])[edges].tolist()
    whole = content.decode("utf-8", "surrogatepass")  # once: a call for each piece takes most of the time
    return tuple(whole[start:end] for start, end in pairwise(places))


def _hasher(settings: NgramSettings) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=settings.hashed,
        alternate_sign=False,
        norm=None,
        analyzer=settings.analyzer,
        ngram_range=(settings.shortest, settings.longest),
        preprocessor=normalise,
        dtype=np.float32,
        **({"token_pattern": TOKENS} if settings.analyzer == WORDS else {}),
    )


def _counted(
    count: Callable[[Sequence[str]], csr_matrix], texts: Sequence[str], on_text: OnText
) -> SparseRows:
    """float32 counts `[N, V]`, some texts at a time."""
    from scipy.sparse import csr_matrix, vstack

    def parts() -> Iterator[csr_matrix]:
        for rows in parts_of_texts(texts):
            yield count(texts[rows])
            on_text(rows.stop - rows.start)

    if not texts:
        return csr_matrix(count([""])[:0])
    if len(texts) > MOST_COUNTED:
        first = next(counted := parts())
        return StoredRows(chain([first], counted), first.shape[1])
    return csr_matrix(vstack(list(parts()), format="csr"))


def _is_written_without_spaces(letter: str) -> bool:
    """Whether it is a letter of Chinese, Japanese, Thai, Lao, Burmese or Khmer."""
    code = ord(letter)
    return (
        0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF or 0x0E00 <= code <= 0x0EFF or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )  # fmt: skip
