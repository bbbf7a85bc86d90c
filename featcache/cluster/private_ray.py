"""Every private call into Ray, each with a check and with a fallback if the call does not exist."""

from __future__ import annotations

import importlib
import warnings
from functools import lru_cache
from typing import Any


def keep_stdout_clean() -> None:
    """Drop the last lines that the manager of a lost node printed; Ray has no public setting for that.

    If Ray no longer has the private function, these lines go to standard output, and a warning says so once.
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
