"""Which of a hub repository's files featcache reads."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatch

from featcache.backbone.model_files.modules_json import CONFIG, MODULES
from featcache.backbone.model_files.weight_files import PICKLED, SAFETENSORS, no_weights

# Everything a tokenizer may be read from: tokenizer.json, vocabularies, merges, sentencepiece models.
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.codes",
    "*.bpe",
)


MODULE = re.compile(r"([0-9]+_\w+)/[^/]+")  # a file of a sentence-transformers module: 1_Pooling/config.json


def wanted_files(names: Collection[str], *, remote_code: bool) -> list[str]:
    """Those of a repository's files that featcache reads, the files of modules in their sub-folders last.

    Other formats are in other sub-folders (onnx/, ...).
    """
    wanted = []
    for folder, own in _folders(names).items():
        patterns = [*_patterns(own), *(["*.py"] if remote_code and not folder else [])]
        matching = (name for name in own if any(fnmatch(name, pattern) for pattern in patterns))
        wanted += [f"{folder}/{name}" if folder else name for name in matching]
    return wanted


def require_weights(model: str, names: Collection[str]) -> None:
    """Refuse a repository without weights that featcache reads, before anything is downloaded.

    Raises:
        BackboneError: there are none; names those that there are.
    """
    own, *modules = _folders(names).values()
    if CONFIG not in own:  # the Transformer has a folder of its own: earlier versions wrote `0_Transformer`
        own += [name for module in modules for name in module]
    if not {SAFETENSORS.single, SAFETENSORS.index, PICKLED.single, PICKLED.index} & {*own}:
        raise no_weights(model, sorted(names))


def _folders(names: Collection[str]) -> dict[str, list[str]]:
    """The names of files by folder: the repository's own, and those of its modules."""
    found: dict[str, list[str]] = {"": [name for name in names if "/" not in name]}
    for name in names if MODULES in names else ():
        if module := MODULE.fullmatch(name):
            found.setdefault(module[1], []).append(name.rpartition("/")[2])
    return found


def _patterns(names: Collection[str]) -> list[str]:
    """What is read of the files of one folder: weights as safetensors where there are some."""
    if {SAFETENSORS.single, SAFETENSORS.index} & {*names}:
        weights = "*.safetensors"
    else:
        weights = PICKLED.single if PICKLED.single in names else "pytorch_model*.bin"
    return ["*.json", "*.txt", *TOKENIZER_FILES, weights]
