"""A backbone with trained weights in place computes what was trained; other weights are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from featcache.backbone.model_files.find import find_model
from featcache.backbone.packing import StateBatch
from featcache.errors import HeadError
from featcache.finetuning.weights import load_plain, trained_weights, with_weights
from featcache.fingerprint import TunedPart
from tests.support.documents import encoder_document
from tests.support.stock import load, settings_of
from tests.support.tuning import batch_of, suffix_of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_with_weights_computes_what_the_suffix_computes(
    tiny: Callable[[str], Path], family: str, dtype: str
) -> None:
    folder = tiny(family)
    suffix = suffix_of(folder, "top-blocks:2", compute=dtype)
    torch.manual_seed(0)
    suffix.put({name: p.detach() * (1 + 0.1 * torch.randn_like(p)) for name, p in suffix.masters.items()})
    asked = replace(settings_of(folder), dtype=dtype)
    weights = {name: p.detach().clone() for name, p in suffix.trained.items()}
    tuned = with_weights(load_plain(asked, find_model(asked)), asked, weights)
    assert tuned.packing == "packed" and tuned.dtype_name == dtype and tuned.runs_pooled_alone
    whole = tuned.states(batch_of(), [tuned.num_blocks, 1])[0]
    frozen = load(folder, dtype=dtype).states(batch_of(), [1, 3])[0]
    assert torch.equal(whole[1], frozen[1])
    with torch.no_grad():
        found, _ = suffix.states(StateBatch(frozen[1].clone(), batch_of().lengths))
    largest = float(whole[3].float().abs().max())
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    assert float((found.float() - whole[3].float()).abs().max()) <= tolerance * largest
    assert float((frozen[3].float() - whole[3].float()).abs().max()) > 2e-2 * largest


def test_with_weights_refuses_weights_of_another_model(tiny: Callable[[str], Path]) -> None:
    asked = settings_of(tiny("bert"))
    for strange in (
        {"encoder.layer.9.x": torch.zeros(2)},
        {"encoder.layer.2.output.dense.bias": torch.zeros(2)},
    ):
        with pytest.raises(HeadError, match="does not fit"):
            with_weights(load_plain(asked, find_model(asked)), asked, strange)


@pytest.mark.parametrize("name", ["trained", "trained-last"])
def test_trained_weights_are_the_file_with_the_checksum_of_the_document(tmp_path: Path, name: str) -> None:
    content = save({"a": torch.arange(3.0)})
    document = encoder_document(tuned=TunedPart("top-blocks:1", 2, hashlib.sha256(content).hexdigest()))
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    assert torch.equal(trained_weights(tmp_path, document)["a"], torch.arange(3.0))
    (tmp_path / f"{name}.safetensors").write_bytes(b"no tensors")
    with pytest.raises(HeadError, match="missing or was changed"):
        trained_weights(tmp_path, document)
    (tmp_path / f"{name}.safetensors").unlink()
    with pytest.raises(HeadError, match="missing or was changed"):
        trained_weights(tmp_path, document)
