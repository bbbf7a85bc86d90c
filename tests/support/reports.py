"""A made-up report with every part in it, with hostile texts and labels on request."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from featcache.reporting.confusion import most_confused
from featcache.reporting.document import (
    ClassScore,
    MatrixCell,
    MetricChange,
    ReportedRun,
    RunComparison,
    RunReport,
    TrainingCurve,
)
from featcache.system.documents import tidied
from featcache.system.text import readable

ALERT = "<script>alert(1)</script>"
HOSTILE = (
    ALERT,
    '"><img src=x onerror=alert(1)>',
    "</style></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "| a | b |\n\n# head [x](javascript:alert(1)) ![](http://example.com/a.png)",
    "$\\frac{1}{$ #0a0b0c &amp; \x00 \x1b[31m \ud800 \u202e",
    "_一个很长很长的标签名称",
)


def report(names: tuple[str, ...] = ("差评", "好评"), text: str = "房间很干净") -> RunReport:
    """A report with every part in it; `names` and `text` wherever a source's words may stand."""
    first, last = names[0], names[-1]
    row = {"split": "test", "row": 3, "row_hash": "ab" * 32, "label": first, "text": text}
    line = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 10}
    bins = [{"from_": 0.4, "to": 0.6, "rows": 5, "confidence": 0.55, "accuracy": 0.6, "interval": (0.3, 0.9)}]
    change = {"difference": 0.02, "interval": [0.01, 0.03], "p": 0.01, "tie": False}
    run = {
        "run": "linear-1", "head": "linear", "view": "last/mean", "validation_accuracy": 0.9, "accuracy": 0.9,
        "interval": [0.8, 0.95], "macro_f1": 0.9, "log_loss": 0.3, "ece": None, "seconds": 3.0, "epochs": 3,
        "parameters": 10,
    }  # fmt: skip
    score = {
        "split": "test", "rows": 50, "removed": 5, "whole": 0.9, "whole_interval": [0.8, 0.95],
        "without": 0.8, "without_interval": [0.7, 0.9], "leaked": 1.0,
    }  # fmt: skip
    curve = {"run": "linear-1", "best_epoch": 2, "epoch": [1, 2, 3]}
    curve |= {
        f"{part}_{what}": [0.5, 0.6, 0.7] for part in ("train", "validation") for what in ("loss", "accuracy")
    }
    return msgspec.convert(
        tidied({
            "format": 1,
            "split": "test",
            "about": {
                "run": "linear-1", "head": "linear", "view": "last/mean", "task": "single-label",
                "model": text,
                "revision": None, "data": text, "rows": {"train": 100}, "truncated": {}, "prompt": text,
                "max_length": 512, "settings": {"lr": 0.1}, "seed": 0, "label_names": list(names),
                "best_epoch": 2, "parameters": 10, "created": "2026", "calibration": None, "split": "test",
            },
            "headline": {
                "accuracy": {"value": 0.9, "interval": [0.8, 0.95]}, "ece": {"value": None, "interval": None},
            },
            "runs": [run, run | {"run": "exact-1"}],
            "base": "linear-1",
            "comparisons": [
                {"run": "exact-1", "rows": 50, "only_right": [1, 2], "accuracy": change, "macro_f1": change}
            ],
            "curves": [curve],
            "learning_curves": [
                {"head": "exact", "metric": "accuracy", "split": "test",
                 "points": [[10, 0.5, 0.4, 0.6], [100, 0.7, 0.6, 0.8]]}
            ],
            "few_labels": {
                "split": "test",
                "seeds": 5,
                "scores": [
                    {"recipe": name, "rows_per_class": size, "accuracy": 0.6 + size / 100, "deviation": 0.02}
                    for name, sizes in (("ridge on last/mean", (8, 16)), ("contrastive step on b", (8,)))
                    for size in sizes
                ],
            },
            "confusion": [[5 if i == j else 1 for j in names] for i in names],
            "classes": [line | {"label": name} for name in names],
            "reliability": bins,
            "confidence": {"edges": [0.0, 0.5, 1.0], "right": [0, 4], "wrong": [1, 1]},
            "mistakes": [
                row | {"predicted": last, "confidence": 0.99, "tokens": 9, "cut": True, "label_doubted": None,
                       "reason": f"The nearest train text is labelled {last}."}
            ],
            "verdict": [f"linear-1 is right on 90.00 %. {text[:100]}"],
            "majority": {"label": first, "accuracy": 0.5},
            "checks": [
                {"name": "duplicates", "state": "good", "sentence": "no text is twice in a split"},
                {"name": "similar labels", "state": "bad", "sentence": f"{first}, {last}", "hint": text},
            ],
            "matrix": [
                {"true": 0, "predicted": len(names) - 1, "rows": 9, "examples": [
                    {"row": 3, "row_hash": "ab" * 32, "confidence": 0.9, "text": text},
                    {"row": None, "row_hash": "cd" * 32, "confidence": 0.8, "text": None},
                ]},
            ],
            "matrix_labels": list(range(len(names)))[:12],
            "wrong": 7, "wrong_and_doubted": None,
            "origin": {"made": "2026-01-02", "version": "0.2.0", "command": f"featcache report '{text}'",
                       "files": ["report.html", "report.md"]},
            "risk_curve": {
                "points": [[0.5, 0.1], [1.0, 0.2]], "area": 0.12, "threshold": 0.7, "promise": text,
                "scores": {
                    "rows": 50, "answered": 40, "wrong": 4, "wrong_in_all": 10, "out_of_scope": 1,
                    "area": 0.12, "curve": [[0.5, 0.1], [1.0, 0.2]],
                },
            },
            "lengths": [{"from_": 1, "to": 9, "rows": 5, "accuracy": 0.5, "interval": (0.3, 0.9)}],
            "truncated": {
                "cut": {"rows": 2, "accuracy": 0.5, "interval": (0.1, 0.9)},
                "whole": {"rows": 3, "accuracy": 1.0, "interval": (0.4, 1.0)},
            },
            "map": {
                "method": "pca", "explained": 0.3, "rows": 3, "x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 0.0],
                "label": [first, last, first], "right": [True, False, True],
            },
            "cost": {
                "epochs": 100, "assumed_epochs": True, "batch": 50, "texts_once": 10, "tokens_once": 100,
                "tokens_encoded": 90, "extraction_seconds": 3.0, "heads": 2, "head_seconds": 1.0,
                "texts_tutorial": 1000, "tokens_tutorial": 20000, "tokens_a_second": 10.0,
                "tutorial_seconds": 2000.0, "factor": 200.0,
            },
            "data": {
                "view": "last/mean", "threshold": 0.95, "label_names": list(names), "splits": {"test": 50},
                "balance": {"test": dict.fromkeys(names, 5)},
                "truncation": {
                    "test": {"rows": 50, "cut": 2, "max_length": 512, "tokens": 99, "median_tokens": 5.0,
                             "longest_tokens": 512, "cut_by_label": dict.fromkeys(names, 1)}
                },
                "duplicates": {
                    "splits": {"test": {"rows": 50, "texts": 49, "equal": 1, "near": 0}},
                    "near_pairs": 1, "near_list": [{"cosine": 0.97, "rows": [row, row]}],
                    "equal_list": [row | {"times": 2}], "conflicting_texts": 1, "conflicting_rows": 2,
                    "conflict_list": [row],
                },
                "leakage": {
                    "pairs": [
                        {"split": "test", "in_": "train", "rows": 5, "equal": 4, "near": 1, "other_label": 1}
                    ],
                    "list_": [row | {"cosine": 1.0, "as_": row}], "scores": [score],
                },
                "label_errors": {
                    "rows": 1, "splits": {"test": 1}, "unjudged": 0, "not_looked_for": "",
                    "list_": [row | {"suggested": last, "belief": 0.01}],
                },
                "outliers": {"rows": 1, "beyond": 0.8, "neighbours": 10, "list_": [row | {"distance": 0.9}]},
                "no_texts": "",
            },
            "without_leaks": score,
            "notes": [text],
        }, text=readable),
        RunReport,
    )  # fmt: skip


