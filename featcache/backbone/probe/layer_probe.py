"""The first run of a loaded model: which of its states are one vector a token, and where positions begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from featcache.backbone.position_table import position_table
from featcache.backbone.probe.texts import ProbedBackbone, made_up_batch
from featcache.errors import BackboneError

TOKENS = 3
HINTS = {
    "xmod": 'choose one of its languages: "default_language": "en_XX" in its config.json',
}
HINT = "a backbone turns the token ids of a text into one vector a token, and needs nothing else to do so"


def probe_layers(backbone: ProbedBackbone) -> tuple[int, int | None]:
    """Run a short text; find out which layers can be read.

    Where the blocks do not hand out one vector a token, `backbone.blocks` becomes None, and the model's own
    list of hidden states is read; where that is not it either, `backbone.inner_layers` becomes False.

    Returns:
        The row of the table of learned positions that the first token of a text reads (RoBERTa: 2), and the
        number of tokens that there are positions for; None: no limit.

    Raises:
        BackboneError: the model cannot run on the tokens of a text alone.
    """
    model = backbone.model
    table, read = position_table(model), []
    hook = table and table.register_forward_pre_hook(
        lambda _, args: read.append(int(args[0].min())) if torch.is_tensor(args[0]) else None
    )
    try:
        _find_layers(backbone)
    finally:
        if hook:
            hook.remove()
    if table is not None:
        first = read[0] if read else 0
        return first, table.num_embeddings - first
    limit = getattr(model.config, "max_position_embeddings", None)
    return 0, limit if limit and limit > 0 else None


def _find_layers(backbone: ProbedBackbone) -> None:
    layers = list(range(backbone.num_blocks + 1))
    problem = _try(backbone, layers)
    if problem and backbone.blocks is not None:
        backbone.blocks = None
        problem = _try(backbone, layers)
    if problem:
        backbone.inner_layers = False
        problem = _try(backbone, layers[-1:])
    if problem:
        raise cannot_encode(backbone, problem)


def cannot_encode(backbone: ProbedBackbone, problem: str) -> BackboneError:
    """The error that refuses a model."""
    hint = HINTS.get(backbone.model.config.model_type, HINT)
    return BackboneError(
        f"{backbone.files.name} ({type(backbone.model).__name__}) cannot encode texts: {problem}",
        hint=hint if backbone.dtype == torch.float32 else f"{hint}; or try --dtype float32",
    )


def said(error: Exception) -> str:
    """The kind and the first line of an error of the model's own code, or what featcache says itself."""
    if isinstance(error, BackboneError):
        return error.what
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"


def _try(backbone: ProbedBackbone, layers: list[int]) -> str:
    """What is wrong with the states of a short text at `layers`; empty if nothing is."""
    batch = made_up_batch(backbone, [TOKENS])
    if "token_type_ids" in getattr(backbone.tokenizer, "model_input_names", ()):
        batch = replace(batch, type_ids=np.zeros(TOKENS, dtype=np.int64))
    inputs = backbone.padded_inputs(batch)
    wanted = list(inputs["attention_mask"].shape)
    try:
        states = backbone.whole_states(inputs, layers)
    except Exception as error:  # the model's own code raises errors of all kinds
        return said(error)
    shapes = [list(at.shape) for at in states.values()]
    wrong = [shape for shape in shapes if len(shape) != 3 or shape[:2] != wanted]
    return f"{wanted[1]} tokens have states of the shape {wrong[0]}" if wrong else ""
