"""Other tools asked in processes of their own, which may have other versions of torch and transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.backbone.model_files.find import find_model
from featcache.backbone.model_files.modules_json import root_of
from featcache.bench import peer_script
from featcache.bench.peers import Unavailable
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
        learning_seconds: of these the training alone, where the peer tells them.
        versions: of the peer and of the packages that it uses.
    """

    validation: np.ndarray
    test: np.ndarray
    seconds: float
    versions: Mapping[str, str]
    learning_seconds: float | None = None


def ask_peer(name: str, job: PeerJob, python: str = sys.executable) -> PeerAnswer:
    """Let the peer `name` of `peer_script.PEERS` train and answer.

    Args:
        python: the interpreter of the environment that has it.

    Raises:
        Unavailable: it is not installed there, or has failed.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-peer-") as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "answer.json")
        document = {"peer": name, **vars(job), "splits": {k: vars(v) for k, v in job.splits.items()}}
        asked.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
        command = [python, str(peer_script.__file__), str(asked), str(answer)]
        # Without PYTHONPATH: packages of this environment do not fit that one.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, env=environment, check=False
            )
        except OSError as error:
            raise Unavailable(f"{python} cannot be started: {error.strerror}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise Unavailable(last)
        found = json.loads(answer.read_text(encoding="utf-8"))
    shares = {split: np.asarray(found[split], np.float64) for split in ("validation", "test")}
    return PeerAnswer(
        **shares,
        seconds=found["seconds"],
        versions=found["versions"],
        learning_seconds=found.get("learning_seconds"),
    )
