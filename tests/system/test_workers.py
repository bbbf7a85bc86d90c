"""Which worker this process is, by torchrun's variables."""

from __future__ import annotations

import pytest

from featcache.errors import BackboneError, CorruptCache, FeatcacheError, UsageError, restored
from featcache.heads.distributed import WorkerLost
from featcache.system.workers import Worker, error_of, require_master


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, None), ({"WORLD_SIZE": "1", "RANK": "0"}, None), ({"WORLD_SIZE": "1"}, None), ({"RANK": "1"}, None),
     ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Worker(3, 4, 1, 4)),
     ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Worker(3, 4, 1, 2)),
     ({"WORLD_SIZE": "4", "RANK": "3"}, Worker(3, 4, 3, 4))],
)  # fmt: skip
def test_from_environment_reads_torchruns_variables(given: dict[str, str], expected: Worker | None) -> None:
    assert Worker.from_environment(given) == expected


@pytest.mark.parametrize(
    "given",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "0"},
     {"WORLD_SIZE": "2", "RANK": "-1"}, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "1"},
     {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "0"}],
)  # fmt: skip
def test_from_environment_refuses_variables_out_of_range(given: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        Worker.from_environment(given)


def test_require_master_names_the_missing_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "")
    with pytest.raises(UsageError, match="MASTER_ADDR and MASTER_PORT"):
        require_master()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    require_master()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(kind, kind) for kind in (BackboneError, UsageError, CorruptCache, WorkerLost)]
    + [("BadRow", BackboneError), ("OfALaterVersion", FeatcacheError)],
)
def test_error_of_restores_the_class(kind: type | str, expected: type) -> None:
    name = kind if isinstance(kind, str) else kind.__name__
    found = error_of({"error": [name, "a", "b"]})
    assert type(found) is expected and found is not None and (found.what, found.hint) == ("a", "b")
    assert error_of({"run": "one"}) is None and restored(name, "a", None).hint is None
