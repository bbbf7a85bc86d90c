"""How many texts run together: the vector of a text never depends on the texts beside it.

A few texts of unlike lengths run alone, then together. From the fastest kind of batches to the slowest, the
first one in which every text gets the states that it gets alone is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache.backbone.attention.packed import IMPLEMENTATION
from featcache.backbone.fused_layers import agree
from featcache.backbone.packing import NotPackable
from featcache.backbone.probe.layer_probe import cannot_encode, said
from featcache.backbone.probe.texts import ProbedBackbone, batch_of, made_up_batch, worded_texts
from featcache.errors import BackboneError

LENGTHS = [9, 5, 5]
SHARE = 1e-3  # of the length of a float32 state: far above its noise, and below every leak that was found
MOST_WEIGHTS = 1 << 30  # of a 16-bit model that is probed in float32, which doubles its memory meanwhile
LONGEST_ROW = 4096  # tokens; some families refuse a row that is longer than a text may be
WHY = {
    "packed": "mixes the texts of a packed batch",
    "padded": "lets padding change the states of a text",
    "equal lengths": "lets the texts of a batch change each other",
}

States = list[dict[int, torch.Tensor]]  #: of each text, by layer


def find_packing(backbone: ProbedBackbone) -> tuple[str, str]:
    """How texts run together, and why no faster way is used; see `Backbone.packing`.

    Raises:
        BackboneError: the same text does not get the same states twice.
    """
    probe, reason = _BatchProbe(backbone), ""
    for packing in ("packed", "padded", "equal lengths"):
        backbone.packing = packing
        found = probe.problem()
        if not found:
            return packing, reason
        if packing == "packed":
            backbone.use_attention(None)
        reason = found
    backbone.packing = "one by one"
    if not probe.close(probe.alone, probe.run(probe.texts)):
        kind = type(backbone.model).__name__
        raise BackboneError(
            f"{backbone.files.name} ({kind}) gives the same text other states each time",
            hint="does its config.json have a seed to set (Reformer: hash_seed)? else use another model",
        )
    return "one by one", reason


def runs_pooled_alone(backbone: ProbedBackbone) -> bool:
    """Run a few texts both ways: whether the pooled tokens of the highest block alone get the same states."""
    if backbone.packing != "packed" or backbone.blocks is None:
        return False
    batch, pooled = made_up_batch(backbone, _lengths(backbone)), ("first", "last")
    try:
        for layer in (backbone.num_blocks, backbone.num_blocks - 1):
            whole, layout = backbone.states(batch, [layer])
            alone, _ = backbone.states(batch, [layer], pooled)
            expected = torch.stack([whole[layer][layout.token_at(token)] for token in pooled])
            if not agree(alone[layer], expected, _share(expected)):
                return False
    except (NotPackable, ValueError, TypeError, RuntimeError, IndexError, AttributeError):
        return False  # e.g. GPT-2's own code expects as many tokens out of a block as in
    return True


class _BatchProbe:
    """A few texts with the states that they get alone.

    Attributes:
        texts: token ids int64 `[length]` of each; the last two are equally long.
        others: made-up texts of the same lengths.
        alone: the states of `texts`.
    """

    def __init__(self, backbone: ProbedBackbone) -> None:
        self.backbone = backbone
        self.layers = sorted({0 if backbone.inner_layers else backbone.num_blocks, backbone.num_blocks})
        lengths = _lengths(backbone)
        self.texts = worded_texts(backbone, lengths)
        made_up = made_up_batch(backbone, [1, *lengths]).input_ids[1:]  # not those in place of words
        self.others = np.split(made_up, np.cumsum(lengths)[:-1])
        backbone.packing = "one by one"
        try:
            self.alone = self.run(self.texts)
        except Exception as error:  # the model's own code raises errors of all kinds
            raise cannot_encode(backbone, said(error)) from error

    def run(self, texts: list[np.ndarray]) -> States:
        """The states of texts, run together as `backbone.packing` says."""
        batch = batch_of(texts)
        states, _ = self.backbone.states(batch, self.layers)
        lengths = batch.lengths.tolist()  # damaged weights, which are refused later, give the same NaN again
        parts = {layer: at.nan_to_num().split(lengths) for layer, at in states.items()}
        return [{layer: parts[layer][i] for layer in self.layers} for i in range(len(texts))]

    def problem(self) -> str:
        """Why the texts do not run together as `backbone.packing` says; empty if they do."""
        backbone, kind = self.backbone, type(self.backbone.model).__name__
        leak = f"{kind} {WHY[backbone.packing]}"
        if backbone.packing == "packed" and (problem := self._cannot_pack()):
            return problem
        try:
            together = self.run(self.texts)
            if not self.close(together, self.alone):
                return leak
            if backbone.packing == "packed" and not self._takes_long_rows():
                return f"{kind} takes no rows longer than a text may be"
            if backbone.dtype == torch.float32 or self._same_bits(together):
                return ""
            if sum(weight.numel() for weight in backbone.model.parameters()) > MOST_WEIGHTS:
                return ""
            with _in_float32(backbone.model):
                return "" if self._close_in_float32() else leak
        except Exception as error:  # the model's own code raises errors of all kinds
            return said(error)

    def _cannot_pack(self) -> str:
        """Prepare the model for packed batches; why that cannot be."""
        kind = type(self.backbone.model).__name__
        if "position_ids" not in self.backbone.arguments:
            return f"{kind} takes no position_ids"
        if not self.backbone.use_attention(IMPLEMENTATION):
            return f"{kind} does not use AttentionInterface"
        return ""

    def _takes_long_rows(self) -> bool:
        """Whether a packed batch may have more tokens than a text may have."""
        backbone, limit = self.backbone, self.backbone.position_limit or LONGEST_ROW
        if limit >= LONGEST_ROW:
            return True
        half = -(-limit // 2)
        try:
            backbone.states(made_up_batch(backbone, [half, half, 1]), [0] if backbone.blocks else self.layers)
        except Exception:  # the model's own code raises errors of all kinds
            return False
        return True

    def _same_bits(self, together: States) -> bool:
        """Whether a text gets the same bits between other texts of the same lengths, with other padding.

        In 16 bits a small leak is hidden by noise, but in batches of one shape there is no noise.
        """
        kept = len(self.texts) - 2
        texts = [text if i == kept else self.others[i] for i, text in enumerate(self.texts)]
        with self.backbone.other_padding():
            found = self.run(texts)[kept]
        return all(torch.equal(found[layer], together[kept][layer]) for layer in self.layers)

    def _close_in_float32(self) -> bool:
        backbone = self.backbone
        packing, backbone.packing = backbone.packing, "one by one"
        alone = self.run(self.texts)
        backbone.packing = packing
        return self.close(self.run(self.texts), alone)

    def close(self, found: States, expected: States) -> bool:
        """Whether all states are equal but for the noise of their dtype."""
        pairs = [(a[layer], b[layer]) for a, b in zip(found, expected, strict=True) for layer in self.layers]
        return all(
            agree(one, other, _share(other)) and (other.dtype != torch.float32 or _near(one, other))
            for one, other in pairs
        )


def _lengths(backbone: ProbedBackbone) -> list[int]:
    """Three short texts, and before them one longer than two windows of attention if there are any."""
    window = _window(backbone.model.config)
    room = backbone.position_limit or 4096
    return ([min(2 * window + 9, room)] if 0 < window < min(room, 2048) else []) + LENGTHS


def _window(config: Any) -> int:
    """Tokens of the shortest window that attention is cut into, in any layer; 0 if there is none."""
    names = ("sliding_window", "local_attn_chunk_length", "lsh_attn_chunk_length")
    try:
        windows = [getattr(config, name, None) for name in names]
    except RuntimeError:  # each layer has its own
        windows = [getattr(layer, names[0], None) for layer in config.per_layer_config]
    return min((window for window in windows if window), default=0)


def _share(expected: torch.Tensor) -> float:
    """Of the largest value, by which states may differ."""
    return 1e-3 if expected.dtype == torch.float32 else 5e-2


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each state differs by at most SHARE of its length: a few large values hide no leak."""
    apart = (found - expected).norm(dim=-1)
    return bool((apart <= SHARE * expected.norm(dim=-1).clamp_min(1e-6)).all())


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Within it, the weights of a 16-bit model are float32; afterwards they have the same bits as before."""
    tensors = [*model.parameters(), *model.buffers()]
    kinds = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point()]
    try:
        for tensor, _ in kinds:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, kind in kinds:
            tensor.data = tensor.data.to(kind)
