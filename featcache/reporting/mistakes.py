"""The rows that a head predicts wrong, with what may explain each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.data.text_lookup import RowTexts
from featcache.inspection.document import label_of, label_text
from featcache.inspection.inspection import Inspection, labels_differ
from featcache.reporting.cached import CachedFeatures
from featcache.reporting.document import Mistake
from featcache.reporting.numbers import confident_mistakes
from featcache.runs.predictions import Predictions
from featcache.system.text import clip
from featcache.translation.language import gettext as _
from featcache.translation.language import paragraph

LISTED = 20
LABEL = 40  # cells of a label in a reason


@dataclass(frozen=True)
class ListedMistakes:
    """Some mistakes, and how many there are; see `RunReport`."""

    rows: Sequence[Mistake]
    wrong: int
    doubted: int | None


def list_mistakes(
    predictions: Predictions, cached: CachedFeatures, texts: RowTexts, inspection: Inspection | None
) -> ListedMistakes:
    """The LISTED most confident mistakes, and the LISTED most confident ones whose label is not in doubt."""
    rows, confidence = confident_mistakes(predictions)
    reasons = _Reasons(predictions, cached, inspection)
    doubted = reasons.doubted
    plain = np.array([doubted is None or row not in doubted for row in rows.tolist()], bool)
    shown = (np.arange(len(rows)) < LISTED) | (plain & (np.cumsum(plain) <= LISTED))
    own, names = cached.own, predictions.label_names
    places, sure = rows[shown].tolist(), confidence[shown].tolist()
    found = [
        Mistake(
            row=texts.number(cached.split, row),
            row_hash=predictions.row_hash[row].tobytes().hex(),
            label=label_of(predictions.labels[row], names),
            predicted=label_of(predictions.predicted[row], names),
            confidence=share,
            tokens=int(own.n_tokens[row]) if own else None,
            cut=bool(own.truncated[row]) if own else None,
            label_doubted=None if doubted is None else row in doubted,
            text=text,
            reason=reasons.of(row),
        )
        for row, share, text in zip(places, sure, texts.texts_of(cached.split, places), strict=True)
    ]
    return ListedMistakes(found, len(rows), None if doubted is None else int((~plain).sum()))


class _Reasons:
    """What the features say of single rows of the reported split."""

    def __init__(
        self, predictions: Predictions, cached: CachedFeatures, inspection: Inspection | None
    ) -> None:
        self.cached, self.names, self.inspection = cached, predictions.label_names, None
        self.doubted: set[int] | None = None
        if inspection is None or cached.own is None:
            return
        self.inspection = inspection
        self.start = inspection.rows.of_split(cached.split).start
        self.outliers = set(inspection.outliers.tolist())
        if not inspection.doubts.reason:
            self.doubted = set((inspection.doubts.rows - self.start).tolist())

    def of(self, row: int) -> str:
        """Sentences; empty if nothing is known."""
        said = []
        if self.cached.own and self.cached.own.truncated[row]:
            said.append(_("Only the first {longest} tokens were read.", longest=self.cached.own.max_length))
        if self.inspection is None:
            return paragraph(said)
        rows, near, place = self.inspection.rows, self.inspection.near, self.start + row
        match = int(self.inspection.match[place])
        if match >= 0 and labels_differ(rows.labels[[place]], rows.labels[[match]])[0]:
            other = "Nearly the same text has another label in {split}: {label}."
            said.append(_(other, split=_(rows.where(match)[0]), label=self._label(match)))
        elif (nearest := int(near.nearest[0, rows.text[place]])) >= 0:
            cosine = near.cosine[0, rows.text[place]]
            nearest_text = "The nearest train text is labelled {label} (cosine {cosine:.2f})."
            said.append(_(nearest_text, label=self._label(int(rows.first[nearest])), cosine=cosine))
        if int(rows.first[rows.text[place]]) in self.outliers:
            said.append(_("It is unlike the train texts."))
        return paragraph(said)

    def _label(self, row: int) -> str:
        assert self.inspection is not None
        return clip(label_text(label_of(self.inspection.rows.labels[row], self.names)), LABEL)
