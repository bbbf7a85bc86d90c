"""Accuracy and seconds with a few rows of each class, beside SetFit on the same rows and the same encoder.

All methods learn from the same drawn rows and see no validation rows. The seconds are those of learning, from
the raw texts of the drawn rows on, with the model in memory; what the answers for test cost is not counted.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from featcache.backbone.encoder import Encoder
from featcache.bench.peers.learning import PeerJob, ask_peer
from featcache.bench.peers.process import Unavailable
from featcache.bench.timing import DIGITS, Machine, this_machine, timed
from featcache.cache.view_names import split_view
from featcache.data.split import Split, load_splits
from featcache.errors import UsageError
from featcache.extraction.job import Job
from featcache.finetuning.job import FrozenBackbone, SplitInputs, TuningJob
from featcache.finetuning.parts import parse_part
from featcache.finetuning.recipe import CONTRASTIVE, build_recipe
from featcache.heads.features import LabelledFeatures
from featcache.heads.scorers import Scorer
from featcache.runs.few_labels.recipes import HeadRecipe, choose_recipe, count_right, recipes_of
from featcache.runs.weighted_rows import draw_per_class
from featcache.settings import DataSettings, Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

METHODS = ("auto", "contrastive", "setfit")
VIEW = "last/mean"  # of the contrastive step, and of SetFit


@dataclass(frozen=True)
class FewPlan:
    """What is measured.

    Attributes:
        sizes: rows a class.
        seeds: how many draws, counted from the settings' own seed.
        methods: of `METHODS`.
        test_rows: so many test rows, drawn once; None: all.
        peer_python: the interpreter of the environment in which SetFit is installed.
        peer_steps: training steps of SetFit; -1: its own number.
    """

    sizes: tuple[int, ...] = (8, 16, 64)
    seeds: int = 5
    methods: tuple[str, ...] = METHODS
    test_rows: int | None = None
    peer_python: str = sys.executable
    peer_steps: int = -1

    def __post_init__(self) -> None:
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UsageError(f"no method {unknown[0]!r}", hint=f"there are: {', '.join(METHODS)}")
        if self.seeds < 1 or not self.sizes or min(self.sizes) < 2:
            raise UsageError("--seeds: at least 1; --rows-per-class: at least 2")


@dataclass(frozen=True)
class FewRow:
    """One method on one draw; `rows`: train rows, `seconds`: of learning, `note`: what was chosen."""

    data: str
    rows_per_class: int
    method: str
    seed: int
    rows: int
    accuracy: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class FewBenchmark:
    """What `bench_few` returns; `left_out`: methods that were not measured, with the reason."""

    rows: tuple[FewRow, ...]
    test_rows: dict[str, int]
    left_out: dict[str, str]
    machine: Machine


def bench_few(
    settings: Settings,
    sets: Mapping[str, DataSettings],
    plan: FewPlan,
    *,
    on_progress: OnProgress = ignore,
) -> FewBenchmark:
    """Measure each method on each draw of each set.

    Args:
        settings: backbone, prompt, longest text and seed.
        sets: texts with labels by name.
        on_progress: receives what is measured next as a stage, then what was measured.
    """
    rows, tested, left_out = list[FewRow](), dict[str, int](), dict[str, str]()
    for name, data in sets.items():
        with tempfile.TemporaryDirectory(prefix="featcache-few-") as folder:
            paths = dataclasses.replace(settings.paths, cache_dir=folder)
            own = dataclasses.replace(settings, data=data, paths=paths)
            bench = _Draws(name, own, plan, left_out)
            tested[name] = len(bench.test)
            for size in plan.sizes:
                for seed in range(settings.seed, settings.seed + plan.seeds):
                    for method in plan.methods:
                        what = f"{name}, {size} rows a class, seed {seed}: {method}"
                        on_progress(Progress(what))
                        if row := bench.measure(method, size, seed):
                            rows.append(row)
                            on_progress(Progress(f"{what}: {row.accuracy:.4f} in {row.seconds:.1f} s"))
    machine = this_machine("transformers", "scikit-learn")
    return tidied(FewBenchmark(tuple(rows), tested, left_out, machine), digits=DIGITS)


class _Draws:
    """The methods on one set of texts."""

    def __init__(self, name: str, settings: Settings, plan: FewPlan, left_out: dict[str, str]) -> None:
        self.name, self.settings, self.plan, self.left_out = name, settings, plan, left_out
        splits = load_splits(settings.data, ["train", "test"], seed=settings.seed)
        self.train, self.test = splits["train"], splits["test"]
        if plan.test_rows is not None and plan.test_rows < len(self.test):
            drawn = np.random.default_rng(settings.seed).permutation(len(self.test))[: plan.test_rows]
            self.test = self.test.some(np.sort(drawn))
        self.classes = len(self.train.label_names)
        if "auto" in plan.methods:
            self.depth = self._job("depth").encoder("train")
            self.test_views = _encoded(self.depth, self.test)
        if "contrastive" in plan.methods:
            self.job = self._job(VIEW)
            self.encoder = self.job.encoder("train")
            blocks = self.encoder.backbone.num_blocks
            self.recipe = build_recipe({"objective": CONTRASTIVE})
            self.part = parse_part(self.recipe.default_part(blocks), blocks)
            self.test_inputs = SplitInputs.of(self.test, self.job, self.encoder, self.part.cut)

    def _job(self, *views: str) -> Job:
        features = dataclasses.replace(self.settings.features, views=views)
        return Job(dataclasses.replace(self.settings, features=features), None)

    def measure(self, method: str, size: int, seed: int) -> FewRow | None:
        """None where the method cannot be measured."""
        train = self.train.some(draw_per_class(self.train.labels, size, seed))
        act: Callable[[Split, int], tuple[float, float, str]] = getattr(self, f"_{method}")
        try:
            accuracy, seconds, note = act(train, seed)
        except Unavailable as error:
            self.left_out[f"{method} on {self.name}"] = str(error)
            return None
        return FewRow(
            data=self.name, rows_per_class=size, method=method, seed=seed, rows=len(train),
            accuracy=accuracy, seconds=seconds, note=note,
        )  # fmt: skip

    def _auto(self, train: Split, seed: int) -> tuple[float, float, str]:
        """The recipe that cross-validation chooses."""

        def learn() -> tuple[HeadRecipe, Scorer]:
            views = _encoded(self.depth, train)
            recipes = recipes_of(list(views))
            rows = {one.view: _joined(views, one.view, train) for one in recipes}
            best = choose_recipe(recipes, rows, self.classes, self.settings.head, seed=seed).best
            return best, best.fit(rows[best.view], self.classes, self.settings.head, seed)

        (recipe, scorer), seconds = timed(learn)
        right = count_right(scorer, _joined(self.test_views, recipe.view, self.test))
        return right / len(self.test), seconds, recipe.name

    def _contrastive(self, train: Split, seed: int) -> tuple[float, float, str]:
        """The contrastive step on cached states, and ridge on the new vectors."""
        inputs, states_seconds = timed(lambda: SplitInputs.of(train, self.job, self.encoder, self.part.cut))
        tuning = TuningJob(
            dataclasses.replace(self.job.settings, seed=seed),
            self.recipe,
            self.part,
            FrozenBackbone.of(self.encoder),
            {"train": inputs, "validation": inputs},
        )
        tuner = tuning.tuner(self.job.model)
        tuned, seconds = timed(tuner.run)
        weight, bias = (tuned.best.head[name].numpy() for name in ("weight", "bias"))
        logits = tuner.features(self.test_inputs.texts) @ weight.T + bias
        accuracy = float((logits.argmax(axis=1) == self.test.labels).mean())
        return accuracy, states_seconds + seconds, f"{tuned.state.step} steps of {self.part.name}"

    def _setfit(self, train: Split, seed: int) -> tuple[float, float, str]:
        """SetFit with its defaults, in a process of its own."""
        settings = dataclasses.replace(self.settings, seed=seed)
        splits = {"train": train, "validation": train, "test": self.test}
        job = PeerJob.of(settings, splits, steps=self.plan.peer_steps)
        answer = ask_peer("setfit", job, self.plan.peer_python)
        accuracy = float((answer.test.argmax(axis=1) == self.test.labels).mean())
        return accuracy, answer.learning_seconds or answer.seconds, f"setfit {answer.versions['setfit']}"


def _encoded(encoder: Encoder, split: Split) -> dict[str, np.ndarray]:
    """The features of a split by view, `[N, D]`."""
    return encoder.encode(encoder.tokenize(split.texts(slice(None)), split.pairs(slice(None)))).views


def _joined(views: Mapping[str, np.ndarray], view: str, split: Split) -> LabelledFeatures:
    return LabelledFeatures(np.concatenate([views[name] for name in split_view(view)], axis=1), split.labels)
