"""What is asked of a plan, what a plan says, what it is built on, and what speaks against it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from featcache.errors import UsageError
from featcache.planning.sample import Sample
from featcache.settings import Settings, options
from featcache.system.units import DAY, parse_size, size_text

MEASURED, GIVEN, ASSUMED, COMPUTED = "measured", "given", "assumed", "computed"
GPUS_A_NODE = 8
MOST_ROWS = 10**13
LONG_DAYS, MANY_CUT, WIDE = 7.0, 0.05, 0.15


@dataclass(frozen=True)
class Ask:
    """What to plan.

    Attributes:
        rows: of the corpus; None: those of the source.
        workers: processes; None: one a GPU, or one a machine.
        gpus: that share the work; None: processors do it.
        nodes: machines; None: 1, or one for each 8 GPUs.
        efficiency: what several workers reach of the sum of their rates.
        tokens: mean tokens of made-up texts, where there is no data yet; needs `rows`.
        rate, tokens_rate, tflops: of one worker, instead of measuring: texts a second, tokens a second, or
            the peak of its matrix products in TFLOP/s, of which it reaches `share`.
        shard_bytes: most bytes in a shard.
        price: of a GPU for an hour, or of a machine where there are no GPUs; any currency.
        sample_seconds: of encoding.
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
    share: float = 0.4
    shard_bytes: int = 4 * 10**9
    price: float | None = None
    sample_seconds: float = 20.0

    @property
    def rates(self) -> dict[str, float]:
        """Which rates were given, by flag."""
        all_three = {"--rate": self.rate, "--tokens-rate": self.tokens_rate, "--tflops": self.tflops}
        return {flag: value for flag, value in all_three.items() if value is not None}


def check(ask: Ask) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UsageError: naming the flag.
    """
    above = {
        "--rows": ask.rows, "--workers": ask.workers, "--gpus": ask.gpus, "--nodes": ask.nodes,
        "--efficiency": ask.efficiency, "--tokens": ask.tokens, "--share": ask.share, "--price": ask.price,
        "--shard-size": ask.shard_bytes, "--sample-seconds": ask.sample_seconds, **ask.rates,
    }  # fmt: skip
    most = {
        "--efficiency": 1.0,
        "--share": 1.0,
        "--rows": MOST_ROWS,
        "--tokens": 1e6,
        "--sample-seconds": 3600,
    }
    most |= {"--workers": 1e6, "--gpus": 1e6, "--nodes": 1e6}
    for flag, value in above.items():
        limit = most.get(flag, math.inf)
        if value is not None and not (0 < value <= limit and math.isfinite(value)):
            raise UsageError(
                f"{flag} {value:g}: must be above 0" + (f" and at most {limit:g}" if limit < math.inf else "")
            )
    team = ask.gpus or ask.workers
    if ask.nodes and team and team % ask.nodes:
        raise UsageError(
            f"{team} workers on {ask.nodes} machines: each starts as many",
            hint=f"e.g. {math.ceil(team / ask.nodes) * ask.nodes} of them",
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
    """A number, its 95 % interval, and what it comes from."""

    value: float
    low: float
    high: float
    how: str

    @classmethod
    def around(cls, value: float, half: float, how: str) -> Estimate:
        """An interval of the relative half width `half`, on a scale on which it never reaches 0."""
        return cls(value, value / (1 + half), value * (1 + half), how)

    def map(self, change: Callable[[float], float], how: str | None = None) -> Estimate:
        """The estimate of `change` of the number; falling functions turn the interval round."""
        low, high = sorted((change(self.low), change(self.high)))
        return Estimate(change(self.value), low, high, how or self.how)


@dataclass(frozen=True)
class Fact:
    """Something that the plan is built on: a name, its value for people, and what it comes from."""

    name: str
    value: str
    how: str


@dataclass(frozen=True)
class CorpusPlan:
    """What `plan` says. Bytes and seconds unless said otherwise.

    Attributes:
        seconds: from the hashing of the first row to the sealed file, the loading of the model included; not
            the reading of the source's files, which is not done again where they are unchanged.
        texts_per_second: of all workers while they encode.
        cache_bytes, staging_bytes: of the sealed files, and of the commit units beside them until the end.
        free_bytes: on the disk of the cache folder now.
        memory: peak of one worker; None where no model was loaded. `row_memory` is needed once beside it.
        cost: None without a price.
        command: words of the command that does it.
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

    @property
    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        lists = {
            "facts": [vars(fact) for fact in self.facts],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "command": shlex.join(self.command),
        }
        numbers = {
            name: vars(value) if isinstance(value, Estimate) else value for name, value in vars(self).items()
        }
        return numbers | lists


@dataclass(frozen=True)
class Team:
    """How many workers there are, and how many times the rate of one they are worth before `efficiency`."""

    workers: int
    nodes: int
    parallel: int
    cores: int
    how: str = field(default=MEASURED)


