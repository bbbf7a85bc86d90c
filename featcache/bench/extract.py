"""How fast extraction is, beside the machine's limit and beside what one would use instead.

Everything is measured in one process, on the same texts, one after the other; ratios come first, since the
machine's own speed drifts. "Useful" counts the arithmetic of real tokens only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np

from featcache.backbone.encoder import Encoder
from featcache.backbone.model_files.find import find_model
from featcache.backbone.throughput import gemm_peak, useful_flops
from featcache.bench.peers import PEERS, Unavailable
from featcache.bench.timing import DIGITS, Machine, median_seconds, this_machine, timed
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

RUNS = 3
LONG_RUN = 15.0  # seconds from which on a contender runs only once


@dataclass(frozen=True)
class ContenderSpeed:
    """One contender on the texts of the benchmark."""

    texts_per_s: float
    useful_gflops: float


@dataclass(frozen=True, kw_only=True)
class FeatcacheSpeed(ContenderSpeed):
    """featcache on the texts of the benchmark, beside the fastest matrix product of its dtype."""

    share_of_peak: float
    min_cosine_vs_fp32: float
    dtype: str
    packing: str


@dataclass(frozen=True)
class SpeedBesideOthers:
    """featcache while other processes keep cores busy.

    Attributes:
        processes: how many, with one thread each.
        slower_by: texts a second alone over texts a second beside them.
    """

    processes: int
    texts_per_s: float
    slower_by: float


@dataclass(frozen=True, kw_only=True)
class ExtractBenchmark:
    """What `bench_extract` returns.

    Attributes:
        beside: None where it was not asked for.
        ratios: texts a second of featcache over those of each peer.
        unavailable: why a peer was left out, by name.
        tokens: of all texts.
    """

    gemm_peak_gflops: float
    featcache: FeatcacheSpeed
    peers: dict[str, ContenderSpeed]
    ratios: dict[str, float]
    unavailable: dict[str, str]
    texts: int
    tokens: int
    machine: Machine
    beside: SpeedBesideOthers | None = None


def bench_extract(
    settings: Settings,
    texts: Sequence[str],
    *,
    peers: Sequence[str] = tuple(PEERS),
    beside: int = 0,
    on_progress: OnProgress = ignore,
) -> ExtractBenchmark:
    """Texts a second of featcache and of its peers, and the share of the GEMM peak.

    Args:
        settings: model, views, longest text and dtype; the same for all.
        peers: names out of `PEERS`; those that are not installed are left out.
        beside: busy processes beside which featcache is measured once more; 0: it is not.
        on_progress: receives what is measured next as a stage.
    """
    files = find_model(settings.backbone)
    on_progress(Progress("loading the backbone"))
    encoder = Encoder.load(settings.backbone, settings.features, files)
    backbone = encoder.backbone
    lengths = encoder.tokenize(texts).lengths
    useful = useful_flops(backbone, lengths)

    def speed(run: Callable[[], object]) -> ContenderSpeed:
        """The median of RUNS runs after one that does not count; a long run counts at once."""
        first = timed(run)[1]
        seconds = first if first >= LONG_RUN else median_seconds(run, RUNS)
        return ContenderSpeed(len(texts) / seconds, useful / seconds / 1e9)

    on_progress(Progress("GEMM peak"))
    peak = gemm_peak(backbone.dtype, backbone.device)
    on_progress(Progress("featcache"))
    before = speed(lambda: encoder(texts))
    cosine = min_cosine_vs_fp32(settings, encoder, texts)
    rivals, missing = dict[str, ContenderSpeed](), dict[str, str]()
    for name in peers:
        on_progress(Progress(name))
        try:
            rivals[name] = speed(PEERS[name](str(files.folder), encoder, texts))
        except Unavailable as reason:
            missing[name] = str(reason)
    again = speed(lambda: encoder(texts))  # the machine may have slowed down meanwhile
    best = max(before, again, key=lambda one: one.texts_per_s)
    ours = FeatcacheSpeed(
        **asdict(best), share_of_peak=best.useful_gflops / peak, min_cosine_vs_fp32=cosine,
        dtype=backbone.dtype_name, packing=backbone.packing,
    )  # fmt: skip
    result = ExtractBenchmark(
        gemm_peak_gflops=peak,
        featcache=ours,
        peers=rivals,
        ratios={name: best.texts_per_s / one.texts_per_s for name, one in rivals.items()},
        unavailable=missing,
        texts=len(texts),
        tokens=int(lengths.sum()),
        machine=this_machine("transformers", "sentence-transformers", device=backbone.device),
        beside=_beside(beside, lambda: speed(lambda: encoder(texts)), best) if beside else None,
    )
    return tidied(result, digits=DIGITS)


def _beside(count: int, measure: Callable[[], ContenderSpeed], alone: ContenderSpeed) -> SpeedBesideOthers:
    """What `measure` finds beside `count` busy processes."""
    with busy_processes(count):
        found = measure().texts_per_s
    return SpeedBesideOthers(count, found, alone.texts_per_s / found)


@contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within it, `count` processes compute without a pause; they end with this process at the latest."""
    processes: list[subprocess.Popen[bytes]] = []
    program = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    with ExitStack() as stack:
        for _ in range(count):
            processes.append(subprocess.Popen([sys.executable, "-S", "-c", program]))
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        yield processes


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
    return lowest
