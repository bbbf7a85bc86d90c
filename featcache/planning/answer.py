"""The question to `plan`, and its answer: numbers, the facts behind them, notes, warnings and a command."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featcache.backbone.tokens.unknown_tokens import MANY, unknown_text
from featcache.errors import UsageError
from featcache.planning.sample import Sample
from featcache.settings import Settings, options
from featcache.settings_file import flag_words, value_of
from featcache.system.units import DAY, parse_size, size_text
from featcache.translation.language import noted
from featcache.translation.sentences import FINISHED

MEASURED, GIVEN = noted("measured", FINISHED), noted("given", FINISHED)
ASSUMED, COMPUTED = noted("assumed", FINISHED), noted("computed", FINISHED)
GPUS_A_NODE = 8
# Tokens of a text -> share of the dense bf16 peak: BERT-base shapes, 1.41 and 1.64 million tokens a second.
PUBLISHED_SHARES = {50: 0.25, 512: 0.31}
SHARES_SOURCE = "Arctic Inference on an H200"
STAGES = (
    noted("start-up", FINISHED),
    noted("encoding", FINISHED),
    noted("reading and tokenising", FINISHED),
    noted("hashing and sealing", FINISHED),
)
ENCODING, TOKENIZING = STAGES[1:3]
MAX_ROWS = 10**13
LONG_DAYS, MANY_TRUNCATED, WIDE = 7.0, 0.05, 0.15


@dataclass(frozen=True)
class Ask:
    """What to plan.

    Attributes:
        rows: rows of the corpus; None: those of the source.
        workers: processes; None: one for each GPU, or one for each machine.
        gpus: GPUs that share the work; None: processors do it.
        nodes: machines; None: 1, or one for each 8 GPUs.
        efficiency: rate of several workers over the sum of their rates.
        tokens: mean tokens of made-up texts, for a plan without data; needs `rows`.
        rate, tokens_rate, tflops: speed of one worker, which is then not measured: texts a second, tokens a
            second, or the peak of its matrix products in TFLOP/s, of which it reaches `share`.
        share: None: what was published, by the length of the texts; see `published_share`.
        shard_bytes: the largest size of a shard.
        price: price of a GPU for an hour, or of a machine where there are no GPUs; any currency.
        sample_seconds: seconds of encoding.
    """

    rows: int | None = None
    workers: int | None = None
    gpus: int | None = None
    nodes: int | None = None
    efficiency: float = 0.95
    tokens: float | None = None
    rate: float | None = None
    tokens_rate: float | None = None
    tflops: float | None = None
    share: float | None = None
    shard_bytes: int = 4 * 10**9
    price: float | None = None
    sample_seconds: float = 20.0

    @property
    def rates(self) -> dict[str, float]:
        """Which rates were given, by flag."""
        all_three = {"--rate": self.rate, "--tokens-rate": self.tokens_rate, "--tflops": self.tflops}
        return {flag: value for flag, value in all_three.items() if value is not None}


def check(ask: Ask) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UsageError: naming the flag.
    """
    values = {
        "--rows": ask.rows, "--workers": ask.workers, "--gpus": ask.gpus, "--nodes": ask.nodes,
        "--efficiency": ask.efficiency, "--tokens": ask.tokens, "--share": ask.share, "--price": ask.price,
        "--shard-size": ask.shard_bytes, "--sample-seconds": ask.sample_seconds, **ask.rates,
    }  # fmt: skip
    limits = {
        "--efficiency": 1.0,
        "--share": 1.0,
        "--rows": MAX_ROWS,
        "--tokens": 1e6,
        "--sample-seconds": 3600,
    }
    limits |= {"--workers": 1e6, "--gpus": 1e6, "--nodes": 1e6}
    for flag, value in values.items():
        limit = limits.get(flag, math.inf)
        if value is not None and not (0 < value <= limit and math.isfinite(value)):
            raise UsageError(
                f"{flag} {value:g}: must be above 0" + (f" and at most {limit:g}" if limit < math.inf else "")
            )
    workers = ask.gpus or ask.workers
    if ask.nodes and workers and workers % ask.nodes:
        raise UsageError(
            f"{workers} workers on {ask.nodes} machines: every machine starts the same number",
            hint=f"e.g. {math.ceil(workers / ask.nodes) * ask.nodes} workers",
        )
    if len(ask.rates) > 1:
        raise UsageError(f"{' and '.join(ask.rates)} cannot be given together")
    if ask.tokens is not None and ask.rows is None:
        raise UsageError("--tokens without --rows: how many texts will there be?", hint="e.g. --rows 100M")
    if ask.gpus and ask.workers and ask.workers != ask.gpus:
        raise UsageError(
            f"--gpus {ask.gpus} with --workers {ask.workers}: a worker has one GPU",
            hint="leave --workers out",
        )


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and its origin: measured, given, assumed or computed."""

    value: float
    low: float
    high: float
    how: str

    @classmethod
    def around(cls, value: float, half: float, how: str) -> Estimate:
        """An interval of the relative half width `half`, on a logarithmic scale, so that it stays above 0."""
        return cls(value, value / (1 + half), value * (1 + half), how)

    def map(self, change: Callable[[float], float], how: str | None = None) -> Estimate:
        """The estimate of `change(number)`, for a monotonic function."""
        low, high = sorted((change(self.low), change(self.high)))
        return Estimate(change(self.value), low, high, how or self.how)


def published_share(tokens: float) -> float:
    """The share of a GPU's peak for texts of so many tokens, between the lengths in `PUBLISHED_SHARES`."""
    lengths, shares = np.log(list(PUBLISHED_SHARES)), list(PUBLISHED_SHARES.values())
    return float(np.interp(np.log(tokens), lengths, shares))


