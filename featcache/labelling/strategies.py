"""Which texts to ask next: pure functions of cached features, a head's probabilities and what is labelled.

Margin and entropy ask where the head is unsure (Settles 2009, Active Learning Literature Survey). TypiClust
asks for a typical text of each large cluster without labels (Hacohen, Dekel & Weinshall 2022,
arXiv:2202.02794), which is better than that while labels are few. A random choice is what all have to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from featcache.errors import UsageError
from featcache.labelling.pool import NEAR, TextPool
from featcache.translation.language import gettext as _
from featcache.translation.language import listed

FIRST = 20  # texts that are asked before a head chooses: spread over the whole
CANDIDATES, POPULATION = 1024, 4096  # texts among which, and for which, spread texts are chosen
CLUSTERED = 8192  # texts that are clustered at most
MOST_CLUSTERS = 512
TYPICAL_OF = 20  # a typical text is like so many others of its cluster
MIXED_SPREAD = 8  # one in so many texts of `mixed` is unlike the labelled ones
LOOKED_AT = 8  # a batch without near duplicates is taken from so many times as many texts


@dataclass(frozen=True)
class Reason:
    """Why a text was chosen.

    Attributes:
        kind: `spread`, `described`, `between`, `unsure`, `typical`, `unlike` or `random`; `estimate` of those
            drawn to estimate the accuracy; of texts that have labels already `doubted`, `conflict` or `near`;
            `undone` of one whose answer was taken back.
        labels: numbers of the labels that it is between or like, or that the head cannot tell apart; of a
            doubted text its own label, then the one that speaks against it.
    """

    kind: str
    labels: tuple[int, ...] = ()

    def sentence(self, names: Sequence[str]) -> str:
        """For the person who labels, in the language that is spoken."""
        named = [names[label] for label in self.labels]
        first, second = (*named, "", "")[:2]
        if self.kind == "between" and not second:
            return _("perhaps {label}", label=first)
        return {
            "between": _("between {first} and {second}", first=first, second=second),
            "described": _("like the description of {label}", label=first),
            "doubted": _("labelled {first}, and other texts rather say {second}", first=first, second=second),
            "near": _(
                "labelled {first}, and nearly equal to a text labelled {second}", first=first, second=second
            ),
            "spread": _("one of the first texts, spread over the whole"),
            "unsure": _("the head is unsure among {labels}", labels=listed(named)),
            "typical": _("typical of texts without labels"),
            "unlike": _("unlike all labelled ones"),
            "random": _("drawn at random"),
            "estimate": _("drawn at random, to estimate the accuracy"),
            "conflict": _("the same text has several labels"),
            "undone": _("asked again: its answer was taken back"),
        }[self.kind]


@dataclass(frozen=True)
class ChosenText:
    """A text of the pool, and why it was chosen."""

    row: int
    reason: Reason


@dataclass(frozen=True)
class AskedText:
    """The text that a person sees now.

    Attributes:
        row: its number among the texts.
        chosen: as in `AnswerLine`.
        reason: why it is asked; `names` are those of its labels.
    """

    row: int
    text: str
    chosen: str
    reason: Reason
    names: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reason as a sentence, in the language that is spoken."""
        return self.reason.sentence(self.names)


@dataclass(frozen=True, eq=False)
class LabelledPool:
    """What a strategy chooses by.

    Attributes:
        pool: the features of N texts.
        open: int `[K]`, the texts that may be chosen.
        probabilities: float `[N, C]`; None while there is no head.
        multi_label: the probabilities are independent.
        counts: int `[C]`, labelled texts of each label.
        labelled: int `[M]`, the labelled texts.
        seed: of what is drawn.
        clusters: by number of clusters, kept from one choice to the next.
        described: float `[N, K]`, what descriptions of the labels say; None without any.
    """

    pool: TextPool
    open: np.ndarray
    probabilities: np.ndarray | None
    counts: np.ndarray
    labelled: np.ndarray
    seed: int
    multi_label: bool = False
    clusters: dict[int, Clusters] = field(default_factory=dict)
    described: np.ndarray | None = None

    @property
    def generator(self) -> np.random.Generator:
        """Draws that differ with the number of labelled texts."""
        return np.random.default_rng([self.seed % 2**32, len(self.labelled)])


@dataclass(frozen=True, eq=False)
class Clusters:
    """A sample of the pool in clusters: texts int `[S]`, and the cluster of each."""

    rows: np.ndarray
    cluster: np.ndarray


