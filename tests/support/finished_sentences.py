"""The sentences of errors, hints and notes, collected from the source as templates: `{path} is not a folder`.

They are arguments of the classes in `featcache.errors`, of ValueError, `note`, `Progress` and `Fact`, and of
functions that pass a parameter on to such a call; what is added to `notes`, `doubts` or `warnings`, or given
as `reason`; and what functions in RETURNED return. What is not text in the source is a placeholder.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

RETURNED = {
    "guarantee", "promise", "reason", "note", "unknown_text", "mostly_unknown_text", "read_as",
    "wrong_encoding", "bad_rows_note", "_left_out", "_list_note", "_doubts_of_the_fit", "_backtest",
    "_memory_warnings", "_order_note", "_end_epoch",
}  # fmt: skip
MOST = 24  # templates of one sentence; a part with more alternatives stays a placeholder
Parts = tuple[str | ast.expr, ...]  # text, and what is filled in
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """One parsed file, with what a name may stand for in each of its functions."""

    path: Path
    tree: ast.Module
    assigned: dict[ast.AST | None, dict[str, list[ast.expr]]] = field(default_factory=dict)
    calls: list[tuple[ast.Call, Function | None]] = field(default_factory=list)
    said: list[tuple[ast.expr, Function | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._visit(self.tree, None)

    def _visit(self, node: ast.AST, function: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Assign):
                for target in child.targets:
                    self._assign(target, child.value, function)
                    if ast.unparse(target) == "notes":
                        self.said += [(one, function) for one in _elements(child.value)]
            elif isinstance(child, ast.AnnAssign) and child.value is not None:
                self._assign(child.target, child.value, function)
            elif isinstance(child, ast.Call):
                self.calls.append((child, function))
                if ast.unparse(child.func) in ("notes.append", "doubts.append", "warnings.append"):
                    self.said.append((child.args[0], function))
                for word in child.keywords:
                    self.said += [
                        (one, function) for one in _elements(word.value) if word.arg in ("notes", "doubts")
                    ]
                    self.said += [(word.value, function)] if word.arg == "reason" else []
            elif isinstance(child, ast.AugAssign) and ast.unparse(child.target) == "notes":
                self.said += [(one, function) for one in _elements(child.value)]
            elif isinstance(child, ast.Return) and child.value and function and function.name in RETURNED:
                self.said += [(one, function) for one in _elements(child.value) or [child.value]]
            self._visit(child, child if isinstance(child, Function) else function)

    def _assign(self, target: ast.expr, value: ast.expr, function: Function | None) -> None:
        if isinstance(target, ast.Name):
            self.assigned.setdefault(function, {}).setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=False):
                self._assign(one, its, function)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.IfExp):
            self._assign(target, value.body, function)
            self._assign(target, value.orelse, function)

    def values(self, name: str, function: Function | None) -> list[ast.expr]:
        local = self.assigned.get(function, {}).get(name)
        if local is not None or (function and name in parameters(function)):
            return local or []
        return self.assigned.get(None, {}).get(name, [])


def _elements(node: ast.expr) -> list[ast.expr]:
    """Of a list or tuple that is written out, also where it depends on a condition."""
    if isinstance(node, ast.List | ast.Tuple):
        return [one for part in node.elts for one in (_elements(part) or [part])]
    if isinstance(node, ast.Starred):
        return _elements(node.value)
    if isinstance(node, ast.IfExp):
        return _elements(node.body) + _elements(node.orelse)
    return [node.elt] if isinstance(node, ast.ListComp | ast.GeneratorExp) else []


@cache
def module_of(path: Path) -> Module:
    """A file of the source; it is read once, and is not to be changed."""
    return Module(path, ast.parse(path.read_text(encoding="utf-8")))


def parameters(function: Function) -> list[str]:
    spec = function.args
    return [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]


def finished_sentences(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Template -> path of the file that has it, in the order of the source."""
    modules = [module_of(path) for path in paths]
    classes = {
        node.name
        for m in modules
        if m.path.name == "errors.py"
        for node in m.tree.body
        if isinstance(node, ast.ClassDef)
    }
    wanted: dict[str, set[str | int]] = {
        name: {0, "what", "hint"} for name in classes | {"failure", "ValueError"}
    }
    wanted |= {"note": {0, "text"}, "Progress": {"text"}, "TrainingStep": {"text"}, "Fact": {0, 1}}
    found: dict[str, str] = {}
    while True:
        before = sum(map(len, wanted.values()))
        for module in modules:
            said = [(one, function) for call, function in module.calls for one in _sentences(call, wanted)]
            for expression, function in [*said, *module.said]:
                _pass_on(expression, function, module, wanted)
                for template in _templates(expression, module, function):
                    found.setdefault(template, module.path.relative_to(root).as_posix())
        if sum(map(len, wanted.values())) == before:
            return found


