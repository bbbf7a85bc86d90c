"""The part of a backbone that is trained, as `--train` names it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from featcache.errors import UsageError

PARTS = "head, top-blocks:N, positions, all"


@dataclass(frozen=True)
class TrainedPart:
    """What of a backbone is trained.

    Attributes:
        name: as `--train` has it: `top-blocks:2`, `positions`, `all`.
        cut: the states before this block are cached, and what is below it stays frozen; None: training
            starts from the tokens, and nothing can be cached.
    """

    name: str
    cut: int | None


def parse_part(text: str, blocks: int) -> TrainedPart:
    """`top-blocks:2`, `positions` or `all` of a backbone with that many blocks.

    Raises:
        UsageError: none of these, or more blocks than the backbone has.
    """
    if text in ("positions", "all"):
        return TrainedPart(text, None)
    match = re.fullmatch(r"top-blocks:(\d+)", text)
    if not match:
        raise UsageError(f"--train {text}: no part of a model", hint=f"there are: {PARTS}")
    count = int(match[1])
    if not 1 <= count <= blocks:
        more = "; for the head alone: --train head" if count == 0 else ""
        raise UsageError(f"--train {text}: the backbone has {blocks} blocks", hint=f"1 to {blocks}{more}")
    return TrainedPart(f"top-blocks:{count}", blocks - count)
