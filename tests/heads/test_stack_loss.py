"""Class weights against scikit-learn's."""

from __future__ import annotations

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from featcache.heads.stack_loss import class_weights


def test_class_weights_are_those_of_scikit_learn() -> None:
    y = np.random.default_rng(0).choice(3, 90, p=[0.6, 0.3, 0.1])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(class_weights(y, 3, "balanced").numpy(), expected, rtol=1e-6)
    assert class_weights(y, 3, "none").tolist() == [1, 1, 1]
    assert class_weights(y, 3, (1.0, 2.0, 0.5)).tolist() == [1, 2, 0.5]
