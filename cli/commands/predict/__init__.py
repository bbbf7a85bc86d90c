"""`featcache predict`."""

from featcache_cli.commands.predict.predict import add

__all__ = ["add"]
