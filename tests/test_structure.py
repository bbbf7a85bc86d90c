"""What `CONTRIBUTING.md` and `docs/architecture.md` say of the structure is true of the source."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path for folder in ("featcache", "cli") for path in (ROOT / folder).rglob("*.py"))
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

MOST_MODULES = 16  # in a folder
MOST_LINES = 400  # in a module
LONGEST_FUNCTION = 60  # lines; ruff counts statements only
MOST_POSITIONAL = 5  # arguments in a call of one of our constructors


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def classes(module: ast.Module) -> Iterator[str]:
    """Names of the classes and type aliases at the top of a module, without leading underscores."""
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            yield node.name.strip("_")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id.strip("_")
            if re.match("[A-Z][a-z]", name):
                yield name


def test_no_folder_has_too_many_modules() -> None:
    folders = defaultdict(list)
    for path in MODULES:
        folders[path.parent].append(path.name)
    assert {named(folder): len(found) for folder, found in folders.items() if len(found) > MOST_MODULES} == {}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_modules_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name


def test_long_calls_of_our_constructors_name_their_arguments() -> None:
    trees = {path: tree(path) for path in MODULES}
    ours = {node.name for each in trees.values() for node in ast.walk(each) if isinstance(node, ast.ClassDef)}
    found = []
    for path, each in trees.items():
        for node in ast.walk(each):
            if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL:
                called = ast.unparse(node.func).rsplit(".", 1)[-1]
                if called in ours:
                    found.append(f"{named(path)}:{node.lineno} {called}")
    assert found == []


def test_no_two_modules_define_a_class_of_one_name() -> None:
    where = defaultdict(set)
    for path in MODULES:
        for name in classes(tree(path)):
            where[name].add(named(path))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_architecture_names_the_packages_that_are_there() -> None:
    table = ARCHITECTURE.split("## The rooms", 1)[1]
    listed = re.findall(r"^\| `([\w/]+)/` \|", table, re.M)
    packages = {
        path.parent.relative_to(ROOT / "featcache").as_posix()
        for path in (ROOT / "featcache").rglob("__init__.py")
    } - {"."}
    assert sorted(listed) == sorted(packages)


def test_architecture_draws_the_order_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [re.split(r"\s*\|\s*", layer) for layer in contracts["contracts"][0]["layers"]]
    drawing = re.findall(r"^ *\d+  (.+)$", ARCHITECTURE, re.M)
    drawn = [re.split(r"\s*·\s*", line.split("   ")[0].strip()) for line in drawing]
    assert drawn == layers


def test_every_module_that_the_glossary_names_defines_its_word() -> None:
    glossary = ARCHITECTURE.split("## The words", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", glossary)
    assert len(found) > 10
    for path, names in found:
        defined = {
            node.name
            for node in ast.walk(tree(ROOT / "featcache" / path))
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        } | set(classes(tree(ROOT / "featcache" / path)))
        assert set(re.findall(r"\w+", names)) <= defined, path
