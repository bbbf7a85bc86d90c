"""Every setting, once: frozen dataclasses, their help, and `featcache.toml`.

A setting comes from a flag, else from `featcache.toml` in the working folder, else from its
default. The dataclasses below are the only place where a setting, its type, its default and its
help are written; the command line and the file format are derived from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import UsageError

CONFIG_FILE = "featcache.toml"
OTHER_TABLES = ("finetune",)  # read by those whose settings they are: featcache.recipe


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that carries its own help, choices and limits (`above`, `below`: exclusive)."""
    limits = {"least": least, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


_SHARED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "patience": (None, "stop after this many epochs without a better validation score", {"least": 1}),
    "label_smoothing": (
        0.0, "share of the target spread evenly over the classes", {"least": 0, "below": 1},
    ),
    "class_weight": (
        "none", "balanced: rare classes weigh as much as frequent ones", {"choices": ("none", "balanced")},
    ),
}  # fmt: skip


def shared_setting(name: str) -> Any:
    """A setting that heads and fine-tuning both have, and mean the same by."""
    default, help, limits = _SHARED[name]
    return setting(default, help, **limits)


@dataclass(frozen=True)
class BackboneSettings:
    """Which frozen model, and how it computes."""

    model: str = setting("bert-base-chinese", "hub id or local folder of the backbone")
    revision: str | None = setting(None, "hub revision of the model: branch, tag or commit")
    trust_remote_code: bool = setting(False, "let the model's own Python code run")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = setting(
        "auto",
        "compute type; auto is bfloat16 where the processor has it natively, else float32; "
        "int8: linear layers in 8-bit integers, CPU only",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
    )
    batch_tokens: int | None = setting(
        None, "tokens in one packed batch (default: chosen by device)", least=1
    )


@dataclass(frozen=True)
class DataSettings:
    """Where texts and labels come from."""

    dataset: str = setting(
        "lansinuote/ChnSentiCorp", "hub id, save_to_disk folder, or folder of csv/tsv/json/parquet"
    )
    dataset_revision: str | None = setting(None, "hub revision of the dataset")
    data_files: dict[str, str] | None = setting(None, "train=F,validation=F,test=F (files or URLs)")
    text_column: str | None = setting(None, "column with the text (default: found by its usual names)")
    pair_column: str | None = setting(None, "column with the second text of a pair")
    label_column: str | None = setting(None, "column with the label (default: found by its usual names)")
    label_separator: str | None = setting(None, "splits a text label into several, e.g. ;: multi-label")
    label_names: tuple[str, ...] | None = setting(None, "names of labels 0,1,... separated by commas")
    validation_share: float = setting(
        0.1, "share of train held out where there is no validation split", above=0, below=1
    )
    skip_bad_rows: bool = setting(
        False, "leave out rows without text or label, or with a label unknown to train, and count them"
    )


