"""A package that is missing, broken, too old or too new: one sentence with the pip command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from featcache.errors import UsageError
from featcache.system.outside import outside_error
from featcache.system.packages import PackageError, package_error, require_extra
from tests.support.cli_tools import environment

pytestmark = pytest.mark.bad_input

Declared = Callable[..., None]


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Declared:
    """Set what featcache declares, and which versions are installed."""

    def declare(*needs: str, **installed: str) -> None:
        def version(name: str) -> str:
            if name.replace("-", "_") not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name.replace("-", "_")]

        monkeypatch.setattr("featcache.system.packages.requires", lambda _: list(needs))
        monkeypatch.setattr("featcache.system.packages.version", version)

    return declare


def explained(error: Exception) -> str:
    found = package_error(error)
    assert isinstance(found, PackageError)
    return str(found)


def raised(code: str) -> Exception:
    try:
        exec(code)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(("need", "found"), [("datasets>=4.3", "4.0.0"), ("datasets<4", "5.1.dev1")])
def test_any_error_under_a_wrong_version_names_it(need: str, found: str, declared: Declared) -> None:
    declared(need, datasets=found)
    text = explained(TypeError("__init__() got an unexpected keyword argument 'fingerprint'"))
    bound = need.removeprefix("datasets")
    assert text == (
        f"featcache works with datasets {bound}, but {found} is installed\npip install 'datasets{bound}'"
    )


def test_an_error_under_declared_versions_is_not_explained_away(declared: Declared) -> None:
    declared("datasets>=4.3", 'fastapi>=0.115; extra == "serve"', datasets="4.3.0")
    assert package_error(TypeError("a defect")) is None
    assert outside_error(TypeError("a defect")) is None


@pytest.mark.parametrize(
    ("need", "hint"),
    [
        ("no-such-package>=1", "pip install 'no-such-package>=1'"),
        ("no-such-package>=1; extra == 'serve'", "pip install 'featcache[serve]'"),
        ("other>=1", "pip install 'no-such-package'"),  # what another package needs
    ],
)
def test_a_missing_package(need: str, hint: str, declared: Declared) -> None:
    declared(need)
    text = explained(raised("import no_such_package.part"))
    assert text == f"the package no-such-package is not installed\n{hint}"


def test_a_broken_package(declared: Declared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "half_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libgone.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(package.parent))
    declared("half-package>=2", half_package="2.1")
    text = explained(raised("import half_package"))
    assert text == (
        "half-package 2.1 cannot be imported: libgone.so: cannot open shared object file\n"
        "pip install --force-reinstall 'half-package>=2'"
    )


def test_require_extra_names_all_that_is_missing() -> None:
    require_extra("a report", "report", ["json", "re"])
    with pytest.raises(UsageError, match=r"a report needs no_a, no_b: [\s\S]*featcache\[report\]"):
        require_extra("a report", "report", ["json", "no_a", "no_b"])


@pytest.mark.parametrize(
    ("package", "argv"),
    [("rich_argparse", "--help"), ("rich", "compare"), ("numpy", "compare")],
)
def test_the_command_says_which_package_is_missing(package: str, argv: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from featcache_cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv.split()],
        capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert done.returncode == 1, done
    assert "pip install" in done.stderr and package.replace("_", "-") in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "defect" not in done.stderr
