"""How fast extraction is, beside the machine's limit and beside what one would use instead.

Peers are processes of their own that take turns with featcache on the same texts; ratios come first, since
the machine's own speed drifts. "Useful" counts the arithmetic of real tokens only.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from featcache.backbone.encoder import Encoder
from featcache.backbone.model_files.find import find_model
from featcache.backbone.throughput import gemm_peak, useful_flops
from featcache.bench.peers.encoding import POOLINGS, EncodingJob, PeerEncoder, usual_peers
from featcache.bench.peers.process import Unavailable
from featcache.bench.short_texts import LengthSpeed, measure_lengths
from featcache.bench.timing import DIGITS, Machine, this_machine, timed
from featcache.settings import Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

RUNS = 3
WARM_UP = 32  # texts
LONG_RUN = 15.0  # seconds of a contender, after which it does not run again


@dataclass(frozen=True)
class ContenderSpeed:
    """One contender on the texts of the benchmark."""

    texts_per_s: float
    useful_gflops: float


@dataclass(frozen=True, kw_only=True)
class PeerSpeed(ContenderSpeed):
    """A peer on the texts of the benchmark.

    Attributes:
        min_cosine_vs_fp32: the lowest of its vectors with those of featcache in float32; None where the last
            view is one that peers do not make.
    """

    min_cosine_vs_fp32: float | None


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
        ratios: seconds of each peer over those of featcache in the same rounds.
        unavailable: why a peer was left out, by name.
        tokens: of all texts.
        lengths: featcache on texts of some lengths; empty where it was not asked for.
        peer_versions: of what is installed where the peers ran.
    """

    gemm_peak_gflops: float
    featcache: FeatcacheSpeed
    peers: dict[str, PeerSpeed]
    ratios: dict[str, float]
    unavailable: dict[str, str]
    texts: int
    tokens: int
    machine: Machine
    beside: SpeedBesideOthers | None = None
    lengths: tuple[LengthSpeed, ...] = ()
    peer_versions: dict[str, str] = field(default_factory=dict)


def bench_extract(
    settings: Settings,
    texts: Sequence[str],
    *,
    peers: Sequence[str] | None = None,
    peer_python: str = sys.executable,
    beside: int = 0,
    lengths: Sequence[int] = (),
    on_progress: OnProgress = ignore,
) -> ExtractBenchmark:
    """Texts a second of featcache and of its peers, and the share of the GEMM peak.

    Args:
        settings: model, views, longest text and dtype; the same for all.
        peers: names out of `featcache.bench.peers.encoding.PEERS`; None: the usual ones of the device.
            Those that are not installed are left out.
        peer_python: the interpreter of the environment in which the peers are installed.
        beside: busy processes beside which featcache is measured once more; 0: it is not.
        lengths: tokens of texts that are made from `texts`; for each of them an extraction is measured.
        on_progress: receives what is measured next as a stage.
    """
    files = find_model(settings.backbone)
    on_progress(Progress("loading the backbone"))
    encoder = Encoder.load(settings.backbone, settings.features, files)
    backbone = encoder.backbone
    tokens = encoder.tokenize(texts).lengths
    useful = useful_flops(backbone, tokens)

    def speed(seconds: float) -> ContenderSpeed:
        return ContenderSpeed(len(texts) / seconds, useful / seconds / 1e9)

    on_progress(Progress("GEMM peak"))
    peak = gemm_peak(backbone.dtype, backbone.device)
    on_progress(Progress("featcache"))
    rounds = _Rounds(encoder, texts)
    rounds.alone()
    exact = exact_views(settings, encoder, texts)
    rivals = _rivals(rounds, EncodingJob.of(encoder, texts), peers, peer_python, exact, on_progress)
    best = speed(min(rounds.medians))
    result = ExtractBenchmark(
        gemm_peak_gflops=peak,
        featcache=FeatcacheSpeed(
            **asdict(best), share_of_peak=best.useful_gflops / peak,
            min_cosine_vs_fp32=lowest_cosine(encoder(texts).views, exact),
            dtype=backbone.dtype_name, packing=backbone.packing,
        ),
        peers={
            name: PeerSpeed(**asdict(speed(one.seconds)), min_cosine_vs_fp32=one.cosine)
            for name, one in rivals.found.items()
        },
        ratios={name: one.ratio for name, one in rivals.found.items()},
        unavailable=rivals.missing,
        texts=len(texts),
        tokens=int(tokens.sum()),
        machine=this_machine("transformers", "sentence-transformers", device=backbone.device),
        beside=_beside(beside, lambda: speed(rounds.alone()), best) if beside else None,
        lengths=tuple(measure_lengths(settings, encoder, texts, lengths, on_progress)),
        peer_versions=rivals.versions,
    )  # fmt: skip
    return tidied(result, digits=DIGITS)


