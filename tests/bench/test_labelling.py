"""Simulated labelling on features that are made up, and its waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.bench.labelling.latency import measure_waits
from featcache.bench.labelling.simulate import LEAST_ROWS, SimulatedTexts, frequent, halved, simulate
from tests.support.cli_tools import Cli


def made(sizes: tuple[int, ...], noise: float = 1.5, seed: int = 0) -> SimulatedTexts:
    draw = np.random.default_rng(seed)
    centres = 2 * draw.standard_normal((len(sizes), 24))
    parts = []
    for share in (1, 2):
        y = draw.permutation(np.repeat(np.arange(len(sizes)), [max(1, size // share) for size in sizes]))
        parts += [(centres[y] + noise * 2 * draw.standard_normal((len(y), 24))).astype(np.float32), y]
    return SimulatedTexts(*parts)


def test_classes_are_halved_and_rare_ones_left_out() -> None:
    texts = halved(made((300, 300, 300, 300, 300, 300, 9)), seed=1)
    assert np.bincount(texts.y).tolist() == [300, 150, 75, 37, 18]  # 9 would be too few
    assert set(texts.test_y) == set(range(5))
    assert len(texts.x) == len(texts.y) and len(texts.test_x) == len(texts.test_y)
    whole = frequent(made((300, LEAST_ROWS, LEAST_ROWS - 1)))
    assert np.bincount(whole.y).tolist() == [300, LEAST_ROWS]


def test_a_strategy_needs_fewer_labels_than_random_on_unbalanced_classes() -> None:
    texts = made((1200, 300, 80))
    needed = {
        strategy: [simulate(texts, strategy, seed).labels for seed in range(3)]
        for strategy in ("mixed", "random")
    }
    assert np.mean(needed["mixed"]) < 0.8 * np.mean(needed["random"]), needed
    found = simulate(texts, "mixed", 0)
    assert simulate(texts, "mixed", 0) == found  # the same seed, the same session
    assert 20 <= found.labels <= len(texts.y) and found.covered <= found.estimates


def test_waits_are_measured() -> None:
    (seconds,) = measure_waits([300], answers=40).values()
    assert 0 < seconds < 5


def test_the_command_simulates_cached_reviews(cli: Cli, work: Path) -> None:
    result = cli.ok(
        "bench", "label", "--seeds", "1", "--strategies", "margin", "--json", "--waits", "200"
    ).json
    rows = {(row["data"].partition(", ")[2], row["strategy"]): row for row in result["rows"]}
    assert set(rows) == {(s, k) for s in ("as it is", "halved") for k in ("random", "margin")}
    assert rows["as it is", "random"]["ratio_to_random"] == 1
    assert set(result["seconds"]) == {"200"}
    assert "of random's" in cli.ok("bench", "label", "--seeds", "1", "--strategies", "random").out


def test_descriptions_are_measured_beside_the_strategies(cli: Cli, work: Path) -> None:
    (work / "labels.toml").write_text('good = "喜欢"\nbad = ["差", "失望"]\n', encoding="utf-8")
    flags = ["--seeds", "1", "--strategies", "mixed", "--shapes", "as it is", "--describe", "labels.toml"]
    rows = cli.ok("bench", "label", *flags, "--json").json["rows"]
    assert [row["strategy"] for row in rows] == ["random", "mixed", "mixed, described"]
    (work / "labels.toml").write_text('good = "喜欢"\nother = "差"\n', encoding="utf-8")
    assert "no description of 'bad'" in cli("bench", "label", *flags).err


@pytest.mark.parametrize("flag", [["--strategies", "best"], ["--shapes", "round"], ["--waits", "many"]])
def test_what_is_unknown_is_refused(cli: Cli, work: Path, flag: list[str]) -> None:
    assert cli("bench", "label", "--seeds", "1", *flag).code == 2
