"""JSON files of a model, which anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featcache.errors import BackboneError
from featcache.plain_file import read_plain
from featcache.system.units import size_text

MOST_BYTES = 256 << 20  # an index of a very large model has a few MB


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BackboneError: the file cannot be read, is far too large, or holds no JSON object.
    """
    found: dict[str, Any] = _read(path, dict, "object")
    return found


def read_array(path: Path) -> list[Any]:
    """The JSON array in a file; raises as `read_object` does."""
    found: list[Any] = _read(path, list, "array")
    return found


def object_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no such file; raises as `read_object` does."""
    return read_object(path) if path.is_file() else {}


def _read(path: Path, kind: type, name: str) -> Any:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise BackboneError(
                f"{path} has {size_text(size)}, far too much for a file of settings",
                hint="is it the file that the model's author published?",
            )
        content = json.loads(read_plain(path))
    except RecursionError:
        raise BackboneError(
            f"{path} is nested too deeply to be read", hint="no model needs that: use another one"
        ) from None
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot read {path}: {error}", hint="is the download complete?") from None
    if not isinstance(content, kind):
        raise BackboneError(
            f"cannot read {path}: it holds a JSON {type(content).__name__}, not an {name}",
            hint="is it the file that the model's author published?",
        )
    return content


def bad_field(path: Path, field: str, value: Any, wanted: str) -> BackboneError:
    """The error for a field with a value that cannot be meant."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return BackboneError(
        f"{path}: {field} is {shown if len(shown) <= 60 else shown[:57] + '...'}; it takes {wanted}",
        hint="correct the file, or use the model as its author published it",
    )
