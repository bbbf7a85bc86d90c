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
from featcache.system.packages import PackageError, package_error, require_extra, version_notes
from tests.support.cli_tools import Cli, environment

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


def test_versions_outside_of_the_bounds_are_named_at_once(declared: Declared) -> None:
    needs = ("torch<2.14,>=2.6", "numpy>=1.26", "rich", "absent>=1", 'ray[data]>=2; extra == "ray"')
    for torch in ("2.6", "2.6.0+cu124", "2.13.9"):
        declared(*needs, torch=torch, numpy="1.26.0", rich="1", ray="1")
        assert list(version_notes()) == []
    declared(*needs, torch="2.14.0", numpy="1.9.5")
    assert list(version_notes()) == [
        "featcache works with torch <2.14,>=2.6, but 2.14.0 is installed: pip install 'torch<2.14,>=2.6'",
        "featcache works with numpy >=1.26, but 1.9.5 is installed: pip install 'numpy>=1.26'",
    ]


def test_a_command_names_a_version_outside_of_the_bounds(
    declared: Declared, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    declared("torch<2.14,>=2.6", torch="2.5.1")
    assert "torch <2.14,>=2.6, but 2.5.1 is installed" in cli.ok("cache", "ls").err
    assert "torch" not in cli.ok("cache", "ls", "--quiet").err


def test_looking_at_versions_imports_none_of_the_packages() -> None:
    code = (
        "import sys, time; from featcache.system.packages import version_notes\n"
        "begun = time.process_time(); print(list(version_notes()), time.process_time() - begun)\n"
        "print({'packaging', 'numpy', 'torch', 'h5py', 'rich'} & sys.modules.keys())"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=True)
    notes, imported = done.stdout.splitlines()
    assert imported == "set()"
    assert float(notes.rsplit(" ", 1)[1]) < 0.1


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