@dataclass(frozen=True)
class Fact:
    """A fact behind the plan: a name, its value as text, and its origin."""

    name: str
    value: str
    how: str


@dataclass(frozen=True)
class CorpusPlan:
    """The answer of `plan`; sizes in bytes, times in seconds.

    Attributes:
        seconds: from the hashing of the first row to the sealed file, with the loading of the model; without
            the reading of the source's files, which are read only once while they are unchanged.
        texts_per_second: rate of all workers together while they encode.
        cache_bytes, staging_bytes: size of the sealed files, and of the commit units until they are sealed.
        free_bytes: free space on the disk of the cache folder.
        memory: peak of one worker; None where no model was loaded. `row_memory` is needed once in addition.
        cost: None without a price.
        stages: seconds of each stage. Workers encode a text while they read and tokenise the next ones, so
            the slower of these two counts in `seconds`. Tokenising is 0 where it is not known, or where the
            rate was measured, which has it in `encoding`.
        command: the words of the command that runs the planned extraction.
    """

    rows: int
    workers: int
    gpus: int | None
    nodes: int
    seconds: Estimate
    texts_per_second: Estimate
    tokens: Estimate
    cache_bytes: int
    staging_bytes: int
    free_bytes: int
    shards: int
    rows_a_shard: int
    memory: int | None
    row_memory: int
    gpu_memory: int | None
    cost: Estimate | None
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    command: tuple[str, ...]
    stages: dict[str, float]

    @property
    def slowest(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: self.stages[stage])

    @property
    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        lists = {
            "facts": [vars(fact) for fact in self.facts],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "command": shlex.join(self.command),
            "slowest": self.slowest,
        }
        numbers = {
            name: vars(value) if isinstance(value, Estimate) else value for name, value in vars(self).items()
        }
        return numbers | lists


@dataclass(frozen=True)
class WorkerCounts:
    """The number of workers; `parallel` of them have cores or a GPU of their own."""

    workers: int
    nodes: int
    parallel: int
    cores: int
    how: str = field(default=MEASURED)


