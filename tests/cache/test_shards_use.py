"""Every command on a cache of many shards says what it says on one of a single file."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import FeatureExtractor
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.cache.shards import shard_paths
from featcache.errors import UsageError
from featcache.extraction.api import extract_splits
from featcache.heads.registry import KINDS
from featcache.runs.run import load_run
from featcache.runs.train import train_head
from featcache.settings import load_settings
from featcache.system.sharded_array import ShardedColumn
from featcache_cli.main import main
from tests.support.cli_tools import Cli, contents, make_work, plain_terminal
from tests.support.extraction import Case, counted, some_texts, write_case

SMALL = "20kB"
OWN = ("path", "created", "made", "bytes", "run", "folder")  # and whatever counts seconds

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> dict[str, Path]:
    """The same data extracted into single files and into shards."""
    made = {}
    for name, flags in (("single", []), ("shards", ["--shard-size", SMALL])):
        made[name] = make_work(tmp_path_factory.mktemp(name) / "work", tiny("bert"))
        with contextlib.chdir(made[name]), pytest.MonkeyPatch.context() as patch:
            plain_terminal(patch)
            assert main(["extract", "--all-splits", "--quiet", *flags]) == 0
            for kind in ("linear", "exact"):
                assert main(["train-head", "--head", kind, "--epochs", "5", "--quiet"]) == 0
    assert [len(shard_paths(path)) for path in Cache(made["single"] / "cache").paths()] == [0, 0, 0]
    assert min(len(shard_paths(path)) for path in Cache(made["shards"] / "cache").paths()) > 1
    return made


def cleaned(value: Any) -> Any:
    """A JSON document without times and places."""
    if isinstance(value, dict):
        return {key: cleaned(part) for key, part in value.items() if key not in OWN and "second" not in key}
    if isinstance(value, list):  # runs are listed by the second that they were made in
        return sorted((cleaned(part) for part in value), key=json.dumps)
    return value


def both(works: dict[str, Path], cli: Cli, *argv: str) -> Any:
    """What a command says as JSON, the same for both caches."""
    said = []
    for folder in works.values():
        with contextlib.chdir(folder):
            said.append(cleaned(cli.ok(*argv, "--json").json))
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("lexical", "attentive")]
)  # it reads no cache
@pytest.mark.parametrize(
    "kept", [pytest.param(True, marks=pytest.mark.slow, id="kept"), pytest.param(False, id="streamed")]
)
def test_heads_trained_on_shards_are_the_same(
    works: dict[str, Path], kind: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr("featcache.heads.features.IN_MEMORY", 0)
        monkeypatch.setattr("featcache.heads.features.NUMBERS_AT_ONCE", 32 * 7)
        monkeypatch.setattr("featcache.system.sharded_array.RESIDENT", 1)
    found = []
    for name, folder in works.items():
        monkeypatch.chdir(folder)
        settings = load_settings({"epochs": 3, "penalty": "validation", "reports_dir": str(tmp_path / name)})
        run = train_head(settings, kind, "last/mean")
        left = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.suffix != ".json"}
        found.append(left)
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 2
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "argv",
    [
        ("compare",),
        ("inspect",),
        ("report", "linear-last-cls-1"),
        ("sweep", "--lr", "1e-3,1e-2", "--epochs", "2"),
        ("curve", "--sizes", "20,40", "--seeds", "2", "--head", "exact"),
        ("predict", "exact-last-cls-1", "房间很干净"),
        ("cache", "info", "--all"),
        ("cache", "ls"),
        ("extract", "--all-splits"),
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_commands_print_the_same_for_shards(
    works: dict[str, Path], cli: Cli, argv: tuple[str, ...], tmp_path: Path
) -> None:
    own = {}
    for name, folder in works.items():
        shutil.copytree(folder, tmp_path / name)
        own[name] = tmp_path / name
    both(own, cli, *argv)


def test_cache_commands_treat_shards_as_parts(works: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(works["shards"], work)
    with contextlib.chdir(work):
        listed = cli.ok("cache", "ls", "--json").json["files"]
        assert len(listed) == 3
        for about in listed:
            path = Path(about["path"])
            assert about["bytes"] == sum(part.stat().st_size for part in (path, *shard_paths(path)))
        checked = cli.ok("cache", "verify", "--reencode", "9", "--json").json
        assert checked["ok"] and [file["bytes"] for file in checked["files"]] == [
            file["bytes"] for file in listed
        ]
        shard = shard_paths(Path(listed[0]["path"]))[1]
        shard.write_bytes(shard.read_bytes()[::-1])
        wrong = cli("cache", "verify", "--json")
        assert wrong.code == 5 and shard.name in str(wrong.json["files"][0]["damage"])
        assert cli.ok("cache", "gc", "--json").json["removed"] == []
        removed = cli.ok("cache", "rm", Path(listed[0]["path"]).name, "--json").json
        assert removed["bytes"] == listed[0]["bytes"] and not list(
            Path("cache").rglob(f"{shard.name[:18]}*.h5")
        )
        cli.ok("extract", "--all-splits", "--shard-size", SMALL)
        assert cli.ok("cache", "verify", "--json").json["ok"]
        freed = cli.ok("cache", "gc", "--max-size", "0", "--json").json
        assert freed["bytes_left"] == 0 and not list(Path("cache").rglob("*.h5"))


# ---------------------------------------------------------------- extraction


@pytest.fixture
def case(tmp_path: Path, tiny: Callable[[str], Path]) -> Case:
    return write_case(tmp_path, tiny("bert"), max_length=16)


def test_rows_of_a_sharded_cache_are_reused(case: Case) -> None:
    """To the same rows in another order, to corrected labels, to texts in memory; of any size of shard."""
    case.extract(shard_size=SMALL)
    old, rows = case.features(), case.rows()
    assert isinstance(case.find().features("last/cls").x, ShardedColumn)
    with counted() as passes:
        assert case.extract(shard_size="1GB").cached  # the size of shards is none of the features
        case.write(rows[::-1])
        again = case.extract(shard_size=SMALL)
        assert again.encoded == 0 and again.reused == len(rows) and np.array_equal(case.features(), old[::-1])
        case.write([{**row, "label": "good"} if number else row for number, row in enumerate(rows)])
        assert case.extract().encoded == 0 and np.array_equal(case.features(), old)
        texts = [row["text"] for row in rows[:7]]
        extractor = FeatureExtractor(str(case.model), dtype="float32", max_length=16, cache_dir=case.cache)
        assert np.array_equal(extractor.transform(texts), old[:7])
    assert not passes
    new = some_texts(200, 77)[150:]
    case.write(rows + [{"text": text, "label": "bad"} for text in new])
    assert case.extract(shard_size=SMALL).encoded == len(new)
    assert np.array_equal(case.features()[: len(rows)], old)


def test_the_shard_size_changes_no_feature(case: Case) -> None:
    fresh = {size: case.fresh(size.replace(" ", "")) for size in ("20 kB", "22kB", "4GB")}
    made = {size: one.extract(shard_size=size) for size, one in fresh.items()}
    assert len({one.fingerprint for one in made.values()}) == 1
    files = [one.find() for one in fresh.values()]
    assert [len(shard_paths(file.path)) > 0 for file in files] == [True, True, False]
    for name in files[0].sealed.names:
        if name != "meta":
            values = [np.asarray(file.sealed.column(name)) for file in files]
            assert all(np.array_equal(values[0], other) for other in values)
    assert len({(one.truncated, one.tokens, one.rows) for one in made.values()}) == 1


def test_force_makes_the_same_shards(case: Case) -> None:
    path = case.extract(shard_size=SMALL).path
    before = contents(path.parent)
    extract_splits(case.settings(shard_size=SMALL), ["train"], force=True)
    after = {
        Path(name).name: digest for name, digest in contents(path.parent).items() if name.endswith(".h5")
    }
    assert {digest for name, digest in after.items() if "shard" in name} == {
        digest for name, digest in before.items() if "shard" in name
    }


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
def test_workers_make_the_same_shards(case: Case) -> None:
    case.extract(shard_size=SMALL)
    before, other = contents(case.cache), case.fresh()
    extract_splits(other.settings(shard_size=SMALL), ["train"], workers=2)
    theirs = {
        Path(name).name: digest for name, digest in contents(other.cache).items() if name.endswith(".h5")
    }
    assert theirs == {Path(name).name: digest for name, digest in before.items() if name.endswith(".h5")}


@pytest.mark.parametrize("size", ["1kB", "much", "", "-4GB"])
def test_invalid_shard_size_is_refused_before_the_model_is_loaded(
    case: Case, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = lambda *_: pytest.fail("the model was loaded")  # noqa: E731
    monkeypatch.setattr("featcache.backbone.load.load_backbone", refuse)
    with pytest.raises(UsageError, match="size"):
        case.extract(shard_size=size)


def test_damaged_shards_are_reported_before_training(
    works: dict[str, Path], cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(works["shards"], tmp_path / "work")
    with contextlib.chdir(tmp_path / "work"):
        (path,) = Cache.open("cache").paths("train")
        shard = shard_paths(path)[-1]
        shard.unlink()
        said = cli("train-head", "--head", "exact")
        assert said.code == 5 and shard.name in said.err and "cache rm" in said.err
        assert json.loads(Path("reports/linear-last-cls-1/run.json").read_text())["head"] == "linear"
        assert load_run(Path("reports"), "exact-last-cls-1") and CacheFile(path).rows == 60
