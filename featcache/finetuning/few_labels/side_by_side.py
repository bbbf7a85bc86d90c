"""The contrastive step beside the head recipes of `featcache curve`, on the same drawn rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from featcache.backbone.model_files.find import ModelFiles
from featcache.data.split import load_splits
from featcache.evaluation.leaks import NO_LEAKS
from featcache.finetuning.few_labels.trial import (
    CANNOT_BE_TRAINED,
    STAGE,
    can_step,
    some_inputs,
    try_step,
)
from featcache.finetuning.finetune import prepare
from featcache.finetuning.job import TuningJob
from featcache.finetuning.recipe import CONTRASTIVE, build_recipe
from featcache.runs.few_labels.side_by_side import Draw, DrawAnswers, RecipeBeside
from featcache.runs.few_labels.train import FEW, DrawnRows
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.units import seconds_text

BOTH_WAYS = 3  # how much longer a token takes that is trained on than one that is only read


@dataclass(frozen=True)
class StepBeside:
    """Trains the contrastive step for `compare_recipes`, where there are at most 64 rows a class.

    On each draw it is trained as by `train_few_labels`: in the folds, to see whether it is taken, and on all
    rows. It is left out for the same reasons; a note says why a step cannot be trained.

    Attributes:
        report: receives the making of token states, the trainings, and notes, first how long it will take.
    """

    settings: Settings
    report: OnProgress = ignore

    def __call__(self, drawn: Mapping[Draw, DrawnRows], split: str) -> RecipeBeside | None:
        """The answers for the rows of `split`; None where the step cannot be trained."""
        few_rows = {draw: one for draw, one in drawn.items() if draw.rows_per_class <= FEW}
        if not few_rows or not can_step(self.settings, next(iter(few_rows.values())).few):
            return None
        try:
            return self._train(few_rows, split)
        except CANNOT_BE_TRAINED as error:
            self.report(Progress("note", text=f"the contrastive step cannot be tried: {error.what}"))
            return None

    def _train(self, drawn: Mapping[Draw, DrawnRows], split: str) -> RecipeBeside:
        """Tell how long it will take, and train."""
        steps = _Steps.prepare(self.settings, drawn, split, self.report)
        count, blocks, seconds = steps.trainings, steps.tuning.part.name, steps.estimate()
        self.report(
            Progress(
                "note",
                text=f"the contrastive step: {count} trainings of {blocks}, about {seconds_text(seconds)}; "
                "--no-contrastive leaves it out",
            )
        )
        answers = steps.train(self.report)
        return RecipeBeside(f"contrastive step on {blocks}", answers)


@dataclass(frozen=True)
class _Steps:
    """The trainings of the step on draws.

    Attributes:
        drawn: the draws that it is trained on.
        used: numbers of all train rows in them, ascending int64 `[U]`.
        split: whose rows are scored.
        tuning: with the token states of the used rows, and of `split`.
    """

    drawn: Mapping[Draw, DrawnRows]
    used: np.ndarray
    split: str
    tuning: TuningJob
    model: ModelFiles

    @classmethod
    def prepare(
        cls, settings: Settings, drawn: Mapping[Draw, DrawnRows], split: str, report: OnProgress
    ) -> _Steps:
        """Make the token states of all rows that are needed, once."""
        used = np.unique(np.concatenate([one.rows for one in drawn.values()]))
        splits = load_splits(settings.data, ("train", split), seed=settings.seed)
        splits["train"] = splits["train"].some(used)
        view = next(iter(drawn.values())).few.recipes[0].view
        recipe = build_recipe({"objective": CONTRASTIVE})
        tuning, model = prepare(settings, None, recipe, view, splits=splits, report=report)
        return cls(drawn, used, split, replace(tuning, leaks=NO_LEAKS), model)

    @property
    def trainings(self) -> int:
        """One in each fold, and one on all rows of a draw."""
        return sum(one.choice.folds + 1 for one in self.drawn.values())

    def estimate(self) -> float:
        """Seconds that `train` will take, by the second step of a training on the largest draw."""
        largest = max(self.drawn, key=lambda draw: len(self.drawn[draw].rows))
        tuning, times = self._of(largest), [time.perf_counter()]
        two_steps = replace(tuning, recipe=replace(tuning.recipe, steps=2))
        tuner = two_steps.tuner(self.model, None, lambda _: times.append(time.perf_counter()))
        loading = time.perf_counter() - times[0]
        tuner.run()
        batch, steps = tuning.recipe.batch_size, tuning.recipe.steps
        a_text = (times[2] - times[1]) / (BOTH_WAYS * min(len(self.drawn[largest].rows), batch))
        texts = 0
        for one in self.drawn.values():
            rows, trainings = len(one.rows), one.choice.folds + 1
            texts += trainings * (BOTH_WAYS * steps * min(rows, batch) + rows) + rows
        texts += len(self.drawn) * len(self.tuning.inputs[self.split].split)
        return self.trainings * loading + texts * a_text

    def train(self, report: OnProgress) -> dict[Draw, DrawAnswers]:
        """Train on each draw in its folds, and on all its rows."""
        answers, done = dict[Draw, DrawAnswers](), 0

        def told(event: Progress) -> None:
            report(replace(event, done=done + event.done, total=self.trainings))

        for draw, one in self.drawn.items():
            tuning = self._of(draw)
            trial = try_step(one, tuning, self.model, told)
            tuner = tuning.tuner(self.model)
            labels = tuning.answers(tuner, tuner.run(), self.split)
            answers[draw] = DrawAnswers(labels, trial.wins)
            done += one.choice.folds + 1
        report(Progress(STAGE, done=done, total=done))
        return answers

    def _of(self, draw: Draw) -> TuningJob:
        """The training on one draw; its own rows stand for validation, which chooses nothing here."""
        inputs, rows = self.tuning.inputs, np.searchsorted(self.used, self.drawn[draw].rows)
        train = some_inputs(inputs["train"], rows)
        return replace(
            self.tuning,
            settings=replace(self.tuning.settings, seed=draw.seed),
            inputs={"train": train, "validation": train, self.split: inputs[self.split]},
        )
