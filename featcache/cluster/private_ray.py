"""Every private call into Ray, each with a check and with what happens where the call is absent."""

from __future__ import annotations

import importlib
import warnings
from functools import lru_cache
from typing import Any


def keep_stdout_clean() -> None:
    """Drop what a node's manager last printed before it was lost; Ray has no public setting for that.

    Where Ray has no such function any more, these lines come to standard output, and a warning says so once.
    """
    worker = _worker_module()
    if callable(getattr(worker, "print_to_stdstream", None)):
        worker.print_to_stdstream = lambda *_, **__: None
    else:
        _warn()


def _worker_module() -> Any:
    try:
        return importlib.import_module("ray._private.worker")
    except ImportError:
        return None


@lru_cache(maxsize=1)
def _warn() -> None:
    warnings.warn("this version of Ray prints the last lines of lost nodes to standard output", stacklevel=3)
