"""The tokenizer of a static model: no special tokens, and with model2vec no unknown ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from featcache.backbone.tokens.file_tokenizer import FileEncodings, FileTokenizer


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The tokens of one text that are kept, with what `tokenizers` says of all of them.

    Attributes:
        ids: of the kept tokens; of a text without any, the one that stands for nothing.
        places: of the kept tokens among all.
        dropped: unknown tokens that are left out.
        overflowing: whether the text was truncated.
    """

    encoding: Encoding
    ids: list[int]
    places: Sequence[int]
    dropped: int
    overflowing: bool

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Characters `[begin, end)` of each kept token; (0, 0) for the one that stands for nothing."""
        found = self.encoding.offsets
        return [found[place] for place in self.places] or [(0, 0)]

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 or 1 of each kept token: whether it is of the first or the second text of a pair."""
        found = self.encoding.sequence_ids
        return [found[place] for place in self.places] or [None]


class StaticTokenizer(FileTokenizer):
    """A text -> the ids of its tokens, as model2vec and sentence-transformers take them.

    Args:
        drops_unknown: leave unknown tokens out, as model2vec does.
        nothing: the id of a text without tokens, whose vector is 0.
    """

    def __init__(self, backend: Tokenizer, *, drops_unknown: bool, nothing: int) -> None:
        limit = (backend.truncation or {}).get("max_length")
        super().__init__(backend, {}, {"model_input_names": ["input_ids"], "model_max_length": limit})
        unknown = getattr(backend.model, "unk_token", None)
        self.unk_token_id = None if unknown is None else backend.token_to_id(unknown)
        self.drops_unknown, self.nothing = drops_unknown and self.unk_token_id is not None, nothing

    def __call__(
        self,
        texts: str | list[str],
        pairs: str | list[str] | None = None,
        *,
        truncation: bool = False,
        max_length: int | None = None,
        **_: Any,
    ) -> FileEncodings:
        """Token ids of a text or of many; those of a pair are one after the other.

        A single text is truncated when its unknown tokens are left out, as model2vec does it; a pair before
        that, so that the longer text loses tokens.
        """
        limit = (max_length or self.model_max_length) if truncation else None
        single = isinstance(texts, str)
        rows = [texts] if isinstance(texts, str) else texts
        seconds = [pairs] if isinstance(pairs, str) else pairs
        both = rows if seconds is None else list(zip(rows, seconds, strict=True))
        if limit is not None and seconds is not None:
            self.backend_tokenizer.enable_truncation(limit, direction=self.truncation_side)
        else:
            self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        encodings = self.backend_tokenizer.encode_batch(both, add_special_tokens=False)
        kept = [self._kept(encoding, limit) for encoding in encodings]
        found = FileEncodings(kept, typed=False, single=single)
        if self.drops_unknown:
            found["dropped"] = [one.dropped for one in kept]
        return found

    def _kept(self, encoding: Encoding, limit: int | None) -> KeptTokens:
        """The tokens of one text that are kept, at most `limit`."""
        ids, unknown = encoding.ids, self.unk_token_id
        places: Sequence[int] = range(len(ids))
        if self.drops_unknown and unknown in ids:
            places = [place for place, number in enumerate(ids) if number != unknown]
        dropped = len(ids) - len(places)
        overflowing = bool(encoding.overflowing)
        if limit is not None and len(places) > limit:
            places = places[:limit] if self.truncation_side == "right" else places[-limit:]
            overflowing = True
        if len(places) < len(ids):
            ids = [ids[place] for place in places]
        return KeptTokens(encoding, ids or [self.nothing], places, dropped, overflowing)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """None surround a text."""
        return 0
