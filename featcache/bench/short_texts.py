"""How much of an extraction is not the model: reading, hashing, tokenising, Python and writing, by length."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.backbone.encoder import Encoder
from featcache.backbone.packing import plan_batches
from featcache.backbone.tokens.tokenization import Tokens
from featcache.bench.plan_check import write_rows
from featcache.bench.timing import timed
from featcache.cache.cache import Cache
from featcache.errors import UsageError
from featcache.extraction.api import extract_splits
from featcache.extraction.partition import UNIT_BATCHES
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress, ignore

RUNS = 2  # of which the faster counts
UNITS = 4  # commit units of an extraction, so that most of them are tokenised while another is encoded
CHARACTERS = 16  # of the source for a token, which are more than one has


@dataclass(frozen=True)
class LengthSpeed:
    """An extraction of texts of one length.

    Attributes:
        tokens: mean tokens of a text.
        texts_per_s: of the whole extraction, from the hashing of its rows to the sealed file; the model is
            loaded.
        outside_model: share of its time beside that of the forward passes alone, when nothing else runs.
        tokenizing: seconds to tokenise all texts when nothing else runs, over those of the extraction; a
            thread does it ahead of the model.
    """

    tokens: float
    texts: int
    texts_per_s: float
    outside_model: float
    tokenizing: float


def measure_lengths(
    settings: Settings,
    encoder: Encoder,
    texts: Sequence[str],
    lengths: Sequence[int],
    on_progress: OnProgress = ignore,
) -> Iterator[LengthSpeed]:
    """Extract texts of each length in a temporary folder of the cache folder.

    Args:
        encoder: of `settings`.
        texts: what the texts are cut from.
        lengths: tokens of a text, prompt and special tokens included.

    Raises:
        UsageError: a length that the encoder does not take.
    """
    for length in lengths:
        on_progress(Progress(f"texts of {length} tokens"))
        cut = texts_of_length(settings, encoder, texts, length)
        tokens, tokenizing = timed(lambda: encoder.tokenize(cut))  # noqa: B023
        forward, whole = [], []
        for _ in range(RUNS):
            forward.append(_forward_seconds(encoder, tokens))
            whole.append(_extraction_seconds(settings, cut))
        yield LengthSpeed(
            tokens=float(tokens.lengths.mean()),
            texts=len(cut),
            texts_per_s=len(cut) / min(whole),
            outside_model=1 - min(forward) / min(whole),
            tokenizing=tokenizing / min(whole),
        )


def texts_of_length(settings: Settings, encoder: Encoder, texts: Sequence[str], length: int) -> list[str]:
    """Different texts of `length` tokens, cut out of `texts` end to end; enough for `UNITS` commit units."""
    if length > encoder.max_length:
        raise UsageError(f"texts of {length} tokens: the longest has {encoder.max_length}")
    features = replace(settings.features, max_length=length, long_text="truncate")
    cutter = Encoder(encoder.backbone, features, encoder.batch_tokens)
    source, count = "".join(texts), UNITS * UNIT_BATCHES * encoder.batch_tokens // length
    around = source * (2 + CHARACTERS * length // len(source))  # the last texts go on at its beginning
    begins = (number * len(source) // count for number in range(count))
    pieces = [around[begin : begin + CHARACTERS * length] for begin in begins]
    places = cutter.token_places(pieces)
    return list(dict.fromkeys(
        piece[: max(end for _, end in kept)] for piece, kept in zip(pieces, places, strict=True)
    ))  # fmt: skip


def _forward_seconds(encoder: Encoder, tokens: Tokens) -> float:
    """Seconds of the forward passes and the pooling of all batches, one after the other."""
    spent = 0.0
    for rows in plan_batches(tokens.lengths, encoder.batch_tokens):
        batch = tokens.batch(rows)
        spent += timed(lambda: encoder.pool(batch, windows=tokens.windows is not None).wait())[1]  # noqa: B023
    return spent


def _extraction_seconds(settings: Settings, texts: Sequence[str]) -> float:
    """Seconds of an extraction of `texts` without the loading of the model."""
    cache_dir = Cache.open(settings.paths.cache_dir).folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=cache_dir) as folder:
        data = write_rows(Path(folder), texts)
        paths = replace(settings.paths, cache_dir=str(Path(folder, "cache")))
        (made,) = extract_splits(replace(settings, data=data, paths=paths), ["train"])
    return made.seconds - made.loading_seconds
