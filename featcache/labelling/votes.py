"""What the standing answers of all people say about each text, and how far people agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

from featcache.labelling.answers import AnswerLine, standing
from featcache.labelling.texts import TextsToLabel

ESTIMATE, BULK = "estimate", "bulk"  # how a text came to be asked, beside the kinds of `Reason`


@dataclass(frozen=True, eq=False)
class CountedAnswers:
    """The answers by text.

    Attributes:
        labels: of each labelled text its labels, where people agree or most of them do; in the order of the
            last answers.
        conflicts: texts on which as many people say one thing as another.
        by_person: the labels that each person gave, by text.
        touched: by person: the texts that they labelled, skipped or were unsure about.
        drawn: texts that were asked for the estimate.
        unknown: answers about texts that are not among the texts.
    """

    labels: dict[int, frozenset[str]]
    conflicts: tuple[int, ...]
    by_person: dict[str, dict[int, frozenset[str]]]
    touched: dict[str, set[int]]
    drawn: frozenset[int]
    unknown: int

    @classmethod
    def of(cls, texts: TextsToLabel, lines: Sequence[AnswerLine]) -> Self:
        """Count the lines of an answers file."""
        votes: dict[int, list[frozenset[str]]] = {}
        by_person: dict[str, dict[int, frozenset[str]]] = {}
        touched: dict[str, set[int]] = {}
        drawn, unknown = set[int](), 0
        for line in standing(lines).values():
            row = texts.place.get(line.text)
            if row is None:
                unknown += 1
                continue
            touched.setdefault(line.by, set()).add(row)
            if line.answer == "labels":
                votes[row] = [*votes.pop(row, []), frozenset(line.labels)]
                by_person.setdefault(line.by, {})[row] = frozenset(line.labels)
                drawn |= {row} if line.chosen == ESTIMATE else set()
        labels, conflicts = {}, []
        for row, given in votes.items():
            counted = Counter(given).most_common(2)
            if len(counted) > 1 and counted[0][1] == counted[1][1]:
                conflicts.append(row)
            else:
                labels[row] = counted[0][0]
        return cls(labels, tuple(conflicts), by_person, touched, frozenset(drawn), unknown)


@dataclass(frozen=True)
class PairAgreement:
    """Two people on the texts that both labelled.

    Attributes:
        same: share of the texts with the same labels.
        kappa: Cohen's (1960): 1 is perfect, 0 as by chance; None where both gave one and the same label
            throughout, so that chance would agree as well.
    """

    first: str
    second: str
    texts: int
    same: float
    kappa: float | None


@dataclass(frozen=True)
class Disagreement:
    """A text with unlike labels, by person."""

    row: int
    text: str
    labels: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Agreement:
    """How far people agree; `alpha` is Krippendorff's, over all texts of two people or more."""

    pairs: tuple[PairAgreement, ...]
    alpha: float | None
    texts: int
    disagreements: tuple[Disagreement, ...]


def agreement(texts: TextsToLabel, counted: CountedAnswers) -> Agreement:
    """Agreement of all people; several labels of a text count as one value, the set of them."""
    people = counted.by_person
    pairs = []
    for one, two in combinations(sorted(people), 2):
        both = sorted(people[one].keys() & people[two].keys())
        if both:
            first, second = ([people[name][row] for row in both] for name in (one, two))
            same = sum(map(frozenset.__eq__, first, second)) / len(both)
            pairs.append(PairAgreement(one, two, len(both), same, cohens_kappa(first, second)))
    units: dict[int, dict[str, frozenset[str]]] = {}
    for name, given in people.items():
        for row, labels in given.items():
            units.setdefault(row, {})[name] = labels
    shared = {row: given for row, given in units.items() if len(given) > 1}
    differ = tuple(
        Disagreement(row, texts.texts[row], {name: tuple(sorted(labels)) for name, labels in given.items()})
        for row, given in sorted(shared.items())
        if len(set(given.values())) > 1
    )
    alpha = krippendorffs_alpha([list(given.values()) for given in shared.values()])
    return Agreement(tuple(pairs), alpha, len(shared), differ)


def cohens_kappa(first: Sequence[object], second: Sequence[object]) -> float | None:
    """Agreement of two people beyond chance; None where chance agrees always."""
    count = len(first)
    same = sum(one == two for one, two in zip(first, second, strict=True)) / count
    ones, twos = Counter(first), Counter(second)
    chance = sum(ones[value] * twos[value] for value in ones) / count**2
    return (same - chance) / (1 - chance) if chance < 1 else None


def krippendorffs_alpha(units: Sequence[Sequence[object]]) -> float | None:
    """Krippendorff's alpha for nominal data; a unit is what people said of one text, two of them at least.

    1 is perfect agreement, 0 as by chance (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability).
    None where all values are the same, or there are no units.
    """
    values = Counter(value for unit in units for value in unit)
    total = sum(values.values())
    expected = total * total - sum(count * count for count in values.values())
    if not expected:
        return None
    observed = 0.0
    for unit in units:
        counts = Counter(unit)
        observed += (len(unit) ** 2 - sum(count * count for count in counts.values())) / (len(unit) - 1)
    return 1 - (total - 1) * observed / expected
