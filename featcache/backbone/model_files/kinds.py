"""What the name of a model stands for: files of its own, or vectors that were imported."""

from __future__ import annotations

FILES, VECTORS = "files", "vectors"
PREFIX = "vectors:"


def kind_of(model: str) -> str:
    """`vectors` of `vectors:NAME`; `files` of a folder and of a hub id."""
    return VECTORS if model.startswith(PREFIX) else FILES


def vectors_name(model: str) -> str:
    """`NAME` of `vectors:NAME`."""
    return model.removeprefix(PREFIX)
