"""Settings as the text of a `featcache.toml`, and as flags."""

from __future__ import annotations

import json
import shlex
from typing import Any

from featcache.option import Option
from featcache.settings import Settings, options


def to_toml(settings: Settings) -> str:
    """All settings; those without a value as comments."""
    about = "# Settings of featcache; a flag on the command line wins over this file."
    known = options().values()
    lines = [about, "", f"seed = {settings.seed}"]
    for section in filter(None, dict.fromkeys(option.section for option in known)):
        lines += ["", f"[{section}]"]
        for option in known:
            if option.section == section:
                value = value_of(settings, option)
                text = f"# {option.name} =" if value is None else f"{option.name} = {_toml_value(value)}"
                lines.append(f"{text}  # {option.help}")
    return "\n".join(lines) + "\n"


def value_of(settings: Settings, option: Option) -> Any:
    """The value of one setting."""
    return getattr(getattr(settings, option.section) if option.section else settings, option.name)


def flag_words(option: Option, value: Any) -> list[str]:
    """A setting as words of a command line."""
    if isinstance(value, bool):
        return [option.flag if value else f"--no-{option.flag.removeprefix('--')}"]
    if isinstance(value, dict):
        return [option.flag, ",".join(f"{key}={part}" for key, part in value.items())]
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return [f"{option.flag}={text}"] if text.startswith("-") else [option.flag, text]


def flags_between(before: Settings, after: Settings) -> str:
    """The flags that turn `before` into `after`, for a shell."""
    pairs = (
        (one, value_of(after, one))
        for one in options().values()
        if value_of(before, one) != value_of(after, one)
    )
    return shlex.join(word for one, value in pairs for word in flag_words(one, value))


def _toml_value(value: Any) -> str:
    """As JSON, which has the same texts, numbers and lists as TOML, but for U+007F and tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_value(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
