"""A head: a scorer with its labels and its encoder; saved as safetensors and JSON, never as a pickle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbone.token_rows import ATTENTIVE
from featcache.cache.view_names import LEXICAL, cached_views, split_name, split_view
from featcache.errors import HeadError
from featcache.evaluation.costs import cheapest, check_costs
from featcache.fingerprint import MULTI_LABEL, REGRESSION, SINGLE_LABEL, EncoderDocument, fingerprint
from featcache.heads.abstention.abstention import Abstention, AbstentionDocument, Judgement
from featcache.heads.lexical.ngrams import Ngrams, NgramSettings
from featcache.heads.lexical.rows import WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.numbers.scale import NumberScale
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import SCORERS, Attentive, Scorer
from featcache.plain_file import LONGEST_ARRAYS, read_plain
from featcache.settings import AbstentionSettings
from featcache.system.documents import parse_document, read_json
from featcache.system.durable import write_file
from featcache.system.sharded_array import join_columns

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from featcache.cache.catalog import Features

HEAD_FORMAT = 2
ABSTENTION = "-abstention.safetensors"  # after the name of a head that may give no answer
DAMAGED = "train that head again, or use another run: featcache compare lists them"
ALL_SCORERS: dict[str, type[Scorer]] = {**SCORERS, WordScorer.kind: WordScorer}
OPTIONAL = ("costs", "ngrams", "abstention", "numbers")  # keys that are not in the file where they are None
READABLE = (1, 2)  # format 1: linear heads without temperature


@dataclass(frozen=True, kw_only=True)
class HeadDocument:
    """The content of `<name>.json`, in the order of its keys.

    Attributes:
        scorer: a name in `ALL_SCORERS`.
        fingerprint: of the features that it fits, see `view_fingerprint`.
        costs: by true and predicted label; None, and not in the file, where every error costs the same.
        ngrams: of a head that reads words; other heads are without this key.
        abstention: None for a head that always answers; the key is then left out.
        numbers: of a head that predicts numbers, which has no labels; others are without this key.
    """

    format: int
    kind: str
    scorer: str = "linear"
    view: str
    label_names: tuple[str, ...]
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    fingerprint: str
    encoder: dict[str, Any]
    costs: tuple[tuple[float, ...], ...] | None = None
    ngrams: NgramSettings | None = None
    abstention: AbstentionDocument | None = None
    numbers: NumberScale | None = None

    def checked_encoder(self) -> EncoderDocument:
        """The encoder document, after a check that the fields fit each other.

        Raises:
            ValueError: names the field: a name that is there twice, a number out of its range, or a
                fingerprint that is not that of encoder and view.
        """
        encoder = EncoderDocument.from_json(self.encoder)
        thresholds = (0.5,) * len(self.label_names) if self.thresholds is None else self.thresholds
        named = {split_name(view)[0] for view in cached_views(self.view)}
        checks = {
            "encoder": {one.name for one in encoder.named} == (named - {""} and named),
            "scorer": self.scorer in ALL_SCORERS,
            "label_names": len(set(self.label_names)) == len(self.label_names),
            "numbers": (self.numbers is not None) == (not self.label_names),
            "temperature": 0 < self.temperature < 1e6,
            "thresholds": len(thresholds) == len(self.label_names)
            and all(0 <= threshold <= 1 for threshold in thresholds),
            "ngrams": (self.ngrams is not None) == (LEXICAL in split_view(self.view)),
            "fingerprint": self.fingerprint == view_fingerprint(encoder, self.view),
        }
        if odd := [name for name, fine in checks.items() if not fine]:
            raise ValueError(f"{odd[0]} does not fit the rest")
        if self.costs is not None:
            if self.thresholds is not None or len({len(row) for row in self.costs}) != 1:
                raise ValueError("costs does not fit the rest")
            check_costs(np.array(self.costs, np.float64), self.label_names)
        return encoder


@dataclass(frozen=True)
class Head:
    """From features to the probability of each label.

    Attributes:
        scorer: features `[N, D]` as they are stored -> logits `[N, C]`.
        label_names: C names, in the order of the logits.
        view: the view it was trained on, e.g. `last/mean`, or several joined ones: `last/mean,-3/mean`.
        encoder: the encoder document of the features it was trained on.
        kind: how it was trained: `linear`, `logistic`, `mlp`, ...
        temperature: what logits are divided by, fitted on validation (Guo et al., arXiv:1706.04599).
        thresholds: float64 `[C]` for a multi-label head: a label is predicted from this probability on.
            None for a single-label head.
        costs: float64 `[C, C]` of a single-label head, by true and predicted label: it predicts what is
            expected to cost least. None: it predicts the most probable label.
        ngrams: of a head that reads the words of the texts; None for others.
        abstention: when it gives no answer; None for a head that always answers.
        numbers: the scale of a head that predicts numbers: it has one logit, no labels and no probabilities.
    """

    scorer: Scorer
    label_names: tuple[str, ...]
    view: str
    encoder: EncoderDocument
    kind: str
    temperature: float = 1.0
    thresholds: np.ndarray | None = None
    costs: np.ndarray | None = None
    ngrams: Ngrams | None = None
    abstention: Abstention | None = None
    numbers: NumberScale | None = None

    @property
    def fingerprint(self) -> str:
        """Of the features that it fits: SHA-256 of encoder document and view."""
        return view_fingerprint(self.encoder, self.view)

    @property
    def parameters(self) -> int:
        return self.scorer.parameters

    @property
    def views(self) -> tuple[str, ...]:
        """The cached views whose features it reads side by side, in their order; none for words alone."""
        return cached_views(self.view)

    @property
    def attention(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of a head that was trained on token states, by view: its queries and centers, see `Attentive`."""
        scorer = self._dense
        if not isinstance(scorer, Attentive):
            return {}
        return dict(zip(self.views, zip(scorer.queries, scorer.centers, strict=True), strict=True))

    @property
    def _dense(self) -> Scorer | None:
        """What scores the features of a backbone; None for words alone."""
        return self.scorer.dense if isinstance(self.scorer, WordScorer) else self.scorer

    def pooled_features(self, features: Features) -> Features:
        """With the vectors that the head pools of token states in their place; others as they are."""
        scorer, x = self._dense, features.x
        if not isinstance(scorer, Attentive):
            return features
        if isinstance(x, WordRows) and x.dense is not None:
            return replace(features, x=replace(x, dense=scorer.pooled(x.dense)).as_array())
        return replace(features, x=scorer.pooled(x))

    def rows(self, features: Mapping[str, np.ndarray], words: csr_matrix | None = None) -> np.ndarray:
        """The features `[N, D]` that it reads.

        Args:
            features: `[N, Di]` by view, at least of `views`.
            words: float32 `[N, V]`, what `ngrams` makes of the texts; None for a head without.
        """
        dense = join_columns([features[view] for view in self.views]) if self.views else None
        if self.ngrams is not None and words is not None:
            return WordRows(self.ngrams, words, dense).as_array()
        assert dense is not None
        return dense

    @property
    def multi_label(self) -> bool:
        return self.thresholds is not None

    @property
    def task(self) -> str:
        """`single-label`, `multi-label` or `regression`."""
        if self.numbers is not None:
            return REGRESSION
        return MULTI_LABEL if self.multi_label else SINGLE_LABEL

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float32 `[N, C]`, some rows at a time so that `x` may be mapped."""
        return self.scorer.logits(x)

    @property
    def last_step(self) -> tuple[np.float32, np.float32]:
        """What logits are multiplied by and what is added then, for models that end with a linear layer: by
        the temperature divided, or numbers in the labels' unit."""
        if self.numbers is not None:
            return np.float32(self.numbers.deviation), np.float32(self.numbers.mean)
        return np.float32(1 / self.temperature), np.float32(0)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float64 `[N, C]`; rows add up to 1 unless labels are independent.

        Raises:
            HeadError: it predicts numbers.
        """
        if self.numbers is not None:
            raise HeadError("this head predicts numbers, and no probabilities", hint="use predict_numbers")
        return probabilities_of(self.logits(x), self.temperature, multi_label=self.multi_label)

    def predict_numbers(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float64 `[N]`, in the unit of the labels it was trained on.

        Raises:
            HeadError: it predicts labels.
        """
        if self.numbers is None:
            raise HeadError("this head predicts labels, and no numbers", hint="use predict_proba")
        return self.numbers.numbers(self.logits(x))

    def judge(self, probabilities: np.ndarray, x: np.ndarray) -> Judgement | None:
        """Which texts have an answer, by probabilities `[N, C]` and features; None: it always answers."""
        if self.abstention is None:
            return None
        predicted = cheapest(probabilities, self.costs)
        return self.abstention.judge(probabilities[np.arange(len(probabilities)), predicted], x)

    def abstaining_at(self, asked: AbstentionSettings) -> Head:
        """The head at another level: `max_error` or `coverage`, and `confidence`.

        Raises:
            HeadError: it was trained without a level, or its validation rows do not support this one.
        """
        if self.numbers is not None:
            raise HeadError(
                f"{asked.flag} is about classes, and this head predicts numbers", hint="leave it out"
            )
        if self.abstention is None:
            raise HeadError(
                f"{asked.flag}: this head was trained to answer always",
                hint=f"train one that may give no answer: featcache train-head {asked.flag}",
            )
        own = replace(asked, out_of_scope=self.abstention.asked.out_of_scope)
        return replace(self, abstention=self.abstention.at(own))

    def save(self, folder: Path, name: str = "head") -> None:
        """Write `<name>.safetensors` and `<name>.json` into `folder`, and `<name>-abstention.safetensors`."""
        from safetensors.numpy import save

        document = HeadDocument(
            format=HEAD_FORMAT,
            kind=self.kind,
            scorer=self.scorer.kind,
            view=self.view,
            label_names=self.label_names,
            temperature=self.temperature,
            thresholds=None if self.thresholds is None else tuple(map(float, self.thresholds)),
            fingerprint=self.fingerprint,
            encoder=self.encoder.to_json(),
            costs=None if self.costs is None else tuple(map(tuple, self.costs.tolist())),
            ngrams=self.ngrams.settings if self.ngrams else None,
            numbers=self.numbers,
        )
        content = dataclasses.asdict(document)
        content = {key: value for key, value in content.items() if key not in OPTIONAL or value is not None}
        tensors = self.scorer.tensors() | (self.ngrams.tensors() if self.ngrams else {})
        if self.abstention:
            content["abstention"] = self.abstention.document()
            write_file(folder / f"{name}{ABSTENTION}", save(self.abstention.tensors()))
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_file(folder / f"{name}.safetensors", save(tensors))
        write_file(folder / f"{name}.json", text.encode())


