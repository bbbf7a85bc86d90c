"""Folders of static models as model2vec and sentence-transformers write them, and their vectors by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from tests.support.sentence_models import write_json
from tests.support.tiny import VOCABULARY, write_tokenizer

WIDTH = 24
UNKNOWN = 1  # the id of [UNK]


def table_of(rows: int = len(VOCABULARY), seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """float32 `[rows, width]`; common tokens have small vectors, as in real tables."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(rows, width)) * draw.uniform(0.1, 2, size=(rows, 1))).astype(np.float32)


def write_model2vec(
    folder: Path, table: np.ndarray, *, normalize: bool = True, modules: bool = True, **more: np.ndarray
) -> Path:
    """As model2vec saves a StaticModel.

    Args:
        modules: whether there is a modules.json, which earlier versions did not write.
        more: `weights` and `mapping`.
    """
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    save_file({"embeddings": table, **more}, folder / "model.safetensors")
    about = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": normalize}
    write_json(folder / "config.json", {**about, "hidden_dim": table.shape[1], "seq_length": 1000000})
    if modules:
        write_modules(folder, ".", *(["Normalize"] if normalize else []))
    return folder


def write_static_embedding(folder: Path, table: np.ndarray, path: str = "", *after: str) -> Path:
    """As sentence-transformers saves a StaticEmbedding, in a folder of its own where `path` names one."""
    (folder / path).mkdir(parents=True)
    write_tokenizer(folder / path)
    (folder / path / "tokenizer_config.json").unlink()
    save_file({"embedding.weight": table}, folder / path / "model.safetensors")
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"})
    write_modules(folder, path, *after)
    return folder


def write_modules(folder: Path, path: str, *after: str) -> None:
    """modules.json of a StaticEmbedding in the folder `path`, and what follows it."""
    own: dict[str, Any] = {"idx": 0, "name": "0", "path": path}
    own["type"] = "sentence_transformers.models.StaticEmbedding"
    rest = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(after, 1)
    ]
    write_json(folder / "modules.json", [own, *rest])


def by_hand(
    folder: Path,
    table: np.ndarray,
    texts: Sequence[str],
    *,
    drop: bool,
    normalize: bool,
    longest: int = 10**9,
) -> np.ndarray:
    """The vectors float64 `[N, D]` by a loop over texts.

    Args:
        table: a row for each token.
        drop: leave unknown tokens out, as model2vec does.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        kept = [number for number in ids if not (drop and number == UNKNOWN)][:longest]
        row = table[kept].astype(np.float64).mean(0) if kept else np.zeros(table.shape[1])
        rows.append(row / (np.linalg.norm(row) or 1) if normalize else row)
    return np.array(rows)