TEXT = (
    "酒店位置不错，离地铁站很近，早餐种类也多；就是隔音差了一点，晚上能听见走廊里的说话声，希望以后可以改进。"
)
LABELS = (
    "差评",
    "好评",
    "物流速度",
    "包装破损或缺件",
    "客服态度",
    "positive",
    "疑似广告或刷单的评价",
    "price",
)
KINDS = ("exact-depth-lexical", "logistic-last-mean", "no-backbone", "a-run-that-somebody-gave-a-long-name")


def report_of(runs: int, classes: int) -> RunReport:
    """A report with as many runs, each with its curve, and as many classes, with texts of several lines."""
    draw = np.random.default_rng(runs * classes)
    names = LABELS[:classes] + tuple(f"第 {place} 类" for place in range(len(LABELS), classes))
    made = report(names, TEXT)
    counts = draw.poisson(1.2, (classes, classes)) + np.diag(draw.integers(20, 400, classes))
    confused = most_confused(counts.tolist())
    first, *others = lines = [_run_of(made.runs[0], place) for place in range(runs)]
    cells = [(true, predicted) for true in confused for predicted in confused if counts[true, predicted]]
    return replace(
        made,
        about=replace(made.about, run=first.run),
        runs=lines,
        base=first.run if others else None,
        comparisons=[
            RunComparison(run.run, 1200, [14, 25], change, change)
            for run in others
            for change in [_change(run, first)]
        ],
        curves=[_curve_of(run, place) for place, run in enumerate(lines)],
        confusion=counts.tolist(),
        matrix_labels=confused,
        matrix=[MatrixCell(*cell, int(counts[cell]), made.matrix[0].examples) for cell in cells],
        classes=[ClassScore(name, 0.9, 0.85, 0.87, 120) for name in names],
    )


def _run_of(run: ReportedRun, place: int) -> ReportedRun:
    share = round(0.932 - 0.011 * place, 4)
    ends = (share - 0.02, share + 0.018)
    return replace(run, run=f"{KINDS[place % len(KINDS)]}-{place + 1}", accuracy=share, interval=ends)


def _change(run: ReportedRun, first: ReportedRun) -> MetricChange:
    gain = (run.accuracy or 0) - (first.accuracy or 0)
    return MetricChange(gain, (gain - 0.01, gain + 0.012), 0.2, tie=gain > -0.012)


def _curve_of(run: ReportedRun, place: int) -> TrainingCurve:
    epochs = list(range(1, 41))
    loss = [0.7 * 0.93**epoch + 0.2 for epoch in epochs]
    return TrainingCurve(
        run=run.run,
        best_epoch=31,
        epoch=epochs,
        train_loss=loss,
        train_accuracy=[1 - value / 2 for value in loss],
        validation_loss=[value + 0.02 * place for value in loss],
        validation_accuracy=[0.95 - value / 2 - 0.01 * place for value in loss],
    )
