"""docs/cache-format.md says enough: readers written from it alone, in two languages, read the file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from featcache.cache.seal import CHUNK, DTYPES
from featcache.cache.sealed_file import SealedFile
from featcache.cache.sealed_writer import write_sealed
from tests.cache.test_sealed_file import META, column
from tests.support import cache_reader


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A file with a column of every type, empty ones, and one of several checksums."""
    draw = np.random.default_rng(0)
    values = {
        f"views/{kind}": draw.integers(0, 120, (7, 5)).astype(code) / np.dtype(code).type(1)
        for kind, code in DTYPES.items()
    }
    values = {name: array.astype(DTYPES[name[6:]]) for name, array in values.items()}
    values["views/float16"] = np.array([[0.1, -3e-7, 65504, np.inf, -np.inf, -0.0, 1]], dtype="<f2")
    values["views/float32"] = draw.normal(size=(4, 3)).astype("<f4")
    values["labels"] = np.array([-1, 2**62, 0], dtype="<i8")
    values["empty"] = np.empty((0, 4), dtype="<f2")
    values["long"] = draw.integers(0, 256, (CHUNK + 17,), dtype=np.uint8)
    path = tmp_path_factory.mktemp("format") / "a.h5"
    write_sealed(path, META, [column(name, array) for name, array in values.items()])
    return path, values


def test_read_with_numpy_and_xxhash(written: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    path, values = written
    found = cache_reader.read(path)
    assert json.loads(found.pop("meta").tobytes()) == META
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes() == SealedFile(path).column(name).tobytes()
    whole = path.read_bytes()
    for place in range(0, len(whole), 9973):
        bad = bytearray(whole)
        bad[place] ^= 4
        (tmp_path / "bad.h5").write_bytes(bad)
        with pytest.raises(ValueError):
            cache_reader.read(tmp_path / "bad.h5")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_read_with_javascript(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, values = written
    script = Path(cache_reader.__file__).with_suffix(".mjs")
    done = subprocess.run(["node", script, path], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert bytes(found.pop("meta")["values"]) == json.dumps(META, sort_keys=True).encode()
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert tuple(found[name]["shape"]) == array.shape
        if array.dtype == np.int64:
            assert [int(text) for text in found[name]["values"]] == array.ravel().tolist()
        else:  # JSON has no infinity: JavaScript writes null
            numbers = [float(x) if np.isfinite(x) else None for x in array.ravel()]
            assert found[name]["values"] == numbers
