"""From a model's name to its files on this disk, at one exact revision, without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featcache.backbone.model_files.adapter.files import AdapterFiles, find_adapter
from featcache.backbone.model_files.config_checks import (
    LAYERS,
    WIDTH_KEYS,
    check_config,
    check_tokenizer_files,
)
from featcache.backbone.model_files.download import WAYS_OUT, download_model
from featcache.backbone.model_files.json_file import object_if_there, read_object
from featcache.backbone.model_files.kinds import ENDPOINT, VECTORS, kind_of, no_files
from featcache.backbone.model_files.modules_json import (
    TOKENIZER,
    is_static,
    module_hashes,
    transformer_folder,
    view_width,
)
from featcache.backbone.model_files.wanted import TOKENIZER_FILES
from featcache.backbone.model_files.weight_files import MODEL2VEC, table_shapes, weight_bytes, weight_files
from featcache.errors import BackboneError
from featcache.settings import BackboneSettings
from featcache.system.hashes import changed_files, current_hash


@dataclass(frozen=True)
class ModelFiles:
    """A backbone's files on disk.

    Attributes:
        name: the hub id, or the folder's own name.
        folder: where the files are.
        commit: their hub commit; None for a local folder.
        hashes: SHA-256 by file name, of every file in the folder that changes a token's state.
        adapter: what is merged into the weights; None where there is none.
    """

    name: str
    folder: Path
    commit: str | None
    hashes: dict[str, str]
    adapter: AdapterFiles | None = None

    @cached_property
    def is_static(self) -> bool:
        """Whether the model is a table of token vectors, without blocks."""
        return is_static(self.folder)

    @cached_property
    def is_model2vec(self) -> bool:
        """Whether it is a table that model2vec wrote: unknown tokens do not count in a text's mean.

        Raises:
            BackboneError: the table cannot be read.
        """
        return [*table_shapes(self.folder)] == [MODEL2VEC]

    @property
    def width(self) -> int | None:
        """D, the width of a token's state, from config.json or of the table; None if it is not there.

        Raises:
            BackboneError: config.json is no JSON object, or the table cannot be read.
        """
        if self.is_static:
            return next((shape[-1] for shape in table_shapes(self.folder).values() if shape), None)
        config = read_object(self.folder / "config.json")
        return next((config[key] for key in WIDTH_KEYS if key in config), None)

    @property
    def blocks(self) -> int | None:
        """How many blocks the model has, by its config.json; None if it is not there.

        Raises:
            BackboneError: config.json is no JSON object.
        """
        if self.is_static:
            return 0
        config = read_object(self.folder / "config.json")
        inner = config.get("text_config")
        parts = (config, inner if isinstance(inner, dict) else {})
        found = (part[key] for part in parts for key in LAYERS if key in part)
        return next((count for count in found if isinstance(count, int)), None)

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that the model was saved as, by its config.json, e.g. `BertForMaskedLM`."""
        found = object_if_there(self.folder / "config.json").get("architectures")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    def hashes_of(self, views: Sequence[str]) -> dict[str, str]:
        """SHA-256 by file name, of every file that changes a feature of `views`, which name their poolings.

        Raises:
            BackboneError, UsageError: a step of a view has no module.
        """
        merged = self.adapter.hashes if self.adapter else {}
        return self.hashes | merged | module_hashes(self.folder, views)

    def width_of(self, views: Sequence[str]) -> int | None:
        """Numbers in the vectors of all `views`; None if config.json does not say how wide a state is.

        Raises:
            BackboneError, UsageError: a step of a view has no module.
        """
        if (width := self.width) is None:
            return None
        return sum(view_width(self.folder, view, width) for view in dict.fromkeys(views))


def find_model(settings: BackboneSettings) -> ModelFiles:
    """The files of the model, downloaded from the hub if they are not on this disk yet.

    Raises:
        BackboneError: the folder or hub id does not exist, the hub cannot be reached, or the model has no
            weights that can be read; or the name stands for imported vectors.
        UsageError: the name is that of an endpoint, which has no files on this disk.
    """
    if kind_of(settings.model) == ENDPOINT:
        raise no_files(settings.model.partition("#")[2])
    if kind_of(settings.model) == VECTORS:
        raise BackboneError(
            f"{settings.model} stands for imported vectors, and nothing here turns a text into such a vector",
            hint="they work with train-head, sweep, curve, compare, report and inspect; for new texts import "
            "their vectors, or: featcache predict --input FILE --vectors FILE --output FILE",
        )
    path = Path(settings.model).expanduser()
    if path.is_dir():
        name, folder, commit = path.resolve().name, path, None
    elif path.suffix == ".gguf":
        raise BackboneError(
            f"{settings.model} is a GGUF file, which transformers reads of decoders and T5 alone",
            hint="use the model that it was made from, with its safetensors: --model ID",
        )
    elif path.exists() or settings.model.startswith((".", "/", "~")) or settings.model.count("/") > 1:
        raise BackboneError(f"no model folder {settings.model}", hint=WAYS_OUT)
    else:
        folder = download_model(settings)
        name, commit = settings.model, folder.name
    folder = transformer_folder(folder)
    return ModelFiles(name, folder, commit, _hashes(folder, settings), find_adapter(settings.adapter))


def require_unchanged(files: ModelFiles, settings: BackboneSettings) -> None:
    """Refuse a model whose files are no longer those of `files`; called when all of them have been read.

    Raises:
        BackboneError: names the files that were written, replaced, added or removed.
    """
    changed = changed_files(files.hashes, _hashes(files.folder, settings))
    if changed:
        raise BackboneError(
            f"{files.name}: {changed} changed while the model was loaded from {files.folder}",
            hint="run the same command again once nothing writes to that folder",
        )


def _hashes(folder: Path, settings: BackboneSettings) -> dict[str, str]:
    try:
        return {file.name: current_hash(file) for file in _relevant_files(folder, settings.trust_remote_code)}
    except OSError as error:
        raise BackboneError(
            f"cannot read {error.filename or folder}: {error.strerror or error}",
            hint="check the permissions of the model's files, or download them again",
        ) from None


def _relevant_files(folder: Path, remote_code: bool) -> list[Path]:
    config = folder / "config.json"
    if is_static(folder):
        return _static_files(folder)
    if not config.is_file():
        raise BackboneError(
            f"{folder} is no model folder: it has no config.json",
            hint="a backbone is a folder with config.json, weights and tokenizer files",
        )
    tokenizer = sorted({path for name in TOKENIZER_FILES for path in folder.glob(name) if path.is_file()})
    if not tokenizer:
        raise BackboneError(
            f"{folder} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)})",
            hint="save the tokenizer beside the model: tokenizer.save_pretrained(folder)",
        )
    code = sorted(folder.glob("*.py")) if remote_code else []
    check_config(config, weight_bytes(folder))
    check_tokenizer_files(folder)
    return [config, *weight_files(folder), *tokenizer, *code]


def _static_files(folder: Path) -> list[Path]:
    """The files of a table of token vectors; a StaticEmbedding has no config.json."""
    config, tokenizer = folder / "config.json", folder / TOKENIZER
    if not tokenizer.is_file():
        raise BackboneError(
            f"{folder} has no {TOKENIZER}, which a table of token vectors needs",
            hint="is the download complete? else save the model again with the library that made it",
        )
    return [*filter(Path.is_file, [config]), *weight_files(folder), tokenizer]
