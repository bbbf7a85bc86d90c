"""Peers that learn from labelled texts and answer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbone.model_files.find import find_model
from featcache.backbone.model_files.modules_json import root_of
from featcache.bench.peers import learning_script
from featcache.bench.peers.process import cannot_start, environment, failure
from featcache.data.split import Split
from featcache.settings import Settings


@dataclass(frozen=True)
class PeerTexts:
    """Texts of one split with a class number each."""

    texts: Sequence[str]
    labels: Sequence[int]


@dataclass(frozen=True)
class PeerJob:
    """What a peer learns from and answers.

    Attributes:
        splits: `train`, `validation` and `test`.
        classes: C.
        model: folder of the encoder.
        prompt: put before every text.
        longest: tokens of a text.
        steps: of the training, for peers that have some; -1: their own number.
    """

    splits: Mapping[str, PeerTexts]
    classes: int
    model: str
    prompt: str = ""
    longest: int = 512
    seed: int = 0
    steps: int = -1

    @classmethod
    def of(cls, settings: Settings, splits: Mapping[str, Split], *, steps: int = -1) -> PeerJob:
        """The texts of `splits`, with the encoder, the prompt and the longest text of `settings`."""
        return cls(
            splits={name: PeerTexts(s.texts(slice(None)), s.labels.tolist()) for name, s in splits.items()},
            classes=len(splits["train"].label_names),
            model=str(root_of(find_model(settings.backbone).folder)),
            prompt="" if settings.features.prompt == "auto" else settings.features.prompt,
            longest=settings.features.longest,
            seed=settings.seed,
            steps=steps,
        )


@dataclass(frozen=True)
class PeerAnswer:
    """Probabilities of `validation` and `test`, float64 `[N, C]`.

    Attributes:
        seconds: from raw text to these, without imports.
        process_seconds: of the whole process.
        learning_seconds: of these the training alone, where the peer tells them.
        steps, all_steps: of SetFit's training: those that it made, and its own number.
        peak_bytes: most memory that the process had; None where the system does not say it.
        versions: of the peer and of the packages that it uses.
    """

    validation: np.ndarray
    test: np.ndarray
    seconds: float
    versions: Mapping[str, str]
    process_seconds: float
    learning_seconds: float | None = None
    steps: int | None = None
    all_steps: int | None = None
    peak_bytes: int | None = None


def ask_peer(name: str, job: PeerJob, python: str = sys.executable) -> PeerAnswer:
    """Let the peer `name` of `learning_script.PEERS` train and answer.

    Args:
        python: the interpreter of the environment that has it.

    Raises:
        Unavailable: it is not installed there, or has failed.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-peer-") as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        document = {"peer": name, **vars(job), "splits": {k: vars(v) for k, v in job.splits.items()}}
        asked.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
        command = [python, str(learning_script.__file__), str(asked), str(answer)]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, env=environment(python), check=False
            )
        except OSError as error:
            raise cannot_start(python, error) from error
        if done.returncode:
            raise failure(done.stderr, done.returncode)
        seconds = time.perf_counter() - began
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    optional = {name: found.get(name) for name in ("learning_seconds", "steps", "all_steps", "peak_bytes")}
    return PeerAnswer(
        validation=np.asarray(found["validation"], np.float64),
        test=np.asarray(found["test"], np.float64),
        seconds=found["seconds"],
        versions=found["versions"],
        process_seconds=seconds,
        **optional,
    )
