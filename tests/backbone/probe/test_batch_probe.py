"""A vector never depends on the texts beside it: which families run together, and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featcache.backbone.probe import batch_probe
from featcache.errors import BackboneError
from tests.support.stock import encoder, load
from tests.support.text_families import build_family, worst_difference

pytestmark = pytest.mark.bad_input("wrong vectors")

NOISE = 1e-5  # of a float32 vector's length; every leak below is far above it
LEAKY = ("fnet", "yoso", "convbert", "nystromformer")


@pytest.mark.parametrize("family", LEAKY)
def test_families_that_leak_through_padding_run_in_equal_lengths(family: str, tmp_path: Path) -> None:
    backbone = load(build_family(family, tmp_path / family))
    assert backbone.packing == "equal lengths"
    assert worst_difference(backbone) < NOISE
    backbone.packing = "padded"  # as they would run without the probe
    assert worst_difference(backbone) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_padding_row_that_is_not_zero_is_found(dtype: str, tmp_path: Path) -> None:
    """MobileBERT reads the word after each word: the last one reads the padding."""
    folder = build_family("mobilebert", tmp_path / "mobilebert")
    set_rows(folder, "embeddings.word_embeddings.weight", 0.0)
    assert load(folder).packing == "padded"
    set_rows(folder, "embeddings.word_embeddings.weight", 2.0)
    backbone = load(folder, dtype=dtype)
    assert backbone.packing == "equal lengths"
    assert "MobileBertModel" in backbone.packing_note


def set_rows(folder: Path, name: str, value: float) -> None:
    """Set the padding's row of a table."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name][0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_masked_word_elsewhere_changes_no_text(dtype: str, tmp_path: Path) -> None:
    """ESM scales the states of a batch by the share of masked tokens in a row; a packed batch is one row."""
    backbone = load(build_family("esm", tmp_path / "esm"), dtype=dtype)
    assert backbone.packing == "padded"
    assert "mixes the texts" in backbone.packing_note
    if dtype == "float32":
        assert worst_difference(backbone) < NOISE


@pytest.mark.parametrize("family", ["yoso", "convbert", "deberta-v2", "mpnet", "bert", "qwen3"])
def test_16_bits_run_as_float32_does(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A leak that 16 bits would hide is found, noise is not taken for one, and the weights stay."""
    folder = build_family(family, tmp_path / family) if family in ("yoso", "convbert") else tiny(family)
    exact, rounded = load(folder), load(folder, dtype="bfloat16")
    assert (rounded.packing, rounded.packing_note) == (exact.packing, exact.packing_note)
    with batch_probe._in_float32(rounded.model):
        assert {weight.dtype for weight in rounded.model.parameters()} == {torch.float32}
    again = load(folder, dtype="bfloat16")
    for name, values in again.model.state_dict().items():
        found = rounded.model.state_dict()[name]
        assert found.dtype == values.dtype and torch.equal(found, values), name


def leaky(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """DeBERTa's blocks change the states of a batch by `change`."""
    from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta

    whole = deberta.DebertaV2Layer.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = whole(self, *args, **kwargs)
        return (change(found[0]), *found[1:]) if isinstance(found, tuple) else change(found)

    monkeypatch.setattr(deberta.DebertaV2Layer, "forward", forward)


def test_a_model_that_mixes_equal_lengths_runs_one_by_one(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaky(monkeypatch, lambda states: states + 0.05 * states.sum(dim=0, keepdim=True))
    backbone = load(tiny("deberta-v2"))
    assert backbone.packing == "one by one"
    encode = encoder(backbone, "last/mean", max_length=64)
    assert encode.notes == ["one text at a time: DebertaV2Model lets the texts of a batch change each other"]
    assert worst_difference(backbone) < NOISE


def test_a_model_that_is_never_the_same_is_refused(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaky(monkeypatch, lambda states: states + torch.randn_like(states))
    with pytest.raises(BackboneError, match="other states each time"):
        load(tiny("deberta-v2"))


def test_a_model_that_minds_rows_longer_than_its_texts_is_not_packed(tmp_path: Path) -> None:
    """CLIP's text tower refuses more tokens in a row than it has positions, even if each text is short."""
    backbone = load(build_family("clip_text_model", tmp_path / "clip"))
    assert backbone.packing == "padded"
    assert backbone.packing_note.endswith("takes no rows longer than a text may be")
    assert worst_difference(backbone) < NOISE


def test_notes_say_how_texts_run_together(tmp_path: Path) -> None:
    notes = encoder(load(build_family("fnet", tmp_path / "fnet")), max_length=64).notes
    assert notes == [
        "batches of equally long texts, without padding: FNetModel lets padding change the states of a text"
    ]
