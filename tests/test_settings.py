"""Settings: one place, three sources, a file that reads back as what was written."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featcache.endpoint_settings import EndpointSettings
from featcache.errors import UsageError
from featcache.option import PATHS
from featcache.settings import (
    CONFIG_FILE,
    AbstentionSettings,
    BackboneSettings,
    DataSettings,
    FeatureSettings,
    HeadSettings,
    PathSettings,
    Settings,
    build_settings,
    load_settings,
    options,
)
from featcache.settings_file import to_toml

EVERY_OPTION = sorted(options())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(content: str) -> Path:
    Path(CONFIG_FILE).write_text(content, encoding="utf-8")
    return Path(CONFIG_FILE)


# --- what there is ------------------------------------------------------------------------------


def test_settings_default_to_those_of_the_tutorials() -> None:
    settings = load_settings()
    assert settings == Settings() == build_settings({})
    assert settings.backbone.model == "bert-base-chinese"
    assert settings.data.dataset == "lansinuote/ChnSentiCorp"
    assert (settings.features.views, settings.features.prompt) == (("last/auto",), "auto")
    assert (settings.features.max_length, settings.features.longest) == (None, 512)
    assert settings.head.epochs == 100
    assert (settings.paths.cache_dir, settings.paths.reports_dir) == ("cache", "reports")


def test_options_have_help_a_flag_and_a_valid_default() -> None:
    found = options()
    fields = [
        field.name
        for part in (
            Settings,
            BackboneSettings,
            DataSettings,
            FeatureSettings,
            HeadSettings,
            AbstentionSettings,
            EndpointSettings,
            PathSettings,
        )
        for field in dataclasses.fields(part)
        if not dataclasses.is_dataclass(field.default)
    ]
    assert sorted(found) == sorted(fields)  # a name that stood twice would hide a setting
    for name, option in found.items():
        assert option.flag == "--" + name.replace("_", "-")
        assert len(option.help) > 5
        assert build_settings({name: option.default}) == Settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().features.max_length = 3  # type: ignore[misc]


# --- the file -----------------------------------------------------------------------------------

WORDS = st.text(min_size=1, max_size=12).map(str.strip).filter(bool)
LISTS = st.lists(WORDS, min_size=1, max_size=4).map(tuple)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=12),
    int: st.integers(1, 2**63 - 1),
    float: st.floats(0, 1, exclude_min=True, exclude_max=True),
    bool: st.booleans(),
    tuple: LISTS,
    dict: st.dictionaries(WORDS, WORDS, min_size=1, max_size=3),
}

PATH_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
PATH_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: PATH_TEXTS,
    dict: st.dictionaries(WORDS, PATH_TEXTS.map(str.strip).filter(bool), min_size=1, max_size=3),
}


CLASS_WEIGHTS = ("balanced", "好=1,坏=3", '{"a, b": 0.5}', "none")


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    """Settings with some of the values set, each to anything its type allows."""
    values: dict[str, Any] = {}
    for name, option in options().items():
        of_type = PATH_VALUES if name in PATHS else VALUES
        strategy = st.sampled_from(option.choices) if option.choices else of_type[option.type]
        if name == "class_weight":
            strategy = st.sampled_from(CLASS_WEIGHTS)
        if name == "prices":
            strategy = st.dictionaries(WORDS, st.floats(0, 1e6), min_size=1, max_size=3)
        if option.least is not None:
            strategy = strategy.filter(lambda value, least=option.least: value is None or value >= least)
        if option.below is not None:
            strategy = strategy.filter(lambda value, below=option.below: value is None or value < below)
        if draw(st.booleans()):
            values[name] = draw(st.integers(1 - 2**63, 2**63 - 1) if name == "seed" else strategy)
    return build_settings(values)


@given(any_settings())
@example(build_settings({"prompt": 'a"b\\c\n\t\u2028#=[x]\x00\x7f'}))
@example(build_settings({"prompt": "\U000e0001 and \U0010ffff"}))
@example(build_settings({"label_names": ("[red]", 'qu"ote', "很好, 不错", "a = 1")}))
@example(build_settings({"data_files": {"train": r"C:\data\train.tsv", "a.b c": "x=y,z"}}))
@example(build_settings({"lr": 1e-300, "C": 1e300, "seed": -1}))
def test_load_settings_reads_what_to_toml_writes(settings: Settings) -> None:
    text = to_toml(settings)
    tables = tomllib.loads(text)
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= value if isinstance(value, dict) else {key: value}
    assert build_settings(flat) == settings
    Path("other.toml").write_bytes(text.encode("utf-8"))
    assert load_settings(path="other.toml") == settings


def test_to_toml_contains_every_setting_with_its_help() -> None:
    text = to_toml(Settings())
    for name, option in options().items():
        if option.section:
            assert f"{name} =" in text and option.help in text
    assert "\n# revision =" in text  # without a value: there to be filled in, not set
    assert tomllib.loads(text)["backbone"]["model"] == "bert-base-chinese"


def test_load_settings_keeps_defaults_of_settings_that_the_file_lacks() -> None:
    write('seed = 3\n[features]\nviews = ["last/mean", "-4/cls"]\n[data.data_files]\ntrain = "a.tsv"\n')
    settings = load_settings()
    assert settings.seed == 3 and settings.features.views == ("last/mean", "-4/cls")
    assert settings.data.data_files == {"train": "a.tsv"}
    assert settings.head == HeadSettings()


# --- flags, then the file, then the defaults ----------------------------------------------------


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_load_settings_prefers_flags_then_the_file_then_defaults(name: str) -> None:
    option = options()[name]
    samples: dict[Any, tuple[Any, Any]] = {
        str: ("from-file", "from-flag"),
        int: (41, 42),
        float: (0.25, 0.125),
        bool: (True, False),
        tuple: (("file",), ("flag",)),
        dict: ({"train": "file"}, {"train": "flag"}),
    }
    in_file, as_flag = samples[option.type]
    if name == "class_weight":
        in_file, as_flag = CLASS_WEIGHTS[:2]
    if name == "prices":
        in_file, as_flag = {"m": 0.5}, {"m": 0.25}
    if option.choices:
        in_file, as_flag = option.choices[1], option.choices[0]
    write(to_toml(build_settings({name: in_file})))

    def value(settings: Settings) -> Any:
        return getattr(getattr(settings, option.section) if option.section else settings, name)

    assert value(load_settings({name: as_flag})) == as_flag
    assert value(load_settings({name: None})) == value(load_settings()) == in_file
    write("")
    assert value(load_settings()) == option.default


def test_load_settings_converts_flags_to_the_type_of_the_setting() -> None:
    typed = load_settings(
        {
            "views": "last/cls, -4/mean",
            "label_names": "差评,好评",
            "data_files": "train=a.tsv, test = b=c.tsv",
            "max_length": "128",
            "lr": "1e-2",
        }
    )
    assert typed.features.views == ("last/cls", "-4/mean")
    assert typed.data.label_names == ("差评", "好评")
    assert typed.data.data_files == {"train": "a.tsv", "test": "b=c.tsv"}
    assert (typed.features.max_length, typed.head.lr) == (128, 0.01)


# --- what cannot be meant -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("epochs", "many", "--epochs: wants a whole number, got 'many'"),
        ("epochs", "1.5", "--epochs: wants a whole number"),
        ("epochs", 1.5, "--epochs: wants a whole number"),
        ("epochs", math.inf, "--epochs: wants a whole number"),
        ("epochs", math.nan, "--epochs: wants a whole number"),
        ("epochs", True, "--epochs: wants a number, got True"),
        ("lr", "fast", "--lr: wants a number, got 'fast'"),
        ("lr", [1], "--lr: wants a number"),
        ("epochs", None, "--epochs"),
        ("dtype", "nonsense", "--dtype: 'nonsense' is none of auto, float32, bfloat16, float16"),
        ("storage", "float64", "--storage: 'float64' is none of float16, float32"),
        ("skip_bad_rows", "yes", "--skip-bad-rows: wants true or false, got 'yes'"),
        ("views", "last/cls,,last/mean", "--views: has an empty item"),
        ("views", "", "--views: has an empty item"),
        ("views", 3, "--views: wants a list, got 3"),
        ("data_files", "train", "--data-files: wants train=FILE,test=FILE, got 'train'"),
        ("data_files", "train=", "--data-files: wants train=FILE"),
        ("data_files", ["a.tsv"], "--data-files: wants a table of split = file"),
        ("model", 3, "--model: wants text, got 3"),
    ],
)
def test_build_settings_names_the_flag_of_an_invalid_value(name: str, value: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_settings({name: value})
    assert says in caught.value.what


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("lr", "1e-4..", "write it as in 0.001 or 1e-3"),
        ("epochs", "1e2", "write it as in 100"),
        ("dtype", "flaot16", "did you mean float16?"),
    ],
)
def test_an_invalid_value_has_a_hint(name: str, value: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_settings({name: value})
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[backbone]\nmodle = 'x'\n", ("[backbone] modle", "did you mean 'model'?")),
        ("[backbon]\nmodel = 'x'\n", ("[backbon]", "did you mean 'backbone'?")),
        ("sed = 3\n", ("unknown setting sed", "did you mean 'seed'?")),
        ("[head]\nmodel = 'x'\n", ("[head] model", "model belongs below [backbone]")),
        ("model = 'x'\n", ("unknown setting model", "model belongs below [backbone]")),
        ("[data]\nlr = 0.1\n", ("unknown setting [data] lr", "lr belongs below [head]")),
        ("[head]\nseed = 1\n", ("unknown setting [head] seed", "seed belongs above all tables")),
        ("[data_files]\ntrain = 'a'\n", ("unknown table [data_files]", "data_files belongs below [data]")),
        ("backbone = 3\n", ("unknown setting backbone",)),
        ("[backbone]\nmodel = 3\n", ("--model: wants text, got 3",)),
        ("[backbone\n", ("cannot read featcache.toml", "line 1", "featcache init")),
        ("seed = 1\nseed = 2\n", ("cannot read featcache.toml", "line 2")),
    ],
)
def test_load_settings_refuses_an_invalid_file(content: str, words: tuple[str, ...]) -> None:
    write(content)
    with pytest.raises(UsageError) as caught:
        load_settings()
    for word in (*words, CONFIG_FILE) if "wants" not in words[0] else words:
        assert word in str(caught.value)


def test_load_settings_refuses_a_file_that_is_unreadable_or_missing() -> None:
    Path(CONFIG_FILE).write_bytes("[backbone]\nmodel = '模型'\n".encode("gb18030"))
    with pytest.raises(UsageError, match=r"cannot read featcache\.toml"):
        load_settings()
    with pytest.raises(UsageError, match=r"no settings file nowhere\.toml"):
        load_settings(path="nowhere.toml")
    Path(CONFIG_FILE).unlink()
    assert load_settings() == Settings()


@pytest.mark.bad_input
def test_load_settings_refuses_what_is_no_file_of_settings() -> None:
    file = Path(CONFIG_FILE)
    file.write_text("a = " + "[" * 5000)
    with pytest.raises(UsageError, match=r"cannot read featcache\.toml"):
        load_settings()
    with file.open("r+b") as opened:
        opened.truncate(8 << 30)
    with pytest.raises(UsageError, match=r"cannot read featcache\.toml: it has more than 1 MiB"):
        load_settings()
    file.unlink()
    file.mkdir()
    with pytest.raises(UsageError, match=r"cannot read featcache\.toml: it is a folder"):
        load_settings()
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(UsageError, match=r"cannot read featcache\.toml: it is a pipe"):
        load_settings()


def test_build_settings_suggests_a_name_for_an_unknown_setting() -> None:
    with pytest.raises(UsageError, match=r"unknown setting 'max_lenght'\n.*'max_length'"):
        build_settings({"max_lenght": 3})
