"""AdamW of the rows that steps read equals torch's AdamW of the whole table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import HeadError
from featcache.finetuning import suffix as suffix_module
from featcache.finetuning.checkpoint import CheckpointFolder
from featcache.finetuning.loop import Tuner
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.table_adamw import FADED, TableAdamW
from featcache.finetuning.tuning import TrainingStep
from featcache.heads.fit import schedule_factor
from tests.support.tuning import TextInputs, batch_of, suffix_of, tuner_of

ROWS, WIDTH = 7, 5
LENGTHS = tuple(np.random.default_rng(5).integers(1, 30, 22).tolist())
LABELS = np.arange(22) % 3


def sparse(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(rows[None], values, (ROWS, WIDTH), check_invariants=False)


class Beside:
    """A table trained by `TableAdamW`, by torch's AdamW in float32 and by the same in float64."""

    def __init__(self, decay: float, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        start = torch.randn(ROWS, WIDTH, generator=self.random)
        master = torch.nn.Parameter(start.clone())
        self.ours = TableAdamW(master, torch.nn.Parameter(start.bfloat16()), decay)
        self.dense = torch.nn.Parameter(start.clone())
        self.exact = torch.nn.Parameter(start.double())
        self.optimizers = [torch.optim.AdamW([p], weight_decay=decay) for p in (self.dense, self.exact)]

    def step(self, rows: Sequence[int], rate: float, size: float) -> None:
        """A step in which `rows` are read, some of them perhaps twice."""
        ids = torch.tensor(rows, dtype=torch.int64)
        values = size * torch.randn(len(ids), WIDTH, generator=self.random)
        self.ours.catch_up(ids.unique())
        self.ours.master.grad = sparse(ids, values)
        self.ours.take_gradient()
        self.ours.step(rate)
        self.ours.master.grad = None
        for parameter, optimizer in zip((self.dense, self.exact), self.optimizers, strict=True):
            parameter.grad = sparse(ids, values).to_dense().to(parameter.dtype)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()

    def check(self, rows: Sequence[int] | slice = slice(None)) -> None:
        """No further from float64 than torch's float32 is, by a few roundings."""
        with torch.no_grad():
            exact, moved, ours = self.exact[rows], self.dense[rows], self.ours.master[rows]
            allowed = 3 * (moved - exact).abs().sum() + 3e-7 * exact.abs().sum()
            assert (ours - exact).abs().sum() <= allowed
            assert torch.equal(self.ours.trained[rows], self.ours.master[rows].bfloat16())


STEPS = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=4), min_size=1, max_size=30)


@given(
    STEPS,
    st.sampled_from([0, 1, 40, FADED - 1, FADED, 300]),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.sampled_from([1.0, 1e-4, 1e-8]),
    st.integers(0, 2**32),
)
@settings(max_examples=30)
def test_any_rows_in_any_steps_give_the_table_of_torch(
    steps: list[list[int]], pause: int, decay: float, schedule: str, size: float, seed: int
) -> None:
    """Rows that are read in one step after another, rarely, or never; `pause` steps read row 0 alone."""
    steps = [*steps[:3], *[[0]] * pause, *steps[3:]]
    beside = Beside(decay, seed)
    for number, rows in enumerate(steps):
        beside.step(rows, 3e-3 * schedule_factor(number, len(steps), 0.2, schedule), size)
        beside.check(sorted(set(rows)))
    beside.ours.catch_up()
    beside.check()
    for kind in ("exp_avg", "exp_avg_sq"):
        found, wanted = beside.ours.state[kind], beside.optimizers[0].state[beside.dense][kind]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-8 * size)


def test_a_row_of_every_step_has_the_bits_of_torch() -> None:
    beside = Beside(decay=0.1, seed=1)
    fused = torch.nn.Parameter(beside.dense.detach().clone())
    optimizer = torch.optim.AdamW([fused], weight_decay=0.1, fused=True)
    for number in range(20):
        beside.step(range(ROWS), 1e-2 / (number + 1), 1.0)
        fused.grad = beside.dense.grad
        optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
        optimizer.step()
    assert torch.equal(beside.ours.master, fused)