def _sentences(call: ast.Call, wanted: Mapping[str, set[str | int]]) -> Iterator[ast.expr]:
    name = (
        call.func.id
        if isinstance(call.func, ast.Name)
        else call.func.attr
        if isinstance(call.func, ast.Attribute)
        else ""
    )
    for place in wanted.get(name, ()):
        if isinstance(place, int) and place < len(call.args):
            yield call.args[place]
        yield from (word.value for word in call.keywords if word.arg == place)


def _pass_on(
    expression: ast.expr, function: Function | None, module: Module, wanted: dict[str, set[str | int]]
) -> None:
    """A function whose parameter is the whole sentence makes errors itself."""
    if function is None or not isinstance(expression, ast.Name) or function.name == "__init__":
        return
    names = [name for name in parameters(function) if name != "self"]
    if expression.id in names:
        place = names.index(expression.id)
        wanted.setdefault(function.name, set()).update({place, expression.id})


def _templates(expression: ast.expr, module: Module, function: Function | None) -> Iterator[str]:
    for parts in _alternatives(expression, module, function):
        for text in map(str.strip, _text(parts).split("\n")):
            said = re.sub(r"{\w+}", "", text)
            if re.search(r"\w\w", said) and " " in text and text[0] not in ",;":
                yield text


def _alternatives(node: ast.expr, module: Module, function: Function | None, depth: int = 0) -> list[Parts]:
    """Every way in which an expression may become text; the expression itself where that is not known."""
    again: Callable[[ast.expr], list[Parts]] = lambda one: _alternatives(one, module, function, depth + 1)  # noqa: E731
    whole: list[Parts] = [(node,)]
    found = whole
    if depth > 6:
        return whole
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found = [(node.value,)]
    elif isinstance(node, ast.JoinedStr):
        found = _joined([again(part) for part in node.values])
    elif isinstance(node, ast.FormattedValue):
        found = again(node.value) if node.format_spec is None and node.conversion == -1 else [(node.value,)]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found = _joined([again(node.left), again(node.right)])
    elif isinstance(node, ast.IfExp):
        found = again(node.body) + again(node.orelse)
    elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        found = [parts for one in node.values for parts in again(one)]
    elif isinstance(node, ast.Name):
        known = [parts for value in module.values(node.id, function) for parts in again(value)]
        texts = [parts for parts in known if any(isinstance(part, str) for part in parts)]
        given = function is not None and node.id in parameters(function)
        found = texts + (whole if len(texts) < len(known) or not known or given else [])
    return found if 0 < len(found) <= MOST else whole


def _joined(alternatives: Sequence[list[Parts]]) -> list[Parts]:
    return [
        tuple(itertools.chain(*parts))
        for parts in itertools.islice(itertools.product(*alternatives), MOST + 1)
    ]


def _text(parts: Parts) -> str:
    said, names = "", dict[str, int]()
    for part in parts:
        if isinstance(part, str):
            said += part.replace("{", "{{").replace("}", "}}")
            continue
        name = _name(part)
        names[name] = names.get(name, 0) + 1
        said += "{" + name + (str(names[name]) if names[name] > 1 else "") + "}"
    return said


def _name(node: ast.AST) -> str:
    """A word for what an expression holds."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").lower() or "value"
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "join":
            return "names"
        return _name(node.args[0]) if node.args else _name(node.func)
    if isinstance(node, ast.Subscript | ast.Starred | ast.Await | ast.FormattedValue):
        return _name(node.value)
    if isinstance(node, ast.BinOp):
        return _name(node.right if isinstance(node.left, ast.Constant) else node.left)
    return "value"
