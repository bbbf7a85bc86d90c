"""What transformers, tokenizers and safetensors raise for files and texts that they cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featcache.errors import BackboneError, FeatcacheError


@contextmanager
def library_errors(what: str, hint: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises into a BackboneError that begins with `what`.

    They raise errors of all kinds; a panic of the Rust code in tokenizers is not even an `Exception`.
    """
    try:
        yield
    except (FeatcacheError, MemoryError, UnicodeEncodeError):  # UnicodeEncodeError: the path is not UTF-8
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BackboneError(f"{what}: {type(error).__name__}: {error}", hint=hint) from error
