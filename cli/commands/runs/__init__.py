"""`featcache runs`."""

from featcache_cli.commands.runs.runs import add

__all__ = ["add"]
