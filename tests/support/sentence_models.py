"""Tiny models with sentence-transformers settings: saved by that library, or written as it did before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OLD = "sentence_transformers.models."  # how earlier versions name their modules


def write_json(file: Path, content: Any) -> Path:
    """Write a JSON file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def write_settings(
    folder: Path,
    pooling: Mapping[str, Any],
    after: Sequence[str] = (),
    *,
    about: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
) -> Path:
    """Give the model in `folder` sentence-transformers settings, in the form of earlier versions.

    Args:
        pooling: the content of 1_Pooling/config.json.
        after: kinds of the modules after it, e.g. `Normalize`.
        about: the content of config_sentence_transformers.json.
        transformer: the content of sentence_bert_config.json.
    """
    kinds = ["Transformer", "Pooling", *after]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": OLD + kind}
        for n, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", about or {})
    write_json(folder / "sentence_bert_config.json", transformer or {})
    return folder


def copy_of(model: Path, folder: Path) -> Path:
    """The files of a model in a folder of their own."""
    shutil.copytree(model, folder)
    return folder


def made_by_library(model: Path, folder: Path, modules: Sequence[Any], **settings: Any) -> Any:
    """The model in `folder` after sentence-transformers saved it there and loaded it again.

    Args:
        model: folder of the plain backbone.
        modules: what follows the Transformer.
        settings: of `SentenceTransformer`; `length` and `lower` are those of its Transformer.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    lower, length = settings.pop("lower", False), settings.pop("length", None)
    body = Transformer(str(model), do_lower_case=lower, max_seq_length=length)
    SentenceTransformer(modules=[body, *modules], device="cpu", **settings).save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def encoded(model: Any, texts: Sequence[str], **how: Any) -> np.ndarray:
    """What `model.encode` makes of each text alone, float32 `[N, D]`: padding can change nothing."""
    return np.stack([model.encode(text, show_progress_bar=False, **how) for text in texts])
