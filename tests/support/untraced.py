"""Exports to ONNX without the trace, which takes ten seconds: a session calls the module itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from featcache.export.onnx_graph import OUTPUT, Classifier


def export_untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, `model.onnx` stands for the module that would be traced, and a session calls that."""
    kept: list[tuple[Classifier, Sequence[str]]] = []

    def write_graph(classifier: Classifier, inputs: Sequence[str], path: Path) -> None:
        path.write_text(str(len(kept)))
        kept.append((classifier, inputs))

    class Session:
        def __init__(self, path: str | Path, **_: Any) -> None:
            self.classifier, self.inputs = kept[int(Path(path).read_text())]

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name=name) for name in self.inputs]

        def run(self, names: Sequence[str] | None, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            assert names in (None, [OUTPUT]) and set(given) == set(self.inputs)
            with torch.inference_mode():
                logits = self.classifier(**{name: torch.from_numpy(given[name]) for name in self.inputs})
            return [logits.numpy()]

    monkeypatch.setattr("featcache.export.onnx.write_graph", write_graph)
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
