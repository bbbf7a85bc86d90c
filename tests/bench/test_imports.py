"""The benchmark of imports times what it says, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli_tools import Cli


def test_an_import_is_measured_beside_a_copy(cli: Cli, tmp_path: Path) -> None:
    found = cli.ok(
        "bench", "import", "--rows", "500", "--width", "16", "--cache-dir", tmp_path / "c", "--json"
    ).json
    assert (found["rows"], found["width"], found["dtype"]) == (500, 16, "float32")
    assert found["bytes"] > 500 * 16 * 4
    assert set(found["seconds"]) == {"copy", "import", "again"}
    assert found["ratio"] > 0
    assert not list((tmp_path / "c").iterdir())
