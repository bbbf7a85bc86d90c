"""`featcache label`."""

from featcache_cli.commands.label.label import add

__all__ = ["add"]
