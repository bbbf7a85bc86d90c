"""Runs whose heads are made up, on tiny backbones: what the exports are tried on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from featcache.backbone.model_files.find import find_model
from featcache.finetuning.weights import TRAINED, load_plain
from featcache.fingerprint import TunedPart
from featcache.heads.head import Head
from featcache.heads.scorers import Linear, Mlp
from featcache.runs.record import RUN_FILE, read_run_record
from featcache.runs.run import Run
from tests.support.stock import encoder, load, sentence, settings_of

NAMES = ("差评, bad", "neutral 中", "好评/good")
TEXTS = ["好 房间", "very bad book", sentence(20), sentence(100), "一", "差 电池 失望 " * 3]
FEATURES = ("prompt", "max_length", "extend_positions", "long_text", "overlap", "storage")


def made_run(
    model: Path,
    folder: Path,
    *,
    view: str = "last/cls",
    scorer: Any = None,
    dtype: str = "float32",
    tuned: bool = False,
    pairs: bool | None = None,
    **head: Any,
) -> Run:
    """A run that tells TEXTS apart, as `load_run` reads it.

    Args:
        scorer: a scorer, or `mlp` for one with a hidden layer; linear by default.
        tuned: the highest block has other weights, as after fine-tuning.
        head: settings of the features, the rest for `Head`.
    """
    options = {name: head.pop(name) for name in FEATURES if name in head}
    own = encoder(load(model, dtype=dtype), view, **options)
    x = own(TEXTS).views[view].astype(np.float32)
    middle = x.mean(axis=0)
    weight = np.random.default_rng(1).normal(size=(3, len(TEXTS))) @ (x - middle)
    weight = 2 * weight / (weight @ (x - middle).T).std()  # tiny models make x nearly equal
    linear = Linear(weight.astype(np.float32), -(weight @ middle).astype(np.float32))
    folder.mkdir()
    document = replace(own.document, tuned=_tuned(model, folder) if tuned else None)
    made = Head(_scorer(scorer, linear), NAMES, view, document, "linear", **head)
    made.save(folder)
    backbone = {"model": str(model), "commit": None, "revision": None, "trust_remote_code": False}
    record = {
        "format": 1,
        "head": "linear",
        "view": view,
        "fingerprint": made.fingerprint,
        "created": "2025-01-01T00:00:00+0000",
        "seconds": 1.0,
        "history": [],
        "backbone": backbone | {"batch_tokens": None},
        "metrics": {"validation": {"accuracy": 0.9, "macro_f1": 0.89}, "test": {"accuracy": 0.8765}},
        "rows": {"train": 60},
        "data": {"dataset": "x/y", "data_files": {"train": "/private/of/mine/train.csv"}},
        "pairs": pairs,
    }
    (folder / RUN_FILE).write_text(json.dumps(record), encoding="utf-8")
    return Run(folder, read_run_record(folder))


def _scorer(asked: Any, linear: Linear) -> Any:
    """`mlp`: the linear one's logits and their negatives through ReLU, so that it tells as much apart."""
    if asked != "mlp":
        return asked or linear
    both = np.concatenate([linear.weight, -linear.weight]), np.concatenate([linear.bias, -linear.bias])
    eye = np.eye(len(linear.bias), dtype=np.float32)
    return Mlp(*both, np.concatenate([eye, -0.7 * eye], axis=1), np.zeros(len(eye), np.float32))


def _tuned(model: Path, folder: Path) -> TunedPart:
    """A trained part in the folder of the run: the highest block's matrices, others than they were."""
    plain = load_plain(settings_of(model), find_model(settings_of(model))).model
    last = f".{plain.config.num_hidden_layers - 1}."
    draw = torch.Generator().manual_seed(3)
    weights = {
        name: value + value.std() * torch.randn(value.shape, generator=draw)
        for name, value in plain.named_parameters()
        if last in name and value.dim() > 1
    }
    content = save(weights)
    (folder / f"{TRAINED}.safetensors").write_bytes(content)
    return TunedPart("top-blocks:1", 2, hashlib.sha256(content).hexdigest())
