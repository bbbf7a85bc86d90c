"""`featcache completion`."""

from featcache_cli.commands.completion.completion import add

__all__ = ["add"]
