"""`featcache cache`."""

from featcache_cli.commands.cache.cache import add

__all__ = ["add"]
