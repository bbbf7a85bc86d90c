"""What the name of a model stands for: files of its own, an endpoint, or vectors that were imported."""

from __future__ import annotations

from featcache.errors import UsageError

FILES, ENDPOINT, VECTORS = "files", "endpoint", "vectors"
PREFIX = "vectors:"


def kind_of(model: str) -> str:
    """`endpoint` of `openai+http://...`, `vectors` of `vectors:NAME`; `files` of a folder and of a hub id."""
    if model.lower().startswith("openai+"):
        return ENDPOINT
    return VECTORS if model.startswith(PREFIX) else FILES


def vectors_name(model: str) -> str:
    """`NAME` of `vectors:NAME`."""
    return model.removeprefix(PREFIX)


def no_files(name: str) -> UsageError:
    """For what needs the files of a model, where the model `name` is behind an endpoint."""
    return UsageError(
        f"the model {name} is behind an endpoint, and this needs the files of a model",
        hint="endpoints work with extract, run, train-head, sweep, label, compare, report, predict and serve",
    )
