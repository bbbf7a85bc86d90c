"""Odd documents, settings, tables and requests, drawn at random: no command calls them a defect, or hangs.

    python -m tests.support.fuzz --seconds 60 [--seed N] [--kinds run,table]

prints its seed and an example of each kind of failure, if there is one; the same seed draws the same cases.
`tests/test_fuzz.py` runs a short form.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from featcache_cli.main import main
from tests.support.fuzz_changes import (
    changed_bytes,
    changed_json,
    description,
    dumped,
    json_file,
    raw,
    record,
    tensors,
    toml,
)

LONGEST = 10.0  # seconds of one command on an idle machine; more is a hang
FORBIDDEN = re.compile("unexpected|defect|Traceback")
ROUND = 30  # cases drawn with one seed
RUN, TUNED = "linear-last-cls-1", "top-blocks-2-last-cls-1"
REQUESTS = (
    {"text": "好"}, {"texts": ["好", "坏"]}, {"text": "好", "pair": "坏", "top_k": 1},
    {"texts": ["好"], "pairs": ["坏"]},
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of file that is made odd, and the commands that read it.

    Attributes:
        files: a pattern in the working folder.
        change: makes the odd contents of a file.
        commands: FILE is the odd file, H5 the cache file that it belongs to.
    """

    kind: str
    files: str
    change: Callable[[Path], st.SearchStrategy[bytes]]
    commands: tuple[str, ...]


LOOKS = ("cache ls --json", "cache ls", "cache info --all --json", "cache info --all", "cache verify")
OF_CACHE = (
    *LOOKS, "cache gc --dry-run", "extract --all-splits", "extract --all-splits --json --force", "inspect",
    "train-head --epochs 1", "cache verify --reencode 2", "curve --points 2 --seeds 1",
    "cache export H5 --output x.npy --view last/cls",
)  # fmt: skip
OF_HEADS = (f"predict --run {RUN} 好", f"export {RUN} --output exported")
OF_RUNS = (
    *OF_HEADS, "compare", "compare --json", f"compare {RUN}", f"compare {RUN} --json",
    f"compare --base {RUN}", "compare --fail-if-worse logistic-last-mean-1", f"report {RUN} --no-inspect",
    "report", "predict --json 好",
)  # fmt: skip
OF_SETTINGS = (
    "cache ls", "compare", "plan --rows 10 --sample-seconds 1", "extract", "train-head --epochs 1",
    "predict 好", "finetune --epochs 1", "sweep --seeds 1", "curve --points 2 --seeds 1", "cache verify",
    "init --force",
)  # fmt: skip
ENDINGS = ("csv", "json", "parquet")
OF_TABLES = tuple(f"predict --run {RUN} --input FILE --output out.{ending}" for ending in ENDINGS)
OF_SHARDS = tuple(f"{command} --cache-dir sharded" for command in OF_CACHE[:8])
OF_TRAINING = ("extract --split train --force", "plan --sample-seconds 1", *OF_TABLES)
TARGETS = (
    Target("record", "cache/*/*/*.json", record, OF_CACHE),
    Target("description", "cache/*/*/*.h5", description, OF_CACHE),
    Target("shards", "sharded/*/*/*.h5", description, OF_SHARDS),
    Target("states", "cache/*/*/states/*.h5", description, (*LOOKS, "finetune --epochs 1")),
    Target("states record", "cache/*/*/states/*.json", json_file, ("cache ls", "finetune --epochs 1")),
    Target("plan", "cache/*/*/*.partial/plan.json", json_file, ("extract --split train --force", "cache gc")),
    Target("holder", "cache/*/*/*.holder", json_file, ("extract --split train --force", "cache gc")),
    Target("run", "reports/linear*/run.json", json_file, OF_RUNS),
    Target("head", "reports/linear*/head.json", json_file, OF_HEADS),
    Target("tensors", "reports/linear*/head.safetensors", tensors, OF_HEADS),
    Target("predictions", "reports/linear*/*.parquet", raw, OF_RUNS[2:10]),
    Target("tuned run", "reports/top*/run.json", json_file, ("compare", f"predict --run {TUNED} 好")),
    Target("weights", "reports/top*/*.safetensors", tensors, (f"predict --run {TUNED} 好",)),
    Target("curve", "reports/curve*/curve.json", json_file, (f"report {RUN} --no-inspect",)),
    Target("journal", "*.partial/state.json", json_file, ("predict --input half.txt --output half.jsonl",)),
    Target("settings", "featcache.toml", toml, OF_SETTINGS),
    Target("training rows", "reviews/train.*", raw, OF_TRAINING),
    Target("table", "tables/*.*", raw, OF_TABLES),
)


