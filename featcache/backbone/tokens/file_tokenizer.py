"""The tokenizer of a `tokenizer.json`, by the package `tokenizers` alone.

transformers' own classes take a second to import, and read the file twice. What they do beyond that package
is little, and is done here; a tokenizer whose settings ask for more is left to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from featcache.backbone.model_files.json_file import object_if_there

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NO_LIMIT = int(1e30)  # what transformers takes for the longest text where nothing says it
AS_IN_THE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that take the file as it is
OF_BERT = ("BertTokenizer", "BertTokenizerFast")  # they make their parts themselves, as their settings say
BERT_TOKENS = dict(zip(SPECIAL[2:], ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True))
READ = (
    *SPECIAL, "tokenizer_class", "model_max_length", "truncation_side", "padding_side", "model_input_names",
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "added_tokens_decoder",
)  # fmt: skip
# Settings that change no id of a text that is not padded.
WITHOUT_EFFECT = (
    "clean_up_tokenization_spaces", "name_or_path", "special_tokens_map_file",
    "tokenizer_file", "do_basic_tokenize", "chat_template", "max_length", "stride", "truncation_strategy",
    "pad_to_multiple_of", "pad_token_type_id", "backend", "is_local", "local_files_only", "processor_class",
)  # fmt: skip
EMPTY = ("never_split", "init_inputs", "extra_special_tokens", "additional_special_tokens")


class FileEncodings(dict[str, Any]):
    """What a tokenizer makes of texts: lists by name, and the encodings that they are taken from."""

    is_fast = True

    def __init__(self, encodings: Sequence[Any], *, typed: bool, single: bool) -> None:
        super().__init__(input_ids=[one.ids for one in encodings])
        if typed:
            self["token_type_ids"] = [one.type_ids for one in encodings]
        if single:
            self.update({name: rows[0] for name, rows in self.items()})
        self.encodings = encodings


class FileTokenizer:
    """As much of a tokenizer of transformers as `Backbone` and `Encoder` use, with the same ids.

    Args:
        backend: as the file has it; special tokens that it does not know yet are added to it.
        special: by the names in `SPECIAL`, those that are set.
        settings: of tokenizer_config.json.

    Attributes:
        model_max_length: tokens of the longest text by the settings.
        truncation_side: where truncated texts lose tokens, `right` or `left`.
        padding_side: what the settings say; nothing is padded here.
        model_input_names: what it makes of texts, or could make.
    """

    is_fast = True

    def __init__(self, backend: Tokenizer, special: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self.backend_tokenizer = backend
        self._special = special
        known = self.get_added_vocab()
        new = [token for token in dict.fromkeys(special.values()) if token not in known]
        backend.add_tokens([AddedToken(token, special=True) for token in new])
        both = ["input_ids", "token_type_ids", "attention_mask"]
        self.model_input_names: list[str] = settings.get("model_input_names", both)
        self.model_max_length = settings.get("model_max_length") or NO_LIMIT
        baked = backend.truncation or {}
        self.padding_side: str = settings.get(
            "padding_side", (backend.padding or {}).get("direction", "right")
        )
        self.truncation_side: str = settings.get("truncation_side", baked.get("direction", "right"))

    @classmethod
    def read(cls, folder: Path, model_type: str) -> FileTokenizer | None:
        """The tokenizer of the model of this type in `folder`; None where transformers is needed for it.

        Raises:
            BackboneError: its settings are no JSON objects.
            Exception: of the package `tokenizers`, which has no narrower one: a damaged tokenizer.json.
        """
        settings = object_if_there(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in settings:
            settings |= object_if_there(folder / "special_tokens_map.json")
        kind = settings.get("tokenizer_class", OF_BERT[0] if model_type == "bert" else None)
        if not _understood(settings, kind) or (folder / "added_tokens.json").is_file():
            return None
        if not (folder / "tokenizer.json").is_file():
            return None
        named = {name: token for name, token in settings.items() if name in SPECIAL and token}
        special = (BERT_TOKENS if kind in OF_BERT else {}) | {name: _word(named[name]) for name in named}
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if backend.padding:
            special.setdefault("pad_token", backend.padding["pad_token"])
        if not _has(backend, settings.get("added_tokens_decoder") or {}):
            return None
        made = cls(backend, special, settings)
        return made if kind not in OF_BERT or _is_berts(made, settings) else None

    def __call__(
        self,
        texts: str | list[str],
        pairs: str | list[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        **_: Any,
    ) -> FileEncodings:
        """Token ids of a text or of many, with their pairs.

        Args:
            truncation: to `max_length` tokens; of a pair the longer text loses them.
        """
        if truncation:
            self.backend_tokenizer.enable_truncation(
                max_length or self.model_max_length, direction=self.truncation_side
            )
        else:
            self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        single = isinstance(texts, str)
        rows = [texts] if isinstance(texts, str) else texts
        seconds = [pairs] if isinstance(pairs, str) else pairs
        both = rows if seconds is None else list(zip(rows, seconds, strict=True))
        encodings = self.backend_tokenizer.encode_batch(both, add_special_tokens=add_special_tokens)
        return FileEncodings(encodings, typed="token_type_ids" in self.model_input_names, single=single)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __getattr__(self, name: str) -> Any:
        """`pad_token_id` and its like: the id of a special token, None where it is not set."""
        word = name.removesuffix("_id")
        if word not in SPECIAL:
            raise AttributeError(name)
        token = self._special.get(word)
        return token if word == name or token is None else self.backend_tokenizer.token_to_id(token)

    @property
    def all_special_ids(self) -> list[int]:
        """Of the special tokens that are set."""
        added = self.get_added_vocab()
        return [added[token] for token in dict.fromkeys(self._special.values())]

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, added ones included."""
        return self.backend_tokenizer.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Ids by token of those that were added to the vocabulary, special ones included."""
        return {one.content: at for at, one in self.backend_tokenizer.get_added_tokens_decoder().items()}

    def convert_ids_to_tokens(self, number: int) -> str | None:
        """The token of an id."""
        return self.backend_tokenizer.id_to_token(number)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens surround a text, or a pair."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)


def _understood(settings: Mapping[str, Any], kind: str | None) -> bool:
    """Whether the settings name a class that is known, and ask for nothing of it that is not done here."""
    known = kind in OF_BERT or (kind in AS_IN_THE_FILE and "model_input_names" in settings)
    return (
        known
        and settings.keys() <= {*READ, *WITHOUT_EFFECT, *EMPTY}
        and not any(settings.get(name) for name in EMPTY)
    )


def _word(token: str | Mapping[str, Any]) -> str:
    """A special token, which files have as a string or with the settings of an added token."""
    return token if isinstance(token, str) else str(token["content"])


def _has(backend: Tokenizer, added: Mapping[str, Any]) -> bool:
    """Whether the tokenizer has exactly these added tokens, of tokenizer_config.json, among its own."""
    own = backend.get_added_tokens_decoder()
    return all(
        int(at) in own and all(getattr(own[int(at)], name) == value for name, value in token.items())
        for at, token in added.items()
    )


def _is_berts(tokenizer: FileTokenizer, settings: Mapping[str, Any]) -> bool:
    """Whether the parts in the file are those that transformers' class for BERT would make itself."""
    backend, (cls, sep) = tokenizer.backend_tokenizer, (tokenizer.cls_token, tokenizer.sep_token)
    model = backend.model
    if not isinstance(model, models.WordPiece):
        return False
    if (model.unk_token, model.continuing_subword_prefix) != (tokenizer.unk_token, "##"):
        return False
    wanted = (
        normalizers.BertNormalizer(
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        ),
        pre_tokenizers.BertPreTokenizer(),
        processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, tokenizer.cls_token_id), (sep, tokenizer.sep_token_id)],
        ),
    )
    found = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    both = zip(found, wanted, strict=True)
    same = all(part is not None and part.__getstate__() == its.__getstate__() for part, its in both)
    return model.max_input_chars_per_word == 100 and same
