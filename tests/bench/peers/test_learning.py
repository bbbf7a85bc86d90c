"""Peers in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from featcache.bench.peers.learning import PeerJob, PeerTexts, ask_peer
from featcache.bench.peers.process import Unavailable

TEXTS = [f"good {number}" for number in range(6)] + [f"bad {number}" for number in range(6)]
SPLIT = PeerTexts(TEXTS, [2] * 6 + [0] * 6)


@pytest.mark.slow
def test_sentence_transformers_trains_and_answers(tiny: object) -> None:
    pytest.importorskip("sentence_transformers")
    job = PeerJob(dict.fromkeys(("train", "validation", "test"), SPLIT), 3, str(tiny("bert")), longest=8)  # type: ignore[operator]
    answer = ask_peer("sentence-transformers", job)
    assert answer.test.shape == (12, 3) and answer.seconds > 0
    np.testing.assert_allclose(answer.test.sum(axis=1), 1, atol=1e-6)
    assert not answer.test[:, 1].any()  # a class that train does not have
    assert {"sentence-transformers", "torch"} <= set(answer.versions)


@pytest.mark.parametrize(
    ("python", "reason"),
    [(sys.executable, "No module named 'setfit'"), ("/no/python", "/no/python cannot be started")],
)
def test_a_peer_that_cannot_run_is_left_out_with_the_reason(python: str, reason: str, tmp_path: Path) -> None:
    job = PeerJob({"train": SPLIT, "validation": SPLIT, "test": SPLIT}, 3, str(tmp_path))
    with pytest.raises(Unavailable, match=reason):
        ask_peer("setfit", job, python)
