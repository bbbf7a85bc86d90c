"""A run as a standard `transformers` model: a folder that `pipeline("text-classification")` loads.

The stock classes have a layer of their own between the backbone and the logits. Its weights are set so that
it changes nothing, and the logits are compared before anything is written. Where that is not possible, the
export is refused with the reason.

    BERT, ALBERT       tanh(Wx + b) of the first token: W = 2^-16 I makes tanh the identity within float32
    RoBERTa, XLM-R     the same
    DistilBERT         relu(Wx + b): the logits and their negatives, whose difference is taken above
    ELECTRA            gelu(Wx + b): the same, as gelu(z) - gelu(-z) = z
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.errors import HeadError
from featcache.export.reference import (
    SAMPLES,
    ExportedModel,
    RunToExport,
    largest_difference,
    model_card,
    new_folder,
    refuse_folder,
)
from featcache.heads.scorers import Linear
from featcache.runs.run import Run

if TYPE_CHECKING:
    import torch

SHRINK = 2.0**-16  # a power of two: exact both ways; tanh(x) - x is below float32's step for |x| < 16
TOLERANCE = 1e-3  # of a logit, absolute, or relative to the largest one


def export_huggingface(
    run: Run, folder: Path, *, model: str | None = None, texts: Sequence[str] = SAMPLES, force: bool = False
) -> ExportedModel:
    """Write a run as a folder for `transformers`.

    The temperature is folded into the logits, the prompt into the tokenizer, the names of the labels into
    the config; the thresholds of a multi-label head are in the model card.

    Args:
        folder: made here; replaced only with `force`.
        model: folder of the backbone, if it has moved since.
        texts: on which logits are compared; some short and long ones by default.

    Raises:
        HeadError: no stock class can hold this head; names the part.
        BackboneError: the exported model gave other logits; nothing is written.
        UsageError: `folder` is there, or cannot be written.
    """
    refuse_folder(folder, run, force=force)
    from featcache.backbone.model import quiet_transformers

    scorer = _exportable(run)
    source = RunToExport(run, model)
    with quiet_transformers():
        made, tokenizer = _build(source, scorer)
    found = _logits(made, tokenizer, texts, source.second(texts))
    wanted = source.logits(source.encoder(), texts)
    difference = largest_difference(found, wanted, TOLERANCE, "the run")
    name = type(made).__name__
    with new_folder(folder, force=force) as temporary, quiet_transformers():
        made.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card = _card(source, name, difference, len(texts))
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return ExportedModel(folder, name, difference, len(texts))


def _exportable(run: Run) -> Linear:
    """The scorer, with the temperature in it.

    Raises:
        HeadError: no stock class can hold the head, or no stock tokenizer its texts.
    """
    head = run.head()
    if not isinstance(head.scorer, Linear):
        raise HeadError(
            f"a {head.scorer.kind} head has no place in a stock classification model",
            hint="train a linear one: featcache train-head --head linear",
        )
    if head.view != "last/cls":
        raise HeadError(
            f"stock models classify the first token of the last layer; this head reads {head.view}",
            hint="export it with --format onnx, or train one on the view last/cls",
        )
    if head.encoder.long_text != "truncate" or head.encoder.positions:
        raise HeadError(
            "stock pipelines have no windows and no extended positions, this head was made with them"
        )
    if head.encoder.prompt and run.record.pairs:
        raise HeadError(
            "a stock tokenizer would put the prompt before both texts of a pair",
            hint="export it with --format onnx",
        )
    scale = np.float32(1 / head.temperature)
    return Linear(head.scorer.weight * scale, head.scorer.bias * scale)


def _build(source: RunToExport, scorer: Linear) -> tuple[Any, Any]:
    """The stock model with the head in it, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    head = source.head
    model = AutoModelForSequenceClassification.from_pretrained(
        loadable_folder(source.files),
        dtype=torch.float32,
        local_files_only=True,
        num_labels=len(head.label_names),
        **source.label_config(),
    ).eval()
    put = PLACES.get(model.config.model_type)
    if put is None:
        raise HeadError(
            f"the stock {type(model).__name__} cannot hold this head",
            hint=f"there is a way for {', '.join(sorted(PLACES))}; for others there is --format onnx",
        )
    source.put_trained(model.base_model)
    with torch.no_grad():
        put(model, torch.from_numpy(scorer.weight), torch.from_numpy(scorer.bias))
    tokenizer = source.tokenizer()
    if head.encoder.prompt:
        _prepend(tokenizer, head.encoder.prompt)
    return model, tokenizer


def _prepend(tokenizer: Any, prompt: str) -> None:
    """Let the tokenizer itself put the prompt before every text."""
    from tokenizers import normalizers

    if not tokenizer.is_fast:
        raise HeadError("the prompt has no place in a slow tokenizer")
    backend = tokenizer.backend_tokenizer
    parts = [normalizers.Prepend(prompt)] + ([backend.normalizer] if backend.normalizer else [])
    backend.normalizer = normalizers.Sequence(parts)


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
        raise HeadError(f"{classes} labels are too many: {len(dense.weight) // 2} have room in this model")
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


def _logits(model: Any, tokenizer: Any, texts: Sequence[str], seconds: Sequence[str] | None) -> np.ndarray:
    """float32 `[N, C]` of the stock model, one text at a time."""
    import torch

    found = []
    for place, text in enumerate(texts):
        second = None if seconds is None else seconds[place]
        inputs = tokenizer(text, second, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            found.append(model(**inputs).logits[0].numpy())
    return np.stack(found)


def _card(source: RunToExport, model_class: str, difference: float, compared: int) -> str:
    usage = [
        "from transformers import pipeline", "",
        'classify = pipeline("text-classification", model="THIS_FOLDER")',
        'classify("...", truncation=True, top_k=None)',
    ]  # fmt: skip
    notes = [
        "The temperature is in the weights, the prompt in the tokenizer. Texts longer than"
        f" {source.head.encoder.max_length} tokens are truncated if `truncation=True` is given.",
        f"Logits were compared with the run's own, in float32, on {compared} texts: they differ by at most"
        f" {difference:.1e}. float16 is not enough for this model; float32 and bfloat16 are.",
    ]
    return model_card(source, "transformers", f"`{model_class}`", usage, notes)
