"""Every error that featcache raises says what to do: by its hint, or by naming what is valid."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from featcache import errors

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    name for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.FeatcacheError)
}  # fmt: skip
VALID = ("is needed", "must be", "at least", "do not fit")  # words that come before what is valid


def raised() -> Iterator[tuple[str, ast.Call, str]]:
    """Each `raise SomeError(...)`: where, the call, and its source."""
    for path in (path for folder in ("featcache", "cli") for path in sorted((ROOT / folder).rglob("*.py"))):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                call = node.exc
                name = call.func.id if isinstance(call.func, ast.Name) else ""
                if name in CLASSES:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", call, ast.unparse(call)


def test_every_error_has_a_hint() -> None:
    """But those of usage, for which the command names its own help."""
    found = list(raised())
    assert len(found) > 500
    without = []
    for where, call, text in found:
        hint = any(word.arg == "hint" for word in call.keywords)
        third = text.startswith("BadRow(") and len(call.args) == 3
        usage = text.startswith("UsageError(")
        if not (hint or third or usage or any(words in text for words in VALID)):
            without.append(f"{where} {text[:90]}")
    assert not without, "\n".join(without)
