"""Heads: probabilities, and what is saved and read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import HeadError
from featcache.heads.head import Head, load_head
from featcache.heads.probabilities import softmax
from featcache.heads.scorers import Linear
from tests.support.documents import encoder_document


def head_of(scorer: Linear, **changes: Any) -> Head:
    names = tuple(f"class {number}" for number in range(scorer.classes))
    parts = {"label_names": names, "view": "last/cls", "encoder": encoder_document(), "kind": "linear"}
    return Head(scorer, **(parts | changes))


def some_head(classes: int = 3, width: int = 5, **changes: Any) -> Head:
    draw = np.random.default_rng(classes)
    weights = (
        draw.normal(size=(classes, width)).astype(np.float32),
        draw.normal(size=classes).astype(np.float32),
    )
    return head_of(Linear(*weights), **changes)


def test_predict_proba_equals_torch() -> None:
    head = some_head()
    x = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float16)
    expected = torch.nn.functional.linear(
        torch.tensor(x).float(), torch.tensor(head.scorer.weight), torch.tensor(head.scorer.bias)
    )
    np.testing.assert_allclose(head.logits(x), expected, rtol=0, atol=1e-5)
    probabilities = head.predict_proba(x)
    np.testing.assert_allclose(probabilities, expected.double().softmax(1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=0, atol=1e-12)
    assert head.parameters == 18
    assert head.predict_proba(np.zeros((0, 5))).shape == (0, 3)


def test_logits_of_many_rows_equal_those_of_single_rows() -> None:
    head = some_head(2, 3)
    x = np.random.default_rng(1).normal(size=(140_000, 3)).astype(np.float32)
    found = head.logits(x)
    assert found.shape == (140_000, 2)
    for row in (0, 65_535, 65_536, 131_071, 131_072, 139_999):
        np.testing.assert_allclose(
            found[row], head.scorer.weight @ x[row] + head.scorer.bias, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("shape", [(4, 6), (4, 4), (5,), (1, 4, 5)])
def test_predict_proba_refuses_features_of_another_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(HeadError, match=r"wants features \[N, 5\]"):
        some_head().predict_proba(np.zeros(shape, np.float32))


@pytest.mark.parametrize("largest", [1e4, 3e38])
def test_softmax_of_large_logits_does_not_overflow(largest: float) -> None:
    found = softmax(np.array([[largest, 0, -largest], [-largest, -largest, -largest]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3] * 3], rtol=0, atol=1e-12)


# ---------------------------------------------------------------- on disk

DOCUMENT = encoder_document(files={"model.safetensors": "ab" * 32}, prompt="查询: ", max_length=512)
ENCODER = DOCUMENT.to_json()


def saved(folder: Path, **changes: Any) -> Head:
    head = some_head(**({"encoder": DOCUMENT, "label_names": ("差评", "a,b/c", "😀 \n")} | changes))
    head.save(folder)
    return head


def test_load_head_returns_what_was_saved(tmp_path: Path) -> None:
    head = saved(tmp_path)
    found = load_head(tmp_path)
    for name in ("label_names", "view", "encoder", "kind", "fingerprint"):
        assert getattr(found, name) == getattr(head, name)
    for one, other in ((found.scorer.weight, head.scorer.weight), (found.scorer.bias, head.scorer.bias)):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_save_pickles_nothing(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"head.json", "head.safetensors"}
    assert isinstance(json.loads((tmp_path / "head.json").read_bytes()), dict)
    assert set(load_file(tmp_path / "head.safetensors")) == {"weight", "bias"}


def test_several_heads_in_one_folder(tmp_path: Path) -> None:
    best, last = some_head(encoder=DOCUMENT), some_head(encoder=DOCUMENT, view="last/mean")
    best.save(tmp_path)
    last.save(tmp_path, "last")
    assert load_head(tmp_path, "last").view == "last/mean"
    assert load_head(tmp_path).view == "last/cls"
    with pytest.raises(HeadError, match=r"no head in .*other\.json is missing"):
        load_head(tmp_path, "other")


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_load_head_refuses_a_missing_file(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(HeadError, match="is missing"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"{}", b'{"format": 3}', b"[" * 100_000]
)
def test_load_head_refuses_an_unreadable_document(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path)
    (tmp_path / "head.json").write_bytes(content)
    with pytest.raises(HeadError):
        load_head(tmp_path)


@pytest.mark.parametrize("key", ["format", "kind", "view", "label_names", "fingerprint", "encoder"])
def test_load_head_refuses_a_document_without_a_field(tmp_path: Path, key: str) -> None:
    saved(tmp_path)
    change_note(tmp_path, lambda note: note.pop(key))
    with pytest.raises(HeadError):
        load_head(tmp_path)


def change_note(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    note = json.loads((folder / "head.json").read_bytes())
    change(note)
    (folder / "head.json").write_text(json.dumps(note), encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"view": "last/mean"},
        {"view": None},
        {"view": ["last/cls"]},
        {"fingerprint": "0" * 64},
        {"encoder": {**ENCODER, "prompt": ""}},
        {"encoder": {}},
        {"encoder": []},
        {"encoder": ["ab"]},
        {"encoder": "abc"},
        {"encoder": 5},
        {"encoder": None},
        {"encoder": {**ENCODER, "max_length": float("nan")}},
        {"label_names": ["a", "b"]},
        {"label_names": ["a", "b", "c", "d"]},
        {"label_names": "abc"},
        {"label_names": [1, 2, 3]},
        {"label_names": [None, "b", "c"]},
        {"label_names": [["a"], "b", "c"]},
        {"label_names": ["a", "a", "b"]},
        {"label_names": {"a": 0, "b": 1, "c": 2}},
        {"label_names": 3},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_load_head_refuses_a_changed_document(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path)
    change_note(tmp_path, lambda note: note.update(changes))
    with pytest.raises(HeadError):
        load_head(tmp_path)


def tensors(**changes: Any) -> dict[str, np.ndarray]:
    plain = {"weight": np.ones((3, 5), np.float32), "bias": np.zeros(3, np.float32)}
    return {name: part for name, part in (plain | changes).items() if part is not None}


@pytest.mark.parametrize(
    "parts",
    [
        tensors(weight=None),
        tensors(bias=None),
        tensors(weight=np.ones((5, 3), np.float32)),
        tensors(weight=np.ones(15, np.float32)),
        tensors(weight=np.ones((1, 3, 5), np.float32)),
        tensors(bias=np.zeros((3, 1), np.float32)),
        tensors(bias=np.zeros(4, np.float32)),
        tensors(bias=np.zeros((), np.float32)),
        tensors(weight=np.full((3, 5), np.nan, np.float32)),
        tensors(bias=np.array([0, np.inf, 0], np.float32)),
        tensors(weight=np.full((3, 5), 1e300)),  # float64, infinite in float32
    ],
    ids=lambda parts: ", ".join(f"{name} {part.dtype} {list(part.shape)}" for name, part in parts.items()),
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_load_head_refuses_weights_that_do_not_fit(tmp_path: Path, parts: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    saved(tmp_path)
    save_file(parts, tmp_path / "head.safetensors")
    with pytest.raises(HeadError):
        load_head(tmp_path)


def test_load_head_refuses_bfloat16_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved(tmp_path)
    parts = {name: torch.tensor(part).bfloat16() for name, part in tensors().items()}
    save_file(parts, tmp_path / "head.safetensors")
    with pytest.raises(HeadError):
        load_head(tmp_path)


def test_load_head_refuses_damaged_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "head.safetensors"
    whole = path.read_bytes()
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1 << 40, 5], "data_offsets": [0, 60]}}).encode()
    for content in (
        b"",
        whole[:-1],
        whole[:20],
        b"\x80\x04K\x01.",  # a pickle
        struct.pack("<Q", 1 << 60) + whole[8:],  # a header larger than the file
        struct.pack("<Q", len(header)) + header + bytes(60),  # a shape larger than the data
    ):
        path.write_bytes(content)
        with pytest.raises(HeadError, match="is damaged, or no safetensors file"):
            load_head(tmp_path)
