"""The features of the texts to label: from the cache, or made in the background while labelling begins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.backbone.model_files.find import ModelFiles
from featcache.errors import FeatcacheError
from featcache.extraction.text_features import text_features, with_dtype
from featcache.labelling.session import LabelSession
from featcache.settings import Settings
from featcache.system.hub.listener import listening
from featcache.system.outside import outside_error
from featcache.system.progress import OnProgress, Progress, ignore

EncodeWith = Callable[[Settings], np.ndarray]
WithModel = Callable[[Settings, EncodeWith, OnProgress], np.ndarray]
STAGES = ("find", "download", "load", "encode")


@dataclass(frozen=True)
class EncodingState:
    """How far the texts are encoded.

    Attributes:
        stage: one of STAGES; empty before and after.
        done, total: bytes that are downloaded, or texts that are encoded.
        model: hub id, or name of the folder.
        notes: what was told about the model and the texts, in English.
        problem: in English; it ends the encoding, and labelling goes on with texts drawn at random.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    ready: bool = False
    model: str = ""
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ended(self) -> bool:
        return self.ready or self.problem is not None


class BackgroundEncoding:
    """Encodes the texts of a session in a thread of its own, and hands the features to the session.

    Args:
        settings: None where the session needs no features.
        with_model: does the encoding, perhaps with other settings where the model of `settings` is not to be
            had; called in the thread, since a hub may take its time.
    """

    def __init__(
        self,
        session: LabelSession,
        settings: Settings | None,
        with_model: WithModel = lambda mine, work, _: work(mine),
    ) -> None:
        self.session, self.settings, self.with_model = session, settings, with_model
        self.state = (
            EncodingState(ready=True) if settings is None else EncodingState("find", model=_name(settings))
        )
        self._thread = threading.Thread(target=self._run, name="featcache-encode", daemon=True)

    def start(self) -> None:
        """Begin, where features are needed."""
        if self.settings is not None:
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until it has ended, and no longer than so many seconds."""
        if self.settings is not None:
            self._thread.join(seconds)

    @property
    def running(self) -> bool:
        """Whether texts are still encoded; the process may end at any time, what is finished is kept."""
        return self._thread.is_alive()

    def _run(self) -> None:
        assert self.settings is not None
        try:
            with listening(self._report):
                features = self.with_model(self.settings, self._encode, self._report)
            self.session.use_features(features)
            self.state = replace(self.state, stage="", ready=True)
        except Exception as error:  # the person who labels is told, whatever it is
            known = error if isinstance(error, FeatcacheError) else outside_error(error)
            told = (
                f"{known.what}\n{known.hint or ''}".strip() if known else f"{type(error).__name__}: {error}"
            )
            self.state = replace(self.state, stage="", problem=told)

    def _encode(self, settings: Settings) -> np.ndarray:
        self.state = replace(self.state, stage="find", model=_name(settings))
        described = [text for texts in self.session.descriptions.values() for text in texts]
        return features_of((*self.session.texts.texts, *described), settings, self._report)

    def _report(self, now: Progress) -> None:
        if now.stage == "note":
            self.state = replace(self.state, notes=(*self.state.notes, now.text))
        elif now.stage in STAGES:
            self.state = replace(self.state, stage=now.stage, done=now.done, total=now.total)


def _name(settings: Settings) -> str:
    model = Path(settings.backbone.model)
    return model.name if model.is_dir() else settings.backbone.model


def features_of(texts: Sequence[str], settings: Settings, report: OnProgress = ignore) -> np.ndarray:
    """The features of texts, float32 `[N, D]`, from the cache where it has them; see `text_features`."""
    settings = replace(settings, backbone=with_dtype(settings.backbone))

    def load(own: Settings, files: ModelFiles):  # type: ignore[no-untyped-def]  # Encoder imports torch
        from featcache.backbone.encoder import Encoder

        return Encoder.load(own.backbone, own.features, files)

    return text_features(texts, settings, load, report)
