"""Encoder features against stock transformers: every family, order, budget, length and prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featcache.backbone.encoder import Encoder
from featcache.backbone.model import Backbone
from featcache.backbone.pooling import parse_view
from featcache.errors import BackboneError, UsageError
from featcache.settings import FeatureSettings
from tests.support.stock import (
    MIXED,
    VIEWS,
    assert_features,
    canonical_name,
    encoder,
    lively,
    load,
    loaded,
    mixed,
    sentence,
    settings_of,
    stock,
)
from tests.support.tiny import CONFIGS, DECODERS, PACKED, build, one_of_each_kind, write_tokenizer

LONG = (100, 33, 101, 200)  # tokens, many windows of modernbert (8 each way) and mistral (8)
Folder = Callable[[str], Path]


def lengths_for(family: str) -> tuple[int, ...]:
    return (*MIXED, *LONG) if CONFIGS[family].get("max_position_embeddings", 0) > 66 else MIXED


# ---------------------------------------------------------------- against stock transformers


@pytest.mark.parametrize("family", CONFIGS)
def test_mixed_batches_equal_one_text_at_a_time(family: str, lively_tiny: Folder) -> None:
    folder = lively_tiny(family)
    backbone = loaded(folder)
    texts = mixed(lengths_for(family))
    expected = stock(folder).matrix(texts)
    for budget in (None, 150, 1):
        found = encoder(backbone, batch_tokens=budget)(texts)
        assert_features(found.views, expected, 3)
        assert found.n_tokens.tolist() == [len(stock(folder).token_ids(text)) for text in texts]
        assert not found.truncated.any()


# Where only [CLS] or the last token of the highest layer is asked for, less needs to be computed.
SPARSE = (
    ("last/cls",),
    ("last/last",),
    ("last/cls", "last/last"),
    ("last/cls", "-2/mean", "0/mean"),
    ("last/last", "-2/cls"),
    ("-2/cls",),
    ("-2/last", "0/cls", "1/max"),
    ("0/cls",),
    ("0/last", "0/max"),
)


@pytest.mark.parametrize("family", one_of_each_kind(CONFIGS))
def test_views_of_single_tokens_equal_the_reference(family: str, lively_tiny: Folder) -> None:
    folder = lively_tiny(family)
    texts = mixed(lengths_for(family))
    for views in SPARSE:
        expected = stock(folder).matrix(texts, views=views)
        for budget in (None, 150):
            assert_features(encoder(loaded(folder), *views, batch_tokens=budget)(texts).views, expected, 3)


@pytest.mark.parametrize("family", one_of_each_kind(CONFIGS))
def test_batches_of_any_shape(family: str, lively_tiny: Folder) -> None:
    """As many tokens as there are texts, heads or dimensions: no axis is taken for another."""
    folder = lively_tiny(family)
    for lengths in ((1,), (1, 1), (2,), (1, 1, 1, 1), (4, 4), (8,), (32,), (16, 16), (30,), (28, 1), (48,)):
        for views in (("last/cls", "last/last"), ("last/mean", "-2/last")):
            texts = mixed(lengths)
            found = encoder(loaded(folder), *views)(texts)
            assert_features(found.views, stock(folder).matrix(texts, views=views), 3)


@pytest.mark.parametrize("family", CONFIGS)
def test_families_run_packed_or_note_why_not(family: str, tiny: Folder) -> None:
    backbone = loaded(tiny(family))
    notes = encoder(backbone, max_length=64).notes
    if family in PACKED:
        assert (backbone.packing, backbone.packing_note, notes) == ("packed", "", [])
    else:
        assert backbone.packing == "padded"
        assert type(backbone.model).__name__ in backbone.packing_note
        assert len(notes) == 1
        assert backbone.packing_note in notes[0]


@pytest.mark.parametrize("family", CONFIGS)
def test_pairs_equal_the_reference(family: str, lively_tiny: Folder) -> None:
    folder = lively_tiny(family)
    texts, pairs = mixed((9, 3, 1, 20, 3)), mixed((4, 11, 30, 1, 11), seed=50)
    found = encoder(loaded(folder))(texts, pairs)
    assert_features(found.views, stock(folder).matrix(texts, pairs), 3)
    swapped = encoder(loaded(folder))(pairs, texts)
    assert abs(swapped.views["last/mean"] - found.views["last/mean"]).max(axis=1).min() > 1e-3


def test_pairs_in_padded_batches_keep_their_token_types(tmp_path: Path) -> None:
    folder = lively(build("deberta-v2", tmp_path / "plain", type_vocab_size=2), tmp_path / "lively")
    backbone = load(folder)
    assert backbone.packing == "padded"
    texts, pairs = mixed((9, 3, 1, 20)), mixed((4, 11, 30, 1), seed=50)
    assert_features(encoder(backbone)(texts, pairs).views, stock(folder).matrix(texts, pairs), 3)


def test_token_types_of_pairs_reach_the_model(lively_tiny: Folder) -> None:
    folder = lively_tiny("bert")
    found = encoder(loaded(folder), "last/mean")(["very good"], ["book room"])
    ids = stock(folder).tokenizer("very good", "book room", return_tensors="pt")
    assert ids["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    with torch.no_grad():
        untyped = stock(folder).model(ids["input_ids"]).last_hidden_state[0].mean(0).numpy()
    assert abs(found.views["last/mean"][0] - untyped).max() > 1e-2


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"hidden_act": "silu"}),
        ("bert", {"num_hidden_layers": 1}),
        ("bert", {"is_decoder": True}),  # sees only what came before
        ("bert", {"num_attention_heads": 1, "layer_norm_eps": 1e-3}),
        ("roberta", {"hidden_act": "gelu_new"}),
        ("distilbert", {"activation": "relu", "sinusoidal_pos_embds": True}),
        ("electra", {"embedding_size": 32}),
        ("albert", {"num_hidden_groups": 3}),
        ("modernbert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True}),
        ("modernbert", {"num_hidden_layers": 4}),  # a global block, two local ones, a global one
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
        ("gpt2", {"scale_attn_weights": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 12}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 1}),
        ("mpnet", {"hidden_act": "relu"}),
    ],
    ids=str,
)
def test_unusual_configs_equal_the_reference(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = lively(build(family, tmp_path / "plain", **changes), tmp_path / "lively")
    backbone = load(folder)
    texts = mixed((20, 3, 3, 9, 10, 50, 1))
    for views in (("last/mean", "last/cls", "-2/mean", "0/mean"), ("last/cls", "last/last")):
        found = encoder(backbone, *views)(texts)
        assert_features(found.views, stock(folder).matrix(texts, views=views), stock(folder).blocks)


@pytest.mark.parametrize("family", one_of_each_kind(CONFIGS))
def test_bfloat16_is_as_exact_as_stock_bfloat16(family: str, lively_tiny: Folder) -> None:
    folder = lively_tiny(family)
    check_bfloat16(folder, load(folder, dtype="bfloat16"), mixed(lengths_for(family)))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"hidden_act": "gelu_pytorch_tanh"}),
        ("bert", {"hidden_act": "quick_gelu"}),
        ("bert", {"hidden_act": "silu"}),
        ("bert", {"is_decoder": True}),
        ("roberta", {"hidden_act": "gelu_fast"}),
        ("distilbert", {"activation": "relu"}),
        ("albert", {"hidden_act": "gelu"}),
        ("modernbert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True}),
        ("gpt2", {"activation_function": "gelu"}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
        ("mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    ],
    ids=str,
)
def test_bfloat16_of_unusual_configs(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Modules that are swapped for faster ones must keep biases, activations and head counts."""
    folder = lively(build(family, tmp_path / "plain", **changes), tmp_path / "lively")
    check_bfloat16(folder, load(folder, dtype="bfloat16"), mixed())