def choose(strategy: str, known: LabelledPool, count: int) -> list[ChosenText]:
    """The next `count` texts, or all that are open if those are fewer; no two are nearly equal.

    Without a head, and before there are `FIRST` labels, texts are spread over the whole; `random` draws
    from the first text on.

    Raises:
        UsageError: no such strategy.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"no strategy {strategy!r}", hint=f"there are: {', '.join(STRATEGIES)}")
    count = min(count, len(known.open))
    if count < 1:
        return []
    if strategy not in ("random", "typiclust") and (
        known.probabilities is None or len(known.labelled) < FIRST
    ):
        return first_texts(known, count)
    return STRATEGIES[strategy](known, count)


def first_texts(known: LabelledPool, count: int) -> list[ChosenText]:
    """Spread texts; with descriptions half of them are those that are most like each label in turn."""
    found = list[ChosenText]()
    if known.described is not None:
        p = known.described[known.open]
        order = np.argsort(-p, axis=0, kind="stable")
        for place in range(count // 2):
            label = (len(known.labelled) + place) % p.shape[1]
            taken = {one.row for one in found}
            row = next(row for row in known.open[order[:, label]].tolist() if row not in taken)
            found.append(ChosenText(row, Reason("described", (label,))))
    taken = {one.row for one in found}
    more = [row for row in spread(known, count) if row not in taken][: count - len(found)]
    return [*found, *(ChosenText(row, Reason("spread")) for row in more)]


def spread(known: LabelledPool, count: int) -> list[int]:
    """Texts that cover the pool: greedy facility location (Krause & Golovin 2014, Submodular Function
    Maximization) on a sample, given the labelled texts."""
    draw = known.generator
    open_rows = draw.permutation(known.open)
    candidates = open_rows[:CANDIDATES]
    population = draw.permutation(len(known.pool))[:POPULATION]
    alike = known.pool.cosines(candidates, population)  # [P, K]
    labelled = draw.permutation(known.labelled)[:POPULATION]
    covered = np.full(len(population), -1, np.float32)
    if len(labelled):
        covered = known.pool.cosines(labelled, population).max(axis=1)
    chosen = list[int]()
    while len(chosen) < min(count, len(candidates)):
        gain = np.maximum(alike - covered[:, None], 0).sum(axis=0)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        np.maximum(covered, alike[:, best], out=covered)
    return [int(row) for row in candidates[chosen]]


def random(known: LabelledPool, count: int) -> list[ChosenText]:
    """Every open text with the same probability."""
    rows = known.generator.choice(known.open, count, replace=False)
    return [ChosenText(int(row), Reason("random")) for row in rows]


def margin(known: LabelledPool, count: int) -> list[ChosenText]:
    """Where the two most probable labels are nearest; of several labels, where one is nearest to one half."""
    order = known.open[np.argsort(_margins(known), kind="stable")]
    return [_between(known, row) for row in _without_near(known.pool, order, count)]


def entropy(known: LabelledPool, count: int) -> list[ChosenText]:
    """Where the entropy of the probabilities is highest; of several labels that of each is added."""
    p = np.clip(_probabilities(known)[known.open], 1e-12, 1)
    terms = -p * np.log(p)
    if known.multi_label:
        q = np.clip(1 - p, 1e-12, 1)
        terms -= q * np.log(q)
    order = known.open[np.argsort(-terms.sum(axis=1), kind="stable")]
    rows = _without_near(known.pool, order, count)
    return [ChosenText(row, Reason("unsure", _most_probable(known, row, 3))) for row in rows]


def mixed(known: LabelledPool, count: int) -> list[ChosenText]:
    """Smallest margins, shared out over the predicted labels, those with the fewest labelled texts first.

    One text in `MIXED_SPREAD` is the one that is most unlike the labelled ones, which finds labels that the
    head does not know yet.
    """
    draw = known.generator
    unlike = sum(draw.random(count) * MIXED_SPREAD < 1)
    far = spread(known, unlike) if unlike else []
    rows = _shared_out(known, count - len(far), set(far))
    found = [_between(known, row) for row in rows]
    return [*found, *(ChosenText(row, Reason("unlike")) for row in far)]


def typiclust(known: LabelledPool, count: int) -> list[ChosenText]:
    """The most typical text of the largest clusters that hold no labelled text."""
    wanted = 1 << (len(known.labelled) + count - 1).bit_length()
    clusters = min(wanted, MOST_CLUSTERS, len(known.pool))
    if clusters not in known.clusters:
        known.clusters[clusters] = _cluster(known, clusters)
    found = known.clusters[clusters]
    is_open = np.zeros(len(known.pool), bool)
    is_open[known.open] = True
    labelled = np.zeros(len(known.pool), bool)
    labelled[known.labelled] = True
    size = np.bincount(found.cluster, minlength=clusters)
    have = np.bincount(found.cluster[labelled[found.rows]], minlength=clusters)
    # As in the paper: clusters with the fewest labels, of these the largest.
    order = np.lexsort((-size, have))
    rows = list[int]()
    for cluster in order:
        members = found.rows[found.cluster == cluster]
        if (there := is_open[members]).any() and len(rows) < count:
            rows.append(int(members[there][_typicality(known.pool, members)[there].argmax()]))
    if len(rows) < count:  # more are wanted than there are clusters with open texts
        rest = np.setdiff1d(known.open, rows)
        rows += known.generator.choice(rest, count - len(rows), replace=False).tolist()
    return [ChosenText(row, Reason("typical")) for row in rows]


STRATEGIES: dict[str, Callable[[LabelledPool, int], list[ChosenText]]] = {
    "margin": margin,
    "entropy": entropy,
    "typiclust": typiclust,
    "mixed": mixed,
    "random": random,
}


def _probabilities(known: LabelledPool) -> np.ndarray:
    assert known.probabilities is not None
    return known.probabilities


def _margins(known: LabelledPool) -> np.ndarray:
    """float `[K]`, of the open texts: the smaller, the less sure the head is."""
    p = _probabilities(known)[known.open]
    if known.multi_label:
        return np.asarray(np.abs(p - 0.5).min(axis=1))
    top = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _most_probable(known: LabelledPool, row: int, count: int) -> tuple[int, ...]:
    return tuple(np.argsort(-_probabilities(known)[row], kind="stable")[:count].tolist())


def _between(known: LabelledPool, row: int) -> ChosenText:
    if known.multi_label:
        nearest = int(np.abs(_probabilities(known)[row] - 0.5).argmin())
        return ChosenText(row, Reason("between", (nearest,)))
    return ChosenText(row, Reason("between", _most_probable(known, row, 2)))


def _without_near(pool: TextPool, order: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """The first `count` of `order` that are not nearly equal to one before; with others if they do not do."""
    if count == 1:
        return [int(order[0])]
    looked = np.asarray(order[: LOOKED_AT * count])
    near = pool.cosines(looked, looked) >= NEAR
    chosen = list[int]()
    for place in range(len(looked)):
        if len(chosen) < count and not near[place, chosen].any():
            chosen.append(place)
    left = (place for place in range(len(looked)) if place not in set(chosen))
    chosen += [next(left) for _ in range(count - len(chosen))]
    return [int(row) for row in looked[chosen]]


def _shared_out(known: LabelledPool, count: int, taken: set[int]) -> list[int]:
    """Smallest margins of each predicted label in turn, the label with the fewest labelled texts first."""
    if count < 1:
        return []
    margins = _margins(known)
    p = _probabilities(known)[known.open]
    guess = np.abs(p - 0.5).argmin(axis=1) if known.multi_label else p.argmax(axis=1)
    order = np.argsort(margins, kind="stable")
    counts = known.counts.astype(np.int64).copy()
    queues = {label: iter(known.open[order[guess[order] == label]]) for label in np.unique(guess).tolist()}
    ranked = list(_in_turn(queues, counts, LOOKED_AT * count, taken))
    return _without_near(known.pool, ranked, min(count, len(ranked)))


def _in_turn(
    queues: dict[int, Iterator[np.int64]], counts: np.ndarray, most: int, taken: set[int]
) -> Iterator[int]:
    """The next text of the label that has the fewest, counting those that were taken."""
    while most and queues:
        label = min(queues, key=lambda one: counts[one])
        row = next((int(row) for row in queues[label] if int(row) not in taken), None)
        if row is None:
            del queues[label]
            continue
        counts[label] += 1
        most -= 1
        yield row


def _cluster(known: LabelledPool, clusters: int) -> Clusters:
    from sklearn.cluster import MiniBatchKMeans

    rows = np.random.default_rng(known.seed % 2**32).permutation(len(known.pool))[:CLUSTERED]
    rows = np.union1d(rows, known.labelled)  # their clusters must be known
    unit = known.pool.x[rows] / known.pool.length[rows, None]
    means = MiniBatchKMeans(clusters, n_init=1, random_state=known.seed % 2**32, batch_size=2048)
    return Clusters(rows, means.fit_predict(unit))


def _typicality(pool: TextPool, rows: np.ndarray) -> np.ndarray:
    """One over the mean distance to the nearest texts of the same cluster, `[M]`."""
    if len(rows) > 1024:  # a sample of a very large cluster tells as much
        others = rows[:: len(rows) // 1024]
    else:
        others = rows
    cosines = pool.cosines(others, rows)
    nearest = min(TYPICAL_OF, cosines.shape[1])
    top = np.partition(cosines, cosines.shape[1] - nearest, axis=1)[:, -nearest:]
    return np.asarray(1 / (np.sqrt(np.maximum(2 - 2 * top, 0)).mean(axis=1) + 1e-6))
