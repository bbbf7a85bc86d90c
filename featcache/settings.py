"""Every setting: frozen dataclasses with their help, and how flags and `featcache.toml` are read into them.

A setting comes from a flag, else from `featcache.toml` in the working folder, else from its default. Its
type, default, help and limits are written in the dataclasses below only; the command line and the file
format are derived from them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from featcache.endpoint_settings import EndpointSettings
from featcache.errors import UsageError, closest
from featcache.option import Option, coerce, options_of, sections_of, setting
from featcache.plain_file import read_plain

T = TypeVar("T")

CONFIG_FILE = "featcache.toml"
MOST_BYTES = 1 << 20  # of it
OTHER_TABLES = ("finetune",)  # read with `load_table`
DEFAULT_MAX_LENGTH, DEFAULT_C = 512, 0.1


@dataclass(frozen=True)
class BackboneSettings:
    """Which frozen model, and how it computes."""

    model: str = setting("bert-base-chinese", "hub id or folder of the backbone, or openai+http://HOST/v1#M")
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
    hub: str = setting(
        "huggingface", "where a model that is no folder comes from", choices=("huggingface", "modelscope")
    )
    adapter: str | None = setting(None, "folder of a PEFT LoRA adapter, merged into the model's weights")
    backbones: dict[str, str] | None = setting(None, "more of them: A=MODEL,B=FILE.toml; views A:last/mean")


@dataclass(frozen=True)
class DataSettings:
    """Where texts and labels come from."""

    dataset: str = setting(
        "lansinuote/ChnSentiCorp", "hub id, save_to_disk folder, or folder of csv/tsv/json/parquet"
    )
    dataset_revision: str | None = setting(None, "hub revision of the dataset")
    data_files: dict[str, str] | None = setting(None, "train=F,validation=F,test=F (files or URLs)")
    encoding: str | None = setting(
        None, "of text files, e.g. gb18030, big5, utf-16 (default: found by a look at the file)"
    )
    sheet: str | None = setting(None, "of an Excel file (default: the only one with rows)")
    text_column: str | None = setting(
        None, "column with the text; A,B joins two (default: found by its usual names)"
    )
    pair_column: str | None = setting(None, "column with the second text of a pair")
    label_column: str | None = setting(None, "column with the label (default: found by its usual names)")
    label_columns: tuple[str, ...] | None = setting(None, "columns of 0 and 1, one a label: multi-label")
    label_separator: str | None = setting(None, "splits a text label into several, e.g. ;: multi-label")
    similar_labels: str = setting(
        "ask", "labels that differ in case or white space alone: refused, made one, or kept apart",
        choices=("ask", "merge", "keep"),
    )  # fmt: skip
    label_names: tuple[str, ...] | None = setting(None, "names of labels 0,1,... separated by commas")
    task: str | None = setting(
        None, "regression: the labels are numbers to be predicted (default: classification)",
        choices=("classification", "regression"),
    )  # fmt: skip
    test_split: str | None = setting(
        None, "split of the source to test on, e.g. validation (default: test); another is held out then"
    )
    validation_share: float = setting(
        0.1, "share of train held out where there is no validation split", above=0, below=1
    )
    test_share: float | None = setting(
        None, "share of train held out for test where there is no test split, by a hash of each text "
        "(run: 0.1)", above=0, below=1,
    )  # fmt: skip
    skip_bad_rows: bool = setting(
        False, "leave out rows without text or label, or with a label unknown to train, and count them"
    )


@dataclass(frozen=True)
class FeatureSettings:
    """What is computed from each text."""

    views: tuple[str, ...] = setting(
        ("last/auto",),
        "layer/pooling pairs: last/cls,last/mean,-4/mean; depth: mean and [CLS] of four layers; the pooling "
        "auto is the one that the model's sentence-transformers settings name, else cls",
    )
    prompt: str = setting(
        "auto",
        "put before every text, e.g. 'query: ' for E5 models; with the pooling auto, auto is the default "
        "prompt of the model's sentence-transformers settings, otherwise none",
    )
    prompt_name: str | None = setting(
        None, "use the prompt of this name in the model's sentence-transformers settings"
    )
    max_length: int | None = setting(
        None,
        "longest text in tokens; the model's own limit if that is lower (default: with the pooling auto as "
        f"the model's sentence-transformers settings say, otherwise {DEFAULT_MAX_LENGTH})",
        least=1,
    )
    lower_case: bool | None = setting(
        None, "lower-case texts first (default: with the pooling auto as those settings say, otherwise no)"
    )
    pool_prompt: bool | None = setting(
        None, "pool the prompt's tokens too (default: with the pooling auto as they say, otherwise yes)"
    )
    extend_positions: str = setting(
        "none",
        "room for --max-length beyond the model's learned positions; new ones are random, copies of "
        "the learned ones, or all are interpolated",
        choices=("none", "random", "copy", "interpolate"),
    )
    long_text: str = setting(
        "truncate",
        "longer texts are truncated, encoded in overlapping windows that are pooled, or lose their middle",
        choices=("truncate", "chunks", "head-tail"),
    )
    overlap: int = setting(64, "tokens that neighbouring windows of --long-text chunks share", least=0)
    storage: str = setting("float16", "type of the stored features", choices=("float16", "float32"))

    @property
    def longest(self) -> int:
        """The longest text in tokens, as asked for or by default."""
        return DEFAULT_MAX_LENGTH if self.max_length is None else self.max_length


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
    patience: int | None = setting(
        None, "stop after this many epochs without a better validation score", least=1
    )
    label_smoothing: float = setting(
        0.0, "share of the target spread evenly over the classes", least=0, below=1
    )
    class_weight: str = setting(
        "none", "balanced: rare classes weigh as much as frequent ones; by name: good=1,bad=3 (others: 1)"
    )
    weight_column: str | None = setting(
        None, "column of the data with what each row weighs in training; validation and test rows count alike"
    )
    C: float | None = setting(
        None, "inverse penalty of logistic regression (default: chosen, see --penalty)", above=0
    )
    penalty: str | None = setting(
        None, "logistic and exact heads: C is chosen by validation or by k-fold cross-validation; "
        f"fixed: {DEFAULT_C}, or what --C says (default: fixed with --C, otherwise validation)",
        choices=("fixed", "validation", "folds"),
    )  # fmt: skip
    folds: int = setting(5, "parts of the train rows for --penalty folds", least=2)
    view_scales: bool = setting(False, "exact head: validation chooses how much each view counts; slow")
    hidden: int = setting(256, "units of the mlp head's hidden layer", least=1, below=1 << 24)
    dropout: float = setting(0.0, "share of hidden units left out in a training step", least=0, below=1)
    alpha: float | None = setting(
        None, "penalty of the ridge head (default: 1; with --task regression chosen, see --penalty)", above=0
    )
    interval: float | None = setting(
        None, "share of new numbers that the intervals of --task regression contain (default: 0.9)",
        above=0, below=1,
    )  # fmt: skip
    neighbours: int = setting(15, "rows that vote in the neighbours head", least=1)
    queries: int = setting(16, "learned queries of the attentive head at each layer", least=1, below=1 << 12)
    passes: int = setting(6, "passes of the attentive head over the token states, its epochs", least=1)
    costs: str | None = setting(
        None, "json or csv file: what each predicted label costs by the true one; the head then predicts the "
        "label that is expected to cost least (default: the most probable one)",
    )  # fmt: skip

    @property
    def penalty_choice(self) -> str:
        """`fixed`, `validation` or `folds`: where C comes from."""
        return self.penalty or ("validation" if self.C is None else "fixed")

    @property
    def with_choice(self) -> HeadSettings:
        """The same, with `penalty` and `alpha` told, and C where it is fixed."""
        C = self.fixed_C if self.penalty_choice == "fixed" else self.C
        return replace(self, penalty=self.penalty_choice, C=C, alpha=self.fixed_alpha)

    @property
    def alpha_choice(self) -> str:
        """As `penalty_choice`, where alpha of a ridge regression comes from."""
        return self.penalty or ("validation" if self.alpha is None else "fixed")

    @property
    def fixed_alpha(self) -> float:
        """alpha where it is not chosen."""
        return 1.0 if self.alpha is None else self.alpha

    @property
    def fixed_C(self) -> float:
        """C where it is not chosen."""
        return DEFAULT_C if self.C is None else self.C


@dataclass(frozen=True)
class AbstentionSettings:
    """When a head gives no answer: always one if neither `max_error` nor `coverage` is given."""

    max_error: float | None = setting(
        None, "no answer where the head is not sure, so that at most this share of its answers is wrong",
        above=0, below=1,
    )  # fmt: skip
    coverage: float | None = setting(
        None, "no answer where the head is least sure, so that at least this share of texts has one",
        above=0, most=1,
    )  # fmt: skip
    confidence: float = setting(0.95, "with which --max-error and --coverage hold", above=0, below=1)
    out_of_scope: float = setting(
        0.02, "no answer for texts that are as far from the train texts as this share of validation texts",
        least=0, below=1,
    )  # fmt: skip

    @property
    def asked(self) -> bool:
        """Whether a head with these settings may give no answer."""
        return self.max_error is not None or self.coverage is not None

    @property
    def flag(self) -> str:
        """What was asked for, as on the command line."""
        if self.coverage is not None:
            return f"--coverage {self.coverage:g}"
        return f"--max-error {self.max_error or 0:g}"

    @property
    def promise(self) -> str:
        """`at most 2 % errors` or `at least 90 % answers`."""
        if self.coverage is not None:
            return f"at least {100 * self.coverage:g} % answers"
        return f"at most {100 * (self.max_error or 0):g} % errors"


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
    abstention: AbstentionSettings = AbstentionSettings()
    endpoint: EndpointSettings = EndpointSettings()  # noqa: RUF009
    paths: PathSettings = PathSettings()
    seed: int = setting(0, "seed of every random choice")


def options(kind: type = Settings) -> dict[str, Option]:
    """Every setting of the dataclass `kind` by its name, which is unique, in the order of the file."""
    return dict(options_of(kind))


def load_settings(overrides: Mapping[str, Any] | None = None, *, path: str | Path | None = None) -> Settings:
    """Settings from `overrides` (flags, by name), then the file at `path`, then the defaults.

    Args:
        overrides: values by setting name, as typed (`"last/cls,last/mean"`) or already typed;
            `None` values count as not given.
        path: the toml file; `featcache.toml` in the working folder by default, which may be absent.

    Raises:
        UsageError: unknown table or setting, a value of the wrong type, an unreadable file.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    in_file, levels = _values_in_file(path), ("max_error", "coverage")
    if not given.keys().isdisjoint(levels):  # one takes the place of the other
        in_file = {name: value for name, value in in_file.items() if name not in levels}
    return build_settings(in_file | given)


