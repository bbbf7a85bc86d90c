"""What all exports share: the run as a reference for comparison, the folder, the model card."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.errors import BackboneError, HeadError, UsageError
from featcache.evaluation.numbers import NUMBER_METRICS
from featcache.fingerprint import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.runs.run import Run
from featcache.system.durable import disk_error, fsync_file, fsync_folder, temporary_beside
from featcache.system.text import last_part, markdown_text, plain_json, short_name
from featcache.translation.language import in_language

if TYPE_CHECKING:
    import torch

    from featcache.backbone.encoder import Encoder
    from featcache.heads.head import Head

SAMPLES = (
    "好", "房间很干净，服务也好", "电池一天就坏了，非常失望。", "这本书内容一般，印刷质量太差，不推荐购买！",
    "The room was clean and the staff were friendly.", "Broke after one day.", "a", "1234567890 ???",
    "酒店位置不错，离地铁很近，早餐种类也多，" * 8, "very good, " * 200, "差评" * 700,
)  # fmt: skip
SHOWN = ("accuracy", "macro_f1", "log_loss", "ece")
PROBLEM_TYPES = {
    SINGLE_LABEL: "single_label_classification",
    MULTI_LABEL: "multi_label_classification",
    REGRESSION: "regression",
}
FAR = 1000  # deviations from 0 beyond which float32 rounds numbers visibly


@dataclass(frozen=True)
class ExportedModel:
    """What was written.

    Attributes:
        difference: the largest difference of a logit between the exported model and the run in float32.
        compared: number of texts that were compared.
        own_difference: the largest difference to the run's own predictor, which rounds features and may
            compute in 16 or 8 bits; None where that was not compared.
    """

    folder: Path
    model_class: str
    difference: float
    compared: int
    own_difference: float | None = None


def refuse_other_parts(head: Head) -> None:
    """Refuse a head that reads the words of the texts, imported vectors, or several backbones.

    Raises:
        HeadError
    """
    from featcache.finetuning.run_backbone import refuse_vectors

    refuse_vectors(head)
    if head.encoder.named:
        raise HeadError(
            f"this head reads several backbones, {', '.join(one.name for one in head.encoder.named)}, and no "
            "model holds them all",
            hint="predict with featcache: featcache predict, featcache serve",
        )
    if head.ngrams is not None:
        raise HeadError(
            "the n-grams of a text are counted outside of the model, so no graph or stock model can hold "
            "this head",
            hint="predict with featcache, or export a run whose view is not lexical",
        )


def refuse_far_numbers(head: Head) -> None:
    """Refuse numbers of which float32, in which exported models compute, loses what they differ by.

    Raises:
        HeadError
    """
    scale = head.numbers
    if scale is not None and abs(scale.mean) > FAR * scale.deviation:
        raise HeadError(
            f"these numbers differ little for their size (mean {scale.mean:g}, deviation "
            f"{scale.deviation:g}), and exported models compute in float32, which rounds the difference away",
            hint="predict with featcache, or train on the labels without a constant, e.g. minus their mean",
        )


class RunToExport:
    """The run that is exported, with the files of its backbone.

    Args:
        model, adapter: the backbone and its adapter, if they are not where they were when the head was
            trained.

    Attributes:
        head: with the encoder document it was trained by.
        files: of the very backbone it was trained with.

    Raises:
        HeadError, BackboneError, UsageError: see `RunBackbone.find`.
    """

    def __init__(self, run: Run, model: str | None, adapter: str | None = None) -> None:
        from featcache.finetuning.run_backbone import BackboneChoice, RunBackbone

        self.run = run
        choice = BackboneChoice(model, adapter=adapter)
        self._backbone = RunBackbone.find(run, run.head(), choice, exact=True)
        self.head, self.files = self._backbone.head, self._backbone.files
        if self.files.is_static:
            raise BackboneError(
                f"{self.files.name} is a table of token vectors, for which transformers has no class and no "
                "tokenizer that leaves tokens out",
                hint="predict with featcache, or read the table with the library that made it",
            )

    @property
    def pairs(self) -> bool:
        """Whether the head was trained on pairs of texts; if the run does not say so, on single ones."""
        return bool(self.run.record.pairs)

    def second(self, texts: Sequence[str]) -> list[str] | None:
        """Second texts for a head of pairs: the same ones in another order."""
        return [*texts[1:], *texts[:1]] if self.pairs else None

    def encoder(self) -> Encoder:
        """The run's encoder in float32, trained blocks and extended positions included."""
        return self._backbone.encoder()

    def logits(self, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
        """float32 `[N, C]`, divided by the temperature, of what `encoder` makes of the texts.

        Of a head that predicts numbers, these: `[N, 1]`.
        """
        features = self.head.rows(encoder(list(texts), self.second(texts)).views)
        if self.head.numbers is not None:
            return self.head.predict_numbers(features).astype(np.float32)[:, None]
        return np.asarray(self.head.logits(features) / np.float32(self.head.temperature))

    def comparable(self, found: np.ndarray) -> np.ndarray:
        """Outputs `[N, C]` in units in which differences can be judged: numbers in their deviation."""
        return found if self.head.numbers is None else self.head.numbers.logits(found)

    def put_trained(self, model: torch.nn.Module) -> None:
        """Give a stock backbone the run's weights: those of an adapter, then what `finetune` trained."""
        if self.files.adapter:
            from featcache.backbone.adapter.merge import merge_adapter

            merge_adapter(model, self.files.adapter, self.files.name)
        if self.head.encoder.tuned:
            from featcache.finetuning.weights import trained_weights

            model.load_state_dict(trained_weights(self.run.folder, self.head.encoder), strict=False)

    def tokenizer(self) -> Any:
        """The stock tokenizer, which truncates as the run does."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.files.folder, local_files_only=True)
        tokenizer.model_max_length = self.head.encoder.max_length
        tokenizer.truncation_side = self.head.encoder.truncation_side
        if self.head.encoder.lower_case:
            from featcache.backbone.tokens.tokenization import lower_case

            lower_case(tokenizer)
        return tokenizer

    def label_config(self) -> dict[str, Any]:
        """What the `config.json` of a stock classification model says about labels."""
        names = dict(enumerate(self.head.label_names or ("number",)))
        kind = PROBLEM_TYPES[self.head.task]
        return {
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "problem_type": kind,
            **({"featcache_abstention": self.abstention} if self.abstention else {}),
            **({"featcache_interval": self.interval} if self.interval else {}),
        }

    @property
    def interval(self) -> dict[str, Any] | None:
        """The interval around the numbers of the head; None where it predicts labels, or has none."""
        numbers = self.head.numbers
        return asdict(numbers.interval) if numbers and numbers.interval else None

    @property
    def abstention(self) -> dict[str, Any] | None:
        """When a program that knows no distance gives no answer; None for a head that always answers.

        The threshold is found for the probability alone, so that the same promise holds without it.
        """
        found = self.head.abstention
        if found is None:
            return None
        asked = {name: value for name, value in asdict(found.asked).items() if name != "out_of_scope"}
        return asked | {"threshold": found.fitted_threshold(scope=False), "out_of_scope": "not checked"}


def largest_difference(found: np.ndarray, wanted: np.ndarray, tolerance: float, whose: str) -> float:
    """The largest difference of a logit.

    Args:
        found: logits `[N, C]` of the exported model.
        tolerance: absolute, or relative to the largest logit where that is above 1.
        whose: name of what gave `wanted`, for the message.

    Raises:
        BackboneError: a difference above the tolerance, or a NaN.
    """
    worst = float(np.abs(found - wanted).max())
    if not worst <= tolerance * max(1.0, float(np.abs(wanted).max())):
        raise BackboneError(
            f"the exported model gives other logits than {whose}: they differ by {worst:.2g}; "
            "nothing was written",
            hint="please report it with the model's name",
        )
    return worst


def refuse_folder(folder: Path, run: Run, *, force: bool) -> None:
    """Check, before anything is loaded, that the folder can be written.

    Raises:
        UsageError: it is there already, or must not be replaced.
    """
    here = folder.resolve()
    if Path.cwd().is_relative_to(here) or run.folder.resolve().is_relative_to(here):
        what = "the run itself" if here == run.folder.resolve() else "not a folder of its own"
        raise UsageError(f"{folder} is {what}", hint="another folder: --output FOLDER")
    if folder.exists() and not force:
        raise UsageError(f"{folder} is there already", hint="another folder, or --force to replace it")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="another folder: --output FOLDER")


@contextlib.contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder to fill; on success it becomes `folder`, otherwise it is removed.

    Raises:
        UsageError: another process has made `folder`.
        DiskError: the file system refuses.
    """
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (path for path in temporary.rglob("*") if path.is_file()):
            fsync_file(path)
        _take_place(temporary, folder, force)
    except OSError as error:
        raise disk_error(error, f"write {folder}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, folder: Path, force: bool) -> None:
    """Rename; a folder that is replaced is removed only after that."""
    old = temporary_beside(folder)
    if folder.exists():
        if not force:
            raise UsageError(f"{folder} was made by another process meanwhile", hint="--force replaces it")
        folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def model_card(
    source: RunToExport, library: str, what: str, usage: Sequence[str], notes: Sequence[str]
) -> str:
    """README.md of an exported model.

    Args:
        library: what loads it, as the hub names it.
        what: the exported model, e.g. `` `BertForSequenceClassification` ``.
        usage: lines of Python that use it.
        notes: paragraphs for the end.
    """
    run, head, record = source.run, source.head, source.run.record
    made = "the frozen backbone" if head.encoder.tuned is None else "a backbone with trained blocks"
    lines = ["---", "pipeline_tag: text-classification", f"library_name: {library}"]
    lines += ["tags:", "- featcache", "- text-classification", "---", "", f"# {markdown_text(run.name)}", ""]
    model = markdown_text(short_name(record.backbone.model))
    lines += [f"A {markdown_text(head.kind)} head on {made}: {model}, as {what}.", ""]
    lines += ["```python", *usage, "```", ""]
    shown_metrics = SHOWN if head.costs is None else (*SHOWN, "cost")
    shown_metrics = shown_metrics if head.numbers is None else NUMBER_METRICS
    columns = len(shown_metrics) + 1
    lines += ["## Metrics", "", "| split | " + " | ".join(shown_metrics) + " |", "|---" * columns + "|"]
    clean = record.clean.metrics if record.clean else {}
    rows = {
        name: metrics
        for split, whole in record.metrics.items()
        for name, metrics in ((split, whole), (f"{split}, clean rows", clean.get(split)))
        if metrics
    }
    for split, metrics in rows.items():
        cells = [f"{metrics[name]:.4f}" if name in metrics else "" for name in shown_metrics]
        lines.append(f"| {markdown_text(split)} | " + " | ".join(cells) + " |")
    lines += ["", "The head was chosen on validation; test was scored once.", ""]
    if record.about_leaks:
        with in_language("en"):  # as the rest of the file
            lines += [markdown_text(record.about_leaks), ""]
    lines += ["## Labels", ""] if head.numbers is None else ["## Numbers", ""]
    if head.numbers is not None:
        interval = head.numbers.interval
        width = "" if interval is None else f" ± {interval.half_width:.6g}: {interval.guarantee}"
        lines.append(f"The output is a number in the unit of the labels{width}.")
    thresholds = [None] * len(head.label_names) if head.thresholds is None else head.thresholds.tolist()
    for name, threshold in zip(head.label_names, thresholds, strict=True):
        limit = "" if threshold is None else f" (predicted from {threshold:.4f} on)"
        lines.append(f"- {markdown_text(name)}{limit}")
    if (held := source.abstention) and head.abstention:
        limit, promise = f"{held['threshold']:.4f}", head.abstention.asked.promise
        lines += ["", f"Below a probability of {limit} there is no answer ({promise}). The model gives"]
        lines += ["logits alone: compare the softmax probability of the predicted label with this number."]
        lines += ["This export does not find texts that are out of scope: their distance from the train rows"]
        lines += ["is not in it, and the number keeps the promise without it. `featcache predict` has both."]
    shown = plain_json(json.dumps(_about(source), ensure_ascii=False, indent=1))
    lines += ["", "## Data and settings", "", "```json", shown, "```", ""]
    for note in notes:
        lines += [note, ""]
    return "\n".join(lines)


def _about(source: RunToExport) -> dict[str, Any]:
    record, head = source.run.record, source.head
    data = {
        name: value
        for name, value in (asdict(record.data) if record.data else {}).items()
        if value is not None
    }
    # A card is published, folders are private.
    if files := data.pop("data_files", None):
        data["dataset"] = {split: last_part(path) for split, path in files.items()}
    elif "dataset" in data:
        data["dataset"] = short_name(data["dataset"])
    return {
        "data": data,
        "rows": record.rows,
        "truncated": record.truncated,
        "unknown_tokens": record.unknown_tokens,
        "view": head.view,
        "temperature": head.temperature,
        "encoder": {name: value for name, value in head.encoder.to_json().items() if name != "files"},
        "head": record.settings,
    }
