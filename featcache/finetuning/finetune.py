"""Fine-tune above the cut: states once, blocks and head trained, the best by validation saved as a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.cache.catalog import Features, slug
from featcache.data.arrow_table import open_tables
from featcache.data.split import Split, load_splits
from featcache.errors import UsageError
from featcache.extraction.api import Job
from featcache.finetuning.recipe import Recipe
from featcache.fingerprint import EncoderDocument, TunedPart, fingerprint, row_chain
from featcache.heads.head import Head
from featcache.heads.scorers import Linear
from featcache.runs.finish import Training, TrainingInputs, calibrate, save_trained
from featcache.runs.record import CacheReference, CalibrationRecord, FrozenRows, TuningRecord
from featcache.runs.run import Run
from featcache.settings import Settings
from featcache.system.progress import Progress

if TYPE_CHECKING:
    import torch

    from featcache.backbone.encoder import Encoder
    from featcache.finetuning.loop import Source, Step, Tuned, Tuner, Weights
    from featcache.finetuning.parts import TrainedPart
    from featcache.finetuning.states_cache import StatesFile

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
    cache: CacheReference | None = None


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
    from featcache.finetuning.parts import parse_part
    from featcache.finetuning.suffix import require_blocks

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
    run = _save(work, tuner, tuner.run(resume=resume), job.model.commit)
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
    part: TrainedPart
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

    def features(
        self, tuner: Tuner, split: str, document: EncoderDocument, weights: Weights | None = None
    ) -> Features:
        """What the tuner makes of a split, by its own weights or others, rounded as in prediction."""
        each = self.inputs[split]
        return Features(
            split=split,
            view=self.view,
            x=tuner.features(each.source, weights).astype(document.storage),
            y=each.split.labels,
            label_names=each.split.label_names,
            row_hash=each.hashes,
            encoder=document,
            fingerprint="",
            path=Path(),
        )

    def training_inputs(self, commit: str | None) -> TrainingInputs:
        """The rows and their states, for the run record."""
        return TrainingInputs(
            rows={split: len(each.split) for split, each in self.inputs.items()},
            pairs=self.inputs["train"].split.has_pairs,
            truncated={split: each.truncated for split, each in self.inputs.items()},
            caches={split: each.cache for split, each in self.inputs.items() if each.cache},
            extraction_seconds=sum(each.seconds for each in self.inputs.values()),
            bytes_cached=sum(each.nbytes for each in self.inputs.values()),
            commit=commit,
            frozen=FrozenRows(
                cache_dir=self.settings.paths.cache_dir,
                encoder=fingerprint(self.document.to_json()),
                rows={split: row_chain(each.hashes) for split, each in self.inputs.items()},
            ),
        )


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
    from featcache.finetuning.loop import Tuner
    from featcache.finetuning.suffix import Suffix
    from featcache.finetuning.weights import load_plain

    plain = load_plain(work.settings.backbone, job.model)
    pooling = Encoder(plain, work.settings.features).views[0].pooling  # extends positions, too
    suffix = Suffix(plain, work.part, compute=work.facts["dtype"], device=device, dropout=work.recipe.dropout)
    train, held_out = work.inputs["train"], work.inputs["validation"]
    return Tuner(
        suffix, pooling, (train.source, train.split.labels), (held_out.source, held_out.split.labels),
        len(train.split.label_names), work.recipe,
        seed=work.settings.seed, budget=budget, folder=checkpoint, report=progress,
    )  # fmt: skip


def _save(work: _Work, tuner: Tuner, tuned: Tuned, commit: str | None) -> Run:
    """The run of the trained weights, with its head calibrated on validation features that they make."""
    from featcache.finetuning.weights import TRAINED

    files: dict[str, bytes] = {}
    heads: dict[str, tuple[Head, CalibrationRecord]] = {}
    features: dict[str, Features] = {}
    for name, weights in (("last", tuned.last), ("head", tuned.best)):  # the best weights stay in the tuner
        content = _packed(weights)
        files[f"{TRAINED if name == 'head' else f'{TRAINED}-last'}.safetensors"] = content
        tuned_part = TunedPart(work.part.name, work.part.cut, hashlib.sha256(content).hexdigest())
        document = dataclasses.replace(work.document, tuned=tuned_part)
        features["validation"] = work.features(tuner, "validation", document, weights)
        heads[name] = calibrate(_scorer(weights), features["validation"], work.part.name)
    files[f"{TRAINED}.json"] = json.dumps(document.to_json()["tuned"], indent=1).encode()
    if "test" in work.inputs:
        features["test"] = work.features(tuner, "test", document)
    training = Training(
        kind=work.part.name,
        seconds=tuned.seconds,
        settings=dataclasses.asdict(work.recipe) | {"train": work.part.name},
        history=tuned.history,
        best_epoch=tuned.best_epoch,
        backbone_parameters=sum(value.numel() for value in tuned.best.part.values()),
        finetune=TuningRecord(
            cut=work.part.cut,
            curve=tuned.curve,
            steps=tuned.steps,
            tokens=tuned.tokens,
            batch_tokens=tuned.batch_tokens,
            stopped=tuned.stopped,
            **work.facts,
        ),
    )
    return save_trained(work.settings, training, work.training_inputs(commit), heads, features, files)


def _split_names(settings: Settings) -> list[str]:
    """train, validation, and test where there is one."""
    tables, _ = open_tables(settings.data)
    return ["train", "validation", *(["test"] if "test" in tables else [])]


def _inputs(job: Job, split: Split, encoder: Encoder, part: TrainedPart) -> _Inputs:
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
    return _Inputs(
        split,
        hashes,
        file,
        truncated=file.truncated,
        seconds=file.seconds,
        nbytes=file.nbytes,
        cache=CacheReference(str(file.path), file.fingerprint),
    )


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
