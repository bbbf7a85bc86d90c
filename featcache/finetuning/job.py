"""One fine-tuning: from the inputs of the trained part to a trainer, and from trained weights to a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from featcache.backbone.encoder import Encoder
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.tokens.unknown_tokens import MANY, unknown_text
from featcache.cache.cache import slug
from featcache.cache.catalog import Features
from featcache.data.locate import source_name
from featcache.data.split import Split
from featcache.evaluation.leaks import NO_LEAKS, Leaks
from featcache.extraction.job import Job
from featcache.extraction.states_cache import cache_states
from featcache.finetuning.checkpoint import CheckpointFolder
from featcache.finetuning.contrastive import ContrastiveTuner
from featcache.finetuning.loop import Tuner
from featcache.finetuning.parts import TrainedPart
from featcache.finetuning.recipe import CONTRASTIVE, Recipe
from featcache.finetuning.suffix import Suffix
from featcache.finetuning.tuning import (
    LabelledTexts,
    SomeTexts,
    TrainedWeights,
    TrainingStep,
    TrainingTexts,
    Tuned,
    TuningData,
)
from featcache.finetuning.weights import TRAINED, load_plain
from featcache.fingerprint import EncoderDocument, TunedPart, fingerprint, row_chain
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Fit
from featcache.heads.head import Head
from featcache.heads.lexical.fit import add_words
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.heads.scorers import Linear
from featcache.runs.finish import calibrate, save_trained
from featcache.runs.leaks import clean_features
from featcache.runs.record import CacheReference, CalibrationRecord, FrozenRows, TrainingRecord, TuningRecord
from featcache.runs.run import Run
from featcache.runs.words import beside
from featcache.settings import Settings
from featcache.system.progress import Progress


@dataclass(frozen=True)
class SplitInputs:
    """A split as the input of the trained part.

    Attributes:
        hashes: row hashes uint8 `[N, 32]`.
        texts: states at the cut, or tokens.
        truncated: how many texts were longer than the longest length.
        unknown_tokens: share of the tokens that the vocabulary does not have; None where it is not known.
        seconds: the time it took to make the states.
        nbytes: of the states on disk.
        cache: the states file; None where training starts from the tokens.
    """

    split: Split
    hashes: np.ndarray
    texts: TrainingTexts
    truncated: int
    unknown_tokens: float | None = None
    seconds: float = 0.0
    nbytes: int = 0
    cache: CacheReference | None = None

    @classmethod
    def of(cls, split: Split, job: Job, encoder: Encoder, cut: int | None) -> SplitInputs:
        """The states of a split, from the cache or made now; or its tokens where nothing can be cached."""
        hashes, _ = job.hash_rows(split)
        for note in split.notes:
            job.on_progress(Progress("note", split.name, text=note))
        if cut is None:
            made = cls._of_tokens(split, hashes, encoder)
        else:
            made = cls._cached(split, hashes, job, encoder, cut)
        if (share := made.unknown_tokens or 0.0) > MANY:
            job.on_progress(Progress("note", split.name, text=unknown_text(split.name, share)))
        return made

    @classmethod
    def _of_tokens(cls, split: Split, hashes: np.ndarray, encoder: Encoder) -> SplitInputs:
        tokens = encoder.tokenize(split.texts(slice(None)), split.pairs(slice(None)))
        share = tokens.unknown.share if tokens.unknown is not None else None
        return cls(split, hashes, tokens, int(tokens.truncated.sum()), share)

    @classmethod
    def _cached(cls, split: Split, hashes: np.ndarray, job: Job, encoder: Encoder, cut: int) -> SplitInputs:
        folder = job.cache.folder / slug(source_name(job.settings.data)) / slug(job.settings.backbone.model)
        (file,) = cache_states(split, hashes, encoder, [cut], folder, job.on_progress, wait=job.wait)
        return cls(
            split,
            hashes,
            file,
            truncated=file.truncated,
            unknown_tokens=file.record.unknown_tokens,
            seconds=file.record.seconds,
            nbytes=file.nbytes,
            cache=CacheReference(str(file.path), file.fingerprint),
        )

    @property
    def labelled(self) -> LabelledTexts:
        return LabelledTexts(self.texts, self.split.labels)


@dataclass(frozen=True)
class FrozenBackbone:
    """What is needed of the frozen encoder once its memory is free for the trained part."""

    view: str
    document: EncoderDocument
    device: torch.device
    dtype: str
    packing: str
    batch_tokens: int

    @classmethod
    def of(cls, encoder: Encoder) -> FrozenBackbone:
        backbone = encoder.backbone
        return cls(
            view=encoder.views[0].name,
            document=encoder.document,
            device=backbone.device,
            dtype=backbone.dtype_name,
            packing=backbone.packing,
            batch_tokens=encoder.batch_tokens,
        )


@dataclass(frozen=True)
class TuningJob:
    """What is trained, how, and on what; `inputs` by split.

    Attributes:
        leaks: which rows leak; those of validation are not chosen by.
        words: n-grams of the texts by split, for a head of words beside the trained one.
        about: what else run.json says under `solver`.
    """

    settings: Settings
    recipe: Recipe
    part: TrainedPart
    frozen: FrozenBackbone
    inputs: dict[str, SplitInputs]
    leaks: Leaks = NO_LEAKS
    words: Mapping[str, WordRows] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

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
        if (clean := self.leaks.clean("validation")) is not None:
            rows["clean"] = [digest(clean)]
        return fingerprint(
            {
                "part": self.part.name, "view": self.frozen.view, "recipe": self.recipe.identity,
                "encoder": self.frozen.document.to_json(), "seed": self.settings.seed, "rows": rows,
            }
        )  # fmt: skip

    def tuner(
        self,
        files: ModelFiles,
        checkpoints: CheckpointFolder | None = None,
        on_step: Callable[[TrainingStep], None] = lambda _: None,
    ) -> Tuner:
        """The training, with the backbone in `files` loaded again in a form that can be trained."""
        plain = load_plain(self.settings.backbone, files)
        # An encoder extends the position table and lower-cases texts, if the settings ask for it.
        pooler = next(iter(Encoder(plain, self.settings.features).poolers.values()))
        pooler.to(self.frozen.device)
        suffix = Suffix(
            plain,
            self.part,
            compute=self.frozen.dtype,
            device=self.frozen.device,
            dropout=self.recipe.dropout,
        )
        train = self.inputs["train"]
        held_out, clean = self.inputs["validation"].labelled, self.leaks.clean("validation")
        if clean is not None:
            held_out = LabelledTexts(SomeTexts(held_out.texts, clean), held_out.labels[clean])
        data = TuningData(train.labelled, held_out, classes=len(train.split.label_names))
        kind = ContrastiveTuner if self.recipe.objective == CONTRASTIVE else Tuner
        return kind(
            suffix,
            pooler,
            data,
            self.recipe,
            seed=self.settings.seed,
            budget=self.frozen.batch_tokens,
            checkpoints=checkpoints,
            on_step=on_step,
        )

    def save(self, tuner: Tuner, tuned: Tuned, commit: str | None) -> Run:
        """Calibrate the trained heads on validation and save the run with the trained weights.

        Args:
            tuner: the one that trained; afterwards it has the best weights.
            commit: of the backbone on the hub.
        """
        files: dict[str, bytes] = {}
        heads: dict[str, tuple[Head, CalibrationRecord]] = {}
        features: dict[str, Features] = {}
        seconds = self.words["train"].seconds if self.words else 0.0
        for name, weights in (("last", tuned.last), ("head", tuned.best)):
            content = save({key: value.contiguous() for key, value in weights.part.items()})
            files[f"{TRAINED}{'' if name == 'head' else '-last'}.safetensors"] = content
            trained = TunedPart(self.part.name, self.part.cut, hashlib.sha256(content).hexdigest())
            document = replace(self.frozen.document, tuned=trained)
            scorer = _scorer(weights)
            found, began = self._features(tuner, "validation", document, weights), time.perf_counter()
            fit = self._with_words(Fit(scorer, scorer), found)
            seconds += time.perf_counter() - began
            features["validation"] = self._beside(found, fit.ngrams)
            held_out = clean_features(features["validation"], self.leaks)
            heads[name] = calibrate(fit.best, held_out, self.part.name)
        files[f"{TRAINED}.json"] = json.dumps(document.to_json()["tuned"], indent=1).encode()
        if "test" in self.inputs:
            features["test"] = self._beside(self._features(tuner, "test", document), fit.ngrams)
        training = self._training_record(tuned, fit, seconds)
        return save_trained(self.settings, training, heads, features, self.leaks, commit=commit, files=files)

    def answers(self, tuner: Tuner, tuned: Tuned, split: str) -> np.ndarray:
        """The labels that the best weights give the texts of a split, int64 `[N]`, as a saved run would."""
        x = self._features(tuner, split, self.frozen.document, tuned.best).x
        return np.asarray(_scorer(tuned.best).logits(x).argmax(axis=1))

    def _features(
        self, tuner: Tuner, split: str, document: EncoderDocument, weights: TrainedWeights | None = None
    ) -> Features:
        """The features of a split by the tuner's weights or others, rounded as in prediction."""
        each = self.inputs[split]
        return Features(
            split=split,
            view=self.frozen.view,
            x=tuner.features(each.texts, weights).astype(document.dtype.storage),
            y=each.split.labels,
            label_names=each.split.label_names,
            row_hash=each.hashes,
            encoder=document,
            fingerprint="",
            path=Path(),
        )

    def _with_words(self, fit: Fit, validation: Features) -> Fit:
        """The trained head with one of words beside it, where words are counted."""
        if self.words is None:
            return fit
        train, held_out = self.inputs["train"].split, clean_features(self._beside(validation), self.leaks)
        return add_words(
            fit,
            LabelledFeatures(self.words["train"].as_array(), train.labels),
            LabelledFeatures(held_out.x, held_out.y),
            len(train.label_names),
            self.settings.head,
        )

    def _beside(self, features: Features, ngrams: Ngrams | None = None) -> Features:
        """Features with the words of their texts, where they are counted: by all kinds of n-grams, or one."""
        if self.words is None:
            return features
        rows = self.words[features.split]
        return beside(features, rows if ngrams is None else rows.read_by(ngrams) or rows)

    def _training_record(self, tuned: Tuned, fit: Fit, seconds: float) -> TrainingRecord:
        """The record of the training; `seconds`: of its words."""
        state, inputs, frozen = tuned.state, self.inputs, self.frozen
        return TrainingRecord(
            head=self.part.name,
            seconds=state.seconds + seconds,
            history=tuple(state.history),
            settings=self.recipe.identity | {"train": self.part.name},
            solver={**(fit.about or {}), **self.about},
            best_epoch=state.best_epoch or None,
            parameters=fit.best.parameters + sum(value.numel() for value in tuned.best.part.values()),
            rows={split: len(each.split) for split, each in inputs.items()},
            pairs=inputs["train"].split.has_pairs,
            truncated={split: each.truncated for split, each in inputs.items()},
            unknown_tokens={split: each.unknown_tokens for split, each in inputs.items()},
            extraction_seconds=sum(each.seconds for each in inputs.values()),
            bytes_cached=sum(each.nbytes for each in inputs.values()),
            caches={split: each.cache for split, each in inputs.items() if each.cache},
            frozen=FrozenRows(
                cache_dir=self.settings.paths.cache_dir,
                encoder=fingerprint(frozen.document.to_json()),
                rows={split: row_chain(each.hashes) for split, each in inputs.items()},
            ),
            finetune=TuningRecord(
                cut=self.part.cut,
                curve=state.curve,
                steps=state.step,
                tokens=state.tokens,
                batch_tokens=tuned.batch_tokens,
                stopped=tuned.stopped,
                device=str(frozen.device),
                dtype=frozen.dtype,
                packing=frozen.packing,
                versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
            ),
        )


def _scorer(weights: TrainedWeights) -> Linear:
    return Linear(weights.head["weight"].float().numpy(), weights.head["bias"].float().numpy())
