"""What features must equal: stock transformers with eager attention, one unpadded text at a time."""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from featcache.backbone.encoder import Encoder
from featcache.backbone.load import load_backbone
from featcache.backbone.model import Backbone
from featcache.backbone.model_files.find import find_model
from featcache.settings import BackboneSettings, FeatureSettings
from tests.support.tiny import VOCABULARY

WORDS = [word for word in VOCABULARY if not word.startswith(("[", "##"))]
VIEWS = ("last/cls", "last/mean", "last/last", "last/max", "-2/mean", "0/mean")
MIXED = (30, 1, 7, 8, 9, 8, 2, 15, 16, 17, 18, 44, 3, 9, 60, 5)  # tokens, around the tiny windows too


def sentence(words: int, seed: int = 0) -> str:
    """That many known words, each one token; the same for the same seed."""
    draw = np.random.default_rng((words, seed))
    return " ".join(draw.choice(WORDS, size=words))


def mixed(lengths: Sequence[int] = MIXED, seed: int = 0) -> list[str]:
    """Sentences of these numbers of words."""
    return [sentence(length, seed + place) for place, length in enumerate(lengths)]


def settings_of(folder: Path, **changes: Any) -> BackboneSettings:
    """Settings of the backbone in `folder`, in float32 on the CPU unless changed."""
    return BackboneSettings(**({"model": str(folder), "device": "cpu", "dtype": "float32"} | changes))


def load(folder: Path, **changes: Any) -> Backbone:
    """Load the backbone in `folder`."""
    settings = settings_of(folder, **changes)
    return load_backbone(settings, find_model(settings))


loaded = lru_cache(maxsize=None)(load)  # for tests that leave the backbone as it is


def encoder(backbone: Backbone, *views: str, batch_tokens: int | None = None, **changes: Any) -> Encoder:
    """An encoder with float32 storage; VIEWS by default."""
    features = FeatureSettings(views=views or VIEWS, **({"storage": "float32"} | changes))
    return Encoder(backbone, features, batch_tokens)


class Stock:
    """The stock model and tokenizer of a folder."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
        self.model = model.eval()
        self.blocks = self.model.config.num_hidden_layers
        self._known: dict[Any, list[np.ndarray]] = {}

    def token_ids(self, text: str, pair: str | None = None, **options: Any) -> list[int]:
        """The tokens of a text or a pair."""
        return list(self.tokenizer(text, pair, **options)["input_ids"])

    def states(self, text: str, pair: str | None = None, **options: Any) -> list[np.ndarray]:
        """States `[t, H]` of one text, layer by layer; worked out once."""
        key = (text, pair, *sorted(options.items()))
        if key not in self._known:
            self._known[key] = self._states(text, pair, options)
        return self._known[key]

    def _states(self, text: str, pair: str | None, options: dict[str, Any]) -> list[np.ndarray]:
        inputs = self.tokenizer(text, pair, return_tensors="pt", **options)
        known = inspect.signature(type(self.model).forward).parameters
        inputs = {name: values for name, values in inputs.items() if name in known}
        with torch.no_grad():
            output = self.model(**inputs, output_hidden_states=True)
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        assert len(layers) == self.blocks + 1
        return [layer[0].double().numpy() for layer in layers]

    def features(self, view: str, text: str, pair: str | None = None, **options: Any) -> np.ndarray:
        """The vector `[H]` of one text, pooled here."""
        return pooled(self.states(text, pair, **options), view)

    def matrix(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        views: Sequence[str] = VIEWS,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """`[N, H]` by view, as asked."""
        both = zip(texts, pairs, strict=True) if pairs is not None else ((text, None) for text in texts)
        states = [self.states(text, pair, **options) for text, pair in both]
        return {view: np.stack([pooled(layers, view) for layers in states]) for view in views}


stock = lru_cache(maxsize=None)(Stock)


def pooled(layers: Sequence[np.ndarray], view: str) -> np.ndarray:
    """The vector `[H]` of a view, from the states `[t, H]` of each layer."""
    layer, pooling = view.split("/")
    states = layers[-1 if layer == "last" else int(layer)]
    return {
        "cls": lambda: states[0],
        "last": lambda: states[len(states) - 1],
        "mean": lambda: states.sum(axis=0) / len(states),
        "max": lambda: np.array([max(column) for column in states.T]),
    }[pooling]()


def assert_features(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], blocks: int) -> None:
    """Equal within 1e-5, by canonical name, and no view more or less."""
    wanted = {canonical_name(view, blocks): values for view, values in expected.items()}
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)


def assert_no_farther(
    found: dict[str, np.ndarray], usual: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    """`found` is as near to float32 as `usual`, the plain 16-bit way, is."""
    assert set(found) == set(usual) == set(exact)
    for name, values in exact.items():
        error, usual_error = abs(found[name] - values), abs(usual[name] - values)
        assert usual_error.max() > 1e-4, name  # 16 bits it is
        assert error.mean() <= 1.5 * usual_error.mean(), (name, error.mean(), usual_error.mean())
        assert error.max() <= 2.5 * usual_error.max(), (name, error.max(), usual_error.max())


def canonical_name(view: str, blocks: int) -> str:
    """Canonical names count from the end: `0/mean` of three blocks is `-4/mean`."""
    layer, pooling = view.split("/")
    number = blocks if layer == "last" else int(layer) % (blocks + 1)
    return f"{'last' if number == blocks else number - blocks - 1}/{pooling}"


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Tiny models: threads would only wait for each other, very long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lively(source: Path, target: Path) -> Path:
    """A copy whose biases and norms are random too: fresh models have them all 0 and 1."""
    folder = shutil.copytree(source, target)
    draw = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, values in sorted(tensors.items()):
        if values.dim() == 1:
            tensors[name] = values + 0.3 * torch.randn(values.shape, generator=draw)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
