"""A tiny file in the 4-bit format, written out from the format's description."""

from __future__ import annotations

import struct

import numpy as np

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁Hello", "▁world", "你好", "<mask>"]
SIZES = {"hidden": 32, "layers": 2, "heads": 4, "wide": 64, "rows": 11, "positions": 16, "types": 2}
HEAD_BYTES = 4 + 4 + 7 * 4 + 4 + 4


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of the tiny file, by name."""
    h, f = SIZES["hidden"], SIZES["wide"]
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (SIZES["rows"], h),
        "emb.pos": (SIZES["positions"], h),
        "emb.type": (SIZES["types"], h),
        "emb.ln.w": (h,),
        "emb.ln.b": (h,),
    }
    rows = {"q": (h, h), "k": (h, h), "v": (h, h), "ao": (h, h), "fi": (f, h), "fo": (h, f)}
    for i in range(SIZES["layers"]):
        for name, shape in rows.items():
            shapes |= {f"l{i}.{name}.w": shape, f"l{i}.{name}.b": shape[:1]}
        for name in ("aln", "oln"):
            shapes |= {f"l{i}.{name}.w": (h,), f"l{i}.{name}.b": (h,)}
    return shapes


def make_tensors() -> dict[str, tuple[int, bytes]]:
    """Name -> (type, bytes): the weight matrices in 4 bits, everything else float32."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in tensor_shapes().items():
        count = int(np.prod(shape))
        if name == "emb.word" or (name.endswith(".w") and len(shape) == 2):
            blocks = [np.float16(rng.normal() / 100).tobytes() + rng.bytes(16) for _ in range(count // 32)]
            tensors[name] = (1, b"".join(blocks))
        else:
            tensors[name] = (0, rng.normal(size=count).astype("<f4").tobytes())
    return tensors


def q4_bytes(tensors: dict[str, tuple[int, bytes]] | None = None, *, pieces: list[str] = PIECES) -> bytes:
    """The bytes of a file with these tensors and vocabulary."""
    tensors = make_tensors() if tensors is None else tensors
    head = b"E5S1" + struct.pack("<I7ifi", 1, *SIZES.values(), 1e-12, 32)
    encoded = [piece.encode() for piece in pieces]
    ends = np.cumsum([0, *map(len, encoded)]).astype("<u4")
    scores = -np.arange(len(pieces), dtype="<f4")
    words = struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, encoded)))
    words += ends.tobytes() + scores.tobytes() + b"".join(encoded)
    words += struct.pack("<iI", 1, 5) + b"12345"
    # The same names and numbers whatever the offsets: the table's length is known beforehand.
    table = 4 + sum(2 + len(name) + 21 for name in tensors)
    at = -(-(len(head) + len(words) + table) // 64) * 64
    entries, data = struct.pack("<i", len(tensors)), b""
    for name, (kind, raw) in tensors.items():
        count = len(raw) // 18 * 32 if kind == 1 else len(raw) // 4
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", kind, count, at + len(data), len(raw))
        data += raw
    return (head + words + entries).ljust(at, b"\0") + data


def one_by_one(raw: bytes) -> list[float]:
    """The format's words, weight after weight, as plain Python."""
    weights: list[float] = []
    for at in range(0, len(raw), 18):
        (scale,) = struct.unpack_from("<e", raw, at)
        codes = raw[at + 2 : at + 18]
        weights += [((code & 15) - 8) * scale for code in codes]
        weights += [((code >> 4) - 8) * scale for code in codes]
    return weights
