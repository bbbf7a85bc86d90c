"""A run as a standard `transformers` model: a folder that `pipeline("text-classification")` loads.

The stock classes put something of their own between the backbone and the logits. Where that can be set so
that it changes nothing, it is, and the logits are compared before anything is written; where it cannot be,
the export is refused and says why.

    BERT, ALBERT       tanh(Wx + b) of the first token: W = 2^-16 I makes tanh the identity within float32
    RoBERTa, XLM-R     the same
    DistilBERT         relu(Wx + b): the logits and their negatives, whose difference is taken above
    ELECTRA            gelu(Wx + b): the same, as gelu(z) - gelu(-z) = z
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.config import BackboneSettings
from featcache.errors import BackboneError, HeadError, UsageError
from featcache.files import temporary_beside
from featcache.fingerprint import differences
from featcache.heads import Head
from featcache.runs import Run
from featcache.scorers import Linear

if TYPE_CHECKING:
    import torch

SHRINK = 2.0**-16  # a power of two: exact both ways; tanh(x) - x is below float32's step for |x| < 16
TOLERANCE = 1e-3  # of a logit, absolute, or relative to the largest one
SAMPLES = (
    "好", "房间很干净，服务也好", "电池一天就坏了，非常失望。", "这本书内容一般，印刷质量太差，不推荐购买！",
    "The room was clean and the staff were friendly.", "Broke after one day.", "a", "1234567890 ???",
    "酒店位置不错，离地铁很近，早餐种类也多，" * 8, "very good, " * 200, "差评" * 700,
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        difference: the largest one between logits of the exported model and of the run in float32.
        compared: texts they were compared on.
    """

    folder: Path
    model_class: str
    difference: float
    compared: int


def export_huggingface(
    run: Run, folder: Path, *, model: str | None = None, texts: Sequence[str] = SAMPLES, force: bool = False
) -> Exported:
    """Write a run as a folder for `transformers`.

    The temperature is folded into the logits, the prompt into the tokenizer, the names of the labels into
    the config; the thresholds of a multi-label head are in the model card.

    Args:
        folder: made here; replaced only with `force`.
        model: folder of the backbone, if it has moved since.
        texts: on which logits are compared; some short and long ones by default.

    Raises:
        HeadError: no stock class can hold this head; says which part.
        BackboneError: the exported model gave other logits; nothing is written.
        UsageError: `folder` is there.
    """
    if folder.exists() and not force:
        raise UsageError(f"{folder} is there already", hint="another folder, or --force to replace it")
    head = run.head()
    from featcache.backbone import _quiet_transformers

    scorer = _exportable(head)
    settings = _backbone_settings(run, model)
    source = _same_files(run, settings)
    with _quiet_transformers():
        made, tokenizer = _build(source, head, scorer)
    difference = _compare(made, tokenizer, texts, _expected(settings, head, texts))
    temporary = temporary_beside(folder)
    temporary.mkdir(parents=True)
    try:
        with _quiet_transformers():
            made.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        card = model_card(run, head, type(made).__name__, difference, len(texts))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Exported(folder, type(made).__name__, difference, len(texts))


def _exportable(head: Head) -> Linear:
    """The scorer, with the temperature in it.

    Raises:
        HeadError
    """
    if not isinstance(head.scorer, Linear):
        raise HeadError(
            f"a {head.scorer.kind} head has no place in a stock classification model",
            hint="train a linear one: featcache train-head --head linear",
        )
    if head.view != "last/cls":
        raise HeadError(
            f"stock models classify the first token of the last layer; this head reads {head.view}",
            hint="train one on the view last/cls",
        )
    if head.encoder.get("long_text", "truncate") != "truncate" or head.encoder.get("positions"):
        raise HeadError(
            "stock pipelines have no windows and no extended positions, this head was made with them"
        )
    scale = np.float32(1 / head.temperature)
    return Linear(head.scorer.weight * scale, head.scorer.bias * scale)


def _backbone_settings(run: Run, model: str | None) -> BackboneSettings:
    made = run.record["backbone"]
    return BackboneSettings(
        model=model or made["model"],
        revision=None if model else made["commit"] or made["revision"],
        trust_remote_code=False,
        device="cpu",
        dtype="float32",
    )


def _same_files(run: Run, settings: BackboneSettings) -> Path:
    from featcache.hub import find_model

    files = find_model(settings)
    other = differences({"files": run.head().encoder["files"]}, {"files": files.hashes})
    if other:
        raise HeadError(
            f"{run.name} was trained with other files than those of {files.name}: "
            + "; ".join(map(str, other)),
            hint="give the backbone it was trained with: --model FOLDER",
        )
    return Path(files.folder)


