"""A small extraction that a test can repeat and change, and the counting of its forward passes."""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.cache.catalog import CacheFile
from featcache.cache.description import FileDescription
from featcache.extraction.api import Extracted, extract_splits, find_features
from featcache.settings import Settings, load_settings
from tests.support.source_files import jsonl, write

COUNTS = {"train": 60, "validation": 15, "test": 20}
TRAIN = COUNTS["train"]
Row = dict[str, Any]


def assert_same_file(made: Path, wanted: Path) -> None:
    """The same sealed file, with all its shards; where the two were rounded apart, features a step apart."""
    found, expected = CacheFile(made).sealed, CacheFile(wanted).sealed
    assert _without_seals(found.description) == _without_seals(expected.description)
    assert found.names == expected.names
    same = True
    for name in found.names:
        mine, theirs = np.asarray(found.column(name)[:]), np.asarray(expected.column(name)[:])
        if name.startswith("views/"):
            np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=2e-3)
            same &= mine.tobytes() == theirs.tobytes()
        elif name != "meta":  # the description as JSON
            assert mine.tobytes() == theirs.tobytes(), name
    if same:
        for file in wanted.parent.glob(f"{wanted.stem}*.h5"):
            assert (made.parent / file.name).read_bytes() == file.read_bytes()


def _without_seals(description: FileDescription) -> FileDescription:
    """Without the checksums of shards, which follow from their features."""
    return replace(description, shards=tuple(replace(one, seal="") for one in description.shards or ()))


@dataclass
class Case:
    """The folders of model, data and cache of one test, and the settings `asked` for."""

    folder: Path
    model: Path
    asked: dict[str, Any]

    @property
    def data(self) -> Path:
        """The folder of the data files."""
        return self.folder / "reviews"

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return self.folder / "cache"

    def settings(self, **changes: Any) -> Settings:
        """The settings of the case, with changes."""
        own = {"model": str(self.model), "dataset": str(self.data), "cache_dir": str(self.cache)}
        return load_settings({"dtype": "float32", **own, **self.asked, **changes})

    def extract(self, split: str = "train", *, force: bool = False, **changes: Any) -> Extracted:
        """Extract one split."""
        (result,) = extract_splits(self.settings(**changes), [split], force=force)
        assert result.split == split
        return result

    def find(self, split: str = "train", **changes: Any) -> CacheFile:
        """The cache file of a split."""
        return find_features(self.settings(**changes), split)

    def features(self, view: str = "last/cls", split: str = "train", **changes: Any) -> np.ndarray:
        """float32 `[N, D]`, out of the cache."""
        return np.asarray(self.find(split, **changes).features(view).x, dtype=np.float32)

    def rows(self, split: str = "train") -> list[Row]:
        """The rows of a data file."""
        import json

        lines = (self.data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write(self, rows: list[Row], split: str = "train") -> None:
        """Replace the rows of a data file."""
        write(self.data / f"{split}.jsonl", jsonl(*rows))

    def files(self) -> list[Path]:
        """The finished cache files."""
        return [path for path in sorted(self.cache.rglob("*.h5")) if not path.name.startswith(".")]

    def leftovers(self) -> list[str]:
        """Names of the files in the cache other than features, records and locks."""
        known = (".h5", ".json", ".lock")
        return [
            path.name
            for path in sorted(self.cache.rglob("*"))
            if path.is_file() and (path.name.startswith(".") or path.suffix not in known)
        ]

    def own_model(self) -> Case:
        """The case with a copy of the model, to be changed."""
        shutil.copytree(self.model, self.folder / "model")
        return replace(self, model=self.folder / "model")

    def fresh(self, name: str = "fresh", **changes: Any) -> Case:
        """The same data and model with an empty cache."""
        shutil.copytree(self.data, self.folder / name / "reviews")
        return Case(self.folder / name, self.model, {**self.asked, **changes})


def some_texts(count: int, seed: int) -> list[str]:
    """Different Chinese texts of 3 to 40 tokens, in the tiny vocabulary."""
    draw = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        words = draw.choices("好坏房间服务酒店电池书很干净差喜欢失望快慢便宜贵", k=draw.randint(3, 40))
        texts["".join(words)] = None
    return list(texts)


def write_case(folder: Path, model: Path, **asked: Any) -> Case:
    """A case with data of `COUNTS` rows and an empty cache."""
    case = Case(folder, model, asked)
    texts = iter(some_texts(sum(COUNTS.values()), 0))
    for split, count in COUNTS.items():
        labels = ["good" if number % 3 else "bad" for number in range(count)]
        titles = some_texts(count, 1)
        case.write(
            [{"text": next(texts), "label": labels[i], "name": titles[i]} for i in range(count)], split
        )
    return case


@contextmanager
def counted() -> Iterator[list[int]]:
    """Texts of each forward pass that is run inside; those that only try the model apart."""
    from featcache.backbone import load as loading_module
    from featcache.backbone import model as model_module
    from featcache.backbone.model import Backbone
    from featcache.backbone.static.model import StaticModel

    passes: list[int] = []
    loading: list[bool] = []
    states, means = Backbone.states, StaticModel.means

    def counting(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if not loading:
            passes.append(len(batch.lengths))
        return states(self, batch, *args, **kwargs)

    def counting_means(self: Any, ids: Any, lengths: Any) -> Any:
        if not loading:
            passes.append(len(lengths))
        return means(self, ids, lengths)

    def marked(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            loading.append(True)
            try:
                return call(*args, **kwargs)
            finally:
                loading.pop()

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "states", counting)
        patch.setattr(StaticModel, "means", counting_means)
        patch.setattr(loading_module, "load_backbone", marked(loading_module.load_backbone))
        patch.setattr(model_module, "runs_pooled_alone", marked(model_module.runs_pooled_alone))
        yield passes


def reference_hash(text: str | None, pair: str | None = None) -> bytes:
    """The row hash as `docs/cache-format.md` has it, from scratch."""
    content = b""
    for part in (text, pair):
        coded = None if part is None else part.encode("utf-8")
        content += b"\0" if coded is None else struct.pack("<BQ", 1, len(coded)) + coded
    return hashlib.sha256(content).digest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: for texts this short two only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_as_fresh(case: Case, split: str = "train", **changes: Any) -> None:
    """What the cache serves is what an extraction without any cache gives."""
    fresh = case.fresh(**changes)
    made = fresh.extract(split)
    one, two = case.find(split, **changes), fresh.find(split)
    assert one.fingerprint == made.fingerprint == two.fingerprint
    for view in two.views:
        a, b = one.features(view), two.features(view)
        assert a.label_names == b.label_names and (a.y == b.y).all()
        np.testing.assert_allclose(a.x.astype("f4"), b.x.astype("f4"), rtol=2e-3, atol=2e-3)
    for name in ("row_hash", "labels", "n_tokens", "truncated"):
        assert (one.sealed.column(name) == two.sealed.column(name)).all()


def assert_hit(case: Case, **changes: Any) -> None:
    """Both ways of asking are answered, and no forward pass is run."""
    with counted() as passes:
        case.find(**changes)
        result = case.extract(**changes)
    assert (result.cached, result.encoded, result.rows, passes) == (True, 0, TRAIN, [])