def build_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from values by name; the others keep their defaults."""
    return build_dataclass(Settings, values)


def build_dataclass(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of settings, such as `Settings`, from values by name; the others keep their defaults.

    Raises:
        UsageError: an unknown name, or a value that the setting does not accept.
    """
    known = options(kind)
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"unknown setting {name!r}", hint=_closest(name, list(known)))
        tables.setdefault(known[name].section, {})[name] = coerce(known[name], value)
    top = tables.pop("", {})
    classes = sections_of(kind)
    return kind(**{section: classes[section](**fields) for section, fields in tables.items()}, **top)


def load_table(name: str, path: str | Path | None = None) -> dict[str, Any]:
    """The table `name` (of `OTHER_TABLES`) in the settings file as it stands; empty if it is not there."""
    table = _toml_tables(path).get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{name} is not a table of settings", hint=f"write it as [{name}]")
    return table


def _toml_tables(path: str | Path | None) -> dict[str, Any]:
    file = Path(path if path is not None else CONFIG_FILE)
    if file == Path(os.devnull):  # the usual way to ask for no settings file
        return {}
    try:
        return tomllib.loads(read_plain(file, MOST_BYTES).decode())
    except FileNotFoundError:
        if path is None:
            return {}
        raise UsageError(f"no settings file {file}", hint="write one with: featcache init") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"cannot read {file}: {reason}", hint="write a new one with: featcache init"
        ) from None


def _values_in_file(path: str | Path | None) -> dict[str, Any]:
    """The values of the settings file by name, of all its tables but `OTHER_TABLES`."""
    file = Path(path if path is not None else CONFIG_FILE)
    known, sections = options(), [name for name in sections_of(Settings) if name]
    values: dict[str, Any] = {}
    for key, content in _toml_tables(path).items():
        if key in OTHER_TABLES:
            continue
        table, section = (content, key) if isinstance(content, dict) else ({key: content}, "")
        if section and section not in sections:
            raise UsageError(f"{file}: unknown table [{key}]", hint=_closest(key, sections))
        for name, value in table.items():
            if name not in known or known[name].section != section:
                here = [option.name for option in known.values() if option.section == section]
                where = f"[{section}] {name}" if section else name
                raise UsageError(f"{file}: unknown setting {where}", hint=_closest(name, here))
            values[name] = value
    return values


def _closest(name: str, known: list[str]) -> str:
    if (option := options().get(name)) is not None:
        return f"{name} belongs {f'below [{option.section}]' if option.section else 'above all tables'}"
    return f"did you mean {close!r}?" if (close := closest(name, known)) else f"known: {', '.join(known)}"