def facts_of(
    ask: Ask, sample: Sample, counts: WorkerCounts, rate: Estimate, serial: float
) -> tuple[Fact, ...]:
    """The facts behind the plan, the most important first.

    Args:
        rate: at which one worker encodes.
        serial: seconds of the work that one process does alone.
    """
    tokens = float(sample.lengths.tokens.mean())
    known_from = ASSUMED if sample.made_up else MEASURED
    facts = [Fact("texts/s of one worker", f"{rate.value:,.1f}", COMPUTED if ask.rates else MEASURED)]
    facts += [Fact(f"{flag} of one worker", f"{value:,g}", GIVEN) for flag, value in ask.rates.items()]
    if ask.tflops is not None:
        if ask.share is None:
            name = f"share of that peak reached ({SHARES_SOURCE})"
            facts.append(Fact(name, f"{published_share(tokens):.2f}", ASSUMED))
        else:
            facts.append(Fact("share of that peak reached", f"{ask.share:.2f}", GIVEN))
    if sample.timing is None and sample.lengths.seconds:
        facts.append(Fact("texts/s read and tokenised here", f"{1 / sample.lengths.seconds:,.0f}", MEASURED))
    if sample.timing:
        timing, where = sample.timing, sample.device
        threads = f", {sample.threads} threads" if where == "cpu" else ""
        facts.append(
            Fact(
                f"encoded on {where}{threads}",
                f"{timing.texts:,} texts in {len(timing.per_work)} parts",
                MEASURED,
            )
        )
    facts.append(Fact("tokens a text", f"{tokens:,.1f}", known_from))
    facts.append(Fact("texts that are cut", f"{sample.lengths.truncated:.1%}", known_from))
    if sample.lengths.unknown is not None:
        facts.append(Fact("unknown tokens", f"{sample.lengths.unknown:.1%}", known_from))
    if sample.repeated is not None:
        facts.append(Fact("equal texts, encoded once", f"{sample.repeated:.1%}", MEASURED))
    elif sample.lengths.equal is not None:
        facts.append(Fact("equal texts in the sample", f"{sample.lengths.equal:.1%}", MEASURED))
    if sample.start_up is not None:
        facts.append(Fact("start-up", f"{sample.start_up:.1f} s", MEASURED))
    if serial:
        text = f"{serial / 3600:,.2f} h" if serial >= 360 else f"{serial:,.1f} s"
        facts.append(Fact("hashing and sealing, in one process", text, MEASURED))
    if counts.parallel > 1:
        facts.append(Fact(f"efficiency of {counts.parallel:,} workers", f"{ask.efficiency:.2f}", ASSUMED))
    if ask.gpus and ask.nodes is None and counts.nodes > 1:
        facts.append(Fact("GPUs in a machine", str(GPUS_A_NODE), ASSUMED))
    if ask.price is not None:
        facts.append(
            Fact(f"price of a {'GPU' if ask.gpus else 'machine'} for an hour", f"{ask.price:,.2f}", GIVEN)
        )
    return tuple(facts)


def notes_of(ask: Ask, sample: Sample) -> tuple[str, ...]:
    notes = list(sample.notes)
    if sample.lengths.equal and sample.repeated is None:
        notes.append(
            f"{sample.lengths.equal:.1%} of the sample's texts equal another one of it; equal texts are"
            " encoded once, so it may be faster. A sample cannot tell how many of the corpus are equal."
        )
    if sample.made_up:
        notes.append("lengths are made up (log-normal): give data as soon as there is some")
    if sample.made_up:
        notes.append("reading and tokenising are not in the time: there are no texts to measure them with")
    if ask.rates:
        notes.append(
            "the rate was given: the interval covers the lengths of the texts, not an error of the rate"
        )
    return tuple(notes)