@dataclass
class Findings:
    """What was tried, and an example of each kind of failure."""

    cases: int = 0
    failures: dict[str, str] = field(default_factory=dict)


class Hung(BaseException):
    """A command took longer than `LONGEST`; no handler of errors catches it."""


def _hang(*_: object) -> None:
    raise Hung


def run(argv: Sequence[str], longest: float = LONGEST) -> str:
    """Everything that a command prints, and a traceback where it raises an error or hangs.

    Args:
        longest: seconds; more where other processes share the processors.
    """
    longest *= max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, longest)
    said = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(argv))
    except BaseException:
        said = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for stream in (out, err):
        with contextlib.suppress(ValueError):  # closed by the command
            stream.flush()
            said += stream.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    return said


class Fuzzer:
    """Tries odd files in copies of a working folder, and odd requests.

    Args:
        world: a working folder with files of the kinds of `TARGETS`, see `make_world`; not changed.
        folder: where the copies are made, one at a time.
        seconds: no case begins so long after the first one.
        kinds: of targets, and `request`; all by default.
    """

    def __init__(self, world: Path, folder: Path, seconds: float, kinds: Sequence[str] = ()) -> None:
        self.world, self.copy, self.seconds = world, folder / "fuzzed", seconds
        self.began: float | None = None
        self.findings = Findings()
        self.targets: list[Target | None] = [
            target
            for target in TARGETS
            if (not kinds or target.kind in kinds) and any(world.glob(target.files))
        ]
        if not kinds or "request" in kinds:
            self.targets.append(None)

    def over(self) -> bool:
        """Whether the time is over; what is drawn then is not tried, since equal rounds draw the same."""
        return self.began is not None and time.monotonic() > self.began + self.seconds

    def round(self, number: int) -> None:
        """`ROUND` cases, the same for the same number."""

        @seed(number)
        @settings(
            max_examples=ROUND, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.data())
        def one(data: st.DataObject) -> None:
            target = data.draw(st.sampled_from(self.targets))
            if target is None:
                self._try_request(data)
            else:
                self._try_file(data, target)

        one()

    def _try_request(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(REQUESTS))
        body = data.draw(changed_json(request).map(dumped) | changed_bytes(dumped(request)))
        if not self.over():
            self._note("request", self._client_answer(body), body)

    def _try_file(self, data: st.DataObject, target: Target) -> None:
        path = data.draw(st.sampled_from(sorted(self.world.glob(target.files))))
        content, command = data.draw(target.change(path)), data.draw(st.sampled_from(target.commands))
        if self.over():
            return
        name = path.relative_to(self.world)
        named = {"FILE": str(name), "H5": str(name.with_suffix(".h5"))}
        argv = [named.get(word, word) for word in command.split()]
        said = self.attempt(name, content, argv)
        if FORBIDDEN.search(said):  # a hang counts if it happens twice: the machine may be busy
            said = self.attempt(name, content, [*argv, "--debug"])
        self._note(f"{target.kind}, {command}", said, content)

    def attempt(self, path: Path, content: bytes, argv: Sequence[str]) -> str:
        """What a command prints in a copy of the world where the file at `path` has this content."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.world, self.copy)
        with contextlib.chdir(self.copy):
            path.write_bytes(content)
            return run(argv)

    def _client_answer(self, body: bytes) -> str:
        """What the server answers; its traceback where it fails."""
        from starlette.testclient import TestClient

        from featcache.prediction.predictor import Predictor
        from featcache.serving.app import Service

        if not hasattr(self, "service"):
            with contextlib.chdir(self.world):
                self.service = Service(Predictor.from_run(self.world / "reports" / RUN))
            self.client = TestClient(self.service.app, base_url="http://127.0.0.1")
        try:
            found = self.client.post("/predict", content=body, headers={"Content-Type": "application/json"})
        except Exception:
            return traceback.format_exc()
        return found.text if found.status_code < 500 else f"Traceback {found.status_code} {found.text}"

    def _note(self, what: str, said: str, content: bytes) -> None:
        self.began = self.began or time.monotonic()
        self.findings.cases += 1
        if FORBIDDEN.search(said):
            places = re.findall(r'File "\S*?((?:featcache|cli)/\S+\.py)", line (\d+)', said)
            kind = f"{what}: {said.strip().splitlines()[-1][:150]} {places[-1:]}"
            self.findings.failures.setdefault(kind, f"{content[:2000]!r}\n{said}")


def fuzz(world: Path, folder: Path, seconds: float, first: int, kinds: Sequence[str] = ()) -> Findings:
    """Rounds of cases, numbered from `first`, until the time is over."""
    with contextlib.chdir(world):
        run(["predict", "--run", RUN, "好"], 300)  # imports take seconds
    fuzzer, number = Fuzzer(world, folder, seconds, kinds), first
    while not fuzzer.over():
        fuzzer.round(number)
        number += 1
    return fuzzer.findings


# --- the working folder -------------------------------------------------------------------------


def make_world(folder: Path, model: Path) -> Path:
    """A working folder with a file of every kind that is tried."""
    from tests.support.cli_tools import make_trained

    work = make_trained(folder, model)
    with contextlib.chdir(work):
        for command in (
            "curve --points 2 --seeds 1 --quiet",
            "finetune --epochs 1 --quiet",
            "extract --all-splits --quiet --cache-dir sharded --shard-size 20kB",
        ):
            said = run(command.split(), 300)
            if FORBIDDEN.search(said):
                raise RuntimeError(said)
    _leave_unfinished(work)
    _write_tables(work / "tables")
    return work


def _leave_unfinished(work: Path) -> None:
    """What killed commands leave: a journal of `predict`, the plan of an extraction, the holder of a lock."""
    from featcache.prediction.journal import JournalState
    from featcache.system.documents import json_document

    (work / "half.txt").write_text("好\n坏\n", encoding="utf-8")
    half = work / "half.jsonl.partial"
    half.mkdir()
    state = JournalState("x", chunks=1, rows=1, counts={"0": 1}, digest="x")
    (half / "state.json").write_bytes(dumped(json_document(state)))
    for name in ("rows", "bad.jsonl"):
        (half / name).touch()
    train = next((work / "cache").glob("*/*/train*.h5"))
    train.with_suffix(".partial").mkdir()
    plan = {"fingerprint": "x", "batch_tokens": 1, "donors": [], "rows": "x", "starts": "x"}
    train.with_suffix(".partial").joinpath("plan.json").write_bytes(dumped(plan))
    train.with_suffix(".holder").write_bytes(dumped({"pid": 1, "host": "x", "since": "x"}))


def _write_tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [{"text": f"好 {number}", "label": number % 2} for number in range(5)]
    lines = "".join(f"{row['text']},{row['label']}\n" for row in rows)
    (folder / "a.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
    (folder / "a.tsv").write_text(f"text,label\n{lines}".replace(",", "\t"), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")


# --- the command --------------------------------------------------------------------------------


@contextlib.contextmanager
def _world(kept: Path | None) -> Iterator[tuple[Path, Path]]:
    """A world, made unless it is kept and there, and a folder for copies."""
    from tests.support.cli_tools import arrow_in
    from tests.support.tiny import build

    with tempfile.TemporaryDirectory() as name:
        folder = kept or Path(name) / "world"
        model = folder / "bert"
        with arrow_in(Path(name) / "arrow"):
            if not (folder / "work").exists():
                model.mkdir(parents=True)
                make_world(folder, build("bert", model))
            yield folder / "work", Path(name)


def fuzz_command() -> int:
    """Make a world, try cases, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--kinds", default="", help="some kinds alone, with commas between")
    parser.add_argument("--world", type=Path, help="the working folder is kept here")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with _world(args.world) as (world, folder):
        found = fuzz(world, folder, args.seconds, args.seed, [kind for kind in args.kinds.split(",") if kind])
    for kind, example in found.failures.items():
        print(f"\n=== {kind}\n{example[-4000:]}")
    print(f"\nfuzz: {found.cases} cases, {len(found.failures)} kinds of failure, seed {args.seed}")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(fuzz_command())
