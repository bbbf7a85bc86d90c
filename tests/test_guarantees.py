"""docs/guarantees.md names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_that_is_named_is_there_and_runs_by_default() -> None:
    named = re.findall(
        r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    )
    assert len(named) > 20
    for file, name in named:
        functions = {
            node.name: node
            for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{file}::{name}"
        marks = [ast.unparse(mark) for mark in functions[name].decorator_list]
        assert "pytest.mark.slow" not in marks, f"{file}::{name}"