class _Rounds:
    """Encodes the texts of the benchmark, alone or in turns with a peer.

    Attributes:
        medians: seconds of featcache, one for each time that it was measured.
    """

    def __init__(self, encoder: Encoder, texts: Sequence[str]) -> None:
        self.encoder, self.texts = encoder, texts
        self.medians: list[float] = []
        encoder(texts[:: max(1, len(texts) // WARM_UP)])  # the first use of every kernel does not count

    def alone(self) -> float:
        """The median seconds of featcache."""
        return self.beside(lambda: 0.0)[0]

    def beside(self, peer: Callable[[], float]) -> tuple[float, float]:
        """The median seconds of featcache and of a peer, which take turns."""
        ours, theirs = list[float](), list[float]()
        while len(ours) < RUNS and max(sum(ours), sum(theirs)) < LONG_RUN:
            ours.append(timed(lambda: self.encoder(self.texts))[1])
            theirs.append(peer())
        self.medians.append(statistics.median(ours))
        return self.medians[-1], statistics.median(theirs)


@dataclass(frozen=True)
class _Rival:
    """Median seconds of a peer, how many times those of featcache they are, and its lowest cosine."""

    seconds: float
    ratio: float
    cosine: float | None


@dataclass(frozen=True)
class _Rivals:
    """The peers that could be measured, why the others could not, and the versions of their packages."""

    found: dict[str, _Rival]
    missing: dict[str, str]
    versions: dict[str, str]


def _rivals(
    rounds: _Rounds,
    job: EncodingJob,
    peers: Sequence[str] | None,
    python: str,
    exact: Mapping[str, np.ndarray],
    on_progress: OnProgress,
) -> _Rivals:
    """Every peer in turns with featcache."""
    made = _Rivals({}, {}, {})
    view = rounds.encoder.views[-1].name
    for name in usual_peers(rounds.encoder.backbone.device) if peers is None else peers:
        on_progress(Progress(name))
        try:
            with PeerEncoder(name, job, python) as peer:
                ours, theirs = rounds.beside(peer.seconds)
                vectors = peer.vectors()
        except Unavailable as reason:
            made.missing[name] = str(reason)
            continue
        cosine = lowest_cosine({view: vectors}, {view: exact[view]}) if view in POOLINGS else None
        made.found[name] = _Rival(theirs, theirs / ours, cosine)
        made.versions.update(peer.versions)
    return made


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


def exact_views(settings: Settings, encoder: Encoder, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The features of `texts` computed and stored in float32, by view."""
    features = replace(settings.features, storage="float32")
    exact = replace(settings.backbone, dtype="float32")
    return Encoder.load(exact, features, encoder.backbone.files)(texts).views


def lowest_cosine(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> float:
    """The lowest cosine between vectors `[N, D]` of the same texts, over all views."""
    lowest = 1.0
    for name, expected in exact.items():
        a, b = found[name].astype(np.float64), expected.astype(np.float64)
        cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        lowest = min(lowest, float(cosine.min()))
    return lowest
