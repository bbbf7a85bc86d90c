"""What README and the documentation show is parsed, and run as it stands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from featcache_cli.main import _parser
from tests.support.doc_blocks import PAGES, ROOT, blocks, check_parsed, make_folder, run_page, with_demo_model
from tests.support.tiny import build

QUICK = ("README.md", "docs/tutorials/chinese-without-a-hub.md")  # in `make test`; all in `make test-docs`
WORDS = 700
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Flags of other programs that the pages name.
OTHERS = frozenset((
    "--no-python", "--nproc-per-node", "--nnodes", "--strict", "--force-reinstall", "--seconds", "--workers",
    "--peer-python", "--no-view-scales", "--texts-per-second", "--url-prefix",
))  # fmt: skip


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random backbone with as many blocks and positions as the pages need."""
    return build("bert", tmp_path_factory.mktemp("bert"), num_hidden_layers=12, max_position_embeddings=512)


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every flag of a command and of those below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from flags(sub)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse_and_python_compiles(page: str) -> None:
    for block in blocks(page):
        check_parsed(page, block)


@cache
def known_flags() -> frozenset[str]:
    return frozenset(flags(_parser()))


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {flag for span in _SPAN.findall(text) for flag in _FLAG.findall(span)}
    assert named - known_flags() - OTHERS == set()


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_to_files(page: str) -> None:
    for target in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path, _, _ = target.partition("#")
        if path and not re.match(r"[a-z]+:", path):
            assert ((ROOT / page).parent / path).exists(), f"{page}: {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= WORDS


def test_both_readmes_show_the_same() -> None:
    """The Chinese page has the commands, the Python and the transcript's figures of the English one."""
    english, chinese = (
        [block.text for block in blocks(page)][1:] for page in ("README.md", "README.zh-CN.md")
    )
    assert chinese == english
    figures = r"^ (?:\*|  ) ?[\w-]+.* \d\d\.\d\d.*$"
    shown = [
        re.findall(figures, (ROOT / page).read_text(encoding="utf-8"), re.M)
        for page in ("README.md", "README.zh-CN.md")
    ]
    assert shown[0] == shown[1] and shown[0]


def run(page: str, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    make_folder(tmp_path / "work", bert, monkeypatch)
    return run_page(page, monkeypatch)


@pytest.mark.parametrize("page", QUICK)
@pytest.mark.usefixtures("arrow_cache")
def test_a_page_runs(page: str, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(page, tmp_path, bert, monkeypatch) >= 3


def has_blocks(page: str) -> bool:
    return any(block.reason is None for block in blocks(page))


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in PAGES if has_blocks(page) and page not in QUICK])
@pytest.mark.usefixtures("arrow_cache")
def test_every_page_runs(
    page: str, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    folder = make_folder(tmp_path / "work", bert, monkeypatch)
    if page == "docs/tutorials/first-classifier.md":
        with_demo_model(folder / "demo", request.getfixturevalue("demo_model"))
    run_page(page, monkeypatch)


EXAMPLES = {"房间很干净，服务也好": "positive", "房间很干净": "positive", "电池坏了": "negative"}


@pytest.mark.docs
@pytest.mark.usefixtures("arrow_cache")
def test_readme_examples_are_classified_right(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the demo's encoder and reviews, with `featcache.run` as the page shows it."""
    import pandas as pd

    import featcache
    from featcache.demo.demo import build_reviews

    shown = {text for page in ("README.md", "README.zh-CN.md") for block in blocks(page)
             for text in re.findall(r'"([^"]*[一-龥][^"]*)"', block.text)}  # fmt: skip
    assert shown - {"评论", "类别"} == set(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    file = build_reviews(tmp_path / "demo", rows={"train": 2000})["train"]
    reviews = pd.read_json(file, lines=True).set_axis(["评论", "类别"], axis=1)
    model = {"model": str(demo_model), "prompt": "query: ", "views": "last/mean", "max_length": 128}
    found = featcache.run(reviews, text="评论", label="类别", **model)
    assert {one.text: one.label for one in found.predict(list(EXAMPLES))} == EXAMPLES
