"""Two machines that share a cache in a store of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featcache.system import downloads
from tests.support.machines import Machine


@pytest.fixture
def machines(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, each with nothing mirrored yet."""

    def use(machine: Machine) -> None:
        monkeypatch.setenv(downloads.FOLDER, str(machine.root))

    yield (
        Machine(tmp_path / "here", f"{url}/cache", use),
        Machine(tmp_path / "there", f"{url}/cache", use),
    )


@pytest.fixture
def here(machines: tuple[Machine, Machine]) -> Machine:
    return machines[0]


@pytest.fixture
def there(machines: tuple[Machine, Machine]) -> Machine:
    return machines[1]
