"""How fast extraction is, beside the machine's limit and beside what one would use instead.

Everything is measured in one process, on the same texts, one after the other; what is reported first
are ratios, since the machine's own speed drifts. "Useful" counts the arithmetic of real tokens only.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from featcache.backbone.encoder import Encoder
from featcache.backbone.files import find_model
from featcache.backbone.model import Backbone
from featcache.backbone.throughput import gemm_peak, useful_flops
from featcache.bench.peers import PEERS, Unavailable
from featcache.settings import Settings

RUNS = 3
LONG_RUN = 15.0  # seconds after which a contender is run once only


@dataclass(frozen=True)
class Speed:
    """One contender on the texts of the benchmark."""

    texts_per_s: float
    useful_gflops: float

    def record(self) -> dict[str, float]:
        return {"texts_per_s": round(self.texts_per_s, 2), "useful_gflops": round(self.useful_gflops, 1)}


def bench_extract(
    settings: Settings,
    texts: Sequence[str],
    *,
    peers: Sequence[str] = tuple(PEERS),
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Texts a second of featcache and of its peers, and the share of the GEMM peak.

    Args:
        settings: model, views, longest text, dtype; the same for all.
        texts: what everyone encodes.
        peers: names out of `PEERS`; those that are not installed are left out and named.
        report: told what is measured next.

    Returns:
        A JSON-able document: `gemm_peak_gflops`, `featcache`, `peers`, `ratios`, `unavailable`,
        `texts`, `tokens`, `machine`.
    """
    files = find_model(settings.backbone)
    report("loading the backbone")
    encoder = Encoder.load(settings.backbone, settings.features, files)
    backbone = encoder.backbone
    lengths = encoder.tokenize(texts).lengths
    useful = useful_flops(backbone, lengths)
    report("GEMM peak")
    peak = gemm_peak(backbone.dtype, backbone.device)
    report("featcache")
    ours = _speed(lambda: encoder(texts), len(texts), useful)
    cosine = min_cosine_vs_fp32(settings, encoder, texts)
    rivals: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    for name in peers:
        report(name)
        try:
            run = PEERS[name](str(files.folder), encoder, texts)
        except Unavailable as reason:
            missing[name] = str(reason)
            continue
        rivals[name] = _speed(run, len(texts), useful).record()
    again = _speed(lambda: encoder(texts), len(texts), useful)  # the machine may have slowed meanwhile
    best = ours if ours.texts_per_s >= again.texts_per_s else again
    return {
        "gemm_peak_gflops": round(peak, 1),
        "featcache": {
            **best.record(),
            "share_of_peak": round(best.useful_gflops / peak, 3),
            "min_cosine_vs_fp32": cosine,
            "dtype": backbone.dtype_name,
            "packing": backbone.packing,
        },
        "peers": rivals,
        "ratios": {name: round(best.texts_per_s / one["texts_per_s"], 2) for name, one in rivals.items()},
        "unavailable": missing,
        "texts": len(texts),
        "tokens": int(lengths.sum()),
        "machine": machine(backbone),
    }


def min_cosine_vs_fp32(settings: Settings, encoder: Encoder, texts: Sequence[str]) -> float:
    """The smallest cosine between features as computed and the same features in float32."""
    features = replace(settings.features, storage="float32")
    exact = replace(settings.backbone, dtype="float32")
    reference = Encoder.load(exact, features, encoder.backbone.files)(texts)
    ours = Encoder(encoder.backbone, features, encoder.batch_tokens)(texts)
    lowest = 1.0
    for name, expected in reference.views.items():
        a, b = ours.views[name].astype(np.float64), expected.astype(np.float64)
        cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        lowest = min(lowest, float(cosine.min()))
    return round(lowest, 6)


def machine(backbone: Backbone) -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for name in ("torch", "transformers", "sentence-transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = backbone.device.type == "cuda"
    able = torch.cpu.get_capabilities()
    flags = [name for name in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2") if able.get(name)]
    return {
        "device": torch.cuda.get_device_name(backbone.device)
        if cuda
        else able.get("cpu_name", platform.machine()),
        "flags": flags,
        "threads": torch.get_num_threads(),
        "onednn_max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "versions": versions,
    }


def _speed(run: Callable[[], object], texts: int, flops: float) -> Speed:
    """The median of RUNS runs after one that is not counted; a long run counts at once."""
    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    times = [first]
    if first < LONG_RUN:
        times = []
        for _ in range(RUNS):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    return Speed(texts / seconds, flops / seconds / 1e9)
