"""Finished sentences in another language: those of errors and notes, which are made in English.

The catalogue has them as templates, `{path} is no folder`. A finished sentence is translated by the template
that it matches; the values of its placeholders, which may be sentences too, are translated likewise.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache
from string import Formatter

from featcache.translation.agreement import agreed
from featcache.translation.language import catalogue_file, language, noted, pgettext

FINISHED = "finished"  # the context of templates in the catalogue
# Sentences of the system and of argparse, and parts of sentences of ours.
MORE = (
    noted("at most {share} % of the answers are wrong", FINISHED),
    noted("the hub at {address}", FINISHED),
    noted("the server at {address}", FINISHED),
    noted("reading the source", FINISHED),
    noted("tokenising a sample", FINISHED),
    noted("encoding for about {seconds} s", FINISHED),
    noted("the model {name}", FINISHED),
    noted("the dataset {name}", FINISHED),
    noted("what was asked for", FINISHED),
    noted("write {path}", FINISHED),
    noted("write in {path}", FINISHED),
    noted("use {path}", FINISHED),
    noted("a file or a connection", FINISHED),
    noted("text: {columns}", FINISHED),
    noted("second text: {column}", FINISHED),
    noted("label: {column}", FINISHED),
    noted("labels: {columns}", FINISHED),
    noted("not read: {columns}", FINISHED),
    noted("{columns}, and {count} more", FINISHED),
    noted("no usable text", FINISHED),
    noted("row {line}", FINISHED),
    noted("no label", FINISHED),
    noted("a null among its labels", FINISHED),
    noted("without text or label", FINISHED),
    noted("with a label that never occurs in train", FINISHED),
    noted("{first} for validation and {second} for test", FINISHED),
    noted("{count} for validation", FINISHED),
    noted("{count} for test", FINISHED),
    noted("{path} (its first line read as the header)", FINISHED),
    noted("no {role} column found", FINISHED),
    noted("more than one {role} column", FINISHED),
    noted("no column {name}", FINISHED),
    noted("no column {name} (did you mean {close}?)", FINISHED),
    noted(": {file} differs in {fields}", FINISHED),
    noted("{name} (cached {cached}, wanted {wanted})", FINISHED),
    noted("at least {least}", FINISHED),
    noted("above {limit}", FINISHED),
    noted("below {limit}", FINISHED),
    noted("at most {most}", FINISHED),
    noted("at least {least} and at most {most}", FINISHED),
    noted("at least {least} and below {limit}", FINISHED),
    noted("above {limit} and at most {most}", FINISHED),
    noted("above {low} and below {high}", FINISHED),
    noted("{error} in step {step} of {steps}", FINISHED),
    noted("the loss became NaN or infinite", FINISHED),
    noted("a gradient became NaN or infinite", FINISHED),
    noted("a finite number", FINISHED),
    noted("an empty object", FINISHED),
    noted("No such file or directory", FINISHED),
    noted("Permission denied", FINISHED),
    noted("Is a directory", FINISHED),
    noted("Not a directory", FINISHED),
    noted("File exists", FINISHED),
    noted("No space left on device", FINISHED),
    noted("Read-only file system", FINISHED),
    noted("Input/output error", FINISHED),
    noted("File name too long", FINISHED),
    noted("Connection refused", FINISHED),
    noted("Address already in use", FINISHED),
    noted("the following arguments are required: {names}", FINISHED),
    noted("argument {flag}: expected one argument", FINISHED),
    noted("argument {flag}: expected at least one argument", FINISHED),
    noted("argument {flag}: invalid {kind} value: {value}", FINISHED),
    noted("argument {flag}: not allowed with argument {other}", FINISHED),
    noted("ridge on {reads}", FINISHED),
    noted("weaker ridge on {reads}", FINISHED),
    noted("contrastive step on {blocks}", FINISHED),
    noted("chosen by cross-validation", FINISHED),
)
# Between parts of a sentence of which each may have a template.
CLAUSE, SUBJECT = noted("; ", FINISHED), noted(": ", FINISHED)
DEEPEST = 4  # sentences in sentences


def translated(sentence: str, depth: int = 0) -> str:
    """`sentence` in the language that is spoken; as it is where no template of the catalogue matches it.

    An English sentence has a singular after a count of 1.
    """
    if language() == "en":
        return agreed(sentence)
    if depth > DEEPEST:
        return sentence
    for template in _templates_between(language(), sentence[:1], sentence[-1:]):
        if (found := template.values(sentence)) is not None:
            values = {name: translated(value, depth + 1) for name, value in found.items()}
            return pgettext(FINISHED, template.text).format_map(values)
    for mark in (CLAUSE, SUBJECT):
        parts = sentence.split(mark, maxsplit=-1 if mark == CLAUSE else 1)
        said = [translated(part, depth + 1) for part in parts] if len(parts) > 1 else parts
        if said != parts:
            return pgettext(FINISHED, mark).join(said)
    return sentence


def translated_lines(text: str) -> str:
    """Several sentences, each on a line of its own, with its indent."""
    stripped = ((line, line.strip()) for line in text.splitlines())
    return "\n".join(line.replace(said, translated(said)) if said else line for line, said in stripped)


class SentenceTemplate:
    """A template as its pieces of text, and the names of the placeholders between them."""

    def __init__(self, text: str) -> None:
        self.text, self.names = text, list[str]()
        self.pieces = [""]
        for piece, name, *_ in Formatter().parse(text):
            self.pieces[-1] += piece
            if name is not None:
                self.names.append(name)
                self.pieces.append("")

    def values(self, sentence: str) -> dict[str, str] | None:
        """What stands in the placeholders of `sentence`, the first ones short; None where it differs."""
        first, *middle = self.pieces
        if not middle:
            return {} if sentence == first else None
        last, at, found = middle.pop(), len(first), list[str]()
        end = len(sentence) - len(last)
        if at > end or not sentence.startswith(first) or not sentence.endswith(last):
            return None
        for piece in middle:
            place = sentence.find(piece, at, end)
            if place < 0:
                return None
            found.append(sentence[at:place])
            at = place + len(piece)
        return dict(zip(self.names, [*found, sentence[at:end]], strict=True))


@lru_cache(1024)
def _templates_between(language: str, first: str, last: str) -> list[SentenceTemplate]:
    """Those of the catalogue that a sentence with this first and this last character may match."""
    return [
        one
        for one in _templates(language)
        if one.pieces[0][:1] in ("", first) and one.pieces[-1][-1:] in ("", last)
    ]


@cache
def _templates(language: str) -> list[SentenceTemplate]:
    """Those of the catalogue, the ones with the most text first."""
    messages = (one.partition("\x04") for one in _messages(catalogue_file(language).read_bytes()))
    found = [SentenceTemplate(text) for context, _, text in messages if context == FINISHED]
    return sorted(found, key=lambda one: -len("".join(one.pieces)))


def _messages(compiled: bytes) -> list[str]:
    """The messages of a catalogue in the format of GNU gettext."""
    order = "<" if compiled[:4] == b"\xde\x12\x04\x95" else ">"
    count, start = struct.unpack_from(f"{order}II", compiled, 8)
    places = (struct.unpack_from(f"{order}II", compiled, start + 8 * number) for number in range(count))
    return [compiled[offset : offset + length].decode("utf-8") for length, offset in places]
