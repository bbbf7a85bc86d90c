"""English words that are left in Chinese output."""

from __future__ import annotations

import re

# Names that Chinese texts use as they are: of heads, views, metrics, methods, formats and files.
NAMES = {
    "featcache", "linear", "logistic", "lexical", "exact", "centroid", "ridge", "depth", "last", "cls",
    "mean", "token", "logit", "macro", "html", "json", "toml", "adamw", "mcnemar", "holm", "bert", "utf",
    "ctrl", "nan", "head", "pca", "auto", "chunks",
}  # fmt: skip


def english_words(text: str, *names: str) -> list[str]:
    """Words of three letters and more that are no names, flags, commands, paths or values.

    Args:
        names: of this output, with spaces between: labels, runs, texts.
    """
    known = NAMES | {word.lower() for name in names for word in re.findall("[A-Za-z]{3,}", name)}
    text = re.sub(r"featcache [a-z-]+(?: [a-z][a-z-]*(?= |$))?", " ", text)
    text = re.sub(r"--?[\w-]+|\S*[/\\_]\S*|\b\S+\.[a-z]\w*|'[^']*'|\b[A-Z_]{3,}\b", " ", text)
    return [word for word in re.findall("[A-Za-z]{3,}", text) if word.lower() not in known]