@dataclass(frozen=True)
class FeatureSettings:
    """What is computed from each text."""

    views: tuple[str, ...] = setting(("last/cls",), "layer/pooling pairs: last/cls,last/mean,-4/mean")
    prompt: str = setting("", "put before every text, e.g. 'query: ' for E5 models")
    max_length: int = setting(512, "longest text in tokens; the model's own limit if that is lower", least=1)
    extend_positions: str = setting(
        "none",
        "room for --max-length beyond the model's learned positions; new ones are random, copies of "
        "the learned ones, or all are interpolated",
        choices=("none", "random", "copy", "interpolate"),
    )
    long_text: str = setting(
        "truncate",
        "longer texts are cut, encoded in overlapping windows that are pooled, or cut in the middle",
        choices=("truncate", "chunks", "head-tail"),
    )
    overlap: int = setting(64, "tokens that neighbouring windows of --long-text chunks share", least=0)
    storage: str = setting("float16", "type of the stored features", choices=("float16", "float32"))


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained."""

    epochs: int = setting(100, "passes over the cached train features", least=1)
    lr: float = setting(1e-3, "AdamW learning rate", above=0)
    weight_decay: float = setting(0.01, "AdamW weight decay", least=0)
    batch_size: int = setting(32, "rows in one training step", least=1)
    warmup: float = setting(0.0, "share of the steps over which the learning rate rises", least=0, below=1)
    schedule: str = setting(
        "constant", "learning rate after the warm-up", choices=("constant", "linear", "cosine")
    )
    patience: int | None = shared_setting("patience")
    label_smoothing: float = shared_setting("label_smoothing")
    class_weight: str = shared_setting("class_weight")
    C: float = setting(0.1, "inverse penalty of logistic regression", above=0)
    penalty: str = setting(
        "fixed", "exact head: C as it is, or chosen by validation or by k-fold cross-validation",
        choices=("fixed", "validation", "folds"),
    )  # fmt: skip
    folds: int = setting(5, "parts of the train rows for --penalty folds", least=2)
    hidden: int = setting(256, "units of the mlp head's hidden layer", least=1)
    dropout: float = setting(0.0, "share of hidden units left out in a training step", least=0, below=1)
    alpha: float = setting(1.0, "penalty of the ridge head", above=0)
    neighbours: int = setting(15, "rows that vote in the neighbours head", least=1)


@dataclass(frozen=True)
class PathSettings:
    """Where results are kept."""

    cache_dir: str = setting("cache", "folder or URL (s3://..., gs://...) of the feature caches")
    reports_dir: str = setting("reports", "folder of the trained runs")
    shard_size: str = setting("4GB", "most bytes of one cache file; what is larger becomes several shards")


@dataclass(frozen=True)
class Settings:
    """All settings, one section a table of `featcache.toml`."""

    backbone: BackboneSettings = BackboneSettings()
    data: DataSettings = DataSettings()
    features: FeatureSettings = FeatureSettings()
    head: HeadSettings = HeadSettings()
    paths: PathSettings = PathSettings()
    seed: int = setting(0, "seed of every random choice")


@dataclass(frozen=True)
class Option:
    """One setting as the command line sees it."""

    section: str  # "" for top-level settings
    name: str
    type: Any  # the bare type: str, int, float, bool, tuple or dict
    optional: bool
    default: Any
    help: str
    choices: tuple[str, ...]
    least: float | None
    above: float | None
    below: float | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def options() -> dict[str, Option]:
    """Every setting by name (names are unique over the sections), in the order of the file."""
    found: dict[str, Option] = {}
    for section, cls in _sections().items():
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if "help" not in item.metadata:
                continue
            bare, optional = _bare(hints[item.name])
            found[item.name] = Option(section, item.name, bare, optional, item.default, **item.metadata)
    return found


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    path: str | Path | None = None,
) -> Settings:
    """Settings from `overrides` (flags, by name), then the file at `path`, then the defaults.

    Args:
        overrides: values by setting name, as typed (`"last/cls,last/mean"`) or already typed;
            `None` values count as not given.
        path: the toml file; `featcache.toml` in the working folder by default, which may be absent.

    Raises:
        UsageError: unknown table or setting, a value of the wrong type, an unreadable file.
    """
    values = _read_toml(path)
    for name, value in (overrides or {}).items():
        if value is not None:
            values[name] = value
    return build_settings(values)


def build_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from values by name; what is not named keeps its default."""
    known = options()
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"unknown setting {name!r}", hint=_closest(name, list(known)))
        option = known[name]
        tables.setdefault(option.section, {})[name] = coerce(option, value)
    top = tables.pop("", {})
    classes = _sections()
    return Settings(**{section: classes[section](**fields) for section, fields in tables.items()}, **top)


