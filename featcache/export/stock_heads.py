"""Where a linear head has its place in the classification models of transformers.

BERT, ALBERT       tanh(Wx + b) of the first token: W = 2^-16 I makes tanh the identity within float32
RoBERTa, XLM-R     the same
DistilBERT         relu(Wx + b): the logits and their negatives, whose difference is taken above
ELECTRA            gelu(Wx + b): the same, as gelu(z) - gelu(-z) = z
GPT-2, Llama, ...  Wx of the last token, without b: the final norm's own bias grows by c, with W c = b
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.errors import HeadError
from featcache.heads.scorers import Linear

if TYPE_CHECKING:
    import torch

SHRINK = 2.0**-16  # a power of two: exact both ways; tanh(x) - x is below float32's step for |x| < 16
NO_BIAS = 1e-6  # of a logit: a bias below it is none
DEPENDENT = 1e-4  # rows with a combination smaller than this share of the largest depend on each other
ONNX = "export it with --format onnx"


def put_head(model: Any, scorer: Linear, view: str, *, exact: bool) -> None:
    """Set the weights of a stock model so that its logits are the scorer's.

    Args:
        view: what the scorer reads, `last/cls` or `last/last`.
        exact: a constant that is added to all logits of a text matters; it does not for a softmax.

    Raises:
        HeadError: the model has no place for it; names the part.
    """
    import torch

    name, put = type(model).__name__, PLACES.get(model.config.model_type)
    if put is None and not classifies_last_token(model):
        known = ", ".join(sorted(PLACES))
        raise HeadError(
            f"the stock {name} cannot hold this head",
            hint=f"there is a way for {known}, and decoders such as gpt2; for others there is --format onnx",
        )
    wanted, token = ("last/cls", "first") if put else ("last/last", "last")
    if view != wanted:
        raise HeadError(
            f"the stock {name} classifies the {token} token of the last layer; this head reads {view}",
            hint=f"{ONNX}, or train one on the view {wanted}",
        )
    weight, bias = torch.from_numpy(scorer.weight), torch.from_numpy(scorer.bias)
    with torch.no_grad():
        if put:
            put(model, weight, bias)
        else:
            _fold_bias(model, scorer, exact)
            model.score.weight.copy_(weight)


def classifies_last_token(model: Any) -> bool:
    """Whether the model's own classifier is a layer without bias on the last token, as decoders' are."""
    score = getattr(model, "score", None)
    return score is not None and getattr(score, "bias", 0) is None


def _fold_bias(model: Any, scorer: Linear, exact: bool) -> None:
    """Let the final norm add the shortest c with W c = b; for a softmax (not `exact`) up to a constant.

    Raises:
        HeadError: the norm has no bias, or there is no such c.
    """
    import torch

    bias = scorer.bias.astype(np.float64)
    needed = bias if exact else bias - bias.mean()
    if np.abs(needed).max() <= NO_BIAS:
        return
    norm = _final_norm(model.base_model)
    name = type(model).__name__
    if norm is None or getattr(norm, "bias", None) is None:
        place = "it has no final norm" if norm is None else f"its final {type(norm).__name__} has none"
        raise HeadError(
            f"the stock {name} has no bias in its classifier, and {place}; this head has one", hint=ONNX
        )
    columns = scorer.weight.astype(np.float64)
    found = _solution(columns, bias)
    if found is None and not exact:
        found = _solution(np.hstack([columns, np.ones((len(bias), 1))]), bias)
    if found is None:
        raise HeadError(
            f"the stock {name} has no bias in its classifier, and its final norm cannot give this head's: "
            "the weights of the labels depend on each other",
            hint=ONNX,
        )
    norm.bias += torch.from_numpy(found[: columns.shape[1]]).to(norm.bias)


def _solution(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """The shortest x with `matrix` x = `wanted`; None if there is none that float32 can hold."""
    found: np.ndarray = np.linalg.lstsq(matrix, wanted, rcond=DEPENDENT)[0]
    apart = np.abs(matrix @ found - wanted).max()
    return found if apart <= NO_BIAS * max(1.0, np.abs(wanted).max()) else None


def _final_norm(base: Any) -> Any:
    """The module whose output are the last states; None if there is no one module."""
    import torch

    outputs: list[tuple[Any, Any]] = []
    leaves = [module for module in base.modules() if any(True for _ in module.parameters(recurse=False))]
    hooks = [
        module.register_forward_hook(lambda module, _, output: outputs.append((module, output)))
        for module in leaves
    ]
    try:
        last = base(input_ids=torch.tensor([[1, 2]])).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    module, output = outputs[-1]
    return module if torch.equal(output.reshape(last.shape), last) else None


def _through_tanh(dense: Any, out: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    import torch

    dense.weight.copy_(torch.eye(len(dense.weight)) * SHRINK)
    dense.bias.zero_()
    out.weight.copy_(weight / SHRINK)
    out.bias.copy_(bias)


def _both_signs(dense: Any, out: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Set the layers for an activation f with f(z) - f(-z) = z: ReLU, GELU."""
    classes = len(bias)
    if 2 * classes > len(dense.weight):
        raise HeadError(
            f"{classes} labels are too many: {len(dense.weight) // 2} have room in this model",
            hint="use --format onnx",
        )
    for layer in (dense, out):
        layer.weight.zero_()
        layer.bias.zero_()
    for sign, first in ((1, 0), (-1, classes)):
        dense.weight[first : first + classes] = sign * weight
        dense.bias[first : first + classes] = sign * bias
        out.weight[range(classes), range(first, first + classes)] = sign


PLACES: Mapping[str, Callable[[Any, Any, Any], None]] = {
    "bert": lambda m, w, b: _through_tanh(m.bert.pooler.dense, m.classifier, w, b),
    "albert": lambda m, w, b: _through_tanh(m.albert.pooler, m.classifier, w, b),
    "roberta": lambda m, w, b: _through_tanh(m.classifier.dense, m.classifier.out_proj, w, b),
    "xlm-roberta": lambda m, w, b: _through_tanh(m.classifier.dense, m.classifier.out_proj, w, b),
    "distilbert": lambda m, w, b: _both_signs(m.pre_classifier, m.classifier, w, b),
    "electra": lambda m, w, b: _both_signs(m.classifier.dense, m.classifier.out_proj, w, b),
}
