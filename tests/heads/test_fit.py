"""The schedules of the learning rate against those of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from featcache.heads.fit import schedule_factor


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_schedule_factor_equals_transformers(schedule: Any, warmup: float) -> None:
    """After the warm-up, which torch has as LinearLR: transformers' factors, one step later at the start."""
    from transformers import get_scheduler

    total, rising = 20, round(20 * warmup)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    name = {"constant": "constant_with_warmup"}.get(schedule, schedule)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=rising, num_training_steps=total)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = [schedule_factor(step, total, warmup, schedule) for step in range(total)]
    np.testing.assert_allclose(found[rising:], expected[rising:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[:rising], np.arange(1, rising + 1) / max(rising, 1))
    assert all(0 < factor <= 1 for factor in found)
