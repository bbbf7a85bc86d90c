"""The Python packages that featcache needs: what is wrong with one, and the pip command that helps."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

from featcache.errors import FeatcacheError, UsageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

INSTALLED_AS = {"sklearn": "scikit-learn"}  # modules whose package has another name


class PackageError(FeatcacheError):
    """A Python package is missing, broken, or of a version that featcache does not work with."""


def require_extra(what: str, extra: str, modules: Sequence[str]) -> None:
    """Check that the modules of an extra can be found, without importing them.

    Args:
        what: needs them, for the message.

    Raises:
        UsageError: names those that are missing, and the command that installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{what} needs {', '.join(missing)}: not installed here",
            hint=f"pip install 'featcache[{extra}]'",
        )


def package_error(error: Exception) -> PackageError | None:
    """What is wrong with the installed packages, if that can be why `error` was raised; None otherwise."""
    if isinstance(error, ImportError):
        return _not_importable(error)
    for need in _needs():
        found = _version_of(need.name)
        if found is not None and not need.specifier.contains(found, prereleases=True):
            return _wrong_version(need, found)
    return None


def version_notes() -> Iterator[str]:
    """A sentence for each package that every command needs and that is older or newer than what was tried.

    It takes some 13 ms: neither these packages nor `packaging` are imported.
    """
    for declared in _declared():
        need = re.fullmatch(r"([\w.-]+)((?:[<>]=?[\d.]+,?)*)", declared)  # those of extras have a marker
        found = _version_of(need[1]) if need else None
        if need and found is not None and not _is_within(found, need[2]):
            yield f"{_mismatch(need[1], need[2], found)}: pip install '{declared}'"


def _is_within(found: str, bounds: str) -> bool:
    compare = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
    return all(
        compare[sign](_release(found), _release(limit))
        for sign, limit in re.findall(r"([<>]=?)([\d.]+)", bounds)
    )


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, without zeros at the end: 2.6 is 2.6.0."""
    numbers = re.match(r"[\d.]*", version)
    parts = [int(part) for part in (numbers[0] if numbers else "").split(".") if part]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _declared() -> list[str]:
    """What the installed featcache declares, the packages of its extras included."""
    try:
        return requires("featcache") or []
    except PackageNotFoundError:
        return []


def _needs() -> Iterator[Requirement]:
    from packaging.requirements import Requirement

    yield from map(Requirement, _declared())


def _not_importable(error: ImportError) -> PackageError:
    module = (error.name or "").partition(".")[0]
    missing = isinstance(error, ModuleNotFoundError) and find_spec(module or "?") is None
    name = module if missing else _importing(error.__traceback__) or module
    package = INSTALLED_AS.get(name, name).replace("_", "-")
    need = next((one for one in _needs() if one.name.lower().replace("_", "-") == package.lower()), None)
    if need is not None and (found := _version_of(need.name)) is not None:
        if not need.specifier.contains(found, prereleases=True):
            return _wrong_version(need, found)
        package = f"{need.name} {found}"
    if not missing:
        first = (str(error).splitlines() or [""])[0]
        again = f"pip install --force-reinstall '{need or name}'"
        return PackageError(f"{package or 'a package'} cannot be imported: {first}", hint=again)
    extra = re.search(r"extra == ['\"](.+?)['\"]", str(need.marker)) if need and need.marker else None
    wanted = f"featcache[{extra[1]}]" if extra else f"{need.name}{need.specifier}" if need else package
    return PackageError(f"the package {package} is not installed", hint=f"pip install '{wanted}'")


def _wrong_version(need: Requirement, found: str) -> PackageError:
    what = _mismatch(need.name, str(need.specifier), found)
    return PackageError(what, hint=f"pip install '{need.name}{need.specifier}'")


def _mismatch(package: str, bounds: str, found: str) -> str:
    return f"featcache works with {package} {bounds}, but {found} is installed"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _importing(trace: TracebackType | None) -> str | None:
    """The package whose code raised an error: the one of the last frame of installed packages."""
    found = None
    while trace is not None:
        place = re.search(r"[/\\](?:site|dist)-packages[/\\](\w+)", trace.tb_frame.f_code.co_filename)
        found = place[1] if place else found
        trace = trace.tb_next
    return found
