"""A backbone with Python code of its own, which leaves a mark where it runs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.tiny import build

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel


def leave_mark():
    Path({mark!r}).touch()


leave_mark()  # when it is imported, which a process does once


class OwnConfig(BertConfig):
    model_type = "own-code"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        leave_mark()


class OwnModel(BertModel):
    config_class = OwnConfig
"""


def build_with_code(folder: Path, mark: Path) -> Path:
    """A tiny BERT in `folder` that transformers loads by the code in it; the code makes the file `mark`."""
    build("bert", folder)
    (folder / "modeling_own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own-code", "auto_map": names}))
    return folder
