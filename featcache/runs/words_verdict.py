"""What a comparison says of the words alone: whether the backbone adds anything to them."""

from __future__ import annotations

from featcache.cache.view_names import LEXICAL
from featcache.runs.compare import Comparisons
from featcache.runs.run import Run


def words_verdict(best: Run, against: Comparisons) -> str:
    """One sentence on the best run beside the best one without a backbone; empty where there is none.

    Args:
        against: runs compared with `best`; another base says nothing of that.
    """
    if best.record.view == LEXICAL:
        return f"no backbone is needed here: the words alone ({best.name}) are best on validation"
    made = next((one for one in against.made if one.run.record.view == LEXICAL), None)
    if made is None or against.base.folder != best.folder:
        return ""
    name, change = made.run.name, made.accuracy
    points = f"{100 * abs(change.difference.value):.1f} points"
    if change.tie:
        return f"the words alone ({name}) tie with the best run: what the backbone adds may be chance"
    if change.worse:
        return f"the backbone adds {points} to what the words alone ({name}) say"
    return f"the words alone ({name}) are {points} better than the best run: no backbone is needed here"
