"""The folder through which workers report what they have done."""

from __future__ import annotations

from pathlib import Path

from featcache.extraction.worker_folder import WorkerFolder, WorkerNote, combined_progress


def test_combined_progress_adds_up_the_notes_of_all_workers(tmp_path: Path) -> None:
    folder = WorkerFolder(tmp_path)
    assert combined_progress(folder.notes()) is None
    # One began with 80 of 100 texts to encode; the other came when 60 were left.
    folder.post(WorkerNote(0, "train", "encode", 100, 80, 30, 300), now=True)
    folder.post(WorkerNote(1, "train", "encode", 100, 60, 20, 200), now=True)
    (tmp_path / "worker-7-train.json").write_text("{")
    now = combined_progress(folder.notes())
    assert now is not None and (now.stage, now.done, now.total, now.tokens) == ("encode", 70, 100, 500)
    # What a worker did for a split is known when it is at the next one.
    for rank in (0, 1):
        folder.post(WorkerNote(rank, "test", "encode", 10, 10, 1, 9), now=True)
    now = combined_progress(folder.notes())
    assert now is not None and (now.split, now.done, now.tokens) == ("test", 2, 18)
    assert sorted(note.tokens for note in folder.notes("train")) == [200, 300]
