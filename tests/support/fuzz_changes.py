"""Odd contents for files of each kind, as hypothesis strategies; checksums are made right again."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import Column, write_sealed
from featcache.fingerprint import fingerprint

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
ODD = (
    None, True, False, -1, 0, 1, 2, 7, 1 << 31, (1 << 63) - 1, 1 << 63, -(1 << 70), 10**400, 0.5, -0.0,
    1e-300, 1e308, math.nan, math.inf, -math.inf, "", " ", "x", "0", "nan", "last/cls", "-1/mean", "\x00",
    "\ud800", "\x1b[31m", "a\nb", "../../x", "/", "C:\\x", "<script>", "x" * 5000, "[bold]", "%s{0}",
    [], {}, [[]], [0], ["x"], [None], {"": 0}, {"x": {}}, {"\ud800": 1}, [[1, 2], [3]], DEEP,
)  # fmt: skip
BYTES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"{", b"[", b"nan", b'"', b"'", b",", b"\t",
    b"\r", b"\n", b"\n\n\n", b"9" * 400, b"{}", b"[[[[", b"null", b"-1", b"\\u0000", b"\\ud800", b"=1+1",
    b"\xe4\xb8", b"1e999", b";" * 2000,
)  # fmt: skip
TOML_VALUES = (
    "-1", "0", "1e999", "nan", "inf", '""', '"\\u0000"', "[]", "{}", "true", "1979-05-27", '"x"',
    '["", 1]', "99999999999999999999", "9223372036854775807", "[[1]]", "{a = 1}", '"last/cls"', '["99/mean"]',
    "'''\n'''", '"../.."', '"~nobody/x"', '"file:///nope"', 
    '"' + "x" * 5000 + '"', "1e-300",
)  # fmt: skip


def _place(draw: st.DrawFn, document: Any) -> tuple[Any, ...]:
    """The path of a value in a JSON document: a walk from its top, so that long lists count once."""
    at: tuple[Any, ...] = ()
    while document and isinstance(document, (dict, list)) and (not at or draw(st.integers(0, 3))):
        keys = list(document) if isinstance(document, dict) else [0, len(document) // 2, len(document) - 1]
        at = (*at, draw(st.sampled_from(keys)))
        document = document[at[-1]]
    return at


@st.composite
def changed_json(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one to three changes: values replaced by odd ones, removed, added or repeated."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        at = _place(draw, document)
        how = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "repeat")))
        value = copy.deepcopy(draw(st.sampled_from(ODD)))
        if not at or not draw(st.integers(0, 50)):
            document = value
            continue
        *above, last = at
        holder = document
        for key in above:
            holder = holder[key]
        if how == "replace":
            holder[last] = value
        elif how == "remove":
            del holder[last]
        elif isinstance(holder, list):
            holder.append(holder[last] if how == "repeat" else value)
        else:
            holder["new" if how == "add" else f"{last}x"] = value
    return document


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some bytes replaced, removed or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.sampled_from((0, 1, 1, 5, 200))), len(content))
        content = content[:start] + draw(st.sampled_from(BYTES) | st.binary(max_size=4)) + content[end:]
    return content


def dumped(document: Any) -> bytes:
    """As JSON, with NaN and escapes for what UTF-8 does not have."""
    return json.dumps(document).encode()


def raw(path: Path) -> st.SearchStrategy[bytes]:
    """A file of any kind with other bytes."""
    return changed_bytes(path.read_bytes())


def json_file(path: Path) -> st.SearchStrategy[bytes]:
    """Mostly JSON, sometimes other bytes."""
    content = path.read_bytes()
    return st.one_of(*[changed_json(json.loads(content)).map(dumped)] * 9, changed_bytes(content))


def record(path: Path) -> st.SearchStrategy[bytes]:
    """The record of a cache file, with a right checksum."""

    def checked(content: Any) -> bytes:
        if isinstance(content, dict):
            content.pop("checksum", None)
            with contextlib.suppress(ValueError, RecursionError):
                content["checksum"] = fingerprint(content)
        return dumped(content)

    return changed_json(json.loads(path.read_bytes())).map(checked)


def description(path: Path) -> st.SearchStrategy[bytes]:
    """A sealed file with a right seal and an odd description."""
    file = SealedFile(path)
    arrays = {name: np.asarray(file.column(name)) for name in file.names if name != "meta"}

    def sealed(meta: Any) -> bytes:
        meta = meta if isinstance(meta, dict) else {"document": meta}
        columns = [Column(name, array.shape, array.dtype.name, [array]) for name, array in arrays.items()]
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "a.h5"
            try:
                write_sealed(written, meta, columns)
            except (ValueError, OverflowError, TypeError):  # HDF5 has no such attribute
                kept = {name: value for name, value in meta.items() if not isinstance(value, (str, int))}
                write_sealed(written, kept, columns)
            return written.read_bytes()

    return changed_json(file.description.to_json()).map(sealed)


def tensors(path: Path) -> st.SearchStrategy[bytes]:
    """A safetensors file with an odd header of the right length."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    def joined(header: Any) -> bytes:
        text = dumped(header)
        return len(text).to_bytes(8, "little") + text + content[end:]

    return changed_json(json.loads(content[8:end])).map(joined) | changed_bytes(content)


def toml(path: Path) -> st.SearchStrategy[bytes]:
    """Settings with odd values or names, or with other bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    places = [number for number, line in enumerate(lines) if " =" in line or line.startswith("[")]

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        found = list(lines)
        for _ in range(draw(st.sampled_from((1, 1, 2)))):
            place = draw(st.sampled_from(places))
            name, value = lines[place].lstrip("# ").partition(" =")[0], draw(st.sampled_from(TOML_VALUES))
            forms = [f"{name} = {value}"] * 5 + [f"x{name} = {value}", f"[{name}", ""]
            found[place] = draw(st.sampled_from(forms))
        return "\n".join(found).encode()

    return changed() | changed_bytes(path.read_bytes())
