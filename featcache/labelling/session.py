"""A person labels: which text is next, what was answered, and the head that is trained again from the cache.

Every answer is in the answers file before anything else happens. What a session knows follows from that file
and the texts, so that a new session goes on where an earlier one stopped, however it ended.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.labelling.answers import AnswerLine, AnswersFile, all_labels, standing
from featcache.labelling.describe import described_probabilities
from featcache.labelling.estimate import AccuracyEstimate, LabellingCurve, labelling_curve
from featcache.labelling.label_head import LabelHead
from featcache.labelling.pool import TextPool
from featcache.labelling.strategies import (
    FIRST,
    AskedText,
    ChosenText,
    Clusters,
    LabelledPool,
    Reason,
    choose,
)
from featcache.labelling.targets import right_rows, targets_of
from featcache.labelling.texts import RESERVED, TextsToLabel
from featcache.labelling.votes import BULK, ESTIMATE, CountedAnswers

DEFAULT_STRATEGY = "mixed"
TRAINED_EVERY = 50  # the head is trained again whenever its labels have grown by one in so many
LONGEST_NOTE, LONGEST_LABEL = 2000, 200  # characters


@dataclass(frozen=True)
class GuessedLabel:
    """What the head thinks of a text."""

    row: int
    label: str
    probability: float


class LabelSession:
    """One person labels one set of texts; several threads may use it.

    Args:
        texts: what can be asked.
        answers: the file with the answers of everybody.
        by: who answers now.
        strategy: of `featcache.labelling.strategies.STRATEGIES`.
        seed: of what is drawn.
        first: texts that are asked before all others, such as those whose labels are doubted.
        only_first: ask nothing else.
        descriptions: of labels, for guesses and first texts while there is no head.

    Attributes:
        counted: what the answers of everybody say.
        pool: None until `use_features`; until then texts are drawn at random.
        head: None while there are no features, or labels of one class alone.
    """

    def __init__(
        self,
        texts: TextsToLabel,
        answers: AnswersFile,
        by: str,
        *,
        strategy: str = DEFAULT_STRATEGY,
        seed: int = 0,
        first: Sequence[ChosenText] = (),
        only_first: bool = False,
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.texts, self.answers, self.by = texts, answers, by
        self.strategy, self.seed, self.descriptions = strategy, seed, dict(descriptions or {})
        self.pool: TextPool | None = None
        self.head: LabelHead | None = None
        self.counted = CountedAnswers.of(texts, answers.lines)
        self._lock = threading.RLock()
        self._first, self.only_first = list(first), only_first
        self._queue = list[ChosenText]()
        self._now: AskedText | None = None
        self._head_labels: tuple[str, ...] = ()
        self._probabilities: np.ndarray | None = None
        self._described: np.ndarray | None = None
        self._clusters: dict[int, Clusters] = {}
        self._earlier_heads: dict[int, tuple[bytes, LabelHead | None]] = {}

    # -- what a person does ------------------------------------------------------------------------------

    def question(self) -> AskedText | None:
        """The text to be labelled now; None where none is left for this person."""
        with self._lock:
            if self._now is None:
                self._now = self._next()
            return self._now

    def answer(self, row: int, labels: Sequence[str], *, note: str = "", guess_shown: bool = False) -> None:
        """Give the labels of the text that is asked now; they are on the disk on return.

        Raises:
            UsageError: another text is asked, an unknown label, or several where a text has one.
        """
        with self._lock:
            if odd := [label for label in labels if label not in self.labels]:
                raise UsageError(f"there is no label {odd[0]!r}", hint=f"there are: {', '.join(self.labels)}")
            if not labels or (len(labels) > 1 and not self.multi_label):
                raise UsageError(f"{len(labels)} labels, and a text has one", hint="several: --multi-label")
            given = tuple(dict.fromkeys(labels))
            self._put("labels", row, labels=given, note=note[:LONGEST_NOTE], guess_shown=guess_shown)

    def skip(self, row: int, *, unsure: bool = False, note: str = "") -> None:
        """Leave the text that is asked now to others; `unsure`: this person cannot tell its label."""
        with self._lock:
            self._put("unsure" if unsure else "skip", row, note=note[:LONGEST_NOTE])

    def undo(self) -> bool:
        """Take the last answer of this person back and ask its text again; False where there is none."""
        with self._lock:
            self.refresh()
            mine = [line for line in standing(self.answers.lines).values() if line.by == self.by]
            if not mine:
                return False
            last = mine[-1]
            self._append(self._line("undo", text=last.text))
            row = self.texts.place.get(last.text)
            self._now = None
            if row is not None:
                self._now = self._asked(ChosenText(row, Reason("undone")), last.chosen)
            return True

    def add_label(self, name: str) -> None:
        """Another label, from now on.

        Raises:
            UsageError: it is empty, too long, or there already.
        """
        with self._lock:
            name = name.strip()
            if not 0 < len(name) <= LONGEST_LABEL:
                raise UsageError(f"a label has 1 to {LONGEST_LABEL} characters")
            if name in self.labels:
                raise UsageError(f"there is a label {name!r} already")
            self._append(self._line("new label", labels=(name,)))

    def guesses(self, row: int) -> list[GuessedLabel]:
        """What the head thinks of a text, the most probable label first.

        Without a head the descriptions guess. Empty without either, and for reserved texts: an answer that
        follows a guess is not independent of it, and would make the accuracy look better than it is.
        """
        with self._lock:
            names: Sequence[str] = self._head_labels
            found = self._probabilities
            if found is None:
                names, found = list(self.descriptions), self._described
            if found is None or self.texts.reserved[row]:
                return []
            order = np.argsort(-found[row], kind="stable").tolist()
            return [GuessedLabel(row, names[label], float(found[row, label])) for label in order]

    def likely(self, least: float, most: int = 20) -> list[GuessedLabel]:
        """Open texts of which the head is sure, the surest first: some label has a probability of `least`.

        None of them is reserved.
        """
        with self._lock:
            if self._probabilities is None or self.multi_label:
                return []
            rows = self._open_rows()
            p = self._probabilities[rows]
            best, guess = p.max(axis=1, initial=0), p.argmax(axis=1)
            order = np.argsort(-best, kind="stable")[:most]
            return [
                GuessedLabel(int(rows[place]), self._head_labels[guess[place]], float(best[place]))
                for place in order if best[place] >= least
            ]  # fmt: skip

    def confirm(self, labels: dict[int, str]) -> int:
        """Labels that a person confirmed many at a time; the file marks them as such.

        Returns:
            How many were written: a text that somebody answered meanwhile, or that is reserved, is left out.
        """
        with self._lock:
            self.refresh()
            if odd := [label for label in labels.values() if label not in self.labels]:
                raise UsageError(f"there is no label {odd[0]!r}")
            free = set(self._open_rows().tolist())
            hashes = self.texts.hashes
            lines = [
                self._line("labels", text=hashes[row], labels=(label,), chosen=BULK, guess_shown=True)
                for row, label in labels.items() if row in free
            ]  # fmt: skip
            if lines:
                self._append(*lines)
                self._queue.clear()
                if self._now is not None and self._now.row in labels:
                    self._now = None
            return len(lines)

    # -- what is known -----------------------------------------------------------------------------------

    @property
    def labels(self) -> tuple[str, ...]:
        return all_labels(self.answers.header, self.answers.lines)

    @property
    def multi_label(self) -> bool:
        return self.answers.header.multi_label

    @property
    def train_rows(self) -> np.ndarray:
        """The texts that the head learns from, int `[M]`, in the order of their answers."""
        return np.array([row for row in self.counted.labels if not self.texts.reserved[row]], np.int64)

    @property
    def estimate_rows(self) -> np.ndarray:
        """The reserved texts with labels that were asked for the estimate, int `[V]`."""
        drawn = self.counted.drawn
        rows = [row for row in self.counted.labels if self.texts.reserved[row] and row in drawn]
        return np.array(rows, np.int64)

    def estimate(self) -> AccuracyEstimate | None:
        """The accuracy of the present head on the reserved texts with labels; None while there is no head."""
        with self._lock:
            if self.head is None:
                return None
            return AccuracyEstimate.of(len(self.train_rows), self._right(self.head))

    def curve(self) -> LabellingCurve:
        """Accuracy of heads that know the first 20, 40, 80, ... labels, and of the present one."""
        with self._lock:
            rows = self.train_rows
            if self.head is None or not len(self.estimate_rows):
                return LabellingCurve()
            sizes = [FIRST << step for step in range(24) if FIRST << step < len(rows)]
            heads = [(size, self._head_of(rows[:size])) for size in sizes]
            known = [(size, self._right(head)) for size, head in heads if head is not None]
            known.append((len(rows), self._right(self.head)))
        # Without the lock: an answer does not wait for a forecast.
        return labelling_curve([size for size, _ in known], [right for _, right in known], self.seed)

    # -- how it goes on ----------------------------------------------------------------------------------

    def use_features(self, features: np.ndarray) -> None:
        """Features are there: from now on a head is trained, and chooses.

        Args:
            features: `[N + M, D]`, of the texts and of the descriptions of all labels, in their order.
        """
        count = len(self.texts.texts)
        pool, described = TextPool.of(features[:count]), None
        if self.descriptions:
            of = [place for place, texts in enumerate(self.descriptions.values()) for _ in texts]
            described = described_probabilities(pool, pool.standard(features[count:]), np.array(of))
        with self._lock:
            self.pool, self._described = pool, described
            self._queue.clear()
            self.learn()

    def refresh(self) -> None:
        """Read what others have answered."""
        with self._lock:
            if self.answers.refresh():
                self.counted = CountedAnswers.of(self.texts, self.answers.lines)

    def learn(self) -> None:
        """Train the head on all labelled texts that are not reserved."""
        with self._lock:
            if self.pool is None:
                return
            self._head_labels = self.labels
            rows = self.train_rows
            x, y, classes = self.pool.x[rows], self._targets(rows), len(self._head_labels)
            self.head = LabelHead.fit(x, y, classes, before=self.head)
            self._probabilities = None
            if self.head is not None:
                reserved = self.estimate_rows
                self.head = self.head.calibrated(self.pool.x[reserved], self._targets(reserved))
                self._probabilities = self.head.probabilities(self.pool.x)

    def _put(self, answer: str, row: int, **more: Any) -> None:
        asked = self.question()
        if asked is None or asked.row != row:
            raise UsageError("another text is asked now", hint="load the page again")
        self._append(self._line(answer, text=self.texts.hashes[row], chosen=asked.chosen, **more))
        self._now = None

    def _line(self, answer: str, **more: Any) -> AnswerLine:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return AnswerLine(answer=answer, by=self.by, time=now, **more)

    def _append(self, *lines: AnswerLine) -> None:
        self.answers.append(*lines)
        self.counted = CountedAnswers.of(self.texts, self.answers.lines)

    def _next(self) -> AskedText | None:
        self.refresh()
        mine = self.counted.touched.get(self.by, set())
        while self._first:
            chosen = self._first.pop(0)
            if chosen.row not in mine:
                return self._asked(chosen)
        if self.only_first:
            return None
        asked = sum(bool(self.texts.reserved[row]) for row in mine)
        due = RESERVED * (asked + 1) <= len(mine) + 1
        reserved = self._reserved(mine)
        found = reserved if due and reserved is not None else self._chosen() or reserved
        return None if found is None else self._asked(found)

    def _asked(self, text: ChosenText, chosen: str = "") -> AskedText:
        described = text.reason.kind == "described"
        names = tuple(self.descriptions) if described else self._head_labels or self.labels
        return AskedText(text.row, self.texts.texts[text.row], chosen or text.reason.kind, text.reason, names)

    def _reserved(self, mine: set[int]) -> ChosenText | None:
        """The next reserved text; everybody gets them in the same order, which shows how far people agree."""
        row = next((row for row in self.texts.reserved_order if row not in mine), None)
        return None if row is None else ChosenText(row, Reason(ESTIMATE))

    def _open_rows(self) -> np.ndarray:
        """The texts that a strategy may choose: not reserved, and answered by nobody; int `[K]`."""
        is_open = ~self.texts.reserved
        is_open[list(self._taken())] = False
        return np.flatnonzero(is_open)

    def _taken(self) -> set[int]:
        labelled = (given.keys() for given in self.counted.by_person.values())
        return self.counted.touched.get(self.by, set()).union(*labelled)

    def _chosen(self) -> ChosenText | None:
        taken = self._taken()
        while self._queue:
            found = self._queue.pop(0)
            if found.row not in taken:
                return found
        rows = self._open_rows()
        if not len(rows):
            return None
        if self.pool is None:
            order = self.texts.order
            row = next(row for row in order.tolist() if not self.texts.reserved[row] and row not in taken)
            return ChosenText(row, Reason("random"))
        self.learn()
        labelled = self.train_rows
        targets = self._targets(labelled)
        classes = len(self._head_labels)
        known = LabelledPool(
            pool=self.pool, open=rows, probabilities=self._probabilities,
            counts=targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=classes),
            labelled=labelled, seed=self.seed, multi_label=self.multi_label, clusters=self._clusters,
            described=self._described,
        )  # fmt: skip
        count = max(1, FIRST - len(labelled), len(labelled) // TRAINED_EVERY)
        self._queue = choose(self.strategy, known, count)
        return self._queue.pop(0)

    def _targets(self, rows: np.ndarray) -> np.ndarray:
        return targets_of(self.counted, rows, self.labels, multi_label=self.multi_label)

    def _right(self, head: LabelHead) -> np.ndarray:
        """bool `[V]`: the reserved texts about which a head is right."""
        assert self.pool is not None
        rows = self.estimate_rows
        return right_rows(head, self.pool, rows, self._targets(rows), len(self.labels))

    def _head_of(self, rows: np.ndarray) -> LabelHead | None:
        """The head of these texts, kept until their labels change."""
        assert self.pool is not None
        targets = self._targets(rows)
        state = rows.tobytes() + targets.tobytes()
        if self._earlier_heads.get(len(rows), (b"", None))[0] != state:
            classes = len(self.labels)
            self._earlier_heads[len(rows)] = state, LabelHead.fit(self.pool.x[rows], targets, classes)
        return self._earlier_heads[len(rows)][1]
