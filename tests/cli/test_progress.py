"""What is shown while an extraction runs, and what `cache info` says afterwards of how it ran."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

import featcache_cli.progress as drawing
from featcache.backbone import throughput as speed
from featcache.backbone.throughput import Speedometer, useful_flops
from featcache.cache.catalog import CacheFile, add_request
from featcache.extraction.api import extract_splits
from featcache.runs.train import train_head
from featcache.settings import load_settings
from featcache.system.progress import Progress
from featcache.system.units import short_count_text
from featcache_cli.progress import EXTRACTION, Meter
from tests.support import cli_tools
from tests.support.cli_tools import Cli, Terminal, make_work, plain_terminal, shell
from tests.support.clock import Clock
from tests.support.extraction import Case, one_thread, write_case
from tests.support.stock import loaded

Folder = Callable[[str], Path]
RATES = r"[\d,]+k? texts/s [\d,]+k? tokens/s \d+% of peak"
PEAK = 50.0  # GFLOP/s, made up

# The command as installed, but the peak is measured at once and a line is written for every batch.
IMPATIENT = """#!{python}
import sys
import featcache.backbone.throughput, featcache_cli.progress
featcache.backbone.throughput.MEASURE_AFTER = featcache.backbone.throughput.WORTH_MEASURING = 0.0
featcache_cli.progress.LINE_EVERY = 0.05
featcache_cli.progress.FIRST_BAR = 0.0
from featcache_cli.main import main
sys.exit(main())
"""

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def work(tmp_path: Path, tiny: Folder, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_work(tmp_path / "work", tiny("bert"), rows=1500)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def case(tmp_path: Path, tiny: Folder) -> Case:
    return write_case(tmp_path, tiny("bert"), batch_tokens=200)


def test_extract_reports_the_share_of_the_peak(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEASURE_AFTER", 0.0)
    monkeypatch.setattr(speed, "WORTH_MEASURING", 0.0)
    meters: list[Speedometer] = []

    class Watched(Speedometer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            meters.append(self)

    monkeypatch.setattr(speed, "Speedometer", Watched)
    events: list[Progress] = []
    extract_splits(case.settings(), ["train"], events.append)
    steps = [event for event in events if event.stage == "encode"]
    assert not steps[0].share and len(steps) > 3  # nothing was done yet
    assert all(step.share and step.share > 0 for step in steps[1:])
    (meter,) = meters
    lengths = np.asarray(case.find().sealed.column("n_tokens"), dtype=np.int64)
    assert meter._flops == pytest.approx(useful_flops(meter.backbone, lengths))  # every text, once


def test_extract_measures_no_peak_without_progress(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEASURE_AFTER", 0.0)
    monkeypatch.setattr(speed, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(speed, "quick_peak", lambda *_: pytest.fail("the peak was measured"))
    extract_splits(case.settings(), ["train"])
    shell_like = ["extract", "--split", "test", "--quiet", "--model", str(case.model), "--dtype", "float32"]
    from featcache_cli.main import main

    assert main([*shell_like, "--dataset", str(case.data), "--cache-dir", str(case.cache)]) == 0


# ---------------------------------------------------------------- as it is drawn


def test_meter_prints_lines_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first after two seconds, then one every ten, with the rates since the first step."""
    plain_terminal(monkeypatch, columns=200)
    clock = Clock()
    monkeypatch.setattr(drawing, "time", clock)
    with Meter(quiet=False, names=EXTRACTION) as meter:
        for second in range(26):
            share = 0.34 if second > 15 else None
            meter(Progress("encode", "train", 600 + 312 * second, 9600, 16_023 * second, share=share))
            clock.now += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "extract train 1,224/9,600 312 texts/s 16,023 tokens/s, 26.8 s left",
        "extract train 4,344/9,600 312 texts/s 16,023 tokens/s, 16.8 s left",
        "extract train 7,464/9,600 312 texts/s 16,023 tokens/s 34% of peak, 6.85 s left",
    ]


