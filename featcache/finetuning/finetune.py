"""Fine-tune above the cut: states once, blocks and head trained, the best by validation saved as a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.cache.catalog import Features, slug
from featcache.data.arrow_table import open_tables
from featcache.data.split import Split, load_splits
from featcache.errors import HeadError, UsageError
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.metrics import Scores, score
from featcache.extraction.api import Job
from featcache.finetuning.recipe import Recipe
from featcache.fingerprint import EncoderDocument, TunedPart, fingerprint, row_chain
from featcache.heads.head import Head, view_fingerprint
from featcache.heads.scorers import Linear
from featcache.runs.predictions import Predictions
from featcache.runs.run import Run, save_run, scores_record
from featcache.runs.train import _calibrated
from featcache.settings import Settings
from featcache.system.progress import Progress

if TYPE_CHECKING:
    import torch

    from featcache.backbone.encoder import Encoder
    from featcache.finetuning.cut import Part
    from featcache.finetuning.loop import Source, Step, Tuned, Tuner, Weights
    from featcache.finetuning.states_cache import StatesFile

TRAINED = "trained"  # name of the trained part's file, beside that of the head
COMPUTE = ("float32", "bfloat16")


@dataclass
class _Inputs:
    """A split as it goes into training.

    Attributes:
        seconds: that its states took, when they were made.
        nbytes: of the states on disk.
    """

    split: Split
    hashes: np.ndarray
    source: Source
    truncated: int
    seconds: float = 0.0
    nbytes: int = 0
    caches: dict[str, str] = dataclasses.field(default_factory=dict)


def finetune(
    settings: Settings,
    train: str = "top-blocks:2",
    recipe: Recipe | None = None,
    view: str | None = None,
    *,
    resume: bool = True,
    wait: float = 0.0,
    report: Callable[[Progress], None] | None = None,
    progress: Callable[[Step], None] = lambda _: None,
) -> Run:
    """Train blocks of the backbone with a linear head, and save them as a run.

    What lies below the trained blocks runs once over each split; its states are cached. Predictions are
    made by the backbone with its trained part put in, see `Predictor.from_run`.

    Args:
        settings: which model, data and features (prompt, longest text, seed, folders).
        train: `top-blocks:N`, `positions` or `all`; for the head alone there is `train_head`.
        recipe: rates, epochs and so on; `Recipe()` by default.
        view: `last/POOLING`; the first of `settings.features.views` by default.
        resume: go on from the checkpoint of exactly this training, where one was left.
        wait: seconds to wait for another process that makes the same states.
        report: called while states are made.
        progress: called after each step.

    Returns:
        The saved run, with its folder's `trained.safetensors` and `trained-last.safetensors`.

    Raises:
        SourceError, BackboneError, CacheError, UsageError: each says what to do.
        HeadError: training diverged before an epoch was done.
    """
    from featcache.finetuning.checkpoint import discard_checkpoint
    from featcache.finetuning.cut import parse_part, require_blocks

    recipe = recipe or Recipe()
    view = view or settings.features.views[0]
    settings = dataclasses.replace(settings, features=dataclasses.replace(settings.features, views=(view,)))
    job = Job(settings, report, wait=wait)
    splits = load_splits(settings.data, _split_names(settings), seed=settings.seed)
    encoder = job.encoder("train")
    part = parse_part(train, encoder.backbone.num_blocks)
    require_blocks(encoder.backbone)
    _check_encoder(encoder, view)
    inputs = {name: _inputs(job, split, encoder, part) for name, split in splits.items()}
    work = _Work(settings, recipe, part, encoder.views[0].name, encoder.document, inputs, _facts(encoder))
    device, budget = encoder.backbone.device, encoder.batch_tokens
    job._encoder = None  # the frozen model is needed no more: its memory is the trained part's
    del encoder
    checkpoint = Path(settings.paths.reports_dir) / f".finetune-{work.key[:12]}"
    tuner = _tuner(work, job, device, budget, checkpoint, progress)
    run = _Saving(work, tuner, tuner.run(resume=resume), job.model.commit).save()
    discard_checkpoint(checkpoint)
    return run


@dataclass
class _Work:
    """What is trained on what.

    Attributes:
        document: the encoder document of the frozen backbone.
        facts: what does not change the result but is good to know later.
    """

    settings: Settings
    recipe: Recipe
    part: Part
    view: str
    document: EncoderDocument
    inputs: dict[str, _Inputs]
    facts: dict[str, Any]

    @property
    def key(self) -> str:
        """A hash of all that the training depends on; names its checkpoint."""

        def digest(values: np.ndarray) -> str:
            return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()

        rows = {
            name: [digest(each.hashes), digest(each.split.labels)]
            for name, each in self.inputs.items()
            if name != "test"
        }
        return fingerprint(
            {
                "part": self.part.name, "view": self.view, "recipe": dataclasses.asdict(self.recipe),
                "encoder": self.document.to_json(), "seed": self.settings.seed, "rows": rows,
            }
        )  # fmt: skip


def _check_encoder(encoder: Encoder, view: str) -> None:
    """Refuse a view or a dtype that blocks cannot be trained with."""
    if encoder.views[0].layer != encoder.backbone.num_blocks:
        raise UsageError(f"fine-tuning pools the last layer, not {view}", hint="e.g. --view last/mean")
    if encoder.backbone.dtype_name not in COMPUTE:
        raise UsageError(
            f"fine-tuning computes in float32 or bfloat16, not {encoder.backbone.dtype_name}",
            hint="use --dtype auto",
        )


def _tuner(
    work: _Work,
    job: Job,
    device: torch.device,
    budget: int,
    checkpoint: Path,
    progress: Callable[[Step], None],
) -> Tuner:
    """The training, with the backbone loaded anew in a form that can be trained."""
    from featcache.backbone.encoder import Encoder
    from featcache.finetuning.cut import Suffix, load_plain
    from featcache.finetuning.loop import Tuner

    plain = load_plain(work.settings.backbone, job.model)
    pooling = Encoder(plain, work.settings.features).views[0].pooling  # extends positions, too
    suffix = Suffix(plain, work.part, compute=work.facts["dtype"], device=device, dropout=work.recipe.dropout)
    train, held_out = work.inputs["train"], work.inputs["validation"]
    return Tuner(
        suffix, pooling, (train.source, train.split.labels), (held_out.source, held_out.split.labels),
        len(train.split.label_names), work.recipe,
        seed=work.settings.seed, budget=budget, folder=checkpoint, report=progress,
    )  # fmt: skip


@dataclass
class _Saving:
    """From the trained weights to a run on disk."""

    work: _Work
    tuner: Tuner
    tuned: Tuned
    commit: str | None

    def save(self) -> Run:
        files: dict[str, bytes] = {}
        heads: dict[str, Head] = {}
        told: dict[str, dict[str, float]] = {}
        found: dict[str, Features] = {}
        for name, weights in (("last", self.tuned.last), ("head", self.tuned.best)):  # the best stays put in
            file = TRAINED if name == "head" else f"{TRAINED}-{name}"
            content = _packed(weights)
            files[f"{file}.safetensors"] = content
            document = dataclasses.replace(self.work.document, tuned=self._tuned(content))
            held_out = found["validation"] = self._features("validation", weights, document)
            heads[name], told[name] = _calibrated(_scorer(weights), held_out, held_out, self.work.part.name)
        files[f"{TRAINED}.json"] = json.dumps(heads["head"].encoder.to_json()["tuned"], indent=1).encode()
        best = heads["head"]
        scores: dict[str, Scores] = {}
        said: dict[str, Predictions] = {}
        intervals: dict[str, Any] = {}
        if "test" in self.work.inputs:
            found["test"] = self._features("test", None, best.encoder)
        for split, rows in found.items():
            probabilities = best.predict_proba(rows.x)
            scores[split] = score(probabilities, rows.y, rows.label_names, best.thresholds)
            said[split] = Predictions.of(
                rows.row_hash, rows.y, probabilities, rows.label_names, best.thresholds
            )
            intervals[split] = bootstrap_intervals(probabilities, rows.y, best.thresholds)
        record = self._record(best, scores) | {"intervals": intervals, "calibration": told["head"]}
        return save_run(Path(self.work.settings.paths.reports_dir), record, heads, said, files)

    def _tuned(self, content: bytes) -> TunedPart:
        """What the encoder document of the trained part adds to that of the backbone."""
        return TunedPart(self.work.part.name, self.work.part.cut, hashlib.sha256(content).hexdigest())

    def _features(self, split: str, weights: Weights | None, document: EncoderDocument) -> Features:
        each = self.work.inputs[split]
        x = self.tuner.features(each.source, weights).astype(document.storage)  # as predicted
        return Features(
            split,
            self.work.view,
            x,
            each.split.labels,
            each.split.label_names,
            each.hashes,
            document,
            "",
            Path(),
        )

    def _record(self, head: Head, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """The content of run.json."""
        tuned, work = self.tuned, self.work
        settings, inputs = work.settings, work.inputs
        trained = sum(value.numel() for value in tuned.best.part.values())
        return {
            "head": self.work.part.name,
            "view": self.work.view,
            "task": "multi-label" if head.multi_label else "single-label",
            "fingerprint": view_fingerprint(head.encoder, self.work.view),
            "seconds": tuned.seconds,
            "metrics": {split: found.summary for split, found in scores.items()},
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": settings.seed,
            "settings": dataclasses.asdict(self.work.recipe) | {"train": self.work.part.name},
            "solver": {},
            "epochs": len(tuned.history),
            "best_epoch": tuned.best_epoch,
            "parameters": head.parameters + trained,
            "rows": {split: len(each.split) for split, each in inputs.items()},
            "truncated": {split: each.truncated for split, each in inputs.items()},
            "label_names": list(head.label_names),
            "scores": {split: scores_record(found) for split, found in scores.items()},
            "extraction_seconds": sum(each.seconds for each in inputs.values()),
            "bytes_cached": sum(each.nbytes for each in inputs.values()),
            "backbone": dataclasses.asdict(settings.backbone) | {"commit": self.commit},
            "features": dataclasses.asdict(settings.features),
            "data": dataclasses.asdict(settings.data),
            "caches": {split: each.caches for split, each in inputs.items() if each.caches},
            "frozen": {
                "cache_dir": settings.paths.cache_dir,
                "encoder": fingerprint(self.work.document.to_json()),
                "rows": {split: row_chain(each.hashes) for split, each in inputs.items()},
            },
            "history": [dataclasses.asdict(line) for line in tuned.history],
            "finetune": {
                "cut": self.work.part.cut,
                "curve": tuned.curve,
                "steps": tuned.steps,
                "tokens": tuned.tokens,
                "batch_tokens": tuned.batch_tokens,
                "stopped": tuned.stopped,
                **self.work.facts,
            },
        }


def tuned_encoder(
    settings: Any, files: Any, features: Any, folder: Path, document: EncoderDocument
) -> Encoder:
    """The encoder of a run's backbone with its trained part put in.

    Args:
        settings, files, features: as for any backbone and encoder.
        folder: of the run.
        document: the head's encoder document.

    Raises:
        HeadError: the trained part is missing, was changed, or belongs to another backbone.
    """
    from featcache.backbone.encoder import Encoder
    from featcache.finetuning.cut import load_tuned

    class TunedEncoder(Encoder):
        @property
        def document(self) -> EncoderDocument:
            return dataclasses.replace(super().document, tuned=document.tuned)

    weights = trained_weights(folder, document)
    backbone = load_tuned(settings, files, weights, lambda plain: Encoder(plain, features))
    return TunedEncoder(backbone, features, settings.batch_tokens)


def trained_weights(folder: Path, document: EncoderDocument) -> dict[str, torch.Tensor]:
    """What was trained of the backbone in a run, float32, by the names of its parameters.

    Args:
        folder: of the run.
        document: the head's encoder document.

    Raises:
        HeadError: the trained part is missing or was changed.
    """
    from featcache.finetuning.cut import read_weights

    wanted = document.tuned.weights if document.tuned else None
    for name in (TRAINED, f"{TRAINED}-last"):
        path = folder / f"{name}.safetensors"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted:
            return read_weights(path)
    raise HeadError(
        f"the trained part in {folder} is gone or was changed: no file has the head's checksum",
        hint="train it again: featcache finetune",
    )


def _split_names(settings: Settings) -> list[str]:
    """train, validation, and test where there is one."""
    tables, _ = open_tables(settings.data)
    return ["train", "validation", *(["test"] if "test" in tables else [])]


def _inputs(job: Job, split: Split, encoder: Encoder, part: Part) -> _Inputs:
    """The states of a split, or its tokens where nothing can be cached."""
    hashes, _ = job.hash_rows(split)
    for note in split.notes:
        job.report(Progress("note", split.name, text=note))
    if part.cut is None:
        if encoder.long_text == "chunks":
            raise UsageError(
                "blocks cannot be trained on windows of long texts",
                hint="use --long-text truncate or head-tail, or --train head",
            )
        rows = slice(None)
        tokens = encoder.tokenize(split.texts(rows), split.pairs(rows))
        return _Inputs(split, hashes, tokens, int(tokens.truncated.sum()))
    from featcache.finetuning.states_cache import Step as Making
    from featcache.finetuning.states_cache import cache_states

    def told(step: Making) -> None:
        stage = "note" if step.text else "encode"
        job.report(Progress(stage, step.split, step.done, step.total, text=step.text))

    folder = job.cache_dir / slug(job.dataset_name()) / slug(job.settings.backbone.model)
    file: StatesFile = cache_states(split, hashes, encoder, part.cut, folder, told, wait=job.wait)
    caches = {"path": str(file.path), "fingerprint": file.fingerprint}
    return _Inputs(split, hashes, file, file.truncated, file.seconds, file.nbytes, caches)


def _facts(encoder: Encoder) -> dict[str, Any]:
    """What does not change the result but is good to know later."""
    from importlib.metadata import version

    return {
        "device": str(encoder.backbone.device),
        "dtype": encoder.backbone.dtype_name,
        "packing": encoder.backbone.packing,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }


def _packed(weights: Weights) -> bytes:
    """The trained part as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({name: value.contiguous() for name, value in weights.part.items()})


def _scorer(weights: Weights) -> Linear:
    return Linear(weights.head["weight"].float().numpy(), weights.head["bias"].float().numpy())
