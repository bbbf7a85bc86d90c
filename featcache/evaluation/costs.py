"""What wrong answers cost: a matrix by true and predicted label, and the answers that cost least."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.plain_file import read_plain

EXAMPLE = 'costs by true, then predicted label: {"bad": {"good": 5}, "good": {"bad": 1}}, or a csv table'


def cheapest(probabilities: np.ndarray, costs: np.ndarray | None) -> np.ndarray:
    """The label of each row that is expected to cost least, int64 `[N]`; the first of equals.

    The expected cost of label j is the sum over i of `probabilities[i] * costs[i, j]`: the optimal decision
    where the probabilities are right (Elkan, The foundations of cost-sensitive learning, IJCAI 2001).

    Args:
        probabilities: `[N, C]`.
        costs: float64 `[C, C]`, true by predicted label. None: every error costs the same, so that it is the
            most probable label.
    """
    best = probabilities.argmax(axis=1) if costs is None else (probabilities @ costs).argmin(axis=1)
    return np.asarray(best)


def check_costs(costs: np.ndarray, label_names: Sequence[str]) -> None:
    """Refuse a matrix by which no decision can be made.

    Raises:
        ValueError: another shape than `[C, C]`, a number that is negative or not finite, or a wrong answer
            that never costs anything.
    """
    classes = len(label_names)
    if costs.shape != (classes, classes):
        shape = " x ".join(map(str, costs.shape))
        raise ValueError(f"the matrix is {shape}, and there are {classes} labels: {', '.join(label_names)}")
    for true, said in np.argwhere(~(np.isfinite(costs) & (costs >= 0))):
        where = f"{label_names[true]!r} predicted as {label_names[said]!r}"
        raise ValueError(f"{where} costs {costs[true, said]}: a finite number from 0 on is needed")
    if (costs == costs.diagonal()[:, None]).all():
        raise ValueError("no wrong answer costs more than the right one; nothing can be decided by that")


def read_costs(path: str | Path, label_names: Sequence[str]) -> np.ndarray:
    """The cost matrix in a file, float64 `[C, C]`, true by predicted label in the order of `label_names`.

    Args:
        path: `.json`: by true label, then by predicted label, or a list of rows in the order of the labels.
            Any other is a csv or tsv table: predicted labels in the first line, the true label first in each
            other. A right answer that is not there costs 0.

    Raises:
        UsageError: no such file, no such table, or labels and numbers that do not fit; names the first one.
    """
    file = Path(path)
    try:
        text = read_plain(file).decode("utf-8-sig")
        rows = json.loads(text) if file.suffix.lower() == ".json" else _table(text)
        costs = _matrix(rows, label_names)
        check_costs(costs, label_names)
    except OSError as error:
        raise UsageError(f"--costs: cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:  # of JSON and UTF-8, too
        raise UsageError(f"--costs {file}: {error}", hint=EXAMPLE) from None
    return costs


def _table(text: str) -> dict[str, dict[str, str]]:
    """Rows of a csv or tsv table by their first cell, then by the first line."""
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter) if any(line)]
    if len(lines) < 2:
        raise ValueError("a line with the predicted labels, and one for each true label are needed")
    said = _once([name.strip() for name in lines[0][1:]])
    true = _once([line[0].strip() for line in lines[1:]])
    if odd := next((line for line in lines if len(line) != len(lines[0])), None):
        raise ValueError(f"the line of {odd[0]!r} has {len(odd)} cells, the first one {len(lines[0])}")
    return {name: dict(zip(said, line[1:], strict=True)) for name, line in zip(true, lines[1:], strict=True)}


def _once(names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"label {twice!r} is there twice")
    return names


def _matrix(rows: Any, names: Sequence[str]) -> np.ndarray:
    if isinstance(rows, list):
        found = [[_number(cell) for cell in row] if isinstance(row, list) else [] for row in rows]
        if len({len(row) for row in found}) > 1 or not found:
            raise ValueError("its rows have different lengths")
        return np.array(found, np.float64)
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
        raise ValueError("it holds no costs by true and predicted label")
    for name in (*rows, *(name for row in rows.values() for name in row)):
        if name not in names:
            raise ValueError(f"there is no label {name!r}; the labels are: {', '.join(names)}")
    costs = np.zeros((len(names), len(names)))
    for i, true in enumerate(names):
        for j, said in enumerate(names):
            cell = rows.get(true, {}).get(said, 0 if i == j else None)
            if cell is None:
                raise ValueError(f"the cost of {true!r} predicted as {said!r} is missing")
            costs[i, j] = _number(cell)
    return costs


def _number(cell: Any) -> float:
    if isinstance(cell, (int, float, str)) and not isinstance(cell, bool):
        try:
            return float(cell)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{cell!r} is no number")
