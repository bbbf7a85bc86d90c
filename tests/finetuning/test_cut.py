"""Training above the cut is training the whole model with the prefix frozen: every loss, every gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from featcache.backbone.attention import packed_attention
from featcache.backbone.attention_backward import KEPT, trained_attention
from featcache.backbone.files import find_model
from featcache.backbone.model import TokenBatch
from featcache.backbone.packing import Layout
from featcache.errors import BackboneError, HeadError, UsageError
from featcache.finetuning import cut
from featcache.finetuning.cut import (
    StateBatch,
    Suffix,
    load_plain,
    load_tuned,
    parse_part,
    read_weights,
)
from featcache.finetuning.loop import Tuner
from featcache.finetuning.recipe import Recipe
from tests.support.stock import load, one_thread, settings_of

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama", "qwen3", "mistral")
PADDED = ("deberta-v2", "mpnet")
LENGTHS = (30, 7, 7, 16, 1, 40)
LABELS = np.array([0, 1, 1, 0, 2, 1])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def batch_of(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> TokenBatch:
    ids = np.random.default_rng(seed).integers(5, 60, sum(lengths))
    return TokenBatch(ids, np.array(lengths, np.int64))


class Rows:
    """Texts as a training wants them: as tokens, or as what the frozen backbone makes of them at a cut."""

    def __init__(self, tokens: TokenBatch, folder: Path | None = None, cut: int | None = None) -> None:
        self.tokens, self.lengths = tokens, tokens.lengths
        self.ends = np.cumsum(tokens.lengths)
        self.states: torch.Tensor | None = None
        if cut is not None and folder is not None:
            self.states = load(folder).states(tokens, [cut])[0][cut].clone()

    def batch(self, rows: np.ndarray) -> StateBatch | TokenBatch:
        places = np.concatenate([np.arange(self.ends[r] - self.lengths[r], self.ends[r]) for r in rows])
        if self.states is not None:
            return StateBatch(self.states[torch.from_numpy(places)], self.lengths[rows])
        return TokenBatch(self.tokens.input_ids[places], self.lengths[rows])


def suffix_of(folder: Path, part: str, **options: Any) -> Suffix:
    plain = load_plain(settings_of(folder), find_model(settings_of(folder)))
    options = {"compute": "float32", "device": CPU} | options
    return Suffix(plain, parse_part(part, plain.num_blocks), **options)


class Whole:
    """The stock model with eager attention, one unpadded text at a time, only `names` trained."""

    def __init__(self, folder: Path, names: Sequence[str], head: torch.nn.Linear) -> None:
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        self.named = {name: p for name, p in self.model.named_parameters() if name in set(names)}
        for parameter in self.named.values():
            parameter.requires_grad_(True)
        self.head = copy.deepcopy(head)

    def pooled(self, rows: Rows, pooling: str) -> torch.Tensor:
        vectors = []
        for end, length in zip(rows.ends, rows.lengths, strict=True):
            ids = torch.from_numpy(rows.tokens.input_ids[end - length : end])[None]
            states = self.model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            vectors.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
        return torch.stack(vectors)

    def loss(self, rows: Rows, pooling: str) -> torch.Tensor:
        return functional.cross_entropy(self.head(self.pooled(rows, pooling)), torch.from_numpy(LABELS))


def check_run(folder: Path, part: str, pooling: str, steps: int = 4, budget: int = 40) -> None:
    """Loss and gradients of every step, by the tuner and by the stock model, from the same beginning."""
    suffix = suffix_of(folder, part)
    rows = Rows(batch_of(), folder, suffix.part.cut)
    recipe = Recipe(epochs=steps, batch_size=len(LENGTHS), lr=1e-3, head_lr=1e-2, clip=0.5, warmup=0.3)
    tuner = Tuner(suffix, pooling, (rows, LABELS), (rows, LABELS), 3, recipe, seed=1, budget=budget)
    whole = Whole(folder, list(suffix.trained), tuner.head)
    both = [*whole.named.values(), *whole.head.parameters()]
    decaying = [p for p in both if p.dim() > 1]
    head = {id(p) for p in whole.head.parameters()}
    groups = [
        {
            "params": [p],
            "lr": 1e-2 if id(p) in head else 1e-3,
            "weight_decay": 0.01 if any(p is d for d in decaying) else 0.0,
        }
        for p in both
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = [0.5, 1.0, 1.0, 0.5]  # two steps of warm-up, then two falling in a line
    for step in range(steps):
        optimizer.zero_grad()
        expected = whole.loss(rows, pooling)
        expected.backward()
        loss, _ = tuner._gradients(np.arange(len(LENGTHS)))
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        for name, parameter in whole.named.items():
            found, wanted = suffix.masters[name].grad, parameter.grad
            if wanted is None:
                assert found is None, name
                continue
            assert found is not None, name
            largest = max(float(wanted.abs().max()), 1e-3)
            assert float((found - wanted).abs().max()) <= 1e-5 * largest, (step, name)
        torch.nn.utils.clip_grad_norm_(both, 0.5)
        for group in optimizer.param_groups:
            group["lr"] = (1e-2 if id(group["params"][0]) in head else 1e-3) * schedule[step]
        optimizer.step()
        tuner._update()
        tuner.place.step += 1


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("family", [*FAMILIES, *PADDED])
@pytest.mark.parametrize(("count", "pooling"), [(1, "mean"), (2, "last"), (3, "cls")])
def test_every_loss_and_gradient_is_the_whole_models(
    tiny: Callable[[str], Path], family: str, count: int, pooling: str
) -> None:
    check_run(tiny(family), f"top-blocks:{count}", pooling)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "deberta-v2"])
def test_end_to_end_is_the_whole_model(tiny: Callable[[str], Path], family: str) -> None:
    check_run(tiny(family), "all", "mean")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_positions_alone(tiny: Callable[[str], Path], family: str) -> None:
    suffix = suffix_of(tiny(family), "positions")
    assert len(suffix.trained) == 1
    check_run(tiny(family), "positions", "mean")


def test_the_final_norm_is_trained_with_the_blocks(tiny: Callable[[str], Path]) -> None:
    for family, norm in (
        ("gpt2", "ln_f.weight"),
        ("llama", "norm.weight"),
        ("modernbert", "final_norm.weight"),
    ):
        assert norm in suffix_of(tiny(family), "top-blocks:1").trained
    below = suffix_of(tiny("bert"), "top-blocks:1").trained
    assert below and all(name.startswith("encoder.layer.2.") for name in below)


def test_nothing_below_the_cut_is_kept(tiny: Callable[[str], Path]) -> None:
    suffix = suffix_of(tiny("bert"), "top-blocks:1")
    for block in suffix.blocks[:2]:
        assert all(parameter.device.type == "meta" for parameter in block.parameters())
    assert suffix.backbone.model.get_input_embeddings().num_embeddings == 2


def test_depth_counts_blocks_from_the_top(tiny: Callable[[str], Path]) -> None:
    suffix = suffix_of(tiny("llama"), "all")
    depths = {name: suffix.depth(name) for name in suffix.trained}
    assert depths["layers.2.mlp.up_proj.weight"] == 0
    assert depths["layers.0.mlp.up_proj.weight"] == 2
    assert depths["embed_tokens.weight"] == 3
    assert suffix_of(tiny("llama"), "top-blocks:2").depth("norm.weight") == 0


def test_bfloat16_is_near_float32(tiny: Callable[[str], Path]) -> None:
    """Master weights stay float32; what is computed with is their rounding."""
    folder = tiny("bert")
    rows = Rows(batch_of(), folder, 1)
    gradients = {}
    for compute in ("float32", "bfloat16"):
        suffix = suffix_of(folder, "top-blocks:2", compute=compute)
        tuner = Tuner(suffix, "mean", (rows, LABELS), (rows, LABELS), 3, Recipe(), seed=0, budget=50)
        tuner._gradients(np.arange(6))
        gradients[compute] = torch.cat(
            [p.grad.flatten() for p in suffix.masters.values() if p.grad is not None]
        )
        assert all(p.dtype == torch.float32 for p in suffix.masters.values())
        assert {p.dtype for p in suffix.trained.values()} == {getattr(torch, compute)}
        tuner._update()
        for name, parameter in suffix.trained.items():
            assert torch.equal(parameter, suffix.masters[name].to(parameter.dtype))
    cosine = functional.cosine_similarity(gradients["float32"], gradients["bfloat16"], dim=0)
    assert float(cosine) > 0.99


@pytest.mark.parametrize("part", ["top-blocks:1", "all"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_what_fills_a_batch_changes_nothing(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str, part: str
) -> None:
    """In 16 bits batches are filled to a round number of tokens with texts that nobody asked for."""
    folder = tiny(family)
    rows = Rows(batch_of(), folder, parse_part(part, 3).cut)
    found = []
    for step in (1, 128):
        monkeypatch.setattr(cut, "TOKEN_STEP", step)
        suffix = suffix_of(folder, part, compute="bfloat16")
        seen: list[int] = []
        suffix.blocks[2].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
        suffix.pooled(rows.batch(np.arange(6)), "mean").sin().sum().backward()
        assert seen == [101 if step == 1 else 128]
        suffix.collect()
        found.append({name: p.grad for name, p in suffix.masters.items() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, reference in found[0].items():
        largest = float(reference.abs().max())
        assert float((found[1][name] - reference).abs().max()) <= 3e-2 * largest + 1e-6, name


def test_dropout_is_above_the_cut_only_and_off_in_evaluation(tiny: Callable[[str], Path]) -> None:
    folder = tiny("bert")
    rows = Rows(batch_of(), folder, 2)
    suffix = suffix_of(folder, "top-blocks:1", dropout=0.5)
    batch = rows.batch(np.arange(6))
    suffix.train(True)
    assert not any(m.training for block in suffix.blocks[:2] for m in block.modules())
    first, second = (suffix.pooled(batch, "mean").detach() for _ in range(2))
    assert not torch.allclose(first, second)
    suffix.train(False)
    first, second = (suffix.pooled(batch, "mean").detach() for _ in range(2))
    assert torch.equal(first, second)
    plain = suffix_of(folder, "top-blocks:1")
    plain.train(True)
    assert torch.equal(plain.pooled(batch, "mean").detach(), first)


# ---------------------------------------------------------------- attention


def attention_inputs(lengths: Sequence[int], heads: int, shared: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [heads * shared, heads, heads]
    return [
        torch.randn(1, count, sum(lengths), 8, generator=draw, dtype=torch.float64).requires_grad_()
        for count in shapes
    ]


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 2), st.integers(1, 2),
    st.booleans(), st.sampled_from([None, 4, 50]), st.sampled_from([None, 0.3]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_attention_and_its_gradients_are_autograds(
    lengths: list[int], heads: int, shared: int, causal: bool, window: int | None, scaling: float | None
) -> None:
    layout = Layout.of(np.array(lengths), CPU)
    module = torch.nn.Module()
    results = []
    for call in (trained_attention, packed_attention):
        inputs = attention_inputs(lengths, heads, shared)
        out, _ = call(
            module, *inputs, None, packed=layout, scaling=scaling, is_causal=causal, sliding_window=window
        )
        weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()
        (out * weights).sum().backward()
        results.append([out.detach(), *(each.grad for each in inputs)])
    for ours, reference in zip(*results, strict=True):
        assert ours is not None and reference is not None
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_16_bits_are_padded_and_as_good(causal: bool, window: int | None) -> None:
    """Lengths around multiples of 16, where the padding is; beside float64 on the same rounded numbers."""
    lengths = [1, 15, 16, 17, 33, 47]
    layout = Layout.of(np.array(lengths), CPU)
    rounded = [each.detach().bfloat16() for each in attention_inputs(lengths, 2, 1)]
    results = []
    for call, dtype in ((trained_attention, torch.bfloat16), (packed_attention, torch.float64)):
        inputs = [each.to(dtype).detach().clone().requires_grad_() for each in rounded]
        out, _ = call(
            torch.nn.Module(), *inputs, None, packed=layout, is_causal=causal, sliding_window=window
        )
        out.double().cos().sum().backward()
        results.append(
            [out.detach().double(), *(each.grad.double() for each in inputs if each.grad is not None)]
        )
    for ours, reference in zip(*results, strict=True):
        assert float((ours - reference).abs().max()) <= 2e-2 * float(reference.abs().max())


def test_a_long_text_has_the_same_gradient_though_its_weights_are_not_kept() -> None:
    lengths = [KEPT + 1, 3]
    layout = Layout.of(np.array(lengths), CPU)
    results = []
    for call in (trained_attention, packed_attention):
        inputs = attention_inputs(lengths, 1, 1)
        out, _ = call(torch.nn.Module(), *inputs, None, packed=layout, is_causal=False)
        out.pow(2).sum().backward()
        results.append([each.grad for each in inputs])
    for ours, reference in zip(*results, strict=True):
        assert ours is not None and reference is not None
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------- what cannot be cut


@pytest.mark.parametrize(
    "text", ["top-blocks:0", "top-blocks:4", "top-blocks:-1", "top", "", "blocks:2", "head"]
)
def test_a_part_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--train"):
        parse_part(text, 3)


def test_parts() -> None:
    assert parse_part("top-blocks:2", 12).cut == 10
    assert parse_part("top-blocks:12", 12).cut == 0
    assert parse_part("all", 12).cut is None


def test_a_model_without_one_list_of_blocks_is_named(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match=r"AlbertModel.*no one list of 3 blocks"):
        suffix_of(tiny("albert"), "top-blocks:1")


def test_a_model_without_positions_to_train(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="no table of learned positions"):
        suffix_of(tiny("llama"), "positions")


def test_a_model_whose_parts_do_not_make_the_whole_is_refused(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Suffix._hand_on

    def breaking(self: Suffix, cut: int, returned: int | None) -> None:
        original(self, cut, returned)
        for parameter in self.blocks[cut].parameters():
            parameter.data.mul_(1.01)

    monkeypatch.setattr(Suffix, "_hand_on", breaking)
    with pytest.raises(BackboneError, match="cannot be cut before block 1"):
        suffix_of(tiny("bert"), "top-blocks:2")


# ---------------------------------------------------------------- put together again


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_tuned_backbone_computes_what_the_suffix_does(
    tiny: Callable[[str], Path], family: str, dtype: str
) -> None:
    folder = tiny(family)
    suffix = suffix_of(folder, "top-blocks:2", compute=dtype)
    torch.manual_seed(0)
    suffix.put({name: p.detach() * (1 + 0.1 * torch.randn_like(p)) for name, p in suffix.masters.items()})
    asked = replace(settings_of(folder), dtype=dtype)
    weights = {name: p.detach().clone() for name, p in suffix.trained.items()}
    tuned = load_tuned(asked, find_model(asked), weights, lambda _: None)
    assert tuned.packing == "packed" and tuned.dtype_name == dtype and tuned.tail
    whole = tuned.states(batch_of(), [tuned.num_blocks, 1])[0]
    frozen = load(folder, dtype=dtype).states(batch_of(), [1, 3])[0]
    assert torch.equal(whole[1], frozen[1])
    with torch.no_grad():
        found, _ = suffix.states(StateBatch(frozen[1].clone(), batch_of().lengths))
    largest = float(whole[3].float().abs().max())
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    assert float((found.float() - whole[3].float()).abs().max()) <= tolerance * largest
    assert float((frozen[3].float() - whole[3].float()).abs().max()) > 2e-2 * largest


def test_weights_of_another_model_are_refused(tiny: Callable[[str], Path]) -> None:
    asked = settings_of(tiny("bert"))
    for strange in (
        {"encoder.layer.9.x": torch.zeros(2)},
        {"encoder.layer.2.output.dense.bias": torch.zeros(2)},
    ):
        with pytest.raises(HeadError, match="does not fit"):
            load_tuned(asked, find_model(asked), strange, lambda _: None)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    for name in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(HeadError, match="cannot read the trained part"):
            read_weights(tmp_path / name)
