"""What an extraction is about to do, in sentences: the rows, the model, and how long it will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.endpoint.model import AnyModel, EndpointModel
from featcache.backbone.model_files.depth_views import DEPTH
from featcache.backbone.model_files.sentence_transformers import AUTO, Followed
from featcache.data.split import Split, count_labels
from featcache.fingerprint import REGRESSION, task_of
from featcache.settings import FeatureSettings
from featcache.system.progress import OnProgress, Progress
from featcache.system.units import MINUTE, seconds_text, size_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed

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
    counted = [_("{count:,} {name}", count=len(split), name=_(name)) for name, split in splits.items()]
    rows = _("{counts} rows", counts=listed(counted))
    if any(task_of(split.labels) == REGRESSION for split in splits.values()):
        low, high = (
            end([end(split.labels) for split in splits.values() if len(split)]) for end in (np.min, np.max)
        )
        yield _("{rows}; numbers from {low:g} to {high:g}", rows=rows, low=low, high=high)
        return
    counts: Counter[str] = Counter()
    for split in splits.values():
        counts.update(count_labels(split.labels, split.label_names))
    shown = listed(f"{name} ({count:,})" for name, count in counts.most_common(SHOWN_LABELS))
    if len(counts) > SHOWN_LABELS:
        shown = _("{shown} and {count} more", shown=shown, count=len(counts) - SHOWN_LABELS)
    yield _("{rows}; labels: {labels}", rows=rows, labels=shown or _("none"))


def model_sentence(files: AnyModel, followed: Followed) -> str:
    """The model, the views of it that are made, and why these."""
    if isinstance(files, EndpointModel):
        where = "model {name} at {address}; views: {views}"
        return _(where, name=files.name, address=files.address, views=listed(followed.features.views))
    parts = []
    for name, views in followed.views.items():
        if name == DEPTH and files.blocks:
            layers = dict.fromkeys(view.partition("/")[0] for view in views)
            of = "{name} ({count} views of the layers {layers})"
            parts.append(_(of, name=name, count=len(views), layers=listed(layers)))
        elif name.endswith((f"/{AUTO}", DEPTH)):
            by_model = "{view} (as its sentence-transformers settings say)"
            unnamed = "{view} (as it names no pooling itself)"
            parts.append(_(by_model if followed.by_model else unnamed, view=views[0]))
        else:
            parts.append(_("{view} (default)", view=name) if name in FeatureSettings().views else name)
    if not files.blocks:
        return _("model {name}; views: {views}", name=files.name, views=listed(parts))
    deep = "model {name}, {blocks} blocks; views: {views}"
    return _(deep, name=files.name, blocks=files.blocks, views=listed(parts))


@dataclass(frozen=True)
class Announced:
    """What is about to be extracted.

    Attributes:
        row_bytes: of the features of one row; None where that is not known.
        encoder: gives the encoder once it is loaded; None before, and where it is on other machines.
    """

    splits: Mapping[str, Split]
    files: AnyModel
    followed: Followed
    row_bytes: int | None
    encoder: Callable[[], Encoder | None]

    @property
    def disk_text(self) -> str:
        """The size of all features, as a part of a sentence."""
        rows = sum(map(len, self.splits.values()))
        if self.row_bytes is None:
            return ""
        return _("; {size} of features on disk", size=size_text(self.row_bytes * rows))

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
            time_left = (
                _("{seconds} s", seconds=f"{seconds:.0f}") if seconds < MINUTE else seconds_text(seconds)
            )
            text = _(
                "about {time_left} to go{disk_text}", time_left=time_left, disk_text=self.about.disk_text
            )
            self.on_progress(Progress("note", event.split, text=text))
