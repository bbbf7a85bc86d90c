"""A loaded backbone is frozen, runs no unnecessary block and is not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.backbone.model import Backbone
from featcache.backbone.model_files.find import find_model
from featcache.backbone.packing import TokenBatch
from tests.support.stock import (
    VIEWS,
    encoder,
    loaded,
    mixed,
    settings_of,
)
from tests.support.tiny import CONFIGS, build

Folder = Callable[[str], Path]


def hashes_of(folder: Path, **changes: Any) -> dict[str, str]:
    return find_model(settings_of(folder, **changes)).hashes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "albert", "llama", "mpnet"])
def test_backbone_is_frozen(family: str, dtype: str, tiny: Folder) -> None:
    backbone = loaded(tiny(family), dtype=dtype)
    assert backbone.dtype_name == dtype
    parameters = list(backbone.model.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not any(module.training for module in backbone.model.modules())
    states, _ = backbone.states(batch_of(4, 4), [0, 3])
    assert not any(values.requires_grad for values in states.values())


def batch_of(*lengths: int) -> TokenBatch:
    return TokenBatch(np.arange(sum(lengths)) % 50 + 5, np.array(lengths))


@pytest.fixture
def calls() -> Iterator[Callable[[Backbone], list[int]]]:
    """Counts the forward calls of each block from then on."""
    hooks: list[Any] = []

    def count(backbone: Backbone) -> list[int]:
        counts = [0] * backbone.num_blocks
        lists = [
            module
            for module in backbone.model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == backbone.num_blocks
        ]
        assert len(lists) == 1

        def counter(number: int) -> Callable[..., None]:
            def called(*_: Any) -> None:
                counts[number] += 1

            return called

        hooks.extend(block.register_forward_hook(counter(n)) for n, block in enumerate(lists[0]))
        return counts

    yield count
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", [family for family in CONFIGS if family != "albert"])
def test_states_do_not_run_blocks_above_the_highest_layer(
    family: str, tiny: Folder, calls: Callable[[Backbone], list[int]]
) -> None:
    backbone = loaded(tiny(family))
    counts = calls(backbone)
    for views, run in (
        (["0/mean"], [0, 0, 0]),
        (["1/cls"], [1, 0, 0]),
        (["-2/mean", "0/max"], [1, 1, 0]),
        (["last/cls", "1/mean"], [1, 1, 1]),
    ):
        encode = encoder(backbone, *views)  # which tries the model
        counts[:] = [0, 0, 0]
        encode(["good book", "the room"])
        assert counts == run, views


@pytest.mark.parametrize("family", CONFIGS)
def test_states_leave_no_hooks_behind(family: str, tiny: Folder) -> None:
    """No hook of ours stays, not after a pass either, and one pass does not change the next."""
    encode = encoder(loaded(tiny(family)))
    before = encode(["good", "the room"]).views
    after = encode(["good", "the room"]).views
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    for module in encode.backbone.model.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        assert not [hook for hook in hooks if hook.__module__.startswith("featcache")]
        assert "forward" not in vars(module)


def test_tiny_backbones_differ_in_views_layers_and_texts(tiny: Folder) -> None:
    """The fixture itself: views, layers and texts are far apart, so that a mix-up would show."""
    made = encoder(loaded(tiny("bert")))(mixed())
    assert len(made.views) == len(VIEWS)
    values = list(made.views.values())
    for number, one in enumerate(values):
        assert np.linalg.norm(one[0] - one[1]) > 0.1
        for other in values[:number]:
            assert abs(one - other).max() > 0.1


def test_tiny_backbones_are_made_by_their_seed(tiny: Folder, tmp_path: Path) -> None:
    same, other = build("bert", tmp_path / "same"), build("bert", tmp_path / "other", seed=1)
    files = hashes_of(tiny("bert"))
    assert hashes_of(same) == files
    assert {name for name, found in hashes_of(other).items() if found != files[name]} == {"model.safetensors"}
