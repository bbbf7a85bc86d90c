"""The recipes in `examples/` do what their table says, with tiny backbones and small files."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli_tools import Cli
from tests.support.review_files import write_reviews

Folder = Callable[[str], Path]
EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = sorted(path.parent.name for path in EXAMPLES.glob("*/featcache.toml"))
FAMILY = {"bert-base-chinese": "bert", "distilbert-base-uncased": "distilbert", "gpt2": "gpt2"}


def commands(recipe: str) -> list[list[str]]:
    """As the table of examples/README.md has them."""
    (row,) = re.findall(
        rf"^\|.*\({recipe}/featcache.toml\) \| ([^|]*) \|", (EXAMPLES / "README.md").read_text(), re.M
    )
    found = [command.split()[1:] for command in re.findall(r"`(featcache[^`]*)`", row)]
    assert found
    return found


def test_there_are_five() -> None:
    assert [name[0] for name in RECIPES] == list("12345")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs(
    recipe: str, cli: Cli, tmp_path: Path, tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tomllib.loads((EXAMPLES / recipe / "featcache.toml").read_text())
    shutil.copy(EXAMPLES / recipe / "featcache.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    files = [f"{split}={path}" for split, path in write_reviews(tmp_path).items()]
    backbone = ["--model", str(tiny(FAMILY[settings["backbone"]["model"]])), "--device", "cpu"]
    data = ["--data-files", ",".join(files), "--text-column", "text"]
    if "label_names" in settings["data"]:
        data += ["--label-names", "good,bad"]
    for command in commands(recipe):
        few = ["--epochs", "1"] if command[0] in ("train-head", "finetune") else []
        if command[0] == "predict":
            assert "good" in cli.ok("predict", "房间很好").out
        elif command[0] == "compare":
            cli.ok(*command)
        else:
            cli.ok(*command, *backbone, *data, *few)
    (run,) = (folder for folder in Path("reports").iterdir() if (folder / "run.json").exists())
    if "finetune" in settings:
        assert (
            run.name.startswith(settings["finetune"]["train"].replace(":", "-"))
            and (run / "trained.json").exists()
        )
        assert settings["finetune"]["train"] == {"3": "positions", "4": "all", "5": "top-blocks:1"}[recipe[0]]
