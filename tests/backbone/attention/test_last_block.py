"""The highest block run for the pooled tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.backbone.model import Backbone
from tests.support.packed_texts import AROUND
from tests.support.stock import assert_no_farther, encoder, load, loaded, mixed, sentence

TAILED = ["bert", "roberta", "distilbert", "electra", "modernbert", "llama", "qwen3", "mistral"]
Folder = Callable[[str], Path]


def whole(
    backbone: Backbone, *views: str, texts: list[str], pairs: list[str] | None
) -> dict[str, np.ndarray]:
    """Features with every block run for all tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "runs_pooled_alone", False)
        made = encoder(backbone, *views)
        assert made._pooled == []
        return made(texts, pairs).views


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *[(family, "float32") for family in TAILED],
        *[(family, "bfloat16") for family in ("bert", "llama")],
        *[
            pytest.param(family, "bfloat16", marks=pytest.mark.slow)
            for family in TAILED
            if family not in ("bert", "llama")
        ],
    ],
)
def test_pooled_tokens_alone_give_what_the_whole_block_gives(
    family: str, dtype: str, lively_tiny: Folder
) -> None:
    backbone, exact = loaded(lively_tiny(family), dtype=dtype), loaded(lively_tiny(family))
    assert backbone.runs_pooled_alone
    singles = mixed(AROUND)
    both = (
        (singles, None),
        (mixed(AROUND[::-1], 7), [sentence(1 + n % 6, 50 + n) for n in range(len(AROUND))]),
    )
    for views in (("last/cls",), ("last/last",), ("last/cls", "last/last", "-2/mean"), ("-2/cls", "0/mean")):
        for texts, pairs in both:
            made = encoder(backbone, *views)
            assert made._pooled  # else nothing is tested
            found = made(texts, pairs).views
            plain = whole(backbone, *views, texts=texts, pairs=pairs)
            if dtype == "float32":
                assert set(found) == set(plain)
                for name, values in plain.items():
                    np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)
            else:
                assert_no_farther(found, plain, whole(exact, *views, texts=texts, pairs=pairs))


def test_only_runs_the_highest_block_for_the_pooled_tokens(lively_tiny: Folder) -> None:
    """The saving itself: the feed-forward of the last block sees one token a text, that below all."""
    backbone = load(lively_tiny("bert"))
    assert backbone.runs_pooled_alone  # which tries it, and that is not counted
    seen: list[list[int]] = [[], [], []]
    for number, layer in enumerate(backbone.model.encoder.layer):
        layer.intermediate.register_forward_pre_hook(lambda _, x, n=number: seen[n].append(x[0].shape[1]))
    texts = mixed((9, 4, 4))
    tokens = 9 + 4 + 4 + 6
    encoder(backbone, "last/cls")(texts)
    assert seen == [[tokens], [tokens], [3]]
    encoder(backbone, "last/cls", "last/last")(texts)
    assert seen[2] == [3, 6]
    encoder(backbone, "last/mean")(texts)
    assert seen[2] == [3, 6, tokens]


def test_a_family_whose_block_needs_all_tokens_runs_whole(tiny: Folder) -> None:
    backbone = loaded(tiny("gpt2"))
    assert backbone.packing == "packed" and not backbone.runs_pooled_alone
    assert encoder(backbone, "last/last")._pooled == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_no_text_sees_another_about_the_steps_of_a_bucket(
    family: str, dtype: str, lively_tiny: Folder
) -> None:
    backbone = loaded(lively_tiny(family), dtype=dtype)
    texts = mixed(AROUND)
    for encode in (encoder(backbone, "last/mean", "-2/cls"), encoder(backbone, "last/last")):
        before = encode(texts).views
        for changed in (2, 5, 9):
            after = encode([*texts[:changed], sentence(AROUND[changed], 99), *texts[changed + 1 :]]).views
            others = [i for i in range(len(texts)) if i != changed]
            for name, values in before.items():
                np.testing.assert_array_equal(after[name][others], values[others])
            assert any((after[name][changed] != before[name][changed]).any() for name in before)
