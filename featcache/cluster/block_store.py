"""Blocks of unfinished work on their way through a store, from machines that share no folder."""

from __future__ import annotations

from featcache.cache.staging import Staging, block_number
from featcache.system.durable import disk
from featcache.system.stores import Remote


def put_blocks(staging: Staging, store: Remote) -> None:
    """Move the committed blocks of a machine's own folder to the folder `store`.

    Raises:
        CacheError: the store refuses or cannot be reached; what is not there yet stays.
    """
    for path in sorted(staging.folder.glob("block-*.safetensors")):
        store.child(path.name).put(path, replace=True)
        disk.unlink(path)


def take_blocks(store: Remote, staging: Staging) -> None:
    """Move the blocks in the folder `store` into that of this machine; a damaged one is dropped.

    Raises:
        CacheError: the store cannot be reached, or the disk is full.
    """
    for name in sorted(store.listing()):
        if block_number(name) is not None:
            staging.take(name, store.child(name).read())
            store.child(name).remove()
