"""What is published: the wheel, its contents, its description, and its demo in an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import featcache

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source as a release is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("featcache", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_pyproject_lists_every_package() -> None:
    folders = {
        name: {path.parent.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("__init__.py")}
        for name, folder in (("featcache", "featcache"), ("featcache_cli", "cli"))
    }
    found = {".".join((name, *path.parts)) for name, paths in folders.items() for path in paths}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_wheel_contains_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for name, folder in (("featcache", "featcache"), ("featcache_cli", "cli")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{name}/{path.relative_to(ROOT / folder).as_posix()}" in packed


def test_wheel_passes_twine_check(wheel: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_version_is_that_of_the_distribution() -> None:
    assert featcache.__version__ == PYPROJECT["project"]["version"]


def test_dir_lists_the_public_names() -> None:
    assert set(featcache.__all__) <= set(dir(featcache))


@pytest.mark.slow
def test_demo_works_from_the_wheel_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Needs the package index, as any installation does."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    for what in ("torch", f"featcache[demo] @ {wheel.as_uri()}"):
        done = subprocess.run([*pip, what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "featcache", "demo"], cwd=work, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "featcache.toml is written" in done.stdout + done.stderr
    assert len(list(work.glob("reports/*/run.json"))) == 4
