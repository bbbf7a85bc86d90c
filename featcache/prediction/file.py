"""A file of texts to the same file with labels, in bounded memory, at the speed of an extraction.

Rows are read and tokenised in one thread, two batches ahead of the model; another thread writes. Batches of
an unfinished file are kept in `OUTPUT.partial/`; the same call goes on from the last one that is durable,
and the file it ends with is byte for byte the one of a run without an interruption.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.tokens.unknown_tokens import MOST
from featcache.data.formats.encodings import NAME_IT
from featcache.data.formats.open import RowBatch, RowFile
from featcache.data.formats.write import (
    NumberWriter,
    OutputForm,
    RowAbstentions,
    RowNumbers,
    RowPredictions,
    Writer,
)
from featcache.errors import BadRow, SourceError, UsageError
from featcache.fingerprint import fingerprint
from featcache.prediction.journal import (
    COMMIT_EVERY,
    FORMAT,
    ROWS,
    STATE,
    Journal,
    JournalState,
    UnlabelledRow,
    partial_folder,
    read_state,
)
from featcache.system.durable import explained, make_own_folder, temporary_beside
from featcache.system.lock import locked
from featcache.system.output import Target
from featcache.system.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    from featcache.prediction.predictor import Answers, Predictor, PreparedTexts

AHEAD = 2  # batches tokenised before the model is free for them
BAD_ROWS = ".bad.jsonl"  # after the output's name
BAD_A_BATCH = 16  # rows of a batch that the model may refuse; if it refuses more, the model is broken


@dataclass(frozen=True)
class LabelledFile:
    """What `predict_file` made.

    Attributes:
        path: a URL where that was asked for, and then `bad_path` too.
        rows: read; `bad` of them have no label.
        truncated: texts that were longer than the longest length and were truncated.
        resumed: rows that an earlier call had done.
        tokens: encoded in this call.
        counts: rows by predicted label; a row of a multi-label head counts for each. Empty for numbers.
        bad_path: JSON lines, an `UnlabelledRow` each; None where every row has a label.
        first_bad: the first few of these rows.
        changed_cells: written with a `'` in front in this call, see `OutputForm.raw_cells`.
        mostly_unknown: texts of which at least half of the tokens are unknown to the model's vocabulary.
        abstained: rows without an answer; None for a head that always answers.
    """

    path: Path | str
    rows: int
    bad: int
    truncated: int
    resumed: int
    seconds: float
    tokens: int
    counts: dict[str, int]
    bad_path: Path | str | None
    first_bad: tuple[UnlabelledRow, ...]
    changed_cells: int = 0
    mostly_unknown: int = 0
    abstained: int | None = None


def predict_file(
    predictor: Predictor,
    rows: RowFile,
    target: Path | str,
    form: OutputForm,
    *,
    force: bool = False,
    on_progress: OnProgress = ignore,
    commit_every: float = COMMIT_EVERY,
) -> LabelledFile:
    """Label every row of `rows` and write them, with all their columns and in their order, to `target`.

    Added are `prediction` (of a multi-label head a list), `probability` of it, `probability:NAME` for each
    label and `truncated`; of a head that may give no answer `abstained`, `out_of_scope` and `reason`, and no
    `prediction` where it gives none. Of a head that predicts numbers `prediction`, the ends of its interval
    `prediction_low` and `prediction_high` (empty for a head without one), and `truncated`. A row whose text
    cannot be used stays in the file without them; one that cannot be parsed is in the list of bad rows alone.

    Args:
        rows: just opened.
        target: a path or a URL. What goes to a URL is made on this machine and uploaded when it is whole.
        form: the format of `target`; txt holds the labels alone.
        force: replace `target`, and start again if an unfinished one is of another head or other columns.
        on_progress: called after each batch of the model; a total of 0 is unknown.
        commit_every: seconds between two durable states, at the least.

    Raises:
        UsageError: `target` or an added column exists already.
        SourceError: no row of the first batch can be used; an unfinished `target` is of other rows or
            another head; the disk is full, the store out of reach (finished batches are kept).
    """
    began = time.perf_counter()
    place = Target.of(target)
    refuse_target(place, force=force)
    writer = _writer(predictor, rows, form)
    key = _key(predictor, rows, writer)
    folder = partial_folder(place.path)
    make_own_folder(folder)
    with explained(place.path), locked(folder / ROWS):
        refuse_target(place, force=force)  # another call may have made it while this one waited
        before = _resumed(folder, key, rows, force=force) or JournalState(
            key, counts=dict.fromkeys(writer.names, 0), quotes=rows.quotes, raw_cells=form.raw_cells
        )
        writer.raw_cells = before.raw_cells
        with Journal(folder, before, writer, commit_every) as journal:
            tokens = _FilePredictor(predictor, rows, journal, on_progress).run()
        predictor.require_all_read(journal.state.rows)
        bad_path = _publish(journal, place, force=force)
    after, seconds = journal.state, time.perf_counter() - began
    return LabelledFile(
        path=place.place, rows=after.rows, bad=after.bad, truncated=after.truncated, resumed=before.rows,
        seconds=seconds, tokens=tokens, counts=after.counts, bad_path=bad_path,
        first_bad=tuple(journal.first_bad), changed_cells=writer.changed,
        mostly_unknown=after.mostly_unknown,
        abstained=after.abstained if predictor.head.abstention else None,
    )  # fmt: skip


def _writer(predictor: Predictor, rows: RowFile, form: OutputForm) -> Writer:
    head = predictor.head
    if head.numbers is not None:
        return NumberWriter(form, rows)
    return Writer(
        form, rows, head.label_names, several=head.multi_label, abstains=head.abstention is not None
    )  # fmt: skip


def _key(predictor: Predictor, rows: RowFile, writer: Writer) -> str:
    """A fingerprint of all that decides the output, except for the rows."""
    more = {"inputs": list(predictor.inputs)} if predictor.inputs else {}
    return fingerprint(
        more
        | {
            "format": FORMAT,
            "head": _head_hash(predictor),
            "batch_tokens": predictor.encoder.batch_tokens if predictor.encoder else None,
            "columns": [rows.columns, rows.text, rows.pair, writer.added],
            "kinds": [rows.kind, writer.kind],
        }
    )


def refuse_target(target: Target | Path | str, *, force: bool) -> None:
    """Refuse an output that exists or that cannot become a file, before anything is loaded.

    Raises:
        UsageError
        SourceError: the store of the output cannot be asked.
    """
    place = target if isinstance(target, Target) else Target.of(target)
    if place.is_folder():
        raise UsageError(f"{place} is a folder")
    # A call that was killed between publishing the two files leaves the list of bad rows.
    unfinished = (partial_folder(place.path) / STATE).is_file()
    for one in (place,) if unfinished else (place, place.beside(BAD_ROWS)):
        if not force and one.exists():
            raise UsageError(f"{one} is there already", hint="another --output, or --force to replace it")


def _resumed(folder: Path, key: str, rows: RowFile, *, force: bool) -> JournalState | None:
    """The state of an unfinished call, after reading the rows it had done; None to begin at the first row."""
    state = read_state(folder)
    if state is None or (state.key != key and force):
        return None
    if state.key != key:
        raise SourceError(
            f"{folder} is of an unfinished call with another head, or columns",
            hint="--force starts again; or give another --output",
        )
    done = [batch.digest for batch in (next(rows.batches, None) for _ in range(state.chunks)) if batch]
    if len(done) < state.chunks or (done or [""])[-1] != state.digest:
        raise SourceError(
            f"{folder} is of an unfinished call with other rows",
            hint=f"to start again, remove it: rm -r {folder}",
        )
    return state


def _publish(journal: Journal, target: Target, *, force: bool) -> Path | str | None:
    """Give the finished files their names; returns that of the bad rows, None where there are none."""
    finished = journal.writer.finish(journal.log, temporary_beside(target.path))
    bad_rows = target.beside(BAD_ROWS)
    if journal.state.bad:
        copy = temporary_beside(bad_rows.path)
        shutil.copyfile(journal.bad_log, copy)
        bad_rows.publish(copy, replace=True)
    elif force:
        bad_rows.remove()
    if not target.publish(finished, replace=force):
        raise UsageError(f"another process made {target} meanwhile", hint="--force replaces it")
    journal.discard()
    return bad_rows.place if journal.state.bad else None


@dataclass(frozen=True)
class _TokenizedBatch:
    """A batch with its usable rows, `places` int64 `[M]`, ready for the model; None if there are none."""

    batch: RowBatch
    places: np.ndarray
    tokens: PreparedTexts | None


class _FilePredictor:
    """The rows that are left of one file: read, tokenised, encoded and handed to the journal."""

    def __init__(
        self, predictor: Predictor, rows: RowFile, journal: Journal, on_progress: OnProgress
    ) -> None:
        self.predictor, self.rows, self.journal, self.on_progress = predictor, rows, journal, on_progress
        self.done, self.tokens = journal.state.rows, 0

    def run(self) -> int:
        """Label all batches that are left; returns the number of tokens encoded."""
        if self.predictor.encoder is not None:
            self.predictor.encoder.prepare(self.rows.total or 0)
        begun = self.done
        with ThreadPoolExecutor(1) as pool:
            for number, ready in enumerate(self._ahead(pool), self.journal.state.chunks):
                if number == 0 and not self.rows.first and ready.tokens is None:
                    self._refuse_all(ready.batch)
                predictions = self._predict(ready)
                self.done = begun = begun + len(ready.batch.rows)
                self.journal.add(ready.batch, predictions)
        return self.tokens

    def _ahead(self, pool: ThreadPoolExecutor) -> Iterator[_TokenizedBatch]:
        """Batches read and tokenised in a thread of their own."""
        futures: deque[Future[_TokenizedBatch | None]] = deque()
        try:
            while True:
                while len(futures) <= AHEAD:
                    futures.append(pool.submit(self._next))
                ready = futures.popleft().result()
                if ready is None:
                    return
                yield ready
        finally:
            for future in futures:
                future.cancel()

    def _next(self) -> _TokenizedBatch | None:
        batch = next(self.rows.batches, None)
        return None if batch is None else self._tokenized(batch)

    def _tokenized(self, batch: RowBatch) -> _TokenizedBatch:
        while True:
            usable = [row for row in batch.rows if row.problem is None]
            places = np.array([n for n, row in enumerate(batch.rows) if row.problem is None], dtype=np.int64)
            if not usable:
                return _TokenizedBatch(batch, places, None)
            pairs = None if self.rows.pair is None else [row.pair or "" for row in usable]
            try:
                tokens = self.predictor.prepare_rows(usable, pairs)
                return _TokenizedBatch(batch, places, tokens)
            except BadRow as error:
                usable[error.row].problem = error.what

    def _predict(self, ready: _TokenizedBatch) -> RowPredictions:
        """The model's predictions; a row that it refuses is marked as bad, the others are encoded again."""
        done = self.done
        names = self.predictor.label_names
        for attempt in range(BAD_A_BATCH):
            tokens = ready.tokens
            if tokens is None:
                break
            self.done = done
            try:
                answers = self.predictor.answer(tokens, self._step)
            except BadRow as error:
                ready.batch.rows[int(ready.places[error.row])].problem = error.what
                if attempt == BAD_A_BATCH - 1:
                    raise
                ready = self._tokenized(ready.batch)
                continue
            unknown = int((tokens.unknown_shares >= MOST).sum())
            return self._row_predictions(ready.places, answers, unknown)
        none = np.zeros((0, len(names)))
        return RowPredictions(ready.places, [], none[:, 0], none, np.zeros(0, dtype=bool))

    def _row_predictions(self, places: np.ndarray, answers: Answers, unknown: int) -> RowPredictions:
        """What is written of some answers."""
        if (scale := self.predictor.head.numbers) is not None and answers.numbers is not None:
            found = RowNumbers(answers.numbers, *scale.ends(answers.numbers))
            return RowPredictions(
                places, [[repr(one)] for one in answers.numbers.tolist()], np.zeros(len(places)),
                answers.probabilities, answers.truncated, mostly_unknown=unknown, numbers=found,
            )  # fmt: skip
        shares, head, held = answers.probabilities, self.predictor.head, None
        chosen = [self.predictor.chosen(row) for row in shares]
        own = [row[one].min() if one else row.max() for row, one in zip(shares, chosen, strict=True)]
        if answers.judgement and head.abstention:
            answered, far, _ = answers.judgement
            held = RowAbstentions(~answered, far, head.abstention.reasons(answers.judgement))
            chosen = [one if yes else [] for one, yes in zip(chosen, answered, strict=True)]
        labels = [[head.label_names[number] for number in one] for one in chosen]
        return RowPredictions(
            places, labels, np.array(own), shares, answers.truncated, mostly_unknown=unknown, abstentions=held
        )

    def _step(self, texts: int, tokens: int) -> None:
        self.done += texts
        self.tokens += tokens
        self.on_progress(Progress("predict", done=self.done, total=self._total(), tokens=self.tokens))

    def _total(self) -> int:
        """Rows of the file: as it says, or estimated from the bytes of the rows written; 0 where unknown."""
        rows, consumed = self.journal.consumed
        total = self.rows.total or 0
        if self.rows.total is None and self.rows.size and consumed:
            total = round(rows * self.rows.size / consumed)
        return max(total, self.done) if total else 0  # rows are written after they are labelled

    def _refuse_all(self, batch: RowBatch) -> None:
        first = batch.rows[0]
        raise SourceError(
            f"none of the first {len(batch.rows)} rows of {self.rows.name} can be used; "
            f"line {first.line}: {first.problem}",
            hint=NAME_IT
            if " at character " in (first.problem or "")
            else "name the column with the text: --text-column",
        )


def _head_hash(predictor: Predictor) -> str:
    """SHA-256 of all that turns features into labels."""
    head, digest = predictor.head, hashlib.sha256()
    facts = [head.fingerprint, list(head.label_names), head.temperature, head.scorer.kind]
    facts.append(None if head.thresholds is None else head.thresholds.tolist())
    facts += [] if head.costs is None else [head.costs.tolist()]
    if head.abstention:
        facts.append(head.abstention.document())
    facts += [] if head.numbers is None else [asdict(head.numbers)]
    digest.update(json.dumps(facts).encode())
    for name, part in sorted(head.scorer.tensors().items()):
        digest.update(name.encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
