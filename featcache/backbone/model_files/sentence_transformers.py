"""How a model's sentence-transformers settings say that a text becomes a vector, without importing torch.

`modules.json` lists modules, each with its settings in a folder of its own: the Transformer, a Pooling, and
what follows it (Dense, LayerNorm, Dropout, Normalize); or a StaticEmbedding in the place of the first two.
`follow` puts what they say in the place of `auto` in the settings of features; nothing of them counts where
no view has the pooling `auto`.

A pooling is written as the poolings of tokens that are joined, then the steps that follow, in their order:
`mean`, `cls+mean`, `mean-dense-normalized`, `last-first256`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.depth_views import DEPTH, depth_views
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.json_file import object_if_there, read_object
from featcache.backbone.model_files.modules_json import (
    CONFIG,
    STATIC,
    STEPS,
    read_modules,
    require,
    root_of,
)
from featcache.errors import BackboneError, UsageError
from featcache.settings import FeatureSettings

AUTO, DEFAULT_POOLING = "auto", "cls"
ABOUT = "config_sentence_transformers.json"
KIND = "SentenceTransformer"  # of the model; others are CrossEncoder and so on
TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Names of poolings by their names there.
POOLING_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
# Earlier files have a switch for each pooling; several are joined in this order.
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args",
             "config_kwargs", "processing_kwargs")  # fmt: skip
# Arguments for model and tokenizer that change no vector here.
HARMLESS = ("padding_side", "attn_implementation", "torch_dtype", "dtype", "device_map", "use_cache",
            "low_cpu_mem_usage", "trust_remote_code", "use_fast")  # fmt: skip
MODEL2VEC_LENGTH = 512  # tokens of a text that model2vec reads
WHOLE_TEXTS = 1_000_000  # tokens; sentence-transformers gives a StaticEmbedding texts of any length
LIMITS = ("max_position_embeddings", "n_positions")  # of the longest text, in config.json
IN_WORDS = {"cls": "first token", "last": "last token", "weightedmean": "weighted mean",
            "mean_sqrt_len": "sum over the root of the length", "normalized": "normalised",
            "layernorm": "layer norm"}  # fmt: skip


@dataclass(frozen=True)
class SentenceSettings:
    """What the files of one model say.

    Attributes:
        pooling: with the steps that follow it, as in the name of a view.
        max_length: longest text in tokens; None where nothing limits it.
        lower_case: whether texts are lower-cased first.
        pool_prompt: whether the prompt's tokens are pooled too.
    """

    pooling: str
    max_length: int | None
    lower_case: bool
    pool_prompt: bool


@dataclass(frozen=True)
class Followed:
    """Settings of features in which nothing is `auto` or `depth`.

    Attributes:
        views: of each view as it was asked for, those that it stands for.
        note: for the user, empty if there is no need.
        by_model: whether the model's sentence-transformers settings say what `auto` is.
    """

    features: FeatureSettings
    views: Mapping[str, tuple[str, ...]]
    note: str = ""
    by_model: bool = False


def follow(features: FeatureSettings, files: ModelFiles) -> Followed:
    """Settings with what the model says in the place of `auto` and `depth`; a second call changes nothing.

    Where no view has the pooling `auto`, the model's sentence-transformers settings do not count, except for
    a prompt that is asked for by its name.

    Raises:
        BackboneError: settings that cannot be followed; says which and why.
        UsageError: a prompt of this name is not there, or the model does not say how many layers it has.
    """
    own = (f"/{AUTO}", DEPTH) if files.is_static else (f"/{AUTO}",)  # a static model has one layer
    auto = [view for view in features.views if view.endswith(own)]
    about = object_if_there(root_of(files.folder) / ABOUT) if auto or features.prompt_name is not None else {}
    foreign = str(about.get("model_type") or KIND)
    found = read_settings(files) if auto and foreign == KIND else None
    otherwise = "mean" if files.is_static else DEFAULT_POOLING
    pooling = found.pooling if found else otherwise
    views = {view: _views_of(view, pooling, files) for view in features.views}
    prompt = _prompt(features, about if found else {}, about, files)
    stored = tuple(dict.fromkeys(name for names in views.values() for name in names))
    made = replace(features, views=stored, prompt=prompt, prompt_name=None)
    if found:
        made = replace(
            made,
            max_length=found.max_length if made.max_length is None else made.max_length,
            lower_case=found.lower_case if made.lower_case is None else made.lower_case,
            pool_prompt=found.pool_prompt if made.pool_prompt is None else made.pool_prompt,
        )
    if not prompt:
        made = replace(made, pool_prompt=None)  # there are no tokens of it, so no vector differs
    if found:
        layer = "" if files.is_static else auto[0].partition("/")[0]
        said = _in_words(made, layer, found, about)
        return Followed(made, views, said, by_model=True)
    note = f"its sentence-transformers settings are those of a {foreign} and are not followed: cls is pooled"
    return Followed(made, views, note if auto and foreign != KIND else "")


def _views_of(view: str, pooling: str, files: ModelFiles) -> tuple[str, ...]:
    """The views that one stands for as it is asked for; `pooling`: in the place of `auto`."""
    if view == DEPTH:
        return (f"last/{pooling}",) if files.is_static else depth_views(files)
    return (view.removesuffix(AUTO) + pooling if view.endswith(f"/{AUTO}") else view,)


def read_settings(files: ModelFiles) -> SentenceSettings | None:
    """What the files of a model say; None where it has no `modules.json`.

    Raises:
        BackboneError: they cannot be read or followed.
    """
    root = root_of(files.folder)
    modules = read_modules(root)
    if not modules:
        return _model2vec_settings(files) if files.is_static else None
    first = [STATIC] if files.is_static else ["Transformer", "Pooling"]
    kinds, steps_from = [kind for kind, _ in modules], len(first)
    if odd := [kind for kind in kinds if kind not in (*first, "Dropout", *STEPS)]:
        own = "has code of its own" if "." in odd[0] else "is not supported"
        raise _cannot(files, f"its module {odd[0]} {own}")
    if kinds[:steps_from] != first or not set(kinds[steps_from:]).isdisjoint(first):
        raise _cannot(files, f"its modules are {', '.join(kinds)}, not a {', a '.join(first)} and steps")
    for kind, path in modules[steps_from:]:
        config = object_if_there(root / path / CONFIG)
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in (None, "sentence_embedding"):
                raise _cannot(files, f"its module {kind} works on {config[key]}")
    max_length: int | None
    if files.is_static:
        pooling, pool_prompt, max_length, lower_case = "mean", True, _static_length(files), False
    else:
        pooling, pool_prompt = _pooling(files, root / modules[1][1])
        max_length, lower_case = _transformer(files, root / modules[0][1])
    steps = [STEPS[kind] for kind in kinds[steps_from:] if kind in STEPS]
    if (width := object_if_there(root / ABOUT).get("truncate_dim")) is not None:
        steps.append(f"first{_positive(width, files, 'truncate_dim')}")
    return SentenceSettings("-".join([pooling, *steps]), max_length, lower_case, pool_prompt)


def _model2vec_settings(files: ModelFiles) -> SentenceSettings:
    """Those of a folder that an earlier model2vec wrote, which has no `modules.json`."""
    normalize = object_if_there(files.folder / CONFIG).get("normalize") is True
    pooling = "mean-normalized" if normalize else "mean"
    return SentenceSettings(pooling, _static_length(files), lower_case=False, pool_prompt=True)


def _static_length(files: ModelFiles) -> int:
    """The longest text in tokens, for the library that the table was made by."""
    return MODEL2VEC_LENGTH if files.is_model2vec else WHOLE_TEXTS


def _pooling(files: ModelFiles, module: Path) -> tuple[str, bool]:
    """The joined poolings, and whether the prompt is pooled too."""
    config = read_object(require(module / CONFIG))
    asked = config.get("pooling_mode")
    if asked is None:
        names = [name for key, name in SWITCHES.items() if config.get(key)] or ["mean"]
    else:
        modes = [asked] if isinstance(asked, str) else asked
        if not isinstance(modes, list) or not modes or not all(str(mode) in POOLING_NAMES for mode in modes):
            raise _cannot(files, f"its pooling {asked!r} is not supported")
        names = [POOLING_NAMES[mode] for mode in modes]
    return "+".join(names), config.get("include_prompt", True) is not False


def _transformer(files: ModelFiles, module: Path) -> tuple[int | None, bool]:
    """The longest text in tokens, and whether texts are lower-cased."""
    there = (object_if_there(module / name) for name in TRANSFORMER_FILES)
    config: dict[str, Any] = next(filter(None, there), {})
    if config.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise _cannot(files, f"its Transformer is made for {config['transformer_task']}")
    modalities = config.get("modality_config")
    if isinstance(modalities, dict) and "message" in modalities:
        raise _cannot(files, "it puts texts into a chat template")
    given: dict[str, Any] = {}
    for key in ARGUMENTS:
        if not isinstance(config.get(key) or {}, dict):
            raise _cannot(files, f"its {key} are {config[key]!r}")
        given |= config.get(key) or {}
    asked = given.pop("model_max_length", None) or config.get("max_seq_length")
    if odd := sorted(set(given) - set(HARMLESS)):
        raise _cannot(files, f"it gives model or tokenizer the argument {odd[0]} = {given[odd[0]]!r}")
    model = object_if_there(files.folder / CONFIG)
    tokenizer = object_if_there(files.folder / "tokenizer_config.json")
    own = [tokenizer.get("model_max_length"), *map(model.get, LIMITS)]
    limits = [int(each) for each in own if isinstance(each, (int, float)) and 1 <= each < 1e9]
    if asked is not None:
        limits.append(_positive(asked, files, "max_seq_length"))
    return min(limits, default=None), bool(config.get("do_lower_case"))


def _prompt(
    features: FeatureSettings, followed: Mapping[str, Any], about: Mapping[str, Any], files: ModelFiles
) -> str:
    """The prompt that is asked for, by its text or its name; else the default one of what is `followed`."""
    asked = features.prompt_name
    if asked is not None and features.prompt != AUTO:
        raise UsageError("--prompt and --prompt-name cannot be given together")
    if features.prompt != AUTO:
        return features.prompt
    name = followed.get("default_prompt_name") if asked is None else asked
    if not name:
        return ""
    prompts = about.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise _cannot(files, f"the prompts in {ABOUT} are not texts by name")
    if isinstance(name, str) and name in prompts:
        return str(prompts[name])
    if asked is None:
        raise _cannot(files, f"its default prompt {name!r} is not among its prompts")
    known = f"it has {', '.join(prompts)}" if prompts else "it has none; give the text itself with --prompt"
    raise UsageError(f"{files.name} has no prompt named {name!r}", hint=known)


def _in_words(made: FeatureSettings, layer: str, found: SentenceSettings, about: Mapping[str, Any]) -> str:
    """The one line that says what is followed."""
    poolings, *steps = found.pooling.split("-")
    how = " and ".join(IN_WORDS.get(name, name) for name in poolings.split("+"))
    where = {"": "the token vectors", "last": "the last layer"}.get(layer, f"layer {layer}")
    said = [f"{how} of {where}", *map(_step_in_words, steps)]
    said += [f"at most {made.longest} tokens"] if made.longest < WHOLE_TEXTS else []
    said += ["lower case"] if made.lower_case else []
    said += [f"prompt {made.prompt!r}"] if made.prompt else []
    said += ["which is not pooled"] if made.pool_prompt is False else []
    prompts = about.get("prompts")
    others = prompts.items() if isinstance(prompts, dict) else ()
    names = [name for name, text in others if text and text != made.prompt]
    more = f" (by --prompt-name: {', '.join(names)})" if names else ""
    return f"as its sentence-transformers settings say: {', '.join(said)}{more}"


def _step_in_words(step: str) -> str:
    return f"the first {step[5:]} numbers" if step.startswith("first") else IN_WORDS.get(step, step)


def _positive(value: Any, files: ModelFiles, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _cannot(files, f"its {key} is {value!r}, not a number of at least 1")
    return value


def _cannot(files: ModelFiles, why: str) -> BackboneError:
    return BackboneError(
        f"the sentence-transformers settings of {files.name} cannot be followed: {why}",
        hint="use a pooling of your own instead, e.g. --pooling mean",
    )