def load_head(folder: Path, name: str = "head") -> Head:
    """A head that `Head.save` wrote. It runs no code from the files, and checks all sizes in them.

    Raises:
        HeadError: missing, unreadable, of another format, or with contents that do not fit each other.
    """
    path = folder / f"{name}.json"
    with _reading(folder):
        content = read_json(read_plain(path))
    tensors = _read_tensors(path.with_suffix(".safetensors"))
    if not isinstance(content, dict) or content.get("format") not in READABLE:
        raise HeadError(
            f"{path} has another head format; this is {HEAD_FORMAT}",
            hint="train the head again, or install the featcache that wrote it",
        )
    document = parse_document(HeadDocument, content, str(path), partial(HeadError, hint=DAMAGED))
    try:
        encoder = document.checked_encoder()
    except ValueError as error:
        what = f"{path} is incomplete or was changed by hand: {error}"
        raise HeadError(what, hint=DAMAGED) from error
    scorer = ALL_SCORERS[document.scorer].from_tensors(tensors)
    outputs = 1 if document.numbers else len(document.label_names)
    if scorer.classes != outputs:
        raise HeadError(
            f"the head in {folder} does not fit its {outputs} {'number' if document.numbers else 'labels'}: "
            f"it has {scorer.classes}",
            hint="train that head again",
        )
    dense = scorer.dense if isinstance(scorer, WordScorer) else scorer
    views = cached_views(document.view)
    learned = [view.endswith(f"/{ATTENTIVE}") for view in views]
    if any(learned) != isinstance(dense, Attentive) or (
        isinstance(dense, Attentive) and not (all(learned) and len(learned) == len(dense.queries))
    ):
        raise HeadError(f"the head in {folder} does not fit its view {document.view}", hint=DAMAGED)
    abstention = None
    if document.abstention:
        kept = _read_tensors(folder / f"{name}{ABSTENTION}")
        abstention = Abstention.read(document.abstention, kept, dense.width if dense else 0)
    return Head(
        scorer,
        document.label_names,
        document.view,
        encoder=encoder,
        kind=document.kind,
        temperature=document.temperature,
        thresholds=None if document.thresholds is None else np.array(document.thresholds, np.float64),
        costs=None if document.costs is None else np.array(document.costs, np.float64),
        ngrams=None if document.ngrams is None else Ngrams.from_tensors(document.ngrams, tensors),
        abstention=abstention,
        numbers=document.numbers,
    )


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with _reading(path.parent):
        try:
            return load(read_plain(path, LONGEST_ARRAYS))
        except SafetensorError as error:  # its words are for programmers
            raise HeadError(f"{path} is damaged, or no safetensors file", hint=DAMAGED) from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Errors of reading a file of a head, as `HeadError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise HeadError(
            f"no head in {folder}: {error.filename} is missing",
            hint="name the folder of a run; featcache runs ls lists them",
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:  # KeyError: a dtype that numpy does not have
        raise HeadError(f"cannot read the head in {folder}: {error}", hint=DAMAGED) from error


def view_fingerprint(encoder: EncoderDocument, view: str) -> str:
    """The fingerprint of the features of one view, for any texts."""
    return fingerprint({"encoder": encoder.to_json(), "view": view})