def coerce(option: Option, value: Any) -> Any:
    """`value`, typed as `option` wants it.

    Raises:
        UsageError: naming the flag, what it wants, and what it got.
    """
    try:
        typed = _coerced(option, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{option.flag}: {error}") from None
    if option.choices and typed not in option.choices:
        raise UsageError(f"{option.flag}: {typed!r} is none of {', '.join(option.choices)}")
    if isinstance(typed, (int, float)) and not isinstance(typed, bool):
        _check_limits(option, typed)
    return typed


def _check_limits(option: Option, number: float) -> None:
    """NaN and infinity are outside any limits."""
    limits = [
        ("at least", option.least, lambda limit: number >= limit),
        ("above", option.above, lambda limit: number > limit),
        ("below", option.below, lambda limit: number < limit),
    ]
    known = [(text, limit, holds) for text, limit, holds in limits if limit is not None]
    if not math.isfinite(number) or not all(holds(limit) for _, limit, holds in known):
        wanted = " and ".join(f"{text} {limit}" for text, limit, _ in known) or "a finite number"
        raise UsageError(f"{option.flag} {number}: must be {wanted}")


def to_toml(settings: Settings) -> str:
    """`settings` as the text of a `featcache.toml`: all of them, those without a value as comments."""
    lines = ["# Settings of featcache; a flag on the command line wins over this file.", ""]
    lines += [f"seed = {settings.seed}"]
    for section in _sections():
        if not section:
            continue
        lines += ["", f"[{section}]"]
        for option in options().values():
            if option.section == section:
                value = getattr(getattr(settings, section), option.name)
                text = f"{option.name} = {_toml_value(value)}"
                lines.append(f"{text if value is not None else '# ' + option.name + ' ='}  # {option.help}")
    return "\n".join(lines) + "\n"


def _sections() -> dict[str, Any]:
    named = {
        item.name: type(item.default)
        for item in dataclasses.fields(Settings)
        if dataclasses.is_dataclass(item.default)
    }
    return {"": Settings, **named}


def _bare(hint: Any) -> tuple[Any, bool]:
    """`str | None` -> (str, True); `tuple[str, ...]` -> (tuple, False)."""
    optional = False
    if isinstance(hint, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        hint, optional = members[0], True
    return typing.get_origin(hint) or hint, optional


def _coerced(option: Option, value: Any) -> Any:
    if value is None and option.optional:
        return None
    if option.type is bool:
        if not isinstance(value, bool):
            raise ValueError(f"wants true or false, got {value!r}")
        return value
    if option.type is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise ValueError(f"wants a list, got {value!r}")
        items = tuple(str(part).strip() for part in parts)
        if not items or not all(items):
            raise ValueError(f"has an empty item: {value!r}")
        return items
    if option.type is dict:
        return _mapping(value) or None
    if option.type is str:
        if not isinstance(value, str):
            raise ValueError(f"wants text, got {value!r}")
        return value
    return _number(option.type, value)


def _number(kind: type, value: Any) -> int | float:
    if isinstance(value, bool):
        raise ValueError(f"wants a number, got {value!r}")
    try:
        number: int | float = kind(value)
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"wants {wanted}, got {value!r}") from None
    if isinstance(value, float) and number != value:
        raise ValueError(f"wants a whole number, got {value!r}")
    return number


def _mapping(value: Any) -> dict[str, str]:
    if isinstance(value, str) and value:
        pairs = [part.partition("=") for part in value.split(",")]
        if any(not key.strip() or not file.strip() for key, _, file in pairs):
            raise ValueError(f"wants train=FILE,test=FILE, got {value!r}")
        return {key.strip(): file.strip() for key, _, file in pairs}
    if not isinstance(value, Mapping):
        raise TypeError(f"wants a table of split = file, got {value!r}")
    return {str(key): str(file) for key, file in value.items()}


def load_table(name: str, path: str | Path | None = None) -> dict[str, Any]:
    """One of `OTHER_TABLES` of the settings file as it stands there; empty where it does not."""
    table = _toml_tables(path).get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{name} is no table of settings", hint=f"write it as [{name}]")
    return table


def _toml_tables(path: str | Path | None) -> dict[str, Any]:
    file = Path(path if path is not None else CONFIG_FILE)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return {}
        raise UsageError(f"no settings file {file}", hint="write one with: featcache init") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(
            f"cannot read {file}: {error}", hint="write a new one with: featcache init"
        ) from None


def _read_toml(path: str | Path | None) -> dict[str, Any]:
    file = Path(path if path is not None else CONFIG_FILE)
    tables = _toml_tables(path)
    known = options()
    sections = [name for name in _sections() if name]
    values: dict[str, Any] = {}
    for key, content in tables.items():
        if key in OTHER_TABLES:
            continue
        if not isinstance(content, dict):
            content, section = {key: content}, ""
        elif key in sections:
            section = key
        else:
            raise UsageError(f"{file}: unknown table [{key}]", hint=_closest(key, sections))
        for name, value in content.items():
            if name not in known or known[name].section != section:
                here = [option.name for option in known.values() if option.section == section]
                where = f"[{section}] " if section else ""
                raise UsageError(f"{file}: unknown setting {where}{name}", hint=_closest(name, here))
            values[name] = value
    return values


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_value(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    return _toml_string("" if value is None else str(value))


def _toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
