"""The weight files of a model folder: one file or several shards, safetensors or pickled `.bin`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.json_file import bad_field, read_object
from featcache.errors import BackboneError

OTHER_WEIGHTS = {
    "*.h5": "TensorFlow",
    "*.ckpt*": "TensorFlow",
    "*.msgpack": "Flax",
    "*.onnx": "ONNX",
    "*.gguf": "GGUF",
}


@dataclass(frozen=True)
class WeightFormat:
    """How transformers names the weight files of one format.

    Attributes:
        single: the name where there is one file.
        suffix: of every shard that the index names.
    """

    single: str
    suffix: str

    @property
    def index(self) -> str:
        """The name of the file that says which shard has which tensor."""
        return f"{self.single}.index.json"

    def names(self, folder: Path) -> list[str]:
        """The single file, or the index and its shards, there or not; empty where the folder has neither.

        Raises:
            BackboneError: the index cannot be used.
        """
        if (folder / self.single).is_file():
            return [self.single]
        index = folder / self.index
        return [index.name, *self._shards(index)] if index.is_file() else []

    def _shards(self, index: Path) -> list[str]:
        """The names of the shards, sorted.

        Raises:
            BackboneError: a name is not one of a file of this format in the folder of the index.
        """
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise bad_field(index, "weight_map", places, "the name of a file for each tensor")
        for name in places.values():
            plain = isinstance(name, str) and name.endswith(self.suffix) and not set(name) & set("/\\:\0")
            if not plain:
                raise bad_field(index, "weight_map", name, f"names of {self.suffix} files in the same folder")
        return sorted(set(places.values()))


SAFETENSORS = WeightFormat("model.safetensors", ".safetensors")
PICKLED = WeightFormat("pytorch_model.bin", ".bin")
STATIC_EMBEDDING, MODEL2VEC = "embedding.weight", "embeddings"  # tables of token vectors, by library


def weight_files(folder: Path) -> list[Path]:
    """The weight files that are loaded from `folder`, the index first: safetensors, else pickled ones.

    Raises:
        BackboneError: there are none, an index cannot be used, or a shard is missing.
    """
    names = SAFETENSORS.names(folder) or PICKLED.names(folder)
    if not names:
        raise no_weights(str(folder), [path.name for path in folder.iterdir()])
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BackboneError(
            f"{folder} lacks the weight files {', '.join(missing)}", hint="is the download complete?"
        )
    return [folder / name for name in names]


def is_pickled(weights: list[Path]) -> bool:
    """Whether `weight_files` found pickled files."""
    return weights[-1].suffix == PICKLED.suffix


def weight_bytes(folder: Path) -> int:
    """Bytes of all weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))


def table_shapes(folder: Path) -> dict[str, list[int]]:
    """The tables of token vectors in a safetensors file, by name; none of a pickled file, which is not read.

    Raises:
        BackboneError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / SAFETENSORS.single
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            there: Any = file.keys()
            known = [name for name in (STATIC_EMBEDDING, MODEL2VEC) if name in there]
            return {name: file.get_slice(name).get_shape() for name in known}
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"cannot read {path}: {error}", hint="is the download complete?") from None


def no_weights(where: str, names: list[str]) -> BackboneError:
    """The error for a model with files of these names and no weights that featcache reads."""
    for pattern, kind in OTHER_WEIGHTS.items():
        if other := sorted(name for name in names if Path(name).match(pattern)):
            return BackboneError(
                f"{where} has {kind} weights alone ({other[0]}); featcache reads safetensors and "
                f"pytorch_model.bin",
                hint=_conversion(kind),
            )
    return BackboneError(
        f"{where} has no weights: neither safetensors nor pytorch_model.bin",
        hint="is the download complete? else save them with model.save_pretrained(folder)",
    )


def _conversion(kind: str) -> str:
    if kind not in ("TensorFlow", "Flax"):
        return "use the model that they were made from"
    flag, package = ("from_tf", "tensorflow") if kind == "TensorFlow" else ("from_flax", "flax")
    return (
        f"convert them once, in an environment with pip install 'transformers<5' torch {package}:\n"
        f"AutoModel.from_pretrained(MODEL, {flag}=True).save_pretrained(FOLDER), the tokenizer likewise; "
        "then --model FOLDER"
    )