def _build(source: Path, head: Head, scorer: Linear) -> tuple[Any, Any]:
    """The stock model with the head in it, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = dict(enumerate(head.label_names))
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        dtype=torch.float32,
        local_files_only=True,
        num_labels=len(names),
        id2label=names,
        label2id={name: number for number, name in names.items()},
        problem_type="multi_label_classification" if head.multi_label else "single_label_classification",
    ).eval()
    put = PLACES.get(model.config.model_type)
    if put is None:
        raise HeadError(
            f"the stock {type(model).__name__} cannot hold this head",
            hint=f"there is a way for {', '.join(sorted(PLACES))}",
        )
    with torch.no_grad():
        put(model, torch.from_numpy(scorer.weight), torch.from_numpy(scorer.bias))
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.model_max_length = head.encoder["max_length"]
    tokenizer.truncation_side = head.encoder["truncation_side"]
    if prompt := head.encoder["prompt"]:
        _prepend(tokenizer, prompt)
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
    """Through an f with f(z) - f(-z) = z: ReLU, GELU."""
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


def _expected(settings: BackboneSettings, head: Head, texts: Sequence[str]) -> np.ndarray:
    """Logits `[N, C]` of the run's head on features of its own encoder in float32."""
    from featcache.backbone import load_backbone
    from featcache.encode import Encoder, document_settings
    from featcache.hub import find_model

    features = replace(document_settings(head.encoder, (head.view,)), storage="float32")
    encoder = Encoder(load_backbone(settings, find_model(settings)), features)
    return np.asarray(head.logits(encoder(list(texts)).views[head.view]) / head.temperature)


def _compare(model: Any, tokenizer: Any, texts: Sequence[str], expected: np.ndarray) -> float:
    """The largest difference of a logit; raises where it is one that counts."""
    import torch

    worst = 0.0
    for text, wanted in zip(texts, expected, strict=True):
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            found = model(**inputs).logits[0].numpy()
        worst = max(worst, float(np.abs(found - wanted).max()))
    if not worst <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise BackboneError(
            f"the exported model gives other logits: they differ by {worst:.2g}; nothing was written",
            hint="please report it with the model's name",
        )
    return worst


def model_card(run: Run, head: Head, model_class: str, difference: float, compared: int) -> str:
    """README.md of an exported model."""
    record = run.record
    lines = ["---", "pipeline_tag: text-classification", "library_name: transformers"]
    lines += ["tags:", "- featcache", "- text-classification", "---", "", f"# {run.name}", ""]
    lines += [
        f"A {head.kind} head on the frozen backbone `{record['backbone']['model']}`, as `{model_class}`.", "",
        "```python", "from transformers import pipeline", "",
        'classify = pipeline("text-classification", model="THIS_FOLDER")',
        'classify("...", truncation=True, top_k=None)', "```", "",
    ]  # fmt: skip
    lines += ["## Metrics", "", "| split | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for split, metrics in record["metrics"].items():
        cells = [f"{metrics[name]:.4f}" if name in metrics else "" for name in SHOWN]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    lines += ["", "The head was chosen on validation; test was scored once.", "", "## Labels", ""]
    thresholds = [None] * len(head.label_names) if head.thresholds is None else head.thresholds.tolist()
    for name, threshold in zip(head.label_names, thresholds, strict=True):
        lines.append(f"- {name}" + ("" if threshold is None else f" (said from {threshold:.4f} on)"))
    document = {name: value for name, value in head.encoder.items() if name != "files"}
    about = {
        "rows": record.get("rows"),
        "truncated": record.get("truncated"),
        "view": head.view,
        "temperature": head.temperature,
        "encoder": document,
        "head": record.get("settings"),
    }
    shown = json.dumps(about, ensure_ascii=False, indent=1)
    lines += ["", "## Data and settings", "", "```json", shown, "```", ""]
    lines += [
        "The temperature is in the weights, the prompt in the tokenizer. Texts longer than"
        f" {head.encoder['max_length']} tokens are cut where `truncation=True` is given.",
        "",
        f"Logits were compared with the run's own, in float32, on {compared} texts: they differ by at most"
        f" {difference:.1e}. float16 is not enough for this model; float32 and bfloat16 are.",
        "",
    ]
    return "\n".join(lines)


SHOWN = ("accuracy", "macro_f1", "log_loss", "ece")
