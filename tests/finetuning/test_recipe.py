"""Recipes from flags and settings files."""

from __future__ import annotations

import pytest

from featcache.errors import UsageError
from featcache.finetuning.recipe import Recipe, build_recipe
from featcache.settings import options


def test_build_recipe() -> None:
    assert build_recipe({}) == Recipe() == build_recipe(dict.fromkeys(options(Recipe)))
    assert build_recipe({"lr": "1e-3", "patience": "2"}) == Recipe(lr=1e-3, patience=2)
    with pytest.raises(UsageError, match="unknown setting 'rate'"):
        build_recipe({"rate": 1})
