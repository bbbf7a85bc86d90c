"""The features of the texts to label: from the cache, or made in the background while labelling begins."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.backbone.model_files.find import ModelFiles
from featcache.errors import FeatcacheError
from featcache.extraction.text_features import text_features, with_dtype
from featcache.labelling.session import LabelSession
from featcache.settings import Settings
from featcache.system.outside import outside_error
from featcache.system.progress import OnProgress, Progress, ignore


@dataclass(frozen=True)
class EncodingState:
    """How far the texts are encoded; `problem` ends it: labelling goes on with texts drawn at random."""

    stage: str = ""
    done: int = 0
    total: int = 0
    ready: bool = False
    problem: str | None = None


class BackgroundEncoding:
    """Encodes the texts of a session in a thread of its own, and hands the features to the session.

    Args:
        settings: None where the session needs no features.
    """

    def __init__(self, session: LabelSession, settings: Settings | None) -> None:
        self.session, self.settings = session, settings
        self.state = EncodingState(total=len(session.texts.texts), ready=settings is None)
        self._thread = threading.Thread(target=self._run, name="featcache-encode", daemon=True)

    def start(self) -> None:
        """Begin, where features are needed."""
        if self.settings is not None:
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether texts are still encoded; the process may end at any time, what is finished is kept."""
        return self._thread.is_alive()

    def _run(self) -> None:
        assert self.settings is not None
        try:
            described = [text for texts in self.session.descriptions.values() for text in texts]
            texts = (*self.session.texts.texts, *described)
            self.session.use_features(features_of(texts, self.settings, self._report))
            self.state = replace(self.state, stage="", ready=True)
        except Exception as error:  # the person who labels is told, whatever it is
            known = error if isinstance(error, FeatcacheError) else outside_error(error)
            told = (
                f"{known.what}\n{known.hint or ''}".strip() if known else f"{type(error).__name__}: {error}"
            )
            self.state = replace(self.state, stage="", problem=told)

    def _report(self, now: Progress) -> None:
        if now.stage == "encode":
            self.state = replace(self.state, stage="encode", done=now.done, total=now.total)
        elif now.stage == "load":
            self.state = replace(self.state, stage="load")


def features_of(texts: Sequence[str], settings: Settings, report: OnProgress = ignore) -> np.ndarray:
    """The features of texts, float32 `[N, D]`, from the cache where it has them; see `text_features`."""
    settings = replace(settings, backbone=with_dtype(settings.backbone))

    def load(own: Settings, files: ModelFiles):  # type: ignore[no-untyped-def]  # Encoder imports torch
        from featcache.backbone.encoder import Encoder

        return Encoder.load(own.backbone, own.features, files)

    return text_features(texts, settings, load, report)