def warnings_of(made: CorpusPlan, sample: Sample, counts: WorkerCounts, rate: Estimate) -> list[str]:
    """What cannot work, then what is probably a mistake."""
    warnings = []
    needed = made.cache_bytes + made.staging_bytes  # both exist until the file is sealed
    if needed > made.free_bytes:
        warnings.append(
            f"does not fit: the extraction needs {size_text(needed)} and keeps"
            f" {size_text(made.cache_bytes)} of it; {size_text(made.free_bytes)} are free"
        )
    warnings += _memory_warnings(made, sample, counts)
    if counts.parallel < counts.workers:
        warnings.append(
            f"{counts.workers} workers share the cores of {counts.parallel}: a machine has"
            f" {counts.cores} cores, and the sample used {sample.threads} for one process"
        )
    if sample.lengths.truncated > MANY_TRUNCATED:
        warnings.append(
            f"{sample.lengths.truncated:.1%} of the texts are truncated at {sample.max_length} tokens;"
            " --long-text chunks uses the whole texts"
        )
    if (sample.lengths.unknown or 0.0) > MANY:
        warnings.append(unknown_text("the sample", sample.lengths.unknown or 0.0))
    if sample.timing and sample.load >= counts.cores:
        warnings.append(
            f"the machine was busy before the sample (load {sample.load:.1f} on {counts.cores} cores): on a"
            " quiet machine it is faster"
        )
    if made.stages[TOKENIZING] > made.stages[ENCODING]:
        warnings.append(
            f"a worker would wait for its texts, which the time has in it: this machine reads and tokenises"
            f" {1 / (sample.lengths.seconds or 1):,.0f} of them a second, and the worker encodes"
            f" {rate.value:,.0f}; more processors for each worker tokenise faster"
        )
    days = made.seconds.value / DAY
    if days > LONG_DAYS:
        warnings.append(f"{days:,.0f} days is long: more workers, a smaller model or a smaller --max-length")
    if (width := made.seconds.high / made.seconds.value - 1) > WIDE:
        warnings.append(
            f"the time is known to {width:.0%} only: use a longer --sample-seconds on a quiet machine"
        )
    if sample.batch_tokens < sample.asked_tokens:
        warnings.append(
            f"memory ran out with batches of {sample.asked_tokens} tokens: {sample.batch_tokens} fitted"
        )
    return warnings


def _memory_warnings(made: CorpusPlan, sample: Sample, counts: WorkerCounts) -> list[str]:
    """A warning where the machine has less memory than its workers need; it stands for all machines."""
    try:
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return []
    each = math.ceil(counts.workers / counts.nodes) if sample.timing else 1
    needed = each * (sample.memory or 0) + made.row_memory
    if needed <= here:
        return []
    return [
        f"{size_text(needed)} of memory: {each} x {size_text(sample.memory or 0)} for workers, and"
        f" {size_text(made.row_memory)} to find equal rows among {made.rows:,};"
        f" this machine has {size_text(here)}"
    ]


def command_of(
    settings: Settings, splits: Sequence[str], ask: Ask, sample: Sample, workers: int, nodes: int, shards: int
) -> tuple[str, ...]:
    """The words of the command that runs the plan, with every setting that is not the default."""
    each = math.ceil(workers / nodes)
    launched = ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(each), "--no-python"]
    words = [*(launched if nodes > 1 else []), "featcache", "extract"]
    for split in splits:
        words += ["--split", split]
    for name, option in options().items():
        value = value_of(settings, option)
        if name == "batch_tokens" and sample.batch_tokens < sample.asked_tokens:
            value = sample.batch_tokens
        if option.section == "head" or value == option.default or value is None or value == {}:
            continue
        words += flag_words(option, value)
    if nodes == 1 and workers > 1:
        words += ["--workers", str(workers)]
    if shards > 1 and parse_size(settings.paths.shard_size) != ask.shard_bytes:
        words += ["--shard-size", str(ask.shard_bytes)]
    return tuple(words)
