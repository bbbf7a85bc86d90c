"""The catalogue of translations: collects messages from the source, and writes the `.po` and the `.mo` file.

`python -m tests.support.catalogue` keeps what is translated, adds what is new with an empty translation, and
drops what the source no longer says.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from jinja2.ext import extract_from_ast

from featcache.translation.sentences import FINISHED
from featcache_cli.help import HELP_TEXT, help_parts
from featcache_cli.main import _parser
from tests.support.finished_sentences import Function, Module, finished_sentences, module_of

ROOT = Path(__file__).resolve().parents[2]
PO = ROOT / "featcache" / "translation" / "zh" / "LC_MESSAGES" / "featcache.po"
MO = PO.with_suffix(".mo")
HEADER = "Language: zh_CN\nContent-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=1; plural=0;\n"
COLUMN = "column"  # the context of headers of tables
CONTEXTS = {"FINISHED": FINISHED, "HELP_TEXT": HELP_TEXT}  # by the name of their constant
Key = tuple[str, str]  # context (or ""), message


@dataclass
class Message:
    """One entry of the catalogue; `plural` is the English plural form, or empty."""

    context: str
    text: str
    plural: str = ""
    translation: str = ""
    where: str = ""

    @property
    def key(self) -> Key:
        return self.context, self.text


def collected() -> dict[Key, Message]:
    """Every message of the source, without translations, by file."""
    paths = sorted(path for folder in ("featcache", "cli") for path in (ROOT / folder).rglob("*.py"))
    found: dict[Key, Message] = {}
    for path in (*paths, *sorted((ROOT / "featcache").rglob("*.jinja"))):
        for message in _of_python(path) if path.suffix == ".py" else _of_template(path):
            message.where = path.relative_to(ROOT).as_posix()
            known = found.setdefault(message.key, message)
            known.plural = known.plural or message.plural
    for message in _of_help():
        found.setdefault(message.key, message)
    for template, where in finished_sentences(ROOT, paths).items():
        found.setdefault((FINISHED, template), Message(FINISHED, template, where=where))
    return dict(sorted(found.items(), key=lambda item: item[1].where))


def _of_python(path: Path) -> Iterator[Message]:
    module = module_of(path)
    names = {"columns": "columns", "RunColumn": "columns"}
    names |= {"gettext": "gettext"} if path.name == "language.py" else {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module == "featcache.translation.language":
            names |= {one.asname or one.name: one.name for one in node.names}
    for call, function in module.calls:
        if isinstance(call.func, ast.Name) and call.func.id in names:
            texts = [found for one in call.args if (found := _texts(one, module, function))]
            if names[call.func.id] == "columns":
                headers = texts[:1] if call.func.id == "RunColumn" else texts
                yield from (
                    Message(COLUMN, one.removeprefix(">")) for header in headers for one in header if one
                )
            else:
                for words in itertools.product(*texts) if texts else ():
                    yield from _message(names[call.func.id], list(words))


def _texts(node: ast.expr, module: Module, function: Function | None, depth: int = 0) -> list[str]:
    """The texts that an argument of a call may be."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return [text for one in (node.body, node.orelse) for text in _texts(one, module, function, depth)]
    if isinstance(node, ast.Name) and node.id in CONTEXTS:
        return [CONTEXTS[node.id]]
    if isinstance(node, ast.Name) and depth < 3:
        values = module.values(node.id, function)
        return [text for value in values for text in _texts(value, module, function, depth + 1)]
    return []


def _of_template(path: Path) -> Iterator[Message]:
    tree = Environment().parse(path.read_text(encoding="utf-8"))
    names = {"_": "gettext", "ngettext": "ngettext", "pgettext": "pgettext"}
    for _, name, words in extract_from_ast(tree, tuple(names)):
        yield from _message(names[name], list(words) if isinstance(words, tuple) else [words])


