"""`--device` reaches the heads that can train on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featcache.heads import linear_stack
from tests.support.cli_tools import Cli

pytestmark = pytest.mark.usefixtures("arrow_cache")


@pytest.mark.parametrize(
    "command", [["train-head", "--head", "linear"], ["sweep", "--lr", "0.01", "--weight-decay", "0"]]
)
def test_the_device_of_the_settings_is_asked_for(
    command: list[str], cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(device: str, work: float, least: float) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr(linear_stack, "head_device", note)
    cli.ok(*command, "--epochs", "1")
    cli.ok(*command, "--epochs", "1", "--device", "cpu")
    assert asked[0] == "auto" and asked[-1] == "cpu"
