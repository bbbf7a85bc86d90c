"""A model cut in two: below the cut it is frozen and runs once, above it is trained.

No family needs an adapter. Below: the backbone runs as it does for extraction and stops at the cut. Above:
the same model's own code, with the blocks below handing on what they are given, and a hook on the block at
the cut that puts the cached states in; positions, masks, rotary embeddings and the final norm come from the
model itself. When a cut is made, a few made-up texts are run whole and in two parts: both must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.attention.packed import register
from featcache.backbone.attention.trained import IMPLEMENTATION, trained_attention
from featcache.backbone.model import DTYPES, Backbone, TokenBatch
from featcache.backbone.packing import PackedLayout
from featcache.backbone.pooling import POOLINGS
from featcache.backbone.position_table import position_table
from featcache.errors import BackboneError
from featcache.finetuning.parts import TrainedPart

TOKEN_STEP = 128
FILLER = 64  # tokens of a made-up text that fills a batch


@dataclass(frozen=True)
class StateBatch:
    """Texts end to end, as states at the cut.

    Attributes:
        states: `[T, H]`, on the CPU.
        lengths: int64 `[B]`.
    """

    states: torch.Tensor
    lengths: np.ndarray


class Suffix:
    """The trained part of a model, in float32 or with float32 master weights of a bfloat16 model.

    Args:
        backbone: from `load_plain`; it is used up: its lower blocks are gone afterwards.
        part: what is trained.
        compute: `float32` or `bfloat16`.
        device: where it is trained.
        dropout: share of the units that the model's own dropout layers above the cut leave out; 0: none,
            and the model runs as in evaluation.

    Attributes:
        width: of the states.
        trained: parameters the model computes with, by their name in it.
        masters: what the optimizer changes, float32, by the same names; equal to `trained` in float32.

    Raises:
        BackboneError: a model without one list of equal blocks, or one that cannot be cut there.
    """

    def __init__(
        self,
        backbone: Backbone,
        part: TrainedPart,
        *,
        compute: str,
        device: torch.device,
        dropout: float = 0.0,
    ) -> None:
        self.backbone, self.part, self.device = backbone, part, device
        self.model: nn.Module = backbone.model
        self.width = int(backbone.model.config.hidden_size)
        self.blocks = require_blocks(backbone)
        probe = _Probe(backbone, part.cut)
        if backbone.packing == "packed":
            register(IMPLEMENTATION, trained_attention)
            backbone.model.set_attn_implementation(IMPLEMENTATION)
        if part.cut is not None:
            self._hand_on(part.cut, probe.returned)
        probe.check(self)
        backbone.device = device
        self.model.to(device)
        if part.cut is not None:
            self._forget(part.cut)
        self.trained = self._choose(probe.after)
        self.masters = self._prepare(DTYPES[compute])
        self._set_dropout(dropout)

    def states(self, batch: StateBatch | TokenBatch) -> tuple[torch.Tensor, PackedLayout]:
        """The model's final token states `[T, H]`, and where the texts lie."""
        layout = PackedLayout.of(batch.lengths, self.device)
        if self.backbone.packing == "padded":
            inputs = self.backbone.padded_inputs(self._tokens(batch))
            real = inputs["attention_mask"].bool()
            with self._putting_in(batch, real):
                states: torch.Tensor = self.model(**inputs).last_hidden_state
            return states[real], layout
        filled = self._filled(batch)
        filled_layout = PackedLayout.of(filled.lengths, self.device)
        inputs = self.backbone.packed_inputs(self._tokens(filled), filled_layout)
        with self._putting_in(filled, None):
            states = self.model(**inputs).last_hidden_state
        return states[0, : int(batch.lengths.sum())], layout

    def _filled(self, batch: StateBatch | TokenBatch) -> StateBatch | TokenBatch:
        """With made-up texts at the end, up to a multiple of TOKEN_STEP tokens, on CPUs in 16 bits.

        oneDNN prepares a product anew for each number of tokens it has not seen lately, which takes as long
        as the product itself: so there should be few numbers.
        """
        more = -int(batch.lengths.sum()) % TOKEN_STEP
        if not more or self.device.type != "cpu" or self._kind == torch.float32:
            return batch
        longest = min(FILLER, self.backbone.position_limit or FILLER)
        parts = [longest] * (more // longest) + [more % longest] * (more % longest > 0)
        lengths = np.concatenate([batch.lengths, np.array(parts, np.int64)])
        if isinstance(batch, StateBatch):
            return StateBatch(functional.pad(batch.states, (0, 0, 0, more)), lengths)
        ids = np.concatenate([batch.input_ids, np.full(more, self._filler)])
        types = batch.type_ids
        types = None if types is None else np.concatenate([types, np.zeros(more, types.dtype)])
        return TokenBatch(ids, lengths, types)

    @property
    def _kind(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.blocks[-1].parameters()).dtype

    @property
    def _filler(self) -> int:
        """A token that is no padding, for which there is always room in the table."""
        return 1 if self.backbone.model.config.pad_token_id == 0 else 0

    def _tokens(self, batch: StateBatch | TokenBatch) -> TokenBatch:
        """Tokens in the place of states; what the embeddings make of them is thrown away."""
        if isinstance(batch, TokenBatch):
            return batch
        return TokenBatch(np.full(int(batch.lengths.sum()), self._filler, np.int64), batch.lengths)

    def pooled(self, batch: StateBatch | TokenBatch, pooling: str) -> torch.Tensor:
        """One vector a text, float32 `[B, H]`."""
        states, layout = self.states(batch)
        if pooling == "mean":  # as pool_mean; one split has a cheaper gradient than many slices
            parts = states.split(batch.lengths.tolist())
            return torch.stack([part.mean(0, dtype=torch.float32) for part in parts])
        return POOLINGS[pooling](states, layout).float()

    def collect(self) -> None:
        """Add the gradients of the last backward pass to those of the masters."""
        for name, parameter in self.trained.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def clear(self) -> None:
        """Forget all gradients."""
        for parameter in (*self.trained.values(), *self.masters.values()):
            parameter.grad = None

    def publish(self) -> None:
        """Let the model compute with the masters as they are now."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the trained parameters, by name."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(weights[name])
        self.publish()

    def depth(self, name: str) -> int:
        """How many blocks lie above a parameter; all of them above those outside of the blocks.

        The final norm counts as the highest block does.
        """
        for number, block in enumerate(self.blocks):
            if any(parameter is self.trained[name] for parameter in block.parameters()):
                return len(self.blocks) - 1 - number
        return 0 if self.part.cut is not None else len(self.blocks)

    def _hand_on(self, cut: int, returned: int | None) -> None:
        """Let the blocks below the cut return what they are given."""

        def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return hidden_states if returned is None else (hidden_states, *[None] * (returned - 1))

        for block in self.blocks[:cut]:
            block.forward = forward

    def _forget(self, cut: int) -> None:
        """Free the weights that are never used above the cut."""
        for block in self.blocks[:cut]:
            block.to("meta")
        if self.backbone.packing == "packed":  # padding has a token of its own, which must be in the table
            words = self.backbone.model.get_input_embeddings()
            kind = next(words.parameters()).dtype
            small = nn.Embedding(2, words.embedding_dim, device=self.device, dtype=kind)
            self.backbone.model.set_input_embeddings(small.requires_grad_(False))

    def _choose(self, after: set[nn.Module]) -> dict[str, nn.Parameter]:
        """The parameters to be trained, in the model's order."""
        if self.part.name == "positions":
            table = position_table(self.model)
            if table is None:
                raise BackboneError(
                    f"{self.backbone.files.name} has no table of learned positions to train",
                    hint="--train top-blocks:2",
                )
            wanted = {id(table.weight)}
        elif self.part.cut is None:
            wanted = {id(parameter) for parameter in self.model.parameters()}
        else:
            modules = [*self.blocks[self.part.cut :], *after]
            wanted = {id(parameter) for module in modules for parameter in module.parameters()}
        return {name: p for name, p in self.model.named_parameters() if id(p) in wanted}

    def _prepare(self, dtype: torch.dtype) -> dict[str, nn.Parameter]:
        """Masters; then the model's parameters in its compute dtype. Rotary buffers must stay float32."""
        exact = dtype == torch.float32
        masters = {
            name: parameter if exact else nn.Parameter(parameter.detach().float().clone())
            for name, parameter in self.trained.items()
        }
        for parameter in self.model.parameters():
            if parameter.device.type != "meta" and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        return masters

    def _set_dropout(self, share: float) -> None:
        self.model.eval()
        self._dropping: list[nn.Module] = []
        if share > 0:
            modules = self.blocks[self.part.cut or 0 :].modules()
            self._dropping = [module for module in modules if isinstance(module, nn.Dropout)]
        for module in self._dropping:
            module.p = share  # type: ignore[assignment]

    def train(self, on: bool) -> None:
        """Switch the dropout layers above the cut on or off; nothing else knows of training."""
        for module in self._dropping:
            module.train(on)

    @contextmanager
    def _putting_in(self, batch: StateBatch | TokenBatch, real: torch.Tensor | None) -> Iterator[None]:
        """Within it, the block at the cut gets the batch's states instead of what comes from below."""
        if not isinstance(batch, StateBatch) or self.part.cut is None:
            yield
            return
        states = batch.states.to(self.device, self._kind)
        if real is None:
            whole = states[None]
        else:
            whole = states.new_zeros(*real.shape, states.shape[1])
            whole[real] = states

        def put_in(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((whole, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": whole})

        hook = self.blocks[self.part.cut].register_forward_pre_hook(put_in, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class _Probe:
    """A few made-up texts through the whole model before it is cut.

    Attributes:
        returned: None where blocks return states, else how many things their tuple has.
        after: modules with parameters of their own that run after the highest block.
    """

    def __init__(self, backbone: Backbone, cut: int | None) -> None:
        self.name, self.cut = backbone.files.name, cut
        self.batch = backbone.probe_batch([7, 5, 5])
        blocks = require_blocks(backbone)
        self.returned: int | None = None
        self.after: set[nn.Module] = set()
        passed: list[bool] = []

        def top(_: nn.Module, __: Any, output: Any) -> None:
            passed.append(True)
            self.returned = len(output) if isinstance(output, tuple) else None

        def seen(module: nn.Module, _: Any) -> None:
            if passed:
                self.after.add(module)

        leaves = [m for m in backbone.model.modules() if any(True for _ in m.parameters(recurse=False))]
        hooks = [blocks[-1].register_forward_hook(top)]
        hooks += [module.register_forward_pre_hook(seen) for module in leaves]
        layers = [0 if cut is None else cut, backbone.num_blocks]
        try:
            self.states, _ = backbone.states(self.batch, layers)
        finally:
            for hook in hooks:
                hook.remove()

    def check(self, suffix: Suffix) -> None:
        """Refuse a model whose parts do not give what the whole gives."""
        batch: StateBatch | TokenBatch = self.batch
        if self.cut is not None:
            batch = StateBatch(self.states[self.cut].clone(), self.batch.lengths)
        whole = self.states[max(self.states)]
        with torch.no_grad():
            found, _ = suffix.states(batch)
        if (found - whole).abs().max() > 1e-4 * whole.abs().max():
            raise BackboneError(
                f"{self.name} cannot be cut before block {self.cut}: states are not all that blocks hand on",
                hint="--train head, or --train all",
            )


def require_blocks(backbone: Backbone) -> nn.ModuleList:
    """The backbone's blocks.

    Raises:
        BackboneError: it has no single list of equal blocks.
    """
    if backbone.blocks is None:
        raise BackboneError(
            f"{backbone.files.name} ({type(backbone.model).__name__}) has no one list of "
            f"{backbone.num_blocks} blocks, so it cannot be cut",
            hint="train a head on its features: --train head",
        )
    return backbone.blocks