def test_a_gradient_that_is_not_sparse_updates_all_rows() -> None:
    """As of weights that the model also multiplies with; steps of both kinds follow each other."""
    beside = Beside(decay=0.1, seed=2)
    for number in range(12):
        if number % 3:
            beside.step([number % ROWS], 1e-2, 1.0)
            continue
        gradient = torch.randn(ROWS, WIDTH, generator=beside.random)
        beside.ours.master.grad = gradient.clone()
        beside.ours.take_gradient()
        beside.ours.step(1e-2)
        for parameter, optimizer in zip((beside.dense, beside.exact), beside.optimizers, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
            optimizer.param_groups[0]["lr"] = 1e-2
            optimizer.step()
        beside.check()
    beside.ours.catch_up()
    beside.check()


def test_a_step_without_a_gradient_is_none() -> None:
    beside = Beside(decay=0.1, seed=3)
    beside.step([1], 1e-2, 1.0)
    before = beside.ours.master.detach().clone()
    beside.ours.take_gradient()
    beside.ours.step(1e-2)
    beside.ours.catch_up()
    assert beside.ours.steps == 1 and torch.equal(beside.ours.master[1], before[1])


# ---------------------------------------------------------------- in a training


def training(folder: Path, recipe: Recipe, compute: str = "float32", **options: Any) -> Tuner:
    """All of a tiny backbone, trained on texts of few of its tokens."""
    suffix = suffix_of(folder, "all", compute=compute)
    return tuner_of(suffix, TextInputs(batch_of(LENGTHS)), LABELS, recipe, **{"seed": 3} | options)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "deberta-v2"])
def test_a_training_equals_that_of_whole_tables(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Clipped gradients of several batches a step; some rows are read by no text, some by each."""
    recipe = Recipe(epochs=2, lr=1e-3, head_lr=1e-2, batch_size=6, clip=0.3, weight_decay=0.1)
    found = []
    for least in (10**9, 1):
        monkeypatch.setattr(suffix_module, "MANY_ROWS", least)
        tuner = training(tiny(family), recipe)
        assert bool(tuner.optimizer.tables) == (least == 1)
        tuner.run()
        found.append((tuner.state, {name: p.detach().clone() for name, p in tuner.named.items()}))
    (dense, weights), (ours, rows) = found
    assert [line.train_loss for line in ours.history] == pytest.approx(
        [line.train_loss for line in dense.history], rel=1e-4
    )
    for name, value in weights.items():
        torch.testing.assert_close(rows[name], value, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("after", "compute"),
    [
        *[(5, "bfloat16"), (8, "float32")],
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((2, "float32"), (5, "float32"), (2, "bfloat16"), (8, "bfloat16"))
        ],
    ],
)
def test_a_killed_training_goes_on_with_the_same_bits(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, compute: str
) -> None:
    """Between checkpoints rows wait; at the end of an epoch, which has 4 steps, none does."""
    monkeypatch.setattr(suffix_module, "MANY_ROWS", 1)
    recipe = Recipe(epochs=3, lr=1e-3, batch_size=6, weight_decay=0.1)
    whole = training(tiny("bert"), recipe, compute)
    reference = whole.run()

    def kill(step: TrainingStep) -> None:
        if step.step == after + 1 and not step.line and not step.text:
            raise Killed

    point = tmp_path / "point"
    with pytest.raises(Killed):
        training(
            tiny("bert"), recipe, compute, on_step=kill, checkpoints=CheckpointFolder(point, every=0.0)
        ).run()
    saved = CheckpointFolder(point).load()
    assert saved
    done = saved.tensors["moments"]["embeddings.word_embeddings.weight:done"]
    assert bool((done == after).all()) == (after % 4 == 0)
    resumed = training(tiny("bert"), recipe, compute, checkpoints=CheckpointFolder(point))
    found = resumed.run(resume=True)
    assert found.state.history == reference.state.history
    assert all(torch.equal(value, reference.last.part[name]) for name, value in found.last.part.items())
    assert all(torch.equal(value, reference.best.part[name]) for name, value in found.best.part.items())


def test_a_checkpoint_of_whole_tables_is_read_and_one_of_rows_needs_a_cpu(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions and GPUs update whole tables."""
    recipe = Recipe(epochs=2, lr=1e-3, batch_size=6)
    found = []
    for least, then in ((10**9, 10**9), (10**9, 1), (1, 10**9)):
        point = tmp_path / f"{least} {then}"
        monkeypatch.setattr(suffix_module, "MANY_ROWS", least)
        first = training(tiny("bert"), recipe, checkpoints=CheckpointFolder(point, every=0.0))
        for _ in range(3):
            first._step()
        first._save()
        monkeypatch.setattr(suffix_module, "MANY_ROWS", then)
        second = training(tiny("bert"), recipe, checkpoints=CheckpointFolder(point))
        if then > least:
            with pytest.raises(HeadError, match=r"word_embeddings.weight was trained on a CPU"):
                second.run(resume=True)
        else:
            second.run(resume=True)
            found.append(second.state.history[-1].train_loss)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
