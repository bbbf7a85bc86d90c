"""What all processes of peers have in common."""

from __future__ import annotations

import os
import sys

from featcache.system.machine import SPINS, SPINS_ALONE


class Unavailable(Exception):
    """The peer cannot run on this machine; the message is the reason."""


def environment(python: str) -> dict[str, str]:
    """That of a peer's process: no hub is asked, and its threads wait as they would without featcache.

    Packages that PYTHONPATH names are for this interpreter, not for another `python`.
    """
    kept = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if python != sys.executable:
        kept.pop("PYTHONPATH", None)
    if kept.get("GOMP_SPINCOUNT") in (SPINS, SPINS_ALONE):
        del kept["GOMP_SPINCOUNT"]
    return kept


def cannot_start(python: str, error: OSError) -> Unavailable:
    return Unavailable(f"{python} cannot be started: {error.strerror}")


def failure(stderr: str, code: int) -> Unavailable:
    """Why a process of a peer has failed: the last line of its stderr."""
    last = (stderr.strip().splitlines() or [f"exit code {code}"])[-1]
    return Unavailable(last.removeprefix("ModuleNotFoundError: ").removeprefix("SystemExit: "))
