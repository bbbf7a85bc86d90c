"""The private call into Ray, and what happens where it is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from featcache.cluster import private_ray


def test_keep_stdout_clean_replaces_the_private_function(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SimpleNamespace(print_to_stdstream=print)
    monkeypatch.setattr(private_ray, "_worker_module", lambda: worker)
    private_ray.keep_stdout_clean()
    assert worker.print_to_stdstream({"lines": []}, False) is None


@pytest.mark.parametrize("worker", [None, SimpleNamespace(), SimpleNamespace(print_to_stdstream=3)])
def test_keep_stdout_clean_warns_once_where_the_function_is_gone(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_ray._warn.cache_clear()
    monkeypatch.setattr(private_ray, "_worker_module", lambda: worker)
    with pytest.warns(UserWarning, match="standard output") as caught:
        private_ray.keep_stdout_clean()
        private_ray.keep_stdout_clean()
    assert len(caught) == 1