BIGGEST = [
    ("train", 4_000, 9_600, 312, 16_023),
    ("validation", 400, 1_200, 312, 16_023),
    ("validation", 123_456, 200_000, 2_650, 98_765),
    ("validation", 823_456, 1_000_000, 26_500, 3_392_000),
]


@pytest.mark.parametrize(("split", "done", "total", "texts", "tokens"), BIGGEST)
def test_meter_bar_fits_80_columns(
    split: str, done: int, total: int, texts: int, tokens: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain_terminal(monkeypatch)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(drawing, "FIRST_BAR", 0.0)
    with Meter(quiet=False, names=EXTRACTION) as meter:
        monkeypatch.setattr(meter, "rate", lambda name, _: tokens if name.endswith("tokens") else texts)
        meter(Progress("encode", split, 0, total))
        meter(Progress("encode", split, done, total, 10, share=0.61))
    lines = screen(capsys.readouterr().err)
    assert max(map(cell_len, lines)) <= 80
    done_text, total_text, texts_text, tokens_text = map(short_count_text, (done, total, texts, tokens))
    rates = f"{texts_text} texts/s {tokens_text} tokens/s"
    wanted = rf"extract {split} .*{done_text}/{total_text} {rates} 61% of peak [-\d:]+"
    assert re.fullmatch(wanted, lines[-1].rstrip()), lines
    assert "…" not in lines[-1]


def screen(text: str) -> list[str]:
    """The lines that were drawn, one after the other."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "featcache"
    script.write_text(IMPATIENT.format(python=sys.executable), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(cli_tools, "COMMAND", script)
    monkeypatch.setattr(cli_tools, "can_fork", lambda env: False)


LOST = "not known: its record is lost, or of an earlier featcache"
EXTRACT = ("extract", "--split", "train", "--batch-tokens", "200")


def test_extract_draws_bars_on_a_terminal(work: Path, impatient: None) -> None:
    with Terminal(*EXTRACT, OMP_NUM_THREADS="1") as terminal:
        assert terminal.finish() == 0, terminal.seen
    lines = screen(terminal.seen)
    assert max(map(cell_len, lines)) <= 80
    bars = [line for line in lines if "extract train" in line]
    assert any(re.search(rf"[\d,]+/1,500 {RATES} \d\d:\d\d|{RATES} --:--", line) for line in bars), bars
    assert not any("0/1 " in line for line in lines)


def test_a_bar_is_there_while_its_stage_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the first two seconds, not after the end; a stage without a count ends as another begins."""
    plain_terminal(monkeypatch)
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [0.0]
    with Meter(quiet=False) as meter:
        assert meter.bars
        meter.bars.get_time = lambda: now[0]

        def drawn() -> list[str]:
            capsys.readouterr()
            assert meter.bars
            meter.bars.refresh()
            return screen(capsys.readouterr().err)

        meter.step("reading texts", 0, 1)
        assert drawn() == []
        now[0] = 2.5
        assert [line.split(" ")[:2] for line in drawn()] == [["reading", "texts"]]
        meter.step("penalties", 1, 20)
        now[0] = 5.0
        (line,) = drawn()
        assert line.startswith("penalties") and "1/20" in line
        meter.step("penalties", 20, 20)
        assert drawn() == []


def test_the_last_line_of_a_stage_off_a_terminal_is_its_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_terminal(monkeypatch, columns=200)
    clock = Clock()
    monkeypatch.setattr(drawing, "time", clock)
    with Meter(quiet=False) as meter:
        meter.step("map by pca", 0, 1)  # of one step: no numbers
        clock.now += 3.0
        meter.step("map by pca", 0, 1)
        for done in (1, 2, 20):
            meter.step("penalties", done, 20)
            clock.now += 10.0
    assert capsys.readouterr().err.splitlines() == [
        "map by pca",
        "penalties 2/20, 3 min 0 s left",
        "penalties 20/20",
    ]


def test_extract_prints_lines_into_a_pipe(work: Path, impatient: None) -> None:
    result = shell(*EXTRACT, "--json", OMP_NUM_THREADS="1")
    assert result.code == 0 and result.json["splits"][0]["rows"] == 1500
    lines = [line for line in result.err.splitlines() if line.startswith("extract train")]
    assert any(re.fullmatch(rf"extract train [\d,]+/1,500 {RATES}, .+ left", line) for line in lines), lines
    assert "\x1b" not in result.err and "\r" not in result.err


# ---------------------------------------------------------------- cache info


def info(cli: Cli) -> dict[str, Any]:
    """`cache info --json` of the only file; checks that the printed form has the same facts."""
    (about,) = cli.ok("cache", "info", "--all", "--json").json["files"]
    printed = " ".join(cli.ok("cache", "info", "--all").out.split())
    assert about["computed"] in printed and about["fingerprint"] in printed
    found: dict[str, Any] = about
    return found


@pytest.mark.parametrize(
    ("family", "dtype"), [("bert", "bfloat16"), ("bert", "float32"), ("mpnet", "bfloat16")]
)
def test_cache_info_prints_how_features_were_computed(
    family: str, dtype: str, cli: Cli, tmp_path: Path, tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_work(tmp_path / "work", tiny(family))
    monkeypatch.chdir(tmp_path / "work")
    cli.ok("extract", "--split", "train", "--dtype", dtype, "--device", "cpu")
    backbone = loaded(tiny(family), dtype=dtype)
    about = info(cli)
    made = about["made"]
    assert (made["device"], made["dtype"], made["packing"]) == ("cpu", dtype, backbone.packing)
    assert made["packing_note"] == backbone.packing_note
    assert made["fused"] == backbone.fused
    sentence = about["computed"]
    why = "packed" if family == "bert" else f"padded ({backbone.packing_note})"
    assert sentence.startswith(f"{why}, {dtype} on cpu; faster modules: ")
    assert sentence.endswith(", ".join(backbone.fused) or "none")
    assert family == "bert" or backbone.packing_note


@pytest.mark.parametrize("content", [None, "{}", '{"made": []}'])
def test_cache_info_without_the_record(content: str | None, cli: Cli, work: Path) -> None:
    cli.ok("extract", "--split", "test")
    (record,) = Path("cache").rglob("*.json")
    record.unlink()
    if content is not None:
        record.write_text(content, encoding="utf-8")
    about = info(cli)
    assert about["status"] == "sealed" and about["rows"] == 500
    assert about["computed"] == LOST


def test_cache_info_of_an_old_record(cli: Cli, work: Path) -> None:
    cli.ok("extract", "--split", "test")
    (path,) = Path("cache").rglob("*.h5")
    file = CacheFile(path)
    add_request(file, file.record.requests[0], replace(file.record.made, dtype=None, fused=None))
    about = info(cli)
    assert about["computed"] == LOST and about["made"]["packing"] == "packed"


def test_heads_without_epochs_say_how_far_they_are(trained: Path) -> None:
    events: list[Progress] = []
    train_head(load_settings(), "exact", "last/mean,lexical", report=events.append)
    stages = {event.stage: event for event in events}  # the last one of each
    assert (stages["count"].done, stages["count"].total) == (100, 100)  # texts of all splits
    assert 1 < stages["penalties"].done <= stages["penalties"].total == 20
    assert stages["solve"].done >= 2 and stages["words"].total == 6
    events.clear()
    settings = load_settings({"penalty": "folds", "folds": "2"})
    train_head(settings, "logistic", "last/mean", report=events.append)
    done = [event.done for event in events if event.stage == "penalties"]
    assert events[0].total == 40 and done == sorted(set(done)) and done[-1] > 20


def test_an_exact_head_prints_lines_off_a_terminal(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "LINE_EVERY", 0.0)
    shown = cli.ok("train-head", "--head", "exact", "--view", "last/mean,lexical").err
    for line in ("count n-grams 100/100", "penalties 1/20", "solve"):
        assert line in shown