def _of_help() -> Iterator[Message]:
    """What `-h` and `--help` of every command say, as the parsers have it."""
    parsers = [_parser()]
    for parser in parsers:
        texts = [] if parser is parsers[0] else [parser.description]  # that of the first has the others in it
        for group in parser._action_groups:
            texts += [group.title, group.description] if group._group_actions else []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):  # its help is the names of commands
                parsers += action.choices.values()
            else:
                texts.append(help_parts(action)[0])
        yield from (Message(HELP_TEXT, text, where=f"{parser.prog} --help") for text in texts if text)


def _message(function: str, words: list[object]) -> Iterator[Message]:
    """Of one call; none where its first argument is no text of the source."""
    texts = [word for word in words if isinstance(word, str)]
    if not words or not isinstance(words[0], str) or not words[0]:
        return
    if function == "pgettext" and len(texts) > 1:
        yield Message(texts[0], texts[1])
    elif function == "ngettext" and len(texts) > 1:
        yield Message("", texts[0], texts[1])
    elif function == "noted":
        yield Message(texts[1] if len(texts) > 1 else "", texts[0])
    elif function == "gettext":
        yield Message("", texts[0])


def read_po(path: Path = PO) -> dict[Key, Message]:
    """The entries of a `.po` file, without its header."""
    found = {}
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if path.exists() else []:
        fields = {"where": "", "msgctxt": "", "msgid": "", "msgid_plural": "", "msgstr": ""}
        last = ""
        for line in block.splitlines():
            if line.startswith("#: "):
                fields["where"] = line[3:]
            elif match := re.match(r'(?:(\w+)(?:\[0\])? )?(".*")$', line):
                last = match[1] or last
                fields[last] += json.loads(match[2])
        if fields["msgid"]:
            message = Message(
                fields["msgctxt"], fields["msgid"], fields["msgid_plural"], fields["msgstr"], fields["where"]
            )
            found[message.key] = message
    return found


def po_text(messages: dict[Key, Message]) -> str:
    """A `.po` file of messages in their order, one line a text."""

    def line(name: str, text: str) -> str:
        return f"{name} {json.dumps(text, ensure_ascii=False)}"

    blocks = [line("msgid", "") + "\n" + line("msgstr", HEADER)]
    for one in messages.values():
        lines = (
            [f"#: {one.where}"]
            + ([line("msgctxt", one.context)] if one.context else [])
            + [line("msgid", one.text)]
        )
        lines += (
            [line("msgid_plural", one.plural), line("msgstr[0]", one.translation)]
            if one.plural
            else [line("msgstr", one.translation)]
        )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def compiled(messages: dict[Key, Message]) -> bytes:
    """The `.mo` file of GNU gettext: translated messages in the order of their bytes."""
    texts = {b"": HEADER.encode("utf-8")}
    for one in messages.values():
        key = f"{one.context}\x04{one.text}" if one.context else one.text
        key += f"\x00{one.plural}" if one.plural else ""
        if one.translation:
            texts[key.encode("utf-8")] = one.translation.encode("utf-8")
    keys = sorted(texts)
    values = [texts[key] for key in keys]
    offset = 28 + 16 * len(keys)
    tables, data = b"", b""
    for column in (keys, values):
        for text in column:
            tables += struct.pack("<II", len(text), offset + len(data))
            data += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 28 + 16 * len(keys))
    return head + tables + data


def main() -> None:
    known, messages = read_po(), collected()
    for key, message in messages.items():
        message.translation = known[key].translation if key in known else ""
    PO.parent.mkdir(parents=True, exist_ok=True)
    PO.write_text(po_text(messages), encoding="utf-8")
    MO.write_bytes(compiled(messages))
    missing = [message for message in messages.values() if not message.translation]
    dropped = len(known.keys() - messages.keys())
    print(f"{len(messages)} messages, {len(missing)} without a translation, {dropped} dropped")


if __name__ == "__main__":
    main()
