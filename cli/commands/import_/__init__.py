"""`featcache import`."""

from featcache_cli.commands.import_.import_ import add

__all__ = ["add"]
