"""Checkpoints are read back whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featcache.finetuning.checkpoint import DOCUMENT, CheckpointFolder


def test_load_returns_what_save_wrote_and_none_for_a_damaged_checkpoint(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save({"weights": {"a": torch.arange(3.0)}}, {"step": 1})
    found = CheckpointFolder(tmp_path).load()
    assert found and torch.equal(found.tensors["weights"]["a"], torch.arange(3.0))
    assert found.state == {"step": 1}
    checkpoints.save({"more": {"b": torch.ones(1)}}, {"step": 2}, keep="weights")
    found = CheckpointFolder(tmp_path).load()
    assert (
        found and set(found.tensors) == {"weights", "more"} and len(list(tmp_path.glob("*.safetensors"))) == 2
    )
    path = next(tmp_path.glob("more-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert CheckpointFolder(tmp_path).load() is None
    assert CheckpointFolder(tmp_path / "absent").load() is None


def test_save_without_keep_removes_the_groups_before(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save({"weights": {"a": torch.ones(1)}, "best": {"a": torch.ones(1)}}, {})
    checkpoints.save({"weights": {"a": torch.zeros(1)}}, {})
    found = CheckpointFolder(tmp_path).load()
    assert found and set(found.tensors) == {"weights"}
    checkpoints.discard()
    assert not tmp_path.exists()


def test_due_is_always_true_with_every_0_and_false_right_after_a_save(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, every=0.0)
    checkpoints.save({}, {})
    assert checkpoints.due and checkpoints.every == 0.0
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save({}, {})
    assert not checkpoints.due


@pytest.mark.parametrize("content", [b"", b"[]", b'{"files": [], "note": {}}', b'{"files": {"a": 1}}'])
def test_a_damaged_document_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    CheckpointFolder(tmp_path).save({"weights": {"a": torch.ones(1)}}, {"step": 1})
    (tmp_path / DOCUMENT).write_bytes(content)
    assert CheckpointFolder(tmp_path).load() is None
