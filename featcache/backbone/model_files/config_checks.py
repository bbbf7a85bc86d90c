"""What a model's files say of its sizes, checked before anything of that size is allocated.

transformers takes most values as they are: a width of ten million ends in an allocation, a vocabulary that is
larger than the embedding in an index error somewhere within a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.json_file import bad_field, read_object
from featcache.errors import BackboneError

# What families call them in their config.json.
WIDTH_KEYS = ("hidden_size", "dim", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
WORDS = ("vocab_size", "n_words")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
EMBEDDING = ("embedding_size", "emb_dim")
INNER = ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner", "d_inner", "d_ff")
HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim")
SMALL = 2**20  # sizes up to this do no harm alone; where weights are missing, other messages say so
MOST_LAYERS = 2000  # of published text models the deepest has 1,000
MOST_POSITIONS = 2**31 - 1
SLACK = 2**28  # numbers that a model may have beside those in its weight files: tables, masks
JSON_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check_config(path: Path, weight_bytes: int) -> None:
    """Check the sizes in a config.json.

    Args:
        weight_bytes: of all weight files; a size above it and above `SMALL` cannot be meant.

    Raises:
        BackboneError: no JSON object, or a size that cannot be meant; names the field.
    """
    config = read_object(path)
    largest = max(weight_bytes, SMALL)
    parts = {"": config}
    if isinstance(config.get("text_config"), dict):
        parts["text_config."] = config["text_config"]
    for prefix, part in parts.items():
        for names, most, optional in (
            ((*WIDTH_KEYS, *WORDS), largest, False),
            (LAYERS, MOST_LAYERS, False),
            (POSITIONS, MOST_POSITIONS, True),
            ((*EMBEDDING, *INNER, *HEADS), largest, True),
        ):
            for name in names:
                if name in part and not _is_size(part[name], most, optional):
                    wanted = f"a whole number from 1 to {most:,}"
                    if most == largest:
                        wanted += f" (the weight files have {weight_bytes:,} bytes)"
                    raise bad_field(path, prefix + name, part[name], wanted)
        padding, words = part.get("pad_token_id"), part.get("vocab_size")
        if isinstance(padding, int) and isinstance(words, int) and not -words <= padding < words:
            raise bad_field(path, f"{prefix}pad_token_id", padding, f"a number below vocab_size, {words:,}")


def _is_size(value: Any, most: int, optional: bool) -> bool:
    if value is None or isinstance(value, (list, dict)):  # families with a size for each block
        return optional
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def check_tokenizer_files(folder: Path) -> None:
    """Check the JSON files that transformers reads a tokenizer's settings from.

    Raises:
        BackboneError: no JSON object, or a longest length that cannot be meant.
    """
    for name in JSON_FILES:
        path = folder / name
        if path.is_file():
            longest = read_object(path).get("model_max_length")
            # Tokenizers without a limit are saved with 1e30.
            if longest is not None and not _is_length(longest):
                raise bad_field(path, "model_max_length", longest, "a number of tokens, at least 1")


def _is_length(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value >= 1
        and not math.isinf(value)
    )


def check_parameters(kind: Any, config: Any, path: Path, weight_bytes: int) -> None:
    """Check that a model of this config is about as large as its weight files, without allocating it.

    Args:
        kind: the class of transformers that loads it, such as `AutoModel`.
        config: of transformers, from the config.json `path`.

    Raises:
        BackboneError: it would be far larger.
    """
    import torch

    raw = read_object(path)
    sizes = {
        name: raw[name]
        for name in (*WIDTH_KEYS, *EMBEDDING, *INNER, *LAYERS, *WORDS, *POSITIONS)
        if isinstance(raw.get(name), int)
    }

    def largest(names: Sequence[str]) -> int:
        return max((sizes[name] for name in names if name in sizes), default=0)

    width = largest(WIDTH_KEYS)
    blocks = width * (width + largest(INNER)) * largest(LAYERS)
    tables = max(width, largest(EMBEDDING)) * (largest(WORDS) + largest(POSITIONS))
    if blocks + tables < weight_bytes:
        return  # as with every ordinary model: building it to count takes longer
    with torch.device("meta"):
        model = kind.from_config(config)
    numbers = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    if numbers > 2 * weight_bytes + SLACK:  # two numbers in a byte: weights of 4 bits
        raise BackboneError(
            f"{path} describes a model of {numbers:,} numbers ("
            + ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            + f"), but the weight files have {weight_bytes:,} bytes",
            hint="one of these sizes is wrong: use the model as its author published it",
        )


def check_vocabulary(tokenizer: Any, folder: Path, names: Iterable[str], rows: int | None) -> None:
    """Check that the model's table of embeddings has a row for each word of the tokenizer.

    Tokens that were added to the vocabulary may lie beyond the table as long as no text has them.

    Args:
        names: of the model's files in `folder`.
        rows: of the table; None where the config does not say.

    Raises:
        BackboneError: an empty vocabulary, or ids beyond the table.
    """
    around = list(tokenizer("")["input_ids"])
    if tokenizer.pad_token_id is not None:
        around.append(tokenizer.pad_token_id)
    added = tokenizer.get_added_vocab()
    numbered = _numbered_words(tokenizer)
    if numbered > len(added) and max([numbered - 1, *added.values(), *around]) < (rows or 0):
        return
    words = tokenizer.get_vocab()
    if len(words) > len(added) and max([*words.values(), *around]) < (rows or 0):
        return  # as with every ordinary model: a look at each word takes longer
    own = words.keys() - added.keys()
    file = folder / next(filter(_has_words, sorted(names)), "tokenizer.json")
    if not own:
        raise BackboneError(
            f"{file} has an empty vocabulary",
            hint="is the download complete? every text would become unknown tokens",
        )
    highest = max(*(words[word] for word in own), *around)
    if rows is not None and highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise BackboneError(
            f"{file} has the token {token!r} with id {highest:,}, but vocab_size in "
            f"{folder / 'config.json'} is {rows:,}",
            hint="the tokenizer belongs to another model, or one of the two files was changed",
        )


def _numbered_words(tokenizer: Any) -> int:
    """How many words a vocabulary has whose ids are 0, 1, 2, ... by its kind; 0 for other kinds.

    Of a vocabulary of 250,000 words, to ask for all of them takes half a second.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "Unigram":
        return 0
    return int(backend.get_vocab_size(with_added_tokens=False))


def _has_words(name: str) -> bool:
    """Whether a file of this name holds a vocabulary."""
    return name == "tokenizer.json" or name.startswith("vocab") or name.endswith((".model", ".codes", ".bpe"))