def facts_of(ask: Ask, sample: Sample, team: Team, rate: Estimate, serial: float) -> tuple[Fact, ...]:
    """What the plan is built on, in the order in which it matters.

    Args:
        serial: seconds of what one process does alone.
    """
    tokens = float(sample.lengths.tokens.mean())
    known_from = ASSUMED if sample.made_up else MEASURED
    facts = [Fact("texts/s of one worker", f"{rate.value:,.1f}", COMPUTED if ask.rates else MEASURED)]
    facts += [Fact(f"{flag} of one worker", f"{value:,g}", GIVEN) for flag, value in ask.rates.items()]
    if ask.tflops is not None:
        facts.append(Fact("share of that peak reached", f"{ask.share:.2f}", ASSUMED))
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
    if sample.repeated is not None:
        facts.append(Fact("equal texts, encoded once", f"{sample.repeated:.1%}", MEASURED))
    elif sample.lengths.equal is not None:
        facts.append(Fact("equal texts in the sample", f"{sample.lengths.equal:.1%}", MEASURED))
    if sample.start_up is not None:
        facts.append(Fact("start-up", f"{sample.start_up:.1f} s", MEASURED))
    if serial:
        text = f"{serial / 3600:,.2f} h" if serial >= 360 else f"{serial:,.1f} s"
        facts.append(Fact("hashing and sealing, in one process", text, MEASURED))
    if team.parallel > 1:
        facts.append(Fact(f"efficiency of {team.parallel:,} workers", f"{ask.efficiency:.2f}", ASSUMED))
    if ask.gpus and ask.nodes is None and team.nodes > 1:
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
            " encoded once, so it may be faster. How many of the corpus are equal, a sample cannot know."
        )
    if sample.made_up:
        notes.append("lengths are made up (log-normal): give data as soon as there is some")
    if sample.timing and sample.made_up:
        notes.append("tokenising was not measured: the texts are token ids")
    if ask.rates:
        notes.append("the rate was given: the interval knows of texts alone, not of how sure the rate is")
    return tuple(notes)


def warnings_of(made: CorpusPlan, sample: Sample, team: Team, rate: Estimate) -> list[str]:
    """What cannot work, then what is not likely to be meant."""
    found = []
    needed = made.cache_bytes + made.staging_bytes
    if needed > made.free_bytes:
        found.append(
            f"does not fit: {size_text(needed)} are needed until it is sealed ({size_text(made.cache_bytes)}"
            f" of them stay), {size_text(made.free_bytes)} are free"
        )
    found += _memory_warnings(made, sample, team)
    if team.parallel < team.workers:
        found.append(
            f"{team.workers} workers share the cores of {team.parallel}: {team.cores} cores a machine, and a"
            f" process of the sample computed with {sample.threads}"
        )
    if sample.lengths.truncated > MANY_CUT:
        found.append(
            f"{sample.lengths.truncated:.1%} of the texts are truncated at {sample.max_length} tokens;"
            " to use all of them: --long-text chunks"
        )
    if sample.timing and sample.load >= team.cores:
        found.append(
            f"the machine was busy before the sample (load {sample.load:.1f} on {team.cores} cores): on a"
            " quiet one it is faster"
        )
    taken = sample.lengths.seconds
    if sample.timing is None and taken is not None and taken * rate.value > 1:
        found.append(
            f"a worker would wait for its texts: {1 / taken:,.0f} of them a second are read and tokenised"
            f" here, and it is to encode {rate.value:,.0f}"
        )
    days = made.seconds.value / DAY
    if days > LONG_DAYS:
        found.append(f"{days:,.0f} days is long: more workers, a smaller model or a smaller --max-length")
    if (width := made.seconds.high / made.seconds.value - 1) > WIDE:
        found.append(f"the time is known to {width:.0%} only: a longer --sample-seconds, on a quiet machine")
    if sample.batch_tokens < sample.asked_tokens:
        found.append(
            f"memory ran out with batches of {sample.asked_tokens} tokens: {sample.batch_tokens} fitted"
        )
    return found


def _memory_warnings(made: CorpusPlan, sample: Sample, team: Team) -> list[str]:
    """Beside this machine's memory; of other machines nothing is known."""
    try:
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows does not say
        return []
    each = math.ceil(team.workers / team.nodes) if sample.timing else 1
    needed = each * (sample.memory or 0) + made.row_memory
    if needed <= here:
        return []
    return [
        f"{size_text(needed)} of memory: {each} x {size_text(sample.memory or 0)} for workers, and"
        f" {size_text(made.row_memory)} to tell {made.rows:,} rows apart; this machine has {size_text(here)}"
    ]


def command_of(
    settings: Settings, splits: Sequence[str], ask: Ask, sample: Sample, workers: int, nodes: int, shards: int
) -> tuple[str, ...]:
    """The words of the command that runs what was planned: every setting that is not the default."""
    each = math.ceil(workers / nodes)
    launched = ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(each), "--no-python"]
    words = [*(launched if nodes > 1 else []), "featcache", "extract"]
    for split in splits:
        words += ["--split", split]
    for name, option in options().items():
        section = getattr(settings, option.section) if option.section else settings
        value = getattr(section, name)
        if name == "batch_tokens" and sample.batch_tokens < sample.asked_tokens:
            value = sample.batch_tokens
        if option.section == "head" or value == option.default or value is None or value == {}:
            continue
        words += _words(option.flag, value)
    if nodes == 1 and workers > 1:
        words += ["--workers", str(workers)]
    if shards > 1 and parse_size(settings.paths.shard_size) != ask.shard_bytes:
        words += ["--shard-size", str(ask.shard_bytes)]
    return tuple(words)


def _words(flag: str, value: Any) -> list[str]:
    """A setting as it is typed."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, dict):
        return [flag, ",".join(f"{key}={part}" for key, part in value.items())]
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
