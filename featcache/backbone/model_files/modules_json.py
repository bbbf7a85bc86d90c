"""The modules that a sentence-transformers model lists in `modules.json`, and their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from featcache.backbone.model_files.json_file import object_if_there, read_array, read_object
from featcache.backbone.model_files.weight_files import weight_files
from featcache.errors import BackboneError, UsageError
from featcache.system.hashes import current_hash

MODULES = "modules.json"
OWN = "sentence_transformers."  # how the names of the library's own kinds begin
STEPS = {"Dense": "dense", "LayerNorm": "layernorm", "Normalize": "normalized"}  # as they are named in views
WITH_WEIGHTS = {name: kind for kind, name in STEPS.items() if kind != "Normalize"}
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
STATIC = "StaticEmbedding"  # the kind of a module that is a table of token vectors
OTHERWISE = "download the model again, or use a pooling of your own, e.g. --pooling mean"


def read_modules(root: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module, in their order; empty where there is no `modules.json`.

    Kinds of the library have their short name, e.g. `Dense`; others are given as they stand.

    Raises:
        BackboneError: no list of modules, or a module outside of `root`.
    """
    file = root / MODULES
    found: list[tuple[str, str]] = []
    for entry in read_array(file) if file.is_file() else []:
        kind, path = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise BackboneError(f"{file}: a module has no type or no path", hint=OTHERWISE)
        if path.startswith("/") or ".." in PurePosixPath(path).parts or set(path) & {"\\", ":"}:
            raise BackboneError(f"{file}: {path!r} is not inside of the model's folder", hint=OTHERWISE)
        found.append((kind.rpartition(".")[2] if kind.startswith(OWN) else kind, path))
    return found


def root_of(folder: Path) -> Path:
    """Where `modules.json` is: in the model's folder, or above it where the Transformer has its own."""
    if (folder / MODULES).is_file() or not (folder.parent / MODULES).is_file():
        return folder
    modules = read_modules(folder.parent)
    return folder.parent if modules and modules[0][1] == folder.name else folder


def transformer_folder(root: Path) -> Path:
    """Where the model itself is: in `root`, or in a folder of its own, as `modules.json` says."""
    if (root / CONFIG).is_file():
        return root
    modules = read_modules(root)
    return root / modules[0][1] if modules else root


def is_static(folder: Path) -> bool:
    """Whether a model is a table of token vectors: a StaticEmbedding, or a folder of model2vec.

    Files that cannot be read say nothing here: a `modules.json` does not count where no view asks for it, and
    a config.json is refused with its reason where it is checked.
    """
    try:
        modules = read_modules(root_of(folder))
    except BackboneError:
        modules = []
    if modules:
        return modules[0][0] == STATIC
    try:
        config = object_if_there(folder / CONFIG)
    except BackboneError:
        return False
    return config.get("model_type") == "model2vec" or config.get("architectures") == ["StaticModel"]


def module_folders(folder: Path, steps: Sequence[str]) -> list[Path]:
    """For each of `steps` that has weights the folder of its module; the second `dense` is the second Dense.

    Raises:
        UsageError: the model has no such module.
    """
    wanted = [step for step in steps if step in WITH_WEIGHTS]
    root = root_of(folder)
    there = read_modules(root) if wanted else []
    taken: Counter[str] = Counter()
    found = []
    for step in wanted:
        paths = [path for kind, path in there if kind == WITH_WEIGHTS[step]]
        if taken[step] == len(paths):
            raise UsageError(
                f"a view with {steps.count(step)} steps {step!r} needs as many modules of the kind "
                f"{WITH_WEIGHTS[step]}; the model has {len(paths)}",
                hint="use fewer of these steps, or --pooling auto, which takes those that the model has",
            )
        found.append(root / paths[taken[step]])
        taken[step] += 1
    return found


def module_hashes(folder: Path, views: Sequence[str]) -> dict[str, str]:
    """SHA-256 by name of the files of all modules that steps of `views` need; empty if none does.

    Raises:
        BackboneError: a file is not there.
        UsageError: the model has no such module.
    """
    root, found = root_of(folder), {}
    for view in views:
        for module in module_folders(folder, view.partition("/")[2].split("-")[1:]):
            for file in (root / MODULES, require(module / CONFIG), *weight_files(module)):
                found[file.relative_to(root).as_posix()] = current_hash(file)
    return found


def view_width(folder: Path, view: str, width: int) -> int:
    """Numbers in a vector of `view`, where a token's state has `width` of them.

    Raises:
        BackboneError, UsageError: a step of the view has no module.
    """
    joined, *steps = view.partition("/")[2].split("-")
    width *= len(joined.split("+"))
    modules = iter(module_folders(folder, steps))
    for step in steps:
        module = next(modules) if step in WITH_WEIGHTS else None
        if module and step == "dense":
            width = int(read_object(require(module / CONFIG)).get("out_features") or width)
        elif step.startswith("first"):
            width = min(width, int(step.removeprefix("first")))
    return width


def require(file: Path) -> Path:
    """`file`, of a module.

    Raises:
        BackboneError: it is not there.
    """
    if not file.is_file():
        raise BackboneError(
            f"no {file}, which {MODULES} needs",
            hint=OTHERWISE,
        )
    return file
