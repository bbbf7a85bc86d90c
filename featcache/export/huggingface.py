"""A run as a standard `transformers` model: a folder that `pipeline("text-classification")` loads.

The stock classes have layers of their own between the backbone and the logits. Their weights are set so that
the logits are the head's (`stock_heads.py`); logits are compared before anything is written. Where that is
not possible, the export is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.errors import HeadError
from featcache.export.reference import (
    SAMPLES,
    ExportedModel,
    RunToExport,
    largest_difference,
    model_card,
    new_folder,
    refuse_far_numbers,
    refuse_folder,
    refuse_other_parts,
)
from featcache.export.stock_heads import ONNX, classifies_last_token, put_head
from featcache.export.stock_logits import TOLERANCE, logits_of, set_padding
from featcache.fingerprint import SINGLE_LABEL
from featcache.heads.scorers import Linear, Neighbours
from featcache.runs.run import Run


def export_huggingface(
    run: Run,
    folder: Path,
    *,
    model: str | None = None,
    adapter: str | None = None,
    texts: Sequence[str] = SAMPLES,
    force: bool = False,
) -> ExportedModel:
    """Write a run as a folder for `transformers`.

    The temperature is folded into the logits, the prompt into the tokenizer, the names of the labels into
    the config; the thresholds of a multi-label head are in the model card.

    Args:
        folder: made here; replaced only with `force`.
        model, adapter: folders of the backbone and its adapter, if they have moved since.
        texts: on which logits are compared; some short and long ones by default.

    Raises:
        HeadError: no stock class can hold this head; names the part.
        BackboneError: the exported model gave other logits; nothing is written.
        UsageError: `folder` is there, or cannot be written.
    """
    refuse_folder(folder, run, force=force)
    from featcache.backbone.model import quiet_transformers

    scorer = _exportable(run)
    source = RunToExport(run, model, adapter)
    with quiet_transformers():
        made, tokenizer = _build(source, scorer)
    second, notes = source.second(texts), []
    if classifies_last_token(made):
        notes = [set_padding(made, tokenizer, texts, second)]
    found = logits_of(made, tokenizer, texts, second)
    wanted = source.logits(source.encoder(), texts)
    if classifies_last_token(made) and source.head.task == SINGLE_LABEL:  # up to what softmax ignores
        found, wanted = (logits - logits.mean(1, keepdims=True) for logits in (found, wanted))
    found, wanted = map(source.comparable, (found, wanted))
    difference = largest_difference(found, wanted, TOLERANCE, "the run")
    name = type(made).__name__
    with new_folder(folder, force=force) as temporary, quiet_transformers():
        made.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card = _card(source, name, difference, len(texts), notes)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return ExportedModel(folder, name, difference, len(texts))


def _exportable(run: Run) -> Linear:
    """The scorer, with `Head.last_step` in it.

    Raises:
        HeadError: no stock class can hold the head, or no stock tokenizer its texts.
    """
    head = run.head()
    refuse_other_parts(head)
    refuse_far_numbers(head)
    if not isinstance(head.scorer, Linear):
        none = (
            "no format holds it: train another one, e.g. featcache train-head --head linear --view last/cls"
        )
        onnx = (
            "--format onnx holds it; or train a linear one for this format: "
            "featcache train-head --head linear --view last/cls"
        )
        raise HeadError(
            f"the {head.scorer.kind} head has no place in a stock classification model, which has one linear "
            "layer",
            hint=none if isinstance(head.scorer, Neighbours) else onnx,
        )
    if head.costs is not None:
        raise HeadError(
            "a stock pipeline answers with the most probable label, this head with the one that costs least",
            hint=ONNX,
        )
    if head.view not in ("last/cls", "last/last"):
        raise HeadError(
            "stock models classify the first token of the last layer, decoders the last one; this head reads "
            f"{head.view}",
            hint=f"{ONNX}, or train one on the view last/cls or last/last",
        )
    if head.encoder.long_text != "truncate" or head.encoder.positions:
        raise HeadError(
            "stock pipelines have no windows and no extended positions, this head was made with them",
            hint="use --format onnx, or train with --long-text truncate within the model's positions",
        )
    if not head.encoder.pool_prompt:
        raise HeadError(
            "stock models pool the prompt's tokens too, and this head was made without them",
            hint="use --format onnx",
        )
    if head.encoder.prompt and run.record.pairs:
        raise HeadError(
            "a stock tokenizer would put the prompt before both texts of a pair",
            hint=ONNX,
        )
    scale, offset = head.last_step
    return Linear(head.scorer.weight * scale, head.scorer.bias * scale + offset)


def _build(source: RunToExport, scorer: Linear) -> tuple[Any, Any]:
    """The stock model with the head in it, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    head, config = source.head, source.label_config()
    own = {name: config.pop(name) for name in tuple(config) if name.startswith("featcache_")}
    model = AutoModelForSequenceClassification.from_pretrained(
        loadable_folder(source.files),
        dtype=torch.float32,
        local_files_only=True,
        num_labels=scorer.classes,
        **config,
    ).eval()
    model.config.update(own)  # what no stock config has would be an argument of the model
    source.put_trained(model.base_model)
    put_head(model, scorer, head.view, exact=head.task != SINGLE_LABEL)
    tokenizer = source.tokenizer()
    if head.encoder.prompt:
        _prepend(tokenizer, head.encoder.prompt)
    return model, tokenizer


def _prepend(tokenizer: Any, prompt: str) -> None:
    """Let the tokenizer itself put the prompt before every text."""
    from tokenizers import normalizers

    if not tokenizer.is_fast:
        raise HeadError(
            "the prompt has no place in a slow tokenizer", hint='use --format onnx, or train with --prompt ""'
        )
    backend = tokenizer.backend_tokenizer
    parts = [normalizers.Prepend(prompt)] + ([backend.normalizer] if backend.normalizer else [])
    backend.normalizer = normalizers.Sequence(parts)


def _card(
    source: RunToExport, model_class: str, difference: float, compared: int, more: Sequence[str]
) -> str:
    how = "top_k=None" if source.head.numbers is None else 'function_to_apply="none"'
    usage = [
        "from transformers import pipeline", "",
        'classify = pipeline("text-classification", model="THIS_FOLDER")',
        f'classify("...", truncation=True, {how})',
    ]  # fmt: skip
    notes = [
        "The temperature is in the weights, the prompt in the tokenizer. Texts longer than"
        f" {source.head.encoder.max_length} tokens are truncated if `truncation=True` is given.",
        f"Logits were compared with the run's own, in float32, on {compared} texts: they differ by at most"
        f" {difference:.1e}. float16 is not enough for this model; float32 and bfloat16 are.",
        *more,
    ]
    return model_card(source, "transformers", f"`{model_class}`", usage, notes)
