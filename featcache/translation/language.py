"""The language of sentences for people: `with in_language("zh")`, and `gettext` for every sentence.

Sentences are written in English where they are said; `zh/LC_MESSAGES/featcache.po` has them in Chinese. What
programs read stays English: keys of JSON, names of settings, views, runs and metrics. A context variable
holds the language, so that requests of one server may have different ones at the same time.
"""

from __future__ import annotations

import gettext as standard
import locale
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, reduce
from pathlib import Path
from typing import Any

from featcache.translation.agreement import agreed, has_odd_count

LANGUAGES = ("en", "zh")
VARIABLE = "FEATCACHE_LANG"
LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set counts, as in POSIX
_language: ContextVar[str] = ContextVar("language", default="en")


def language() -> str:
    """The language that is spoken now, one of LANGUAGES; English where nobody has chosen."""
    return _language.get()


@contextmanager
def in_language(chosen: str) -> Iterator[None]:
    """Speak `chosen`, one of LANGUAGES, inside the block, in this thread or task alone."""
    before = _language.set(chosen)
    try:
        yield
    finally:
        _language.reset(before)


def language_from(environ: Mapping[str, str]) -> str:
    """What FEATCACHE_LANG says, else the locale; English where that is another language.

    Args:
        environ: as `os.environ`; without a locale in it, the one that Python has from the system.
    """
    named = [environ[name] for name in (VARIABLE, *LOCALE_VARIABLES) if environ.get(name)]
    found = named[0] if named else _locale_of_the_system()
    return "zh" if found.lower().startswith(("zh", "chinese")) else "en"


def _locale_of_the_system() -> str:
    try:
        return locale.getlocale()[0] or ""
    except ValueError:  # a name that Python does not know, as on macOS: LC_CTYPE=UTF-8
        return ""


def gettext(message: str, **values: Any) -> str:
    """`message` in the language that is spoken, with `values` in its placeholders, as in `{rows:,}`."""
    return _filled(_catalogue().gettext(message) if message else "", values)  # "" has the header


def pgettext(context: str, message: str, **values: Any) -> str:
    """As `gettext`, of a message with another meaning elsewhere; `context` tells them apart."""
    return _filled(_catalogue().pgettext(context, message), values)


def ngettext(one: str, many: str, count: int, **values: Any) -> str:
    """As `gettext`: `one` for a count of 1, else `many`; the placeholder `{count}` is filled, too."""
    return _filled(_catalogue().ngettext(one, many, count), {"count": count, **values})


def listed(names: Iterable[str]) -> str:
    """`a, b, c`"""
    return gettext(", ").join(names)


def paragraph(sentences: Iterable[str]) -> str:
    """Whole sentences one after the other; between those in English is a blank."""
    found = list(sentences)
    return reduce(lambda one, two: gettext("{one} {two}", one=one, two=two), found) if found else ""


def noted(message: str, context: str = "") -> str:
    """`message` itself: marks a constant for the catalogue that is translated where it is shown."""
    return message


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """`text` with its values; in English a count of 1 has a singular after it, but in no text of others."""
    said = text.format_map(values) if values else text
    odd = any(isinstance(value, str) and has_odd_count(value) for value in values.values())
    return said if odd or language() != "en" else agreed(said)


def _catalogue() -> standard.NullTranslations:
    return catalogue_of(language())


@cache
def catalogue_of(language: str) -> standard.NullTranslations:
    """The compiled catalogue of one of LANGUAGES; that of English is empty."""
    if language == "en":
        return standard.NullTranslations()
    with catalogue_file(language).open("rb") as file:
        return standard.GNUTranslations(file)


def catalogue_file(language: str) -> Path:
    """The compiled catalogue, which is made from the `.po` file beside it."""
    return Path(__file__).parent / language / "LC_MESSAGES" / "featcache.mo"
