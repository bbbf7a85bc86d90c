"""Xet, the storage of the Hugging Face hub's large files: given up for the plain download where it fails.

It is at another address than the hub, which mirrors and proxies do not always reach, and its client would try
for minutes in silence.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import TypeVar

from featcache.system.hub.listener import tell
from featcache.system.hub.timeouts import answer_timeout

T = TypeVar("T")


def or_plain_download(fetch: Callable[[], T]) -> T:
    """What `fetch` returns; if Xet fails in it, what it returns without Xet, from then on."""
    from huggingface_hub import constants

    seconds = f"{max(1, round(answer_timeout()))}s"
    for name in ("CONNECT_TIMEOUT", "READ_TIMEOUT", "RETRY_MAX_DURATION"):  # read when its client starts
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", seconds)
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    try:
        return fetch()
    except Exception as error:
        if constants.HF_HUB_DISABLE_XET or not _is_of_xet(error):
            raise
    tell("the hub's Xet storage does not answer; files are downloaded without it")
    constants.HF_HUB_DISABLE_XET = True
    return fetch()


def _is_of_xet(error: Exception) -> bool:
    return any(frame.f_code.co_name == "xet_get" for frame, _ in traceback.walk_tb(error.__traceback__))
