"""Settings as the text of a `featcache.toml`."""

from __future__ import annotations

import json
from typing import Any

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
                value = getattr(getattr(settings, section), option.name)
                text = f"# {option.name} =" if value is None else f"{option.name} = {_toml_value(value)}"
                lines.append(f"{text}  # {option.help}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    """As JSON, which has the same texts, numbers and lists as TOML, but for U+007F and tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_value(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
