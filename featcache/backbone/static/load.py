"""A static model from its files: the table of a StaticEmbedding, or that of a model2vec folder.

model2vec keeps the table as `embeddings`; with `mapping` several tokens share a row of it, and with `weights`
each token has a factor. Both are worked into one row a token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.modules_json import TOKENIZER
from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.backbone.model_files.weight_files import MODEL2VEC, SAFETENSORS, STATIC_EMBEDDING
from featcache.backbone.static.model import StaticModel
from featcache.backbone.static.tokenizer import StaticTokenizer
from featcache.errors import BackboneError

DAMAGED = "is the download complete? else save the model again with the library that made it"


def load_static(files: ModelFiles, dtype: torch.dtype) -> tuple[StaticModel, StaticTokenizer]:
    """The model with its table in `dtype` on the CPU, and its tokenizer.

    The table has one more row than the model has: 0, for texts without tokens.

    Raises:
        BackboneError: no table, parts of it that do not fit each other, or a tokenizer that does not fit it.
        CacheError: pickled weights that cannot be converted.
        Exception: of safetensors and tokenizers, for damaged files.
    """
    path = loadable_folder(files) / SAFETENSORS.single
    weights = load_file(path)
    table = _folded(weights, path) if files.is_model2vec else weights.get(STATIC_EMBEDDING)
    if table is None or table.dim() != 2 or 0 in table.shape:
        shape = "none" if table is None else list(table.shape)
        raise BackboneError(
            f"{path}: a table of token vectors is needed, named {STATIC_EMBEDDING} (StaticEmbedding) or "
            f"{MODEL2VEC} (model2vec), not {shape}",
            hint=DAMAGED,
        )
    backend = Tokenizer.from_file(str(files.folder / TOKENIZER))
    _check_vocabulary(backend, files.folder / TOKENIZER, len(table))
    rows = torch.cat([table.to(dtype), torch.zeros(1, table.shape[1], dtype=dtype)])
    tokenizer = StaticTokenizer(backend, drops_unknown=files.is_model2vec, nothing=len(table))
    return StaticModel(rows), tokenizer


def _folded(weights: dict[str, torch.Tensor], path: Path) -> torch.Tensor:
    """The table of a model2vec folder with one row a token, float32 `[V, H]`."""
    table, mapping, factors = weights[MODEL2VEC].float(), weights.get("mapping"), weights.get("weights")
    if mapping is not None:
        if mapping.dim() != 1 or mapping.is_floating_point() or not len(mapping):
            raise BackboneError(f"{path}: its mapping is no list of rows of its table", hint=DAMAGED)
        if int(mapping.min()) < 0 or int(mapping.max()) >= len(table):
            raise BackboneError(
                f"{path}: its mapping names row {int(mapping.max()):,} of a table of {len(table):,}",
                hint=DAMAGED,
            )
        table = table[mapping.long()]
    if factors is not None:
        if factors.shape != table.shape[:1]:
            raise BackboneError(
                f"{path}: it has {list(factors.shape)} weights for {len(table):,} tokens", hint=DAMAGED
            )
        table = table * factors.float()[:, None]
    return table


def _check_vocabulary(backend: Tokenizer, path: Path, rows: int) -> None:
    """Check that the table has a row for each token.

    Raises:
        BackboneError: an empty vocabulary, or ids beyond the table.
    """
    words = backend.get_vocab()
    highest = max(words, key=words.__getitem__, default=None)
    if highest is None:
        raise BackboneError(f"{path} has an empty vocabulary", hint=DAMAGED)
    if words[highest] >= rows:
        raise BackboneError(
            f"{path} has the token {highest!r} with id {words[highest]:,}, but the table has {rows:,} rows",
            hint="the tokenizer belongs to another model, or one of the two files was changed",
        )
