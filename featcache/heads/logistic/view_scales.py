"""How much each of several joined views counts in a logistic regression: its features times a scale.

A scale is the same as a penalty of the view's own weights, divided by the square of the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TRIED = (0.4, 2.5)  # what a view's scale is multiplied by
NEARBY = 4.0  # the penalties tried with each set of scales: C, and these many times less and more


def choose_view_scales(
    widths: Sequence[int], loss: Callable[[np.ndarray], float], on_tried: Callable[[int, int], None]
) -> np.ndarray:
    """The scales of V views with a low loss: from 1 on, one view after another is made to count less or more.

    Args:
        widths: columns of each view.
        loss: of the regression with these scales of all columns, float32 `[D]`, on validation rows.
        on_tried: called with how many sets of scales were tried, and of how many.

    Returns:
        float64 `[V]`.
    """
    scales, tried, total = np.ones(len(widths)), 1, 1 + len(TRIED) * len(widths)
    lowest = loss(columns_scales(scales, widths))
    for view in range(len(widths)):
        for factor in TRIED:
            on_tried(tried, total)
            tried += 1
            changed = scales.copy()
            changed[view] *= factor
            found = loss(columns_scales(changed, widths))
            if found < lowest:
                lowest, scales = found, changed
                break
    return scales


def columns_scales(scales: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """The scale of each column, float32 `[D]`."""
    return np.repeat(scales, widths).astype(np.float32)
