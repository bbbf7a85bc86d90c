"""A model cut in two: below the cut it is frozen and runs once, above it is trained.

No family needs an adapter. Below the cut, the backbone runs as it does for extraction and stops there. Above,
the model's own code runs: the blocks below return their input, and a hook replaces the input of the block at
the cut by the cached states. Positions, masks, rotary embeddings and the final norm come from the model. When
a cut is made, a few made-up texts are run whole and in two parts: both results must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.attention.packed import register
from featcache.backbone.attention.trained import IMPLEMENTATION, trained_attention
from featcache.backbone.model import DTYPES, Backbone
from featcache.backbone.packing import PackedLayout, StateBatch, TokenBatch, run_together
from featcache.backbone.pooler import Pooler
from featcache.backbone.position_table import position_table
from featcache.errors import BackboneError
from featcache.finetuning.parts import TrainedPart

TOKEN_STEP = 128
FILLER = 64  # tokens of a made-up text that fills a batch
MANY_ROWS = 4096  # rows of an embedding table of which a step reads few


class Suffix:
    """The trained part of a model, in float32 or with float32 master weights of a bfloat16 model.

    Args:
        backbone: from `load_plain`; it loses its lower blocks.
        part: what is trained.
        compute: `float32` or `bfloat16`.
        device: where it is trained.
        dropout: share of the units that the model's own dropout layers above the cut leave out.

    Attributes:
        width: of the states.
        trained: parameters the model computes with, by their name in it.
        masters: what the optimizer changes, float32, by the same names; equal to `trained` in float32.
        tables: the modules of large embedding tables among them, by name, whose gradients are sparse.

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
            self._pass_through(part.cut, probe.returned)
        probe.check(self)
        backbone.device = device
        self.model.to(device)
        if part.cut is not None:
            self._forget(part.cut)
        self.trained = self._choose(probe.after)
        self.masters = self._prepare(DTYPES[compute])
        self.tables = self._sparse_tables()
        self._set_dropout(dropout)

    def states(self, batch: StateBatch | TokenBatch) -> tuple[torch.Tensor, PackedLayout]:
        """The model's final token states `[T, H]`, and where the texts lie."""
        layout = PackedLayout.of(batch.lengths, self.device)
        if self.backbone.packing != "packed":
            together = run_together(batch.lengths, self.backbone.packing)
            return torch.cat([self._padded_states(batch.part(texts)) for texts in together]), layout
        filled = self._filled(batch)
        filled_layout = PackedLayout.of(filled.lengths, self.device)
        inputs = self.backbone.packed_inputs(self._tokens(filled), filled_layout)
        with self._replaced_input(filled, None):
            states: torch.Tensor = self.model(**inputs).last_hidden_state
        return states[0, : int(batch.lengths.sum())], layout

    def _padded_states(self, batch: StateBatch | TokenBatch) -> torch.Tensor:
        """The final states `[T, H]`, from one padded batch."""
        inputs = self.backbone.padded_inputs(self._tokens(batch))
        real = inputs["attention_mask"].bool()
        with self._replaced_input(batch, real):
            states: torch.Tensor = self.model(**inputs).last_hidden_state
        return states[real]

    def _filled(self, batch: StateBatch | TokenBatch) -> StateBatch | TokenBatch:
        """The batch filled up with made-up texts to a multiple of TOKEN_STEP tokens, on CPUs in 16 bits.

        oneDNN prepares a product for each new number of tokens, which takes as long as the product itself,
        so there should be few different numbers.
        """
        more = -int(batch.lengths.sum()) % TOKEN_STEP
        if not more or self.device.type != "cpu" or self._compute == torch.float32:
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
    def _compute(self) -> torch.dtype:
        return next(self.blocks[-1].parameters()).dtype

    @property
    def _filler(self) -> int:
        """A token that is not padding; `_forget` leaves it in the table."""
        return 1 if self.backbone.model.config.pad_token_id == 0 else 0

    def _tokens(self, batch: StateBatch | TokenBatch) -> TokenBatch:
        """Tokens in the place of states; their embeddings are not used."""
        if isinstance(batch, TokenBatch):
            return batch
        return TokenBatch(np.full(int(batch.lengths.sum()), self._filler, np.int64), batch.lengths)

    def pooled(self, batch: StateBatch | TokenBatch, pooler: Pooler) -> torch.Tensor:
        """One vector a text, float32 `[B, D]`."""
        states, layout = self.states(batch)
        known: dict[str, torch.Tensor] = {}
        if "mean" in pooler.view.joined and not pooler.skipped:
            # As in POOLINGS; one split has a cheaper gradient than many slices.
            parts = states.split(batch.lengths.tolist())
            known["mean"] = torch.stack([part.mean(0, dtype=torch.float32) for part in parts])
        return pooler.finish(pooler.pool(states, layout, known))

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
        """Remove all gradients."""
        for parameter in (*self.trained.values(), *self.masters.values()):
            parameter.grad = None

    def publish(self, names: Iterable[str] | None = None) -> None:
        """Copy the masters, all or those named, into the parameters that the model computes with."""
        with torch.no_grad():
            for name in self.masters if names is None else names:
                if name in self.trained and self.masters[name] is not self.trained[name]:
                    self.trained[name].copy_(self.masters[name])

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the trained parameters, by name."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(weights[name])
        self.publish()

    def depth(self, name: str) -> int:
        """How many blocks are above a parameter: none above the final norm, all above the embeddings."""
        for number, block in enumerate(self.blocks):
            if any(parameter is self.trained[name] for parameter in block.parameters()):
                return len(self.blocks) - 1 - number
        return 0 if self.part.cut is not None else len(self.blocks)

    def _pass_through(self, cut: int, returned: int | None) -> None:
        """Let the blocks below the cut return their input."""

        def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return hidden_states if returned is None else (hidden_states, *[None] * (returned - 1))

        for block in self.blocks[:cut]:
            block.forward = forward

    def _forget(self, cut: int) -> None:
        """Free the weights that are not used above the cut."""
        for block in self.blocks[:cut]:
            block.to("meta")
        if self.backbone.packing == "packed":  # padded batches need the padding token's embedding
            words = self.backbone.model.get_input_embeddings()
            kind = next(words.parameters()).dtype
            small = nn.Embedding(2, words.embedding_dim, device=self.device, dtype=kind)
            self.backbone.model.set_input_embeddings(small.requires_grad_(False))

    def _choose(self, after: set[nn.Module]) -> dict[str, nn.Parameter]:
        """The parameters to train, in the model's order."""
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
        """Make the masters, then convert the parameters to the compute dtype; buffers must stay float32."""
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

    def _sparse_tables(self) -> dict[str, list[nn.Embedding]]:
        """Let the gradients of large tables be sparse; not on GPUs, which update all of a table at once."""
        tables: dict[str, list[nn.Embedding]] = {}
        names = {id(parameter): name for name, parameter in self.trained.items()}
        for module in self.model.modules() if self.device.type == "cpu" else ():
            if not isinstance(module, nn.Embedding) or module.num_embeddings < MANY_ROWS:
                continue
            if id(module.weight) in names and module.max_norm is None and not module.scale_grad_by_freq:
                module.sparse = True
                tables.setdefault(names[id(module.weight)], []).append(module)
        return tables

    def _set_dropout(self, share: float) -> None:
        self.model.eval()
        self._dropping: list[nn.Module] = []
        if share > 0:
            modules = self.blocks[self.part.cut or 0 :].modules()
            self._dropping = [module for module in modules if isinstance(module, nn.Dropout)]
        for module in self._dropping:
            module.p = share  # type: ignore[assignment]

    def train(self, on: bool) -> None:
        """Switch the dropout layers above the cut on or off; the rest of the model stays in evaluation."""
        for module in self._dropping:
            module.train(on)

    @contextmanager
    def _replaced_input(self, batch: StateBatch | TokenBatch, real: torch.Tensor | None) -> Iterator[None]:
        """Within it, the block at the cut gets the batch's states as its input."""
        if not isinstance(batch, StateBatch) or self.part.cut is None:
            yield
            return
        states = batch.states.to(self.device, self._compute)
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
    """A run of the whole model on a few made-up texts, before it is cut.

    Attributes:
        returned: length of the tuple that blocks return; None where they return states alone.
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
        """Refuse a model whose two parts do not give the states of the whole.

        Raises:
            BackboneError
        """
        batch: StateBatch | TokenBatch = self.batch
        if self.cut is not None:
            batch = StateBatch(self.states[self.cut].clone(), self.batch.lengths)
        whole = self.states[max(self.states)]
        with torch.no_grad():
            found, _ = suffix.states(batch)
        if (found - whole).abs().max() > 1e-4 * whole.abs().max():
            raise BackboneError(
                f"{self.name} cannot be cut before block {self.cut}: its blocks pass on more than states",
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
