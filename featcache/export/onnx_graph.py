"""The graph of an ONNX export: a stock model, one layer of it pooled, the head on top."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featcache.backbone.attentive import Attention
from featcache.backbone.model import capture_states, find_blocks
from featcache.backbone.pooler import Pooler
from featcache.heads.head import Head
from featcache.heads.scorers import Mlp

OUTPUT = "logits"
ONE_FILE = 1 << 30  # bytes of weights; protobuf holds no file above 2 GiB


def _pool_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    real = mask.unsqueeze(-1).to(states.dtype)
    return (states * real).sum(1) / real.sum(1)


def _pool_last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    places = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return states.gather(1, places[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


def _pool_max(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(states.dtype).min).amax(1)


def _pool_weightedmean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _pool_mean_sqrt_len(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    real = mask.unsqueeze(-1).to(states.dtype)
    return (states * real).sum(1) / real.sum(1).sqrt()


# As `pooling.POOLINGS`, of a padded batch: states `[B, T, H]` and mask `[B, T]` -> `[B, H]`.
POOLINGS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": lambda states, mask: states[:, 0],
    "mean": _pool_mean,
    "last": _pool_last,
    "max": _pool_max,
    "weightedmean": _pool_weightedmean,
    "mean_sqrt_len": _pool_mean_sqrt_len,
}


class _AttentivePool(nn.Module):
    """As `Attention.pool`, of a padded batch."""

    def __init__(self, learned: Attention) -> None:
        super().__init__()
        self.queries, self.center = (nn.Parameter(part, False) for part in (learned.queries, learned.center))
        self.register_buffer("query_of", learned.query_of)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States `[B, T, H]` and mask `[B, T]` -> `[B, H]`."""
        scores = (states @ self.queries.T).masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(states.dtype).min)
        counted = scores.softmax(1).index_select(2, self.get_buffer("query_of"))
        return (counted * states).sum(1) - self.center


class Classifier(nn.Module):
    """Token ids of a padded batch to logits: stock model, states of layers, poolings, their steps, head.

    Args:
        model: a stock `AutoModel` in float32.
        poolers: of the head's views, in their order.
        head: linear, attentive or with one hidden layer; its temperature is folded in.
    """

    def __init__(self, model: Any, poolers: Sequence[Pooler], head: Head) -> None:
        super().__init__()
        self.model, self.views = model, [pooler.view for pooler in poolers]
        self.final = int(model.config.num_hidden_layers)
        self.blocks = (find_blocks(model, self.final),)  # in a tuple: they are the model's, not ours
        self.learned = nn.ModuleList(
            _AttentivePool(pooler.attention) if pooler.attention else nn.Identity() for pooler in poolers
        )
        self.steps = nn.ModuleList(nn.Sequential(*pooler.steps) for pooler in poolers)
        self.head = _head_module(head)
        known = inspect.signature(inspect.unwrap(type(model).forward)).parameters
        self.options = {"use_cache": False} if "use_cache" in known else {}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """int64 `[B, T]` each -> float32 `[B, C]`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        states = self._states(inputs)
        features = []
        for view, learned, steps in zip(self.views, self.learned, self.steps, strict=True):
            if isinstance(learned, _AttentivePool):
                features.append(learned(states[view.layer], attention_mask))
                continue
            pooled = [POOLINGS[name](states[view.layer], attention_mask) for name in view.joined]
            features.append(steps(torch.cat(pooled, dim=1)))
        logits: torch.Tensor = self.head(torch.cat(features, dim=1))
        return logits

    def _states(self, inputs: Mapping[str, torch.Tensor]) -> dict[int, Any]:
        """States `[B, T, H]` at the views' layers; the exporter drops unused blocks above them."""
        inner, blocks = sorted({view.layer for view in self.views} - {self.final}), self.blocks[0]
        if inner and blocks is None:
            made = self.model(**inputs, **self.options, output_hidden_states=True)
            states = {layer: made.hidden_states[layer] for layer in inner}
            return states | {self.final: made.last_hidden_state}
        if blocks is None:
            return {self.final: self.model(**inputs, **self.options).last_hidden_state}
        with capture_states(blocks, inner, stop=False) as captured:
            made = self.model(**inputs, **self.options)
        return {**captured, self.final: made.last_hidden_state}


def _head_module(head: Head) -> nn.Sequential:
    """The scorer as layers, `Head.last_step` in the last one."""
    parts, (scale, offset) = head.scorer.tensors(), head.last_step
    if isinstance(head.scorer, Mlp):
        first = _linear(parts["w1"], parts["b1"])
        return nn.Sequential(first, nn.ReLU(), _linear(parts["w2"] * scale, parts["b2"] * scale + offset))
    return nn.Sequential(_linear(parts["weight"] * scale, parts["bias"] * scale + offset))


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    return layer


def write_graph(classifier: Classifier, inputs: Sequence[str], path: Path) -> None:
    """Trace the classifier and write it; above 1 GiB its weights are in one file beside it.

    Args:
        inputs: names of its arguments that the graph takes, int64 `[batch, tokens]` with both free.

    Raises:
        Exception: whatever the exporter, onnxscript or onnx raise.
    """
    ids = torch.arange(5, 23).reshape(2, 9) % classifier.model.get_input_embeddings().num_embeddings
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    axes = {0: "batch", 1: "tokens"}
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            classifier, (), kwargs={name: given[name] for name in inputs}, dynamo=True, verbose=False,
            input_names=list(inputs), output_names=[OUTPUT], dynamic_shapes=dict.fromkeys(inputs, axes),
        )  # fmt: skip
    assert program is not None  # it is None only if a file name is given
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    size = sum(weights.numel() * weights.element_size() for weights in classifier.parameters())
    program.save(path, external_data=size > ONE_FILE)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's log lines and warnings; failures are raised as errors."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
