"""What an extraction is about to do, in sentences: the rows, the model, and how long it will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.model_files.depth_views import DEPTH
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.sentence_transformers import AUTO, Followed
from featcache.data.split import Split, count_labels
from featcache.fingerprint import REGRESSION, task_of
from featcache.settings import FeatureSettings
from featcache.system.progress import OnProgress, Progress
from featcache.system.units import MINUTE, seconds_text, size_text

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder

WARM_UP = 2.0  # seconds of encoding, at the least one step of it, that are slower than the others
MEASURED = 2.0  # seconds after these that the time is estimated from
WORTH_SAYING = 5.0  # seconds; shorter work is not announced
SAMPLE = 256  # texts whose tokens are counted
SHOWN_LABELS = 6


def data_sentences(splits: Mapping[str, Split]) -> Iterator[str]:
    """Which columns are read and left, what is held out, and how many rows and labels there are."""
    yield from dict.fromkeys(text for split in splits.values() for text in (*split.read_as, *split.notes))
    rows = f"{', '.join(f'{len(split):,} {name}' for name, split in splits.items())} rows"
    if any(task_of(split.labels) == REGRESSION for split in splits.values()):
        low, high = (
            end([end(split.labels) for split in splits.values() if len(split)]) for end in (np.min, np.max)
        )
        yield f"{rows}; numbers from {low:g} to {high:g}"
        return
    counts: Counter[str] = Counter()
    for split in splits.values():
        counts.update(count_labels(split.labels, split.label_names))
    shown = [f"{name} ({count:,})" for name, count in counts.most_common(SHOWN_LABELS)]
    more = f" and {len(counts) - SHOWN_LABELS} more" if len(counts) > SHOWN_LABELS else ""
    yield f"{rows}; labels: {', '.join(shown) or 'none'}{more}"


def model_sentence(files: ModelFiles, followed: Followed) -> str:
    """The model, the views of it that are made, and why these."""
    parts = []
    for name, views in followed.views.items():
        if name == DEPTH:
            layers = dict.fromkeys(view.partition("/")[0] for view in views)
            parts.append(f"{name} ({len(views)} views of the layers {', '.join(layers)})")
        elif name.endswith(f"/{AUTO}"):
            by_model = "as its sentence-transformers settings say"
            parts.append(f"{views[0]} ({by_model if followed.by_model else 'as it names no pooling itself'})")
        else:
            parts.append(f"{name} (default)" if name in FeatureSettings().views else name)
    blocks = f", {files.blocks} blocks" if files.blocks else ""
    return f"model {files.name}{blocks}; views: {', '.join(parts)}"


@dataclass(frozen=True)
class Announced:
    """What is about to be extracted.

    Attributes:
        row_bytes: of the features of one row; None where that is not known.
        encoder: gives the encoder once it is loaded; None before, and where it is on other machines.
    """

    splits: Mapping[str, Split]
    files: ModelFiles
    followed: Followed
    row_bytes: int | None
    encoder: Callable[[], Encoder | None]

    @property
    def disk_text(self) -> str:
        """The size of all features, as a part of a sentence."""
        rows = sum(map(len, self.splits.values()))
        return "" if self.row_bytes is None else f"; {size_text(self.row_bytes * rows)} of features on disk"

    def mean_tokens(self, name: str) -> float | None:
        """Tokens of a text of a split, from a sample; None without an encoder in this process."""
        encoder, split = self.encoder(), self.splits[name]
        if encoder is None:
            return None
        rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), SAMPLE)).astype(np.int64))
        return float(np.mean(encoder.tokenize(split.texts(rows), split.pairs(rows)).lengths))


def announce(about: Announced, on_progress: OnProgress) -> OnProgress:
    """Say what was read and with which model it is encoded; the callback returned says how long it takes."""
    for text in (*data_sentences(about.splits), model_sentence(about.files, about.followed)):
        on_progress(Progress("note", next(iter(about.splits)), text=text))
    return Outlook(about, on_progress)


class Outlook:
    """Passes progress on, and says once how long all splits will take, from the first seconds of encoding.

    The time is that of tokens, because the longest texts may be the first.
    """

    def __init__(self, about: Announced, on_progress: OnProgress) -> None:
        self.about, self.on_progress = about, on_progress
        self.left = {name: len(split) for name, split in about.splits.items()}
        self.began: float | None = None
        self.warm: tuple[float, Progress] | None = None  # the step that ended the warm-up, and when it was

    def __call__(self, event: Progress) -> None:
        self.on_progress(event)
        if event.stage != "encode" or event.split not in self.left:
            return
        if event.done >= event.total:  # too short to be announced
            del self.left[event.split]
            self.began = self.warm = None
            return
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        if self.warm is None:
            self.warm = (now, event) if event.tokens and now - self.began >= WARM_UP else None
            return
        elapsed, tokens = now - self.warm[0], event.tokens - self.warm[1].tokens
        if elapsed < MEASURED or not tokens:
            return
        rows = event.total - self.warm[1].done + sum(self.left.values()) - self.left[event.split]
        self.left = {}  # once is enough
        mean = self.about.mean_tokens(event.split)
        if mean is None:
            return
        seconds = (rows * mean / tokens - 1) * elapsed
        if seconds >= WORTH_SAYING:
            time_left = f"{seconds:.0f} s" if seconds < MINUTE else seconds_text(seconds)
            text = f"about {time_left} to go{self.about.disk_text}"
            self.on_progress(Progress("note", event.split, text=text))
