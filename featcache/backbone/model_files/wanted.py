"""Which of a hub repository's files featcache reads."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatch

from featcache.backbone.model_files.modules_json import MODULES
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


MODULE = re.compile(r"[0-9]+_\w+/[^/]+")  # a file of a sentence-transformers module: 1_Pooling/config.json


def wanted_files(names: Collection[str], *, remote_code: bool) -> list[str]:
    """Those of a repository's files that featcache reads, the files of modules in their sub-folders last.

    Other formats are in other sub-folders (onnx/, ...).
    """
    patterns = ["*.json", "*.txt", *TOKENIZER_FILES, *(["*.py"] if remote_code else [])]
    if {SAFETENSORS.single, SAFETENSORS.index} & {*names}:
        patterns.append("*.safetensors")
    else:
        patterns.append(PICKLED.single if PICKLED.single in names else "pytorch_model*.bin")
    wanted = [name for name in names if "/" not in name and any(fnmatch(name, one) for one in patterns)]
    modules = [name for name in names if MODULES in names and MODULE.fullmatch(name)]
    return wanted + [
        name
        for name in modules
        if name.endswith((".json", SAFETENSORS.suffix))
        or (name.endswith(PICKLED.single) and _safe(name) not in names)
    ]


def require_weights(model: str, names: Collection[str]) -> None:
    """Refuse a repository without weights that featcache reads, before anything is downloaded.

    Raises:
        BackboneError: there are none; names those that there are.
    """
    if not {SAFETENSORS.single, SAFETENSORS.index, PICKLED.single, PICKLED.index} & {*names}:
        raise no_weights(model, sorted(names))


def _safe(pickled: str) -> str:
    """The name that the weights beside a pickled file have, where they are there as safetensors, too."""
    return pickled.removesuffix(PICKLED.single) + SAFETENSORS.single
