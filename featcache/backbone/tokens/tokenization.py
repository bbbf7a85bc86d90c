"""Texts -> token ids: truncated, split into windows, or their two ends kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import Any

import numpy as np

from featcache.backbone.model import Backbone
from featcache.backbone.model_files.library_errors import library_errors
from featcache.backbone.packing import TokenBatch
from featcache.backbone.tokens.long_texts import Frame, Windows, check_overlap, chunks, groups, head_and_tail
from featcache.backbone.tokens.unknown_tokens import UnknownCounter, UnknownTokens
from featcache.errors import BackboneError, BadRow, UsageError

Place = tuple[int, int]  # characters `[begin, end)` of a text; (0, 0) for a token that is not of the text
BAD_TOKENIZER = "is the tokenizer the model's own, as its author published it?"
NO_TOKEN = "leave the row out with --skip-bad-rows, or give it a sign that the model knows"
# A tokenizer keeps the length to truncate at as its own state, so that two threads would change each other's.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Tokens:
    """The token ids of many texts, end to end.

    Each text is one row for the model, or several where it is split into windows.

    Attributes:
        ids: int32 `[sum of lengths]`.
        lengths: int64 `[rows]`, tokens kept of each text, or of each window.
        type_ids: uint8, like `ids`; None for models without token types.
        truncated: bool `[N]`, whether tokens were cut off.
        windows: which rows are windows of which text; None if every row is a text.
        unknown: what the vocabulary does not have of the texts; None for made-up tokens.
    """

    ids: np.ndarray
    lengths: np.ndarray
    type_ids: np.ndarray | None
    truncated: np.ndarray
    windows: Windows | None = None
    unknown: UnknownTokens | None = None

    @property
    def unknown_shares(self) -> np.ndarray:
        """Share of each text's tokens that the vocabulary does not have, float64 `[N]`."""
        return np.zeros(len(self.truncated)) if self.unknown is None else self.unknown.shares

    def texts_of(self, rows: np.ndarray) -> np.ndarray:
        """The text that each of `rows` is, or is a window of."""
        return rows if self.windows is None else self.windows.owner[rows]

    def batch(self, rows: np.ndarray) -> TokenBatch:
        """The tokens of some rows, in the order of `rows`."""
        begins, lengths = (np.cumsum(self.lengths) - self.lengths)[rows], self.lengths[rows]
        moved = begins - (np.cumsum(lengths) - lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(moved, lengths)
        types = None if self.type_ids is None else self.type_ids[places]
        return TokenBatch(self.ids[places], lengths, types)


@dataclass(frozen=True)
class TextTokens:
    """How much of one text is read.

    Attributes:
        count: tokens of the whole text and its second one, special ones and the prompt included.
        windows: how many the text is split into; 1 where long texts are not split.
        truncated: tokens are cut off.
        unread, unread_pair: characters `[begin, end)` of the text, and of its second one, whose tokens are
            cut off; none where the tokenizer does not say where its tokens are.
    """

    count: int
    windows: int
    truncated: bool
    unread: tuple[Place, ...] = ()
    unread_pair: tuple[Place, ...] = ()


class Tokenization:
    """The tokenizer of a backbone, and what is done with texts longer than `max_length` tokens.

    Args:
        prompt: put before every text.
        long_text: `truncate`, `chunks` or `head-tail`.
        overlap: tokens that neighbouring windows share.

    Raises:
        UsageError: a `long_text` that there is not, or a length that leaves no room.
    """

    def __init__(
        self, backbone: Backbone, *, prompt: str, max_length: int, long_text: str, overlap: int
    ) -> None:
        self.backbone, self.prompt, self.max_length = backbone, prompt, max_length
        self.long_text, self.overlap = long_text, overlap
        self._split = self._splitter()
        self._unknown = UnknownCounter(backbone.tokenizer, prompt)

    def _splitter(self) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        """From the token ids of a text to its parts, as places in them; None if texts are truncated."""
        if self.long_text == "truncate":
            return None
        if self.long_text not in ("chunks", "head-tail"):
            raise UsageError(f"--long-text {self.long_text}: truncate, chunks or head-tail")
        frame, limit = Frame.of(self.backbone.tokenizer, self.prompt), self.max_length
        if self.long_text == "chunks":
            check_overlap(self.overlap, frame, limit)
            return partial(chunks, frame=frame, limit=limit, overlap=self.overlap)
        check_overlap(0, frame, limit)
        return partial(head_and_tail, frame=frame, limit=limit)

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Token ids of texts (and pairs), prompt included, truncated or split at `max_length`.

        Raises:
            BadRow: a text without any token.
            UsageError: pairs, unless long texts are truncated.
        """
        prompted = [self.prompt + text for text in texts] if self.prompt else list(texts)
        if not prompted:
            none = np.zeros(0, dtype=np.int64)
            return Tokens(none.astype(np.int32), none, None, none.astype(bool))
        if self._split is not None:
            if pairs is not None:
                raise UsageError(
                    f"--long-text {self.long_text} takes single texts, not pairs",
                    hint="use --long-text truncate, which cuts the longer text of a pair",
                )
            return self._tokenize_whole(texts, prompted, self._split)
        coded = self._coded(prompted, pairs, truncation=True, max_length=self.max_length)
        ids, lengths = _end_to_end(coded["input_ids"], np.int32)
        _require_tokens(texts, lengths)
        return Tokens(
            ids,
            lengths,
            _end_to_end(coded["token_type_ids"], np.uint8)[0] if "token_type_ids" in coded else None,
            self._truncated(coded, prompted, pairs, lengths),
            unknown=self._unknown.count(ids, lengths, pairs=pairs is not None, dropped=coded.get("dropped")),
        )

    def places(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[Place]]:
        """Where the kept tokens of each text are in it; of a pair in its first text. Not for windows.

        Raises:
            UsageError: a tokenizer that does not say it.
        """
        options: dict[str, Any] = {} if self._split else {"truncation": True, "max_length": self.max_length}
        coded = self._coded([self.prompt + text for text in texts], pairs, **options)
        if not coded.is_fast:
            raise UsageError(
                f"the tokenizer of {self.backbone.files.name} is written in Python and does not say where "
                "its tokens are, so none can be marked"
            )
        return [self._kept(encoding, 0) for encoding in coded.encodings]

    def measure(self, text: str, pair: str | None = None) -> TextTokens:
        """How much of one text (and its second one) is read.

        Raises:
            BadRow, UsageError: as for `__call__`.
        """
        pairs = None if pair is None else [pair]
        kept, whole = self([text], pairs), self._coded([self.prompt + text], pairs, verbose=False)
        windows = 1 if kept.windows is None else int(kept.windows.counts[0])
        count, truncated = len(whole["input_ids"][0]), bool(kept.truncated[0])
        if not truncated or not whole.is_fast:
            return TextTokens(count, windows, truncated)
        options: dict[str, Any] = {} if self._split else {"truncation": True, "max_length": self.max_length}
        coded = self._coded([self.prompt + text], pairs, **options).encodings[0]
        first, second = (
            _left_out(self._places(whole.encodings[0], part), set(self._kept(coded, part))) for part in (0, 1)
        )
        return TextTokens(count, windows, truncated, first, second)

    def _places(self, encoding: Any, part: int) -> list[Place]:
        """Where the tokens of an encoding are in the first (0) or the second (1) text."""
        before = 0 if part else len(self.prompt)
        return [
            (max(begin - before, 0), max(end - before, 0)) if sequence == part else (0, 0)
            for (begin, end), sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        ]

    def _kept(self, encoding: Any, part: int) -> list[Place]:
        """`_places` of the tokens that are kept, of an encoding that is truncated unless texts are split."""
        places = self._places(encoding, part)
        if self._split is None:
            return places
        return [places[number] for number in self._split(np.array(encoding.ids))[0]]

    def _coded(
        self, texts: list[str], pairs: Sequence[str] | None = None, *, first: int = 0, **options: Any
    ) -> Any:
        """What the tokenizer returns for texts, prompt included.

        Args:
            first: the row of the first text.

        Raises:
            BadRow: a text that the tokenizer refuses, or with a token that the model has no embedding for.
        """
        name, rows = self.backbone.files.name, getattr(self.backbone.model.config, "vocab_size", None)
        tokenizer = partial(self.backbone.tokenizer, return_attention_mask=False, **options)
        try:
            with library_errors(f"the tokenizer of {name} fails"), _ONE_AT_A_TIME:
                coded = tokenizer(texts, None if pairs is None else list(pairs))
        except BackboneError as error:
            for row, text in enumerate(texts):
                try:
                    with library_errors(""), _ONE_AT_A_TIME:
                        tokenizer([text], None if pairs is None else [pairs[row]])
                except BackboneError:
                    raise BadRow(f"{error.what} (text: {text[:40]!r})", first + row, BAD_TOKENIZER) from error
            raise
        if rows is not None and max(map(max, filter(None, coded["input_ids"])), default=0) >= rows:
            row = next(row for row, ids in enumerate(coded["input_ids"]) if ids and max(ids) >= rows)
            token = self.backbone.tokenizer.convert_ids_to_tokens(max(coded["input_ids"][row]))
            what = f"{name} has no embedding of its tokenizer's token {token!r}"
            raise BadRow(what, first + row, BAD_TOKENIZER)
        return coded

    def _tokenize_whole(
        self, texts: Sequence[str], prompted: list[str], split: Callable[[np.ndarray], list[np.ndarray]]
    ) -> Tokens:
        """Tokens of whole texts, from which `split` takes windows or the two ends; few texts at a time."""
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        counts, whole = [], []
        unknown: list[UnknownTokens] = []
        for part in groups(prompted):
            coded = self._coded(prompted[part], first=part.start, verbose=False)
            flat, sizes = _end_to_end(coded["input_ids"], np.int32)
            _require_tokens(texts, sizes, first=part.start)
            unknown.append(self._unknown.count(flat, sizes, pairs=False, dropped=coded.get("dropped")))
            for number, text in enumerate(np.split(flat, np.cumsum(sizes)[:-1])):
                windows = split(text)
                counts.append(len(windows))
                whole.append(len(text))
                ids += [text[places] for places in windows]
                if "token_type_ids" in coded:
                    kinds = np.asarray(coded["token_type_ids"][number], dtype=np.uint8)
                    types += [kinds[places] for places in windows]
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        n_tokens = np.array(whole, dtype=np.int64)
        in_windows = self.long_text == "chunks"
        return Tokens(
            np.concatenate(ids),
            lengths,
            np.concatenate(types) if types else None,
            np.zeros(len(whole), dtype=bool) if in_windows else n_tokens > self.max_length,
            Windows(np.array(counts, dtype=np.int64), lengths, n_tokens) if in_windows else None,
            unknown=UnknownTokens.joined(unknown),
        )

    def _truncated(
        self, coded: Any, texts: list[str], pairs: Sequence[str] | None, lengths: np.ndarray
    ) -> np.ndarray:
        """Which texts lost tokens; only those as long as the limit can."""
        full = lengths >= self.max_length
        if coded.is_fast:
            return np.array([bool(encoding.overflowing) for encoding in coded.encodings])
        for row in np.flatnonzero(full).tolist():
            whole = self.backbone.tokenizer(texts[row], None if pairs is None else pairs[row])
            full[row] = len(whole["input_ids"]) > self.max_length
        return full


def _end_to_end(rows: Sequence[Sequence[int]], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of all rows in one array, and how many each row has, int64 `[N]`."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype, int(lengths.sum())), lengths


def _require_tokens(texts: Sequence[str], lengths: np.ndarray, *, first: int = 0) -> None:
    """Refuse a text without any token; the lengths are those of the texts from `first` on."""
    if not lengths.all():
        row = first + int(np.argmin(lengths))
        raise BadRow(f"the tokenizer makes no token of {texts[row][:40]!r}", row, hint=NO_TOKEN)


def _left_out(places: Sequence[Place], kept: set[Place]) -> tuple[Place, ...]:
    """From the first to the last character of each run of tokens that are not kept."""
    own = [place for place in places if place[1] > place[0]]
    runs = ([*run] for cut, run in groupby(own, lambda place: place not in kept) if cut)
    return tuple((run[0][0], run[-1][1]) for run in runs)


def lower_case(tokenizer: Any) -> None:
    """Let a tokenizer lower-case texts first.

    Raises:
        BackboneError: a tokenizer in Python.
    """
    from tokenizers import normalizers

    if not tokenizer.is_fast:
        raise BackboneError(
            "texts cannot be lower-cased in front of this tokenizer, which is written in Python",
            hint="use --no-lower-case, with lower-cased texts",
        )
    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def lower_case_texts(backbone: Backbone) -> None:
    """Let the tokenizer of a backbone lower-case texts, for good; a second call does nothing."""
    if not backbone.lower_case:
        lower_case(backbone.tokenizer)
    backbone.lower_case = True


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """How many tokens a text begins with because of `prompt`: special ones before it, and its own."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)
