"""The notebooks run from the first cell to the last, and hold no outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.doc_blocks import ROOT, with_demo_model

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SHOWN = {  # what a reader must see in the outputs of a notebook
    "quickstart": ("<caption>", "verdict", "房间很干净", "prediction"),
    "choosing-a-head": ("ridge-depth-1", "tie", "train rows"),
    "cleaning-labels": ("turned labels are among", "suggested"),
}


def test_there_are_three_and_none_has_outputs() -> None:
    assert sorted(path.stem for path in NOTEBOOKS) == sorted(SHOWN)
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert [cell.get("outputs", []) for cell in cells] == [[]] * len(cells), path.name


@pytest.mark.docs
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path,
    demo_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """With no hub: the demo's encoder takes the place of the default model."""
    nbformat = pytest.importorskip("nbformat", reason="pip install 'featcache[docs]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'featcache[docs]'")
    request.getfixturevalue("socket_enabled")  # a kernel is talked to by sockets
    with_demo_model(tmp_path, demo_model)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    seen = json.dumps([cell.get("outputs", []) for cell in notebook.cells], ensure_ascii=False)
    for words in SHOWN[path.stem]:
        assert words in seen, words
