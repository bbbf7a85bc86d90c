"""Training above the cut is training the whole model with the prefix frozen: every loss, every gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from featcache.backbone.packing import StateBatch
from featcache.errors import BackboneError
from featcache.finetuning import suffix as suffix_module
from featcache.finetuning.parts import parse_part
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.suffix import Suffix
from tests.support.stock import load
from tests.support.text_families import build_family
from tests.support.tuning import LENGTHS, TextInputs, batch_of, pooler_of, suffix_of, tuner_of

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama", "qwen3", "mistral")
PADDED = ("deberta-v2", "mpnet")
LABELS = np.array([0, 1, 1, 0, 2, 1])


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

    def pooled(self, rows: TextInputs, pooling: str) -> torch.Tensor:
        vectors = []
        for end, length in zip(rows.ends, rows.lengths, strict=True):
            ids = torch.from_numpy(rows.tokens.input_ids[end - length : end])[None]
            states = self.model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            vectors.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
        return torch.stack(vectors)

    def loss(self, rows: TextInputs, pooling: str) -> torch.Tensor:
        return functional.cross_entropy(self.head(self.pooled(rows, pooling)), torch.from_numpy(LABELS))


def check_run(folder: Path, part: str, pooling: str, steps: int = 4, budget: int = 40) -> None:
    """Loss and gradients of every step, by the tuner and by the stock model, from the same beginning."""
    suffix = suffix_of(folder, part)
    rows = TextInputs(batch_of(), folder, suffix.part.cut)
    recipe = Recipe(epochs=steps, batch_size=len(LENGTHS), lr=1e-3, head_lr=1e-2, clip=0.5, warmup=0.3)
    tuner = tuner_of(suffix, rows, LABELS, recipe, pooling, seed=1, budget=budget)
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
        tuner.state.step += 1


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("family", [*FAMILIES, *PADDED])
@pytest.mark.parametrize(
    ("count", "pooling"),
    [
        pytest.param(1, "mean", marks=pytest.mark.slow),
        pytest.param(2, "last", marks=pytest.mark.slow),
        (3, "cls"),
    ],
)
def test_losses_and_gradients_equal_those_of_the_whole_model(
    tiny: Callable[[str], Path], family: str, count: int, pooling: str
) -> None:
    check_run(tiny(family), f"top-blocks:{count}", pooling)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "deberta-v2"])
def test_training_all_equals_training_the_whole_model(tiny: Callable[[str], Path], family: str) -> None:
    check_run(tiny(family), "all", "mean")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_training_positions_changes_the_position_table_only(tiny: Callable[[str], Path], family: str) -> None:
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


def test_suffix_frees_what_is_below_the_cut(tiny: Callable[[str], Path]) -> None:
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
    rows = TextInputs(batch_of(), folder, 1)
    gradients = {}
    for compute in ("float32", "bfloat16"):
        suffix = suffix_of(folder, "top-blocks:2", compute=compute)
        tuner = tuner_of(suffix, rows, LABELS, Recipe(), budget=50)
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
def test_texts_that_fill_a_batch_do_not_change_gradients(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str, part: str
) -> None:
    """In 16 bits batches are filled to a round number of tokens with texts that were not asked for."""
    folder = tiny(family)
    rows = TextInputs(batch_of(), folder, parse_part(part, 3).cut)
    found = []
    for step in (1, 128):
        monkeypatch.setattr(suffix_module, "TOKEN_STEP", step)
        suffix = suffix_of(folder, part, compute="bfloat16")
        seen: list[int] = []
        suffix.blocks[2].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
        suffix.pooled(rows.batch(np.arange(6)), pooler_of(suffix, "mean")).sin().sum().backward()
        assert seen == [101 if step == 1 else 128]
        suffix.collect()
        found.append({name: p.grad for name, p in suffix.masters.items() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, reference in found[0].items():
        largest = float(reference.abs().max())
        assert float((found[1][name] - reference).abs().max()) <= 3e-2 * largest + 1e-6, name


def test_dropout_is_above_the_cut_only_and_off_in_evaluation(tiny: Callable[[str], Path]) -> None:
    folder = tiny("bert")
    rows = TextInputs(batch_of(), folder, 2)
    suffix = suffix_of(folder, "top-blocks:1", dropout=0.5)
    batch = rows.batch(np.arange(6))
    suffix.train(True)
    assert not any(m.training for block in suffix.blocks[:2] for m in block.modules())
    first, second = (suffix.pooled(batch, pooler_of(suffix, "mean")).detach() for _ in range(2))
    assert not torch.allclose(first, second)
    suffix.train(False)
    first, second = (suffix.pooled(batch, pooler_of(suffix, "mean")).detach() for _ in range(2))
    assert torch.equal(first, second)
    plain = suffix_of(folder, "top-blocks:1")
    plain.train(True)
    assert torch.equal(plain.pooled(batch, pooler_of(plain, "mean")).detach(), first)


# ---------------------------------------------------------------- what cannot be cut


def test_suffix_refuses_a_model_without_one_list_of_blocks(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match=r"AlbertModel.*no one list of 3 blocks"):
        suffix_of(tiny("albert"), "top-blocks:1")


def test_suffix_refuses_a_model_without_a_position_table(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="no table of learned positions"):
        suffix_of(tiny("llama"), "positions")


def test_suffix_refuses_a_model_whose_parts_give_other_states(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Suffix._pass_through

    def breaking(self: Suffix, cut: int, returned: int | None) -> None:
        original(self, cut, returned)
        for parameter in self.blocks[cut].parameters():
            parameter.data.mul_(1.01)

    monkeypatch.setattr(Suffix, "_pass_through", breaking)
    with pytest.raises(BackboneError, match="cannot be cut before block 1"):
        suffix_of(tiny("bert"), "top-blocks:2")


def test_texts_that_padding_would_change_are_trained_without_it(tmp_path: Path) -> None:
    folder = build_family("convbert", tmp_path / "convbert")
    backbone = load(folder)
    assert backbone.packing == "equal lengths"
    tokens = batch_of()
    states, _ = backbone.states(tokens, [1, 2])
    found, _ = suffix_of(folder, "top-blocks:1").states(StateBatch(states[1].clone(), tokens.lengths))
    torch.testing.assert_close(found.detach(), states[2], rtol=0, atol=1e-5)
