"""The states cache: what is read back is what the backbone made, whatever happened in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from featcache.backbone.encoder import Encoder
from featcache.backbone.model import Backbone
from featcache.data.split import Split, load_splits
from featcache.errors import BackboneError, CacheError, CorruptCache
from featcache.extraction import states_cache as states
from featcache.extraction.states_cache import StatesFile, cache_states, states_document, states_path
from featcache.fingerprint import row_hashes
from featcache.settings import load_settings
from featcache.system.lock import locked
from featcache.system.progress import OnProgress, Progress, ignore
from tests.support.review_files import write_reviews
from tests.support.stock import encoder, load

CUT = 2


@pytest.fixture
def split(tmp_path: Path, arrow_cache: None) -> Split:
    files = write_reviews(tmp_path / "reviews", rows=45)
    asked = load_settings({"data_files": {name: str(path) for name, path in files.items()}})
    return load_splits(asked.data, ["train"], seed=0)["train"]


def hashes_of(split: Split) -> np.ndarray:
    return row_hashes(split.texts(slice(None)))


def make(split: Split, made_by: Encoder, folder: Path, on_progress: OnProgress = ignore) -> StatesFile:
    (file,) = cache_states(split, hashes_of(split), made_by, [CUT], folder, on_progress)
    return file


def expected(split: Split, made_by: Encoder) -> list[torch.Tensor]:
    """States of each text, one text at a time."""
    tokens = made_by.tokenize(split.texts(slice(None)))
    return [
        made_by.backbone.states(tokens.batch(np.array([row])), [CUT])[0][CUT]
        for row in range(len(tokens.lengths))
    ]


@pytest.mark.parametrize(
    ("dtype", "storage", "tolerance"),
    [("float32", "float32", 1e-5), ("float32", "float16", 2e-3), ("bfloat16", "float16", 5e-2)],
)
def test_batch_returns_the_states_of_the_rows(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, dtype: str, storage: str, tolerance: float
) -> None:
    made_by = encoder(
        load(tiny("bert"), dtype=dtype), "last/mean", batch_tokens=100, max_length=20, storage=storage
    )
    file = make(split, made_by, tmp_path)
    wanted = expected(split, made_by)
    assert file.storage == ("bfloat16" if dtype == "bfloat16" else storage)
    assert file.lengths.tolist() == [len(each) for each in wanted]
    rows = np.array([7, 3, 44, 3])
    batch = file.batch(rows)
    assert batch.lengths.tolist() == [len(wanted[row]) for row in rows]
    assert batch.states.dtype == getattr(torch, file.storage)
    reference = torch.cat([wanted[row] for row in rows]).float()
    assert float((batch.states.float() - reference).abs().max()) <= tolerance * float(reference.abs().max())
    assert file.truncated == int(made_by.tokenize(split.texts(slice(None))).truncated.sum()) > 0
    assert np.array_equal(file.row_hash, hashes_of(split))


def test_a_states_file_can_be_read_with_h5py(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean")
    file = make(split, made_by, tmp_path)
    with h5py.File(file.path, "r") as opened:
        offsets, values = opened["offsets"][:], opened["values"][:]
        assert json.loads(opened["meta"][:].tobytes())["document"]["cut"] == CUT
    assert len(values) == offsets[-1] and values.dtype == np.float32
    batch = file.batch(np.array([5]))
    assert np.array_equal(values[offsets[5] : offsets[6]], batch.states.numpy())


def test_cache_states_finds_a_file_without_running_the_model(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean")
    first = make(split, made_by, tmp_path)
    assert first.record.seconds > 0
    tokens = made_by.tokenize(split.texts(slice(None)))
    assert first.record.unknown_tokens == tokens.unknown.share if tokens.unknown else False
    monkeypatch.setattr(Backbone, "states", None)
    again = make(split, made_by, tmp_path)
    assert again.path == first.path and again.record == first.record
    first.path.with_suffix(".json").unlink()
    assert StatesFile(first.path).record.seconds == 0.0


def test_states_path_depends_on_all_that_changes_a_state(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path
) -> None:
    backbone = load(tiny("bert"))
    hashes = hashes_of(split)
    made_by = encoder(backbone, "last/mean")
    documents = [
        states_document(made_by, CUT, hashes),
        states_document(made_by, CUT - 1, hashes),
        states_document(made_by, CUT, hashes[::-1].copy()),
        states_document(encoder(backbone, "last/mean", prompt="x"), CUT, hashes),
        states_document(encoder(backbone, "last/mean", max_length=20), CUT, hashes),
        states_document(encoder(load(tiny("bert"), dtype="bfloat16"), "last/mean"), CUT, hashes),
    ]
    assert len({states_path(tmp_path, "train", document) for document in documents}) == len(documents)
    same = states_document(encoder(backbone, "last/cls", batch_tokens=7), CUT, hashes)
    assert same == documents[0]  # neither view nor budget changes a state


def test_cache_states_continues_from_committed_units(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "COMMIT_TOKENS", 200)
    made_by = encoder(load(tiny("bert")), "last/mean", batch_tokens=100)
    whole = make(split, made_by, tmp_path / "whole").path.read_bytes()
    rows: list[int] = []

    class Killed(BaseException):
        pass

    def stop(step: Progress) -> None:
        if step.total:
            rows.append(step.done)
        if len(rows) == 2:
            raise Killed

    with pytest.raises(Killed):
        make(split, made_by, tmp_path / "killed", stop)
    (plan,) = (tmp_path / "killed").rglob("plan.json")
    document = states_document(made_by, CUT, hashes_of(split)).fingerprint
    # Earlier versions wrote the same bytes, so that what they left is continued.
    assert plan.read_bytes() == b'{"batch":100,"block_tokens":200,"document":"%s"}' % document.encode()
    ran: list[int] = []
    original = Backbone.states

    def counting(self: Backbone, batch: object, *args: object) -> object:
        ran.append(len(batch.lengths))  # type: ignore[attr-defined]
        return original(self, batch, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "states", counting)
    resumed = make(split, made_by, tmp_path / "killed")
    assert sum(ran) == len(split) - rows[-1] < len(split)
    assert resumed.path.read_bytes() == whole
    assert not list((tmp_path / "killed" / "states").glob("*.partial"))


def test_cache_states_reports_the_size_and_refuses_a_full_disk(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean")
    told: list[str] = []
    make(split, made_by, tmp_path / "a", lambda step: told.append(step.text))
    tokens = int(made_by.tokenize(split.texts(slice(None))).lengths.sum())
    assert any(f"{tokens:,} tokens" in text and "on disk" in text for text in told)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * tokens * 32 * 4))
    monkeypatch.setattr(Backbone, "states", None)  # refused before anything runs
    with pytest.raises(CacheError, match=r"states of train before block 2 needs .* free"):
        make(split, made_by, tmp_path / "b")


def test_states_file_refuses_damaged_bytes(tiny: Callable[[str], Path], split: Split, tmp_path: Path) -> None:
    file = make(split, encoder(load(tiny("bert")), "last/mean"), tmp_path)
    content = bytearray(file.path.read_bytes())
    content[len(content) // 2] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(CorruptCache, match="damaged"):
        StatesFile(file.path)


def test_states_file_refuses_a_file_of_features(tmp_path: Path) -> None:
    from featcache.cache.sealed_writer import Column, write_sealed

    path = tmp_path / "x.h5"
    write_sealed(path, {"document": {"views": []}}, [Column("labels", (1,), "int64", [np.zeros(1)])])
    with pytest.raises(CorruptCache, match="holds no states"):
        StatesFile(path)


def test_cache_states_refuses_a_locked_file(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean")
    path = states_path(tmp_path, "train", states_document(made_by, CUT, hashes_of(split)))
    with locked(path), pytest.raises(CacheError, match="another process"):
        make(split, made_by, tmp_path)


def test_cache_states_refuses_states_too_large_for_their_storage(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean", storage="float16")
    original = Backbone.states

    def large(self: Backbone, batch: object, layers: list[int]) -> object:
        found, layout = original(self, batch, layers)  # type: ignore[arg-type]
        return {layer: at * 1e6 for layer, at in found.items()}, layout

    monkeypatch.setattr(Backbone, "states", large)
    with pytest.raises(BackboneError, match="too large for float16"):
        make(split, made_by, tmp_path)


def test_cache_states_names_a_row_that_cannot_be_encoded(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.errors import BadRow

    made_by = encoder(load(tiny("bert")), "last/mean")

    def bad(*_: object) -> object:
        raise BadRow("makes no token", 3)

    monkeypatch.setattr(Encoder, "tokenize", bad)
    with pytest.raises(BackboneError, match="row 4 of train: makes no token"):
        make(split, made_by, tmp_path)


def test_cache_states_uses_smaller_batches_if_memory_runs_out(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean", batch_tokens=1000)
    wanted = make(split, made_by, tmp_path / "a").batch(np.arange(45)).states
    original = Backbone.states

    def little(self: Backbone, batch: object, layers: list[int]) -> object:
        if batch.lengths.sum() > 60:  # type: ignore[attr-defined]
            raise MemoryError
        return original(self, batch, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "states", little)
    found = make(split, made_by, tmp_path / "b").batch(np.arange(45)).states
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_batch_releases_the_pages_of_the_memory_map(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(split, encoder(load(tiny("bert")), "last/mean"), tmp_path)
    released: list[int] = []
    original = StatesFile._release
    monkeypatch.setattr(states, "RELEASE_BYTES", 5000)
    monkeypatch.setattr(StatesFile, "_release", lambda self: (released.append(self._read), original(self))[1])
    before = file.batch(np.arange(45)).states
    assert released and torch.equal(file.batch(np.arange(45)).states, before)


def test_one_pass_makes_the_states_of_several_cuts(
    tiny: Callable[[str], Path], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = encoder(load(tiny("bert")), "last/mean", batch_tokens=100)
    alone = make(split, made_by, tmp_path / "alone")
    ran: list[list[int]] = []
    original = Backbone.states

    def counting(self: Backbone, batch: object, layers: list[int]) -> object:
        ran.append(list(layers))
        return original(self, batch, layers)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "states", counting)
    hashes, folder, told = hashes_of(split), tmp_path / "all", list[str]()

    def cached(cuts: list[int]) -> list[StatesFile]:
        return cache_states(split, hashes, made_by, cuts, folder, lambda step: told.append(step.text))

    files = cached([1, 2, 3])
    assert all(layers == [1, 2, 3] for layers in ran)
    assert files[1].path.read_bytes() == alone.path.read_bytes()
    assert any("states of train at 3 layers" in text for text in told)
    tokens = made_by.tokenize(split.texts(slice(None)))
    with torch.inference_mode():
        last = original(made_by.backbone, tokens.batch(np.array([4])), [3])[0][3]
    torch.testing.assert_close(files[2].batch(np.array([4])).states, last, rtol=1e-4, atol=1e-5)
    files[0].path.unlink()
    ran.clear()
    assert cached([1, 2, 3])[0].nbytes == files[0].nbytes
    assert all(layers == [1] for layers in ran), "what is there is not made again"
    assert not list(folder.rglob("*.partial"))
