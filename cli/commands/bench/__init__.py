"""`featcache bench`."""

from featcache_cli.commands.bench.bench import add

__all__ = ["add"]
