"""The frozen model, run over packed (or padded) batches.

A family takes packed batches in its own, unchanged code where a few texts, run when it is loaded, get the
states that they get alone; otherwise the fastest kind of batches in which they do (`probe/batch_probe.py`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache.backbone.attention.last_block import only
from featcache.backbone.device_copies import copier_of
from featcache.backbone.fused_layers import fuse, is_conv1d, measure_inputs
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.packing import PackedLayout, TokenBatch, filling, run_together
from featcache.backbone.position_table import Extension, extend_table, position_table
from featcache.backbone.private_torch import is_emulated
from featcache.backbone.probe.batch_probe import find_packing, runs_pooled_alone
from featcache.backbone.probe.layer_probe import probe_layers
from featcache.backbone.probe.texts import made_up_batch
from featcache.errors import BackboneError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def states_dtype(dtype_name: str, device: torch.device) -> torch.dtype:
    """Of weights and states; with int8, where linear layers alone multiply 8-bit integers, bfloat16.

    Where the processor only emulates bfloat16, float32 takes its place.
    """
    name = {"int8": "float32" if is_emulated("bfloat16", device) else "bfloat16"}.get(dtype_name, dtype_name)
    return DTYPES[name]


class Backbone:
    """A frozen `AutoModel` with its tokenizer.

    Attributes:
        blocks: the model's list of equal blocks; None if it has no single list (ALBERT).
        num_blocks: how many blocks a token passes.
        position_limit: tokens of the longest text that the model has positions for; None: no limit.
        extension: how positions beyond the learned ones were made; None: not at all, for the reason in
            `extension_note` if they were asked for.
        packing: how texts run together: `packed`, or for the reason in `packing_note` `padded`,
            `equal lengths` (without padding) or `one by one`.
        arguments: names of the arguments of the model's forward.
        inner_layers: whether layers below the last have one state a token; else there are only `last` views.
        first_position: row of the position table that the first token of a text reads.
        dtype_name: `float32`, `bfloat16`, `float16` or `int8`, as the fingerprint has it.
        dtype: of the states; with int8 bfloat16, or float32 where bfloat16 is emulated.
        block_weights: number of weights of linear layers that each token passes, in all blocks.
        fused: which modules were replaced by faster ones, as messages for the user.
        lower_case: whether the tokenizer was set to lower-case texts.
        width: numbers in a token's state.
        notes: on how it was loaded, as messages for the user.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        files: ModelFiles,
        device: torch.device,
        dtype_name: str,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.files = files
        self.device = device
        self.dtype_name = dtype_name
        self.dtype = states_dtype(dtype_name, device)
        self.num_blocks = count_blocks(model, files)
        self.blocks = find_blocks(model, self.num_blocks)
        self.arguments = set(inspect.signature(inspect.unwrap(type(model).forward)).parameters)
        self.stock_attention: str = model.config._attn_implementation
        self.inner_layers = True
        self._padding_id = int(getattr(tokenizer, "pad_token_id", None) or 0)
        self.packing = "padded"
        self.first_position, self.position_limit = probe_layers(self)
        self.extension: Extension | None = None
        self.extension_note = ""
        self.lower_case = False
        self.width = int(getattr(model.config, "hidden_size", 1024))
        self.packing, self.packing_note = find_packing(self)
        self.block_weights = _linear_weights(self.blocks or model) * (1 if self.blocks else self.num_blocks)
        with torch.inference_mode():
            blocks = self.blocks if self.blocks is not None else model
            if dtype_name == "int8":
                made_up = self.probe_batch([min(64, self.position_limit or 64)] * 8)
                measure_inputs(blocks, lambda: self.states(made_up, [self.num_blocks]))
            self.fused = fuse(model, blocks, int8=dtype_name == "int8")
        self._prepared = False
        self.notes: list[str] = []
        model.eval()

    @cached_property
    def runs_pooled_alone(self) -> bool:
        """Whether the highest block can run for the pooled tokens alone; tried when it is first asked."""
        return runs_pooled_alone(self)

    def states(
        self, batch: TokenBatch, layers: Sequence[int], pooled: Sequence[str] = ()
    ) -> tuple[dict[int, torch.Tensor], PackedLayout]:
        """Token states `[T, H]` of a batch by layer, and where the texts lie in them.

        Layer 0 is the embeddings, `num_blocks` the model's final output. Blocks above the highest layer
        are not run.

        Args:
            pooled: of `first` and `last`; at the highest layer only these tokens of each text are
                wanted, as `[len(pooled), B, H]`. Needs `self.runs_pooled_alone`, and no layer 0.
        """
        layout = PackedLayout.of(batch.lengths, self.device)
        highest, tokens = max(layers), len(batch.input_ids)
        with torch.inference_mode():
            if self.packing != "packed":
                together = run_together(batch.lengths, self.packing)
                parts = [self._padded_states(batch.part(texts), layers) for texts in together]
                return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}, layout
            fills = self.device.type == "cpu" and self.dtype == torch.bfloat16
            inputs = self.packed_inputs(batch, layout, filling(tokens) if fills else 0)
            if not pooled:
                run = self.whole_states(inputs, layers)
                return {layer: at[0, :tokens] for layer, at in run.items()}, layout
            assert self.blocks is not None
            places = torch.cat([layout.token_at(token) for token in pooled])
            with only(self.blocks[highest - 1], layout, places):
                run = self.whole_states(inputs, layers)
            states = {layer: at[0, :tokens] for layer, at in run.items() if layer != highest}
            states[highest] = run[highest][0].unflatten(0, (len(pooled), len(batch.lengths)))
            return states, layout

    def _padded_states(self, batch: TokenBatch, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """States `[T, H]` by layer, from one padded batch."""
        inputs = self.padded_inputs(batch)
        real = inputs["attention_mask"].bool()
        width = real.shape[1]  # some families pad a batch themselves, to a multiple of their window
        return {layer: at[:, :width][real] for layer, at in self.whole_states(inputs, layers).items()}

    def prepare(self, texts: int) -> None:
        """Compile parts of the blocks if `texts` texts pay for it, and note that in `fused`.

        Only on CUDA and for very many texts; a second call does nothing.
        """
        from featcache.backbone.compile import OPTIONS, compile_parts, worth_compiling

        if self._prepared or self.blocks is None or self.packing != "packed":
            return
        if worth_compiling(self.device, self.block_weights, texts):
            self._prepared = True
            room = min(128, self.position_limit or 128)
            batches = [self.probe_batch([room] * count) for count in (128, 37)]
            runs = [partial(self.states, batch, [self.num_blocks]) for batch in batches]
            self.fused += compile_parts(self.blocks, runs, options=OPTIONS)

    def can_extend(self, limit: int) -> bool:
        """Whether `extend` would let texts be longer than `limit` tokens."""
        return position_table(self.model) is not None or (self.position_limit or limit + 1) > limit

    def extend(self, extension: Extension) -> None:
        """Make room for texts of `extension.length` tokens, in model, config and tokenizer.

        Learned positions stay as they are, except with `interpolate`. For families without a table of
        learned positions only the tokenizer's limit is raised, up to the model's own. A second call with
        the same extension does nothing.

        Raises:
            BackboneError: the model is extended in another way already, or cannot be extended.
        """
        if extension == self.extension:
            return
        if self.extension is not None:
            raise BackboneError(
                f"{self.files.name} has its positions extended already, by {self.extension.how} to "
                f"{self.extension.length}",
                hint="load the backbone again",
            )
        table, limit = position_table(self.model), self.position_limit or extension.length
        if extension.length <= limit:
            self.extension_note = f"{self.files.name} takes {limit} tokens as it is"
        elif table is None:
            self.extension_note = f"{self.files.name} has no table of learned positions"
        else:
            extend_table(self.model, table, self.first_position, extension)
            self.extension, self.position_limit = extension, extension.length
        room = min(extension.length, self.position_limit or extension.length)
        self.tokenizer.model_max_length = max(self.tokenizer.model_max_length, room)

    def whole_states(self, inputs: dict[str, Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """The model's states `[b, t, H]` at `layers`, padding included; stops after the highest."""
        if list(layers) == [self.num_blocks]:
            return {self.num_blocks: self.model(**inputs).last_hidden_state}
        if self.blocks is None:
            output = self.model(**inputs, output_hidden_states=True)
            states = [*output.hidden_states[:-1], output.last_hidden_state]
            return {layer: states[layer] for layer in layers}
        below = [layer for layer in layers if layer < self.num_blocks]
        with capture_states(self.blocks, below, stop=len(below) == len(layers)) as captured:
            with contextlib.suppress(_Stop):
                captured[self.num_blocks] = self.model(**inputs).last_hidden_state
        return {layer: captured[layer] for layer in layers}

    def packed_inputs(self, batch: TokenBatch, layout: PackedLayout, more: int = 0) -> dict[str, Any]:
        """What the model's forward takes of a packed batch, with `more` tokens at the end that fill it."""
        fill = partial(np.pad, pad_width=(0, more), mode="edge")
        types = None if batch.type_ids is None else fill(batch.type_ids)[None]
        positions = self._tensor(fill(self._positions(batch))[None])
        return self._inputs(fill(batch.input_ids)[None], types, position_ids=positions, packed=layout)

    def _positions(self, batch: TokenBatch) -> np.ndarray:
        """The row of the position table that each token reads, int64 `[T]`.

        Families whose positions begin after the padding's own row (RoBERTa) give that row to a padding
        token in a text, and do not count it.
        """
        counted = np.ones(len(batch.input_ids), dtype=np.int64)
        if self.first_position > 0:
            counted = (batch.input_ids != self.model.config.pad_token_id).astype(np.int64)
        total = np.cumsum(counted)
        begins = np.cumsum(batch.lengths) - batch.lengths
        before = np.repeat(total[begins] - counted[begins], batch.lengths)
        places: np.ndarray = self.first_position - 1 + (total - before) * counted
        return places

    def padded_inputs(self, batch: TokenBatch) -> dict[str, Any]:
        """What the model's forward takes of a batch padded on the right; padding is masked, never pooled."""
        fewest = int(getattr(self.model.config, "downsampling_rate", 1))  # CANINE joins that many tokens
        mask = np.arange(max(int(batch.lengths.max()), fewest))[None, :] < batch.lengths[:, None]
        ids = np.full(mask.shape, self._padding_id, dtype=np.int64)
        ids[mask] = batch.input_ids
        types = None
        if batch.type_ids is not None:
            types = np.zeros(mask.shape, dtype=np.int64)
            types[mask] = batch.type_ids
        return self._inputs(ids, types, attention_mask=self._tensor(mask.astype(np.int64)))

    def use_attention(self, name: str | None) -> bool:
        """Let the model use another implementation of attention, or its own again; whether it does."""
        self.model.set_attn_implementation(name or self.stock_attention)
        return bool(self.model.config._attn_implementation == name)

    @contextlib.contextmanager
    def other_padding(self) -> Iterator[None]:
        """Within it, batches are padded with another token, which must not matter."""
        before, self._padding_id = self._padding_id, self._padding_id + 1
        try:
            yield
        finally:
            self._padding_id = before

    def _inputs(self, ids: np.ndarray, types: np.ndarray | None, **more: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": self._tensor(ids), **more}
        if types is not None and "token_type_ids" in self.arguments:
            inputs["token_type_ids"] = self._tensor(types)
        if "use_cache" in self.arguments:
            inputs["use_cache"] = False
        return inputs

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return copier_of(self.device).to_device(np.ascontiguousarray(values, dtype=np.int64))

    def probe_batch(self, lengths: Sequence[int]) -> TokenBatch:
        """Texts of made-up token ids, of these lengths."""
        return made_up_batch(self, lengths)


def count_blocks(model: Any, files: ModelFiles) -> int:
    """How many blocks a token passes.

    Raises:
        BackboneError: the model's config does not say it.
    """
    configs = (model.config, model.config.get_text_config())
    count = next((c.num_hidden_layers for c in configs if hasattr(c, "num_hidden_layers")), None)
    if not isinstance(count, int):
        kind = type(model).__name__
        raise BackboneError(
            f"{files.name} ({kind}) cannot encode texts: its config names no number of blocks",
            hint="a backbone is an encoder (BERT, RoBERTa, ...) or a decoder (GPT-2, Llama, ...)",
        )
    return count


def find_blocks(model: nn.Module, count: int) -> nn.ModuleList | None:
    """The one ModuleList with an entry for each block."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return lists[0] if len(lists) == 1 else None


def _linear_weights(module: nn.Module) -> int:
    """How many weights its linear layers have, GPT-2's kind included."""
    linears = (child for child in module.modules() if isinstance(child, nn.Linear) or is_conv1d(child))
    return sum(linear.get_parameter("weight").numel() for linear in linears)


class _Stop(Exception):
    """Ends a forward pass once the highest layer is there."""


@contextlib.contextmanager
def capture_states(blocks: nn.ModuleList, layers: Sequence[int], *, stop: bool) -> Iterator[dict[int, Any]]:
    """Collect the states at `layers` (0: before the first block, i: after block i) by hooks."""
    captured: dict[int, Any] = {}
    highest = max(layers, default=-1)

    def keep(layer: int, value: Any) -> None:
        captured[layer] = value[0] if isinstance(value, (tuple, list)) else value
        if stop and layer == highest:
            raise _Stop

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(
                blocks[0].register_forward_pre_hook(before, with_kwargs=True)
                if layer == 0
                else blocks[layer - 1].register_forward_hook(
                    lambda _, __, output, layer=layer: keep(layer, output)
                )
            )
        yield captured


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it, transformers logs nothing and shows no bars; problems reach the user as errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