def check_bfloat16(folder: Path, backbone: Backbone, texts: list[str]) -> None:
    """No farther from float32 than stock bfloat16 is, one text at a time."""
    exact, rounded = stock(folder), stock(folder, torch.bfloat16)
    expected, usual = exact.matrix(texts), rounded.matrix(texts)
    found = encoder(backbone)(texts).views
    sparse = encoder(backbone, "last/cls", "last/last", "0/mean")(texts).views
    for view in VIEWS:
        usual_error = abs(usual[view] - expected[view])
        name = canonical_name(view, exact.blocks)
        for views in (found, sparse):
            if name in views:
                error = abs(views[name] - expected[view])
                assert error.mean() <= 1.3 * usual_error.mean() + 1e-4, view
                assert error.max() <= 3 * usual_error.max() + 1e-3, view
    assert abs(found["last/mean"] - expected["last/mean"]).max() > 1e-5  # it did compute in 16 bits


def test_storage_rounds_and_nothing_else(lively_tiny: Folder) -> None:
    backbone = loaded(lively_tiny("bert"))
    exact, stored = (encoder(backbone, storage=name)(mixed()) for name in ("float32", "float16"))
    for name, values in exact.views.items():
        assert (values.dtype, stored.views[name].dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(stored.views[name], values.astype(np.float16))


# ---------------------------------------------------------------- order, budget, neighbours

ORDER_TEXTS = mixed()


@given(
    order=st.permutations(range(len(ORDER_TEXTS))),
    count=st.integers(1, len(ORDER_TEXTS)),
    budget=st.integers(1, 400),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("family", ["bert", "mistral", "mpnet"])
def test_order_and_budget_do_not_matter(
    family: str, order: list[int], count: int, budget: int, lively_tiny: Folder
) -> None:
    folder = lively_tiny(family)
    backbone, chosen = loaded(folder), order[:count]
    found = encoder(backbone, "last/mean", "-2/max", batch_tokens=budget)([ORDER_TEXTS[i] for i in chosen])
    for name, values in in_order(folder).items():
        np.testing.assert_allclose(found.views[name], values[chosen], rtol=0, atol=1e-5)


KNOWN: dict[Path, dict[str, np.ndarray]] = {}


def in_order(folder: Path) -> dict[str, np.ndarray]:
    if folder not in KNOWN:
        KNOWN[folder] = stock(folder).matrix(ORDER_TEXTS, views=["last/mean", "-2/max"])
    return KNOWN[folder]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", one_of_each_kind(CONFIGS))
def test_no_text_sees_another(family: str, dtype: str, lively_tiny: Folder) -> None:
    """Another text of the same length in its place changes not one bit of the others."""
    backbone = loaded(lively_tiny(family), dtype=dtype)
    lengths = (12, 12, 30, 5, 12, 5, 13)
    texts = mixed(lengths)
    for encode in (encoder(backbone), encoder(backbone, "last/cls", "last/last")):
        before = encode(texts)
        for changed in (0, 2, 4):
            others = [i for i in range(len(texts)) if i != changed]
            after = encode([*texts[:changed], sentence(lengths[changed], 99), *texts[changed + 1 :]])
            for name, values in before.views.items():
                np.testing.assert_array_equal(after.views[name][others], values[others])
                if name == "last/mean" or name == "last/last":
                    assert abs(after.views[name][changed] - values[changed]).max() > 1e-3, name


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet", "llama"])
def test_padding_side_does_not_matter(family: str, lively_tiny: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(lively_tiny(family), tmp_path / "left")
    write_tokenizer(folder, decoder=family in DECODERS, side="left")
    backbone = load(folder)
    assert backbone.tokenizer.padding_side == "left"
    texts = mixed()
    assert_features(encoder(backbone)(texts).views, stock(lively_tiny(family)).matrix(texts), 3)


def test_the_same_text_gives_the_same_bits(lively_tiny: Folder) -> None:
    encode = encoder(loaded(lively_tiny("bert")))
    first, second = encode(mixed()), encode(mixed())
    for name, values in first.views.items():
        np.testing.assert_array_equal(values, second.views[name])


@pytest.mark.parametrize("family", CONFIGS)
def test_fixture_words_are_known(family: str, tiny: Folder) -> None:
    tokenizer = stock(tiny(family)).tokenizer
    ids = [
        token for text in [*mixed(), "这家酒店很干净，good book"] for token in tokenizer(text)["input_ids"]
    ]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer("龙")["input_ids"].count(tokenizer.unk_token_id) == 1  # unknown words do show


# ---------------------------------------------------------------- prompt and length


def test_the_prompt_precedes_the_text(lively_tiny: Folder) -> None:
    folder = lively_tiny("bert")
    texts, pairs = ["好房间", "good"], ["book", "the room"]
    prompted = encoder(loaded(folder), prompt="very 坏")
    whole = [f"very 坏{text}" for text in texts]
    assert_features(prompted(texts).views, stock(folder).matrix(whole), 3)
    assert_features(prompted(texts, pairs).views, stock(folder).matrix(whole, pairs), 3)
    plain = encoder(loaded(folder))(texts)
    assert abs(plain.views["last/cls"] - prompted(texts).views["last/cls"]).max(axis=1).min() > 1e-2


def test_the_prompt_counts_towards_the_length(lively_tiny: Folder) -> None:
    encode = encoder(loaded(lively_tiny("bert")), prompt="very good ", max_length=10)
    found = encode([sentence(6), sentence(7)])
    assert found.n_tokens.tolist() == [10, 10]
    assert found.truncated.tolist() == [False, True]


@pytest.mark.parametrize("family", ["bert", "llama", "mpnet"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_is_exact(family: str, side: str, lively_tiny: Folder, tmp_path: Path) -> None:
    folder = with_tokenizer_setting(lively_tiny(family), tmp_path, truncation_side=side)
    around = 0 if family in DECODERS else 2
    texts = [sentence(words) for words in (9 - around, 10 - around, 11 - around, 40)]
    found = encoder(load(folder), max_length=10)(texts)
    assert found.n_tokens.tolist() == [9, 10, 10, 10]
    assert found.truncated.tolist() == [False, False, True, True]
    kept = [
        " ".join(text.split()[: 10 - around] if side == "right" else text.split()[-(10 - around) :])
        for text in texts
    ]
    assert_features(found.views, stock(lively_tiny(family)).matrix(kept), 3)


def test_truncation_of_pairs_is_exact(lively_tiny: Folder) -> None:
    texts, pairs = mixed((5, 5, 2)), mixed((4, 5, 30), seed=9)  # with [CLS] and two [SEP]: 12, 13, 35
    found = encoder(loaded(lively_tiny("bert")), max_length=12)(texts, pairs)
    assert found.truncated.tolist() == [False, True, True]
    assert found.n_tokens.tolist() == [12, 12, 12]
    options = {"truncation": "longest_first", "max_length": 12}
    assert_features(found.views, stock(lively_tiny("bert")).matrix(texts, pairs, **options), 3)


def test_truncation_is_exact_with_a_slow_tokenizer(lively_tiny: Folder, tmp_path: Path) -> None:
    """One in pure Python, which does not say what it cut."""
    from tests.support.tiny import VOCABULARY

    folder = shutil.copytree(lively_tiny("bert"), tmp_path / "slow")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    config = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "wordpiece",
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    backbone = load(folder)
    assert not backbone.tokenizer.is_fast
    texts = [sentence(words) for words in (7, 8, 9, 40, 2)]
    found = encoder(backbone, "last/mean", max_length=10)(texts)
    assert found.truncated.tolist() == [False, False, True, True, False]
    assert found.n_tokens.tolist() == [9, 10, 10, 10, 4]
    kept = [" ".join(text.split()[:8]) for text in texts]
    expected = stock(lively_tiny("bert")).matrix(kept, views=["last/mean"])
    assert_features(found.views, expected, 3)
    pairs = ["the " * 5, "the " * 6]
    paired = encoder(backbone, "last/mean", max_length=10)(["very good"] * 2, pairs)
    assert paired.truncated.tolist() == [False, True]


def with_tokenizer_setting(source: Path, tmp_path: Path, **changes: Any) -> Path:
    folder = shutil.copytree(source, tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "llama"])
def test_the_default_length_is_lowered_with_a_note(family: str, tiny: Folder) -> None:
    limit = 256 if family == "llama" else 64
    made = encoder(loaded(tiny(family)))
    assert made.max_length == limit
    assert any(f"{limit} tokens" in note and "512" in note for note in made.notes)
    assert made.document.max_length == limit
    found = made([sentence(400)])
    assert (found.n_tokens.tolist(), found.truncated.tolist()) == ([limit], [True])
    assert encoder(loaded(tiny(family)), max_length=limit).max_length == limit


def test_a_length_beyond_the_model_is_refused(tiny: Folder) -> None:
    with pytest.raises(UsageError, match="--max-length 513") as caught:
        encoder(loaded(tiny("bert")), max_length=513)
    assert "64" in str(caught.value)


def test_a_longer_model_takes_longer_texts(tmp_path: Path) -> None:
    folder = build("llama", tmp_path, max_position_embeddings=1024)
    write_tokenizer(folder, decoder=True, limit=10**30)
    made = encoder(load(folder), "last/last", max_length=700)
    assert (made.max_length, made.notes) == (700, [])
    text = sentence(650)
    assert_features(made([text]).views, stock(folder).matrix([text], views=["last/last"]), 3)
    with pytest.raises(UsageError, match="1024"):
        encoder(load(folder), max_length=1025)


@pytest.mark.parametrize(("family", "least"), [("bert", 5), ("llama", 2)])
def test_a_length_without_room_for_text_is_refused(family: str, least: int, tiny: Folder) -> None:
    assert encoder(loaded(tiny(family)), max_length=least)(["good book"], ["the room"]).n_tokens == [least]
    for length in (least - 1, 0, -1):
        with pytest.raises(UsageError, match=f"at least {least}"):
            encoder(loaded(tiny(family)), max_length=length)


def test_roberta_positions_start_at_two(tmp_path: Path) -> None:
    """As in every published RoBERTa: pad is 1, positions 0 and 1 are never read by a text."""
    folder = lively(build("roberta", tmp_path / "plain", pad_token_id=1), tmp_path / "roberta")
    backbone = load(folder)
    assert (backbone.packing, backbone.position_limit) == ("packed", 64)
    with_limit = encoder(backbone)
    assert with_limit.max_length == 64
    texts = mixed((*MIXED, 62))
    assert_features(with_limit(texts).views, stock(folder).matrix(texts), 3)
    read = positions_read(backbone, with_limit, [sentence(62)])
    assert (min(read), max(read)) == (2, 65)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_a_pad_token_in_a_text_is_a_token(family: str, lively_tiny: Folder) -> None:
    """`[PAD]` typed into a review: RoBERTa and MPNet skip a position there, and so must packed batches."""
    folder = lively_tiny(family)
    texts = ["very good [PAD] book room", "the room", "[PAD] good"]
    assert stock(folder).tokenizer.pad_token_id in stock(folder).token_ids(texts[0])
    assert_features(encoder(loaded(folder))(texts).views, stock(folder).matrix(texts), 3)


def positions_read(backbone: Backbone, encode: Encoder, texts: list[str]) -> list[int]:
    """The rows of the learned position table that a pass over `texts` looks up."""
    found: list[int] = []
    table = backbone.model.embeddings.position_embeddings
    hook = table.register_forward_pre_hook(lambda _, args: found.extend(args[0].flatten().tolist()))
    encode(texts)
    hook.remove()
    return found


@pytest.mark.parametrize(
    ("family", "limit"),
    [("bert", 64), ("gpt2", 64), ("mpnet", 64), ("modernbert", 256)],
)
def test_position_limits(family: str, limit: int, tiny: Folder) -> None:
    assert loaded(tiny(family)).position_limit == limit


# ---------------------------------------------------------------- views


@pytest.mark.parametrize(
    "view",
    ["4/cls", "-5/cls", "last/avg", "first/cls", "last", "cls", "", "last/", "/cls", "1.0/cls", "last/cls/x"],
)
def test_views_outside_the_backbone_are_refused(view: str, tiny: Folder) -> None:
    with pytest.raises(UsageError, match=r"no view|the backbone has 3 blocks"):
        encoder(loaded(tiny("bert")), "last/cls", view)


@pytest.mark.parametrize("asked", ["3/cls", "-1/cls", "last/cls", " last/cls "])
def test_views_have_canonical_names(asked: str, tiny: Folder) -> None:
    made = encoder(loaded(tiny("bert")), asked, "last/cls")
    assert [view.name for view in made.views] == ["last/cls"]
    assert list(made(["good"]).views) == ["last/cls"]


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_canonical_names_count_from_the_end(blocks: int) -> None:
    for layer in range(blocks + 1):
        view, same = parse_view(f"{layer}/max", blocks), parse_view(f"{layer - blocks - 1}/max", blocks)
        assert view == same
        assert (view.layer, view.pooling, view.name) == (layer, "max", canonical_name(f"{layer}/max", blocks))
        assert parse_view(view.name, blocks) == view
    assert parse_view("12/cls", 12).name == "last/cls" == parse_view("-1/cls", 12).name


def test_a_view_does_not_depend_on_the_others(lively_tiny: Folder) -> None:
    backbone, texts = loaded(lively_tiny("llama")), mixed()
    together = encoder(backbone)(texts).views
    for view in VIEWS:
        name = canonical_name(view, 3)
        np.testing.assert_allclose(
            encoder(backbone, view)(texts).views[name], together[name], rtol=0, atol=1e-6
        )


# ---------------------------------------------------------------- edges


def test_no_texts(tiny: Folder) -> None:
    found = encoder(loaded(tiny("bert")))([])
    assert (len(found.n_tokens), len(found.truncated)) == (0, 0)
    assert {len(values) for values in found.views.values()} == {0}


def test_a_text_without_any_token_is_refused_by_name(tiny: Folder) -> None:
    with pytest.raises(BackboneError, match=r"no token of '\\u200b'"):
        encoder(loaded(tiny("llama")))(["good", "\u200b"])


def test_progress_counts_every_text_and_token(tiny: Folder) -> None:
    made = encoder(loaded(tiny("bert")), batch_tokens=50)
    tokens, steps = made.tokenize(mixed()), []
    made.encode(tokens, lambda texts, count: steps.append((texts, count)))
    assert len(steps) > 3
    assert tuple(np.sum(steps, axis=0)) == (len(MIXED), sum(MIXED) + 2 * len(MIXED))


def scaled(source: Path, target: Path, name: str, factor: float) -> Path:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(source, target)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LAST_NORM = "encoder.layer.2.output.LayerNorm.weight"


def test_features_too_large_for_storage_are_refused(tiny: Folder, tmp_path: Path) -> None:
    backbone = load(scaled(tiny("bert"), tmp_path / "large", LAST_NORM, 1e5))
    with pytest.raises(BackboneError, match="too large for float16") as caught:
        encoder(backbone, "last/cls", storage="float16")(mixed())
    assert "--storage float32" in str(caught.value)
    assert np.isfinite(encoder(backbone, "last/cls")(mixed()).views["last/cls"]).all()


def test_damaged_weights_are_refused(tiny: Folder, tmp_path: Path) -> None:
    backbone = load(scaled(tiny("bert"), tmp_path / "nan", LAST_NORM, float("nan")))
    with pytest.raises(BackboneError, match="NaN or infinite"):
        encoder(backbone, "last/mean")(["good"])


def test_a_refused_text_is_named(tiny: Folder, tmp_path: Path) -> None:
    """`row` is the text's place in what was given, not in its batch."""
    table = "embeddings.word_embeddings.weight"
    backbone = load(tiny("bert"))
    word = int(stock(tiny("bert")).token_ids("坏")[1])
    backbone.model.get_input_embeddings().weight[word] = float("nan")
    assert table in dict(backbone.model.named_parameters())
    with pytest.raises(BackboneError) as caught:
        encoder(backbone, "last/mean")(["good book", "the room", "坏", "very"])
    assert caught.value.row == 2  # type: ignore[attr-defined]


# ---------------------------------------------------------------- out of memory


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, error: BaseException) -> list[int]:
    """Backbones raise `error` for batches of more than `tokens`; the sizes of those that failed."""
    failed: list[int] = []
    states = Backbone.states

    def states_or_error(self: Backbone, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if int(batch.lengths.sum()) > tokens:
            failed.append(int(batch.lengths.sum()))
            if len(failed) > 100:
                pytest.fail("it tries again for ever")
            raise error
        return states(self, batch, *args, **kwargs)

    monkeypatch.setattr(Backbone, "states", states_or_error)
    return failed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_out_of_memory_halves_the_budget(
    family: str, error: BaseException, lively_tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, texts = loaded(lively_tiny(family)), mixed() + mixed(seed=7)
    expected = stock(lively_tiny(family)).matrix(texts)
    made = encoder(backbone, batch_tokens=400)
    failed = limited(monkeypatch, 110, error)
    steps: list[tuple[int, int]] = []
    tokens = made.tokenize(texts)
    found = made.encode(tokens, lambda done, count: steps.append((done, count)))
    assert_features(found.views, expected, 3)
    assert max(failed) > 200
    assert made.batch_tokens <= max(failed) // 2
    assert tuple(np.sum(steps, axis=0)) == (len(texts), int(tokens.lengths.sum()))


def test_out_of_memory_lowers_the_budget_for_good(tiny: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not fit is not tried again: 400 tokens, then 200, then 100 for all that is left."""
    made = encoder(loaded(tiny("bert")), "last/cls", batch_tokens=400)
    failed = limited(monkeypatch, 110, torch.OutOfMemoryError("out of memory"))
    made([sentence(8, seed) for seed in range(200)])  # 2,000 tokens, five batches
    assert failed == [400, 200]
    made([sentence(8, seed) for seed in range(200)])
    assert failed == [400, 200]


def test_out_of_memory_on_a_single_text(tiny: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = encoder(loaded(tiny("bert")), "last/cls")
    limited(monkeypatch, 20, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(BackboneError, match="out of memory on one text of 32 tokens") as caught:
        made(mixed((4, 30, 5)))
    assert "--max-length" in str(caught.value)


def test_other_errors_do_not_halve_the_budget(tiny: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = loaded(tiny("bert"))
    failed = limited(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        encoder(backbone)(mixed())
    assert len(failed) == 1


# ---------------------------------------------------------------- what the fingerprint is made of


def test_the_document_holds_all_that_changes_a_feature(tiny: Folder, tmp_path: Path) -> None:
    backbone = loaded(tiny("bert"))
    base = encoder(backbone).document
    assert base.files == backbone.files.hashes
    others = [
        encoder(backbone, prompt="query: ").document,
        encoder(backbone, max_length=32).document,
        encoder(backbone, storage="float16").document,
        encoder(load(tiny("bert"), dtype="bfloat16")).document,
        encoder(load(with_tokenizer_setting(tiny("bert"), tmp_path, truncation_side="left"))).document,
        encoder(loaded(tiny("electra"))).document,
    ]
    assert len({json.dumps(document.to_json(), sort_keys=True) for document in [base, *others]}) == 7
    same = encoder(backbone, "last/cls", batch_tokens=7, max_length=64).document
    assert same == base  # neither budget nor views nor how the length was asked for


def test_settings_reach_the_encoder(tiny: Folder) -> None:
    made = Encoder(loaded(tiny("bert")), FeatureSettings(), 77)
    assert (made.batch_tokens, made.storage, made.prompt) == (77, np.float16, "")
    assert settings_of(tiny("bert")).batch_tokens is None
    assert Encoder(loaded(tiny("bert")), FeatureSettings()).batch_tokens > 1000


def test_batches_come_in_few_sizes(lively_tiny: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits on CPUs; what fills a batch touches no text."""
    backbone, texts, sizes = loaded(lively_tiny("bert"), dtype="bfloat16"), mixed(), []
    made = encoder(backbone, batch_tokens=300)
    assert backbone.blocks is not None
    backbone.blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append((args or list(kwargs.values()))[0].shape[1]), with_kwargs=True
    )
    found = {count: made(texts[:count]).views["last/mean"] for count in range(1, len(texts) + 1)}
    assert len(set(sizes)) < len(sizes) and all(size % 16 == 0 for size in sizes)
    monkeypatch.setattr("featcache.backbone.model.filling", lambda _: 0)
    for count, features in found.items():
        np.testing.assert_allclose(features, made(texts[:count]).views["last/mean"], rtol=0.05, atol=0.05)
