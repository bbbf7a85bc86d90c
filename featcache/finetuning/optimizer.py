"""AdamW of a trained part with its head: rates by depth, one norm of all gradients, state for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from featcache.finetuning.recipe import Recipe
from featcache.finetuning.suffix import Suffix
from featcache.finetuning.table_adamw import TableAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


class PartOptimizer:
    """AdamW as `recipe` has it.

    Attributes:
        named: what is trained, by name, the head's below `head.`.
        rates: learning rate before the schedule, and weight decay, by name.
        tables: the tables of which a step updates few rows, by name.
    """

    def __init__(self, suffix: Suffix, head: nn.Module, recipe: Recipe) -> None:
        self.suffix, self.recipe = suffix, recipe
        self.named = {**suffix.masters, **{f"head.{name}": p for name, p in head.named_parameters()}}
        self.rates = {name: self._rate(name) for name in self.named}
        self.tables = {name: self._table(name) for name in suffix.tables}
        self.dense = [name for name in self.named if name not in self.tables]
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name in self.dense:
            groups.setdefault(self.rates[name], []).append(self.named[name])
        self._adamw = torch.optim.AdamW(
            [{"params": p, "lr": r, "initial_lr": r, "weight_decay": d} for (r, d), p in groups.items()],
            fused=True,
        )

    def _rate(self, name: str) -> tuple[float, float]:
        recipe, own = self.recipe, name in self.suffix.masters
        rate = recipe.lr * recipe.layer_decay ** self.suffix.depth(name) if own else recipe.head_lr
        return rate, recipe.weight_decay if self.named[name].dim() > 1 else 0.0

    def _table(self, name: str) -> TableAdamW:
        """The optimizer of a table, which brings the rows that a forward pass reads up to date before it."""
        table = TableAdamW(self.named[name], self.suffix.trained[name], self.rates[name][1])
        for module in self.suffix.tables[name]:
            module.register_forward_pre_hook(partial(_read, table))
        return table

    def clip(self) -> torch.Tensor:
        """The norm of all gradients together; gradients are shortened to the recipe's longest."""
        for table in self.tables.values():
            table.take_gradient()
        parts = [self.tables[name].part if name in self.tables else p for name, p in self.named.items()]
        return torch.nn.utils.clip_grad_norm_(parts, self.recipe.clip or float("inf"))

    def step(self, factor: float) -> None:
        """Make a step with rates times `factor`, after `clip`, and give the model the new weights."""
        for group in self._adamw.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._adamw.step()
        for name, table in self.tables.items():
            table.step(self.rates[name][0] * factor)
        self.suffix.publish(self.dense)

    def catch_up(self) -> None:
        """Bring all rows of all tables up to date."""
        for table in self.tables.values():
            table.catch_up()

    def state(self) -> dict[str, torch.Tensor]:
        """What it keeps of each parameter, by `name:kind`; nothing of one that was never changed."""
        states = {name: self._adamw.state.get(self.named[name], {}) for name in self.dense}
        states |= {name: table.state for name, table in self.tables.items()}
        return {
            f"{name}:{kind}": value
            for name, state in states.items()
            for kind, value in state.items()
            if kind != "step"
        }

    def restore(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Put in place what `state` gave after so many steps, once the weights are in place.

        Raises:
            ValueError: rows of a table are not up to date, and here they cannot be brought up to date.
            KeyError: the state of a table is missing.
        """
        for name in self.dense:
            parameter = self.named[name]
            if f"{name}:done" in state:
                raise ValueError(f"{name} was trained on a CPU")
            if f"{name}:{MOMENTS[0]}" in state:
                found = {kind: state[f"{name}:{kind}"].to(parameter.device) for kind in MOMENTS}
                step = torch.tensor(float(steps), device=parameter.device)
                self._adamw.state[parameter] = {"step": step, **found}
        for name, table in self.tables.items():
            # Earlier versions, and GPUs, have every row up to date.
            whole = {
                "done": torch.full_like(table.state["done"], steps),
                "rates": torch.zeros(steps).double(),
            }
            whole |= {kind: state[f"{name}:{kind}"] for kind in table.state if f"{name}:{kind}" in state}
            table.restore({kind: whole[kind] for kind in table.state})


def _read(table: TableAdamW, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    """Before a forward pass of a table's module, which is given the rows to read."""
    table.catch_up(args[0].unique())
