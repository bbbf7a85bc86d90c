"""`featcache label --terminal`: one key an answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from featcache.errors import FeatcacheError, UsageError
from featcache.labelling.words import accuracy_sentence, counts_sentence, encoding_sentences, more_sentence
from featcache.translation.language import gettext as _
from featcache.translation.language import listed, noted
from featcache.translation.sentences import translated, translated_lines
from featcache_cli.console import err

if TYPE_CHECKING:
    from featcache.labelling.encoding import BackgroundEncoding
    from featcache.labelling.session import LabelSession
    from featcache.labelling.strategies import AskedText

HELP = noted("u undo  s skip  n not sure  a add a label  m note  g guess  i progress  q quit")
END = ("", "q", "\x03", "\x04")  # end of input, q, Ctrl-C and Ctrl-D


def label_in_terminal(session: LabelSession, encoding: BackgroundEncoding) -> None:
    """Ask until the person quits, the input ends, or no text is left; every answer is kept at once."""
    with _keys() as keys, suppress(KeyboardInterrupt):
        _Conversation(session, encoding, keys).run()


class _Keys:
    """Single keys and whole lines from standard input, a terminal or not."""

    def __init__(self, *, raw: Callable[[bool], None]) -> None:
        self._raw = raw

    def key(self) -> str:
        """One key; those that send several characters, such as arrows, are none of ours."""
        key = sys.stdin.read(1)
        while key == "\x1b":
            key = sys.stdin.read(1)
            if key in ("[", "O"):
                while (key := sys.stdin.read(1)) and not (key.isalpha() or key == "~"):
                    pass
                key = sys.stdin.read(1)
        return key

    def line(self, question: str) -> str:
        err().print(f"{question}: ", end="")
        self._raw(False)
        try:
            return sys.stdin.readline().strip()
        finally:
            self._raw(True)


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Keys without Enter where standard input is a terminal; its settings are put back afterwards."""
    if os.name == "nt" or not sys.stdin.isatty():  # there each key is followed by Enter
        yield _Keys(raw=lambda on: None)
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def raw(on: bool) -> None:
        if on:
            tty.setcbreak(sys.stdin)
        else:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    raw(True)
    try:
        yield _Keys(raw=raw)
    finally:
        raw(False)


class _Conversation:
    def __init__(self, session: LabelSession, encoding: BackgroundEncoding, keys: _Keys) -> None:
        self.session, self.encoding, self.keys = session, encoding, keys
        self.console = err()
        self.row = -1
        self._fresh(-1)

    def run(self) -> None:
        shown: AskedText | None = None
        waits = not self.encoding.state.ended
        self._tell()
        while (asked := self.session.question()) is not None:
            if waits and self.encoding.state.ended:
                waits = False
                self._tell()
            if asked != shown:
                if asked.row != self.row:
                    self._fresh(asked.row)
                self._show(asked)
                shown = asked
            key = self.keys.key()
            if key in END:
                return
            try:
                if self._press(key, asked):
                    shown = None
                    self.row = self.row if key.lower() == "a" else -1
            except FeatcacheError as error:  # nothing was written; the text is asked still
                said = [translated(error.what), translated_lines(error.hint or "")]
                self.console.print("\n".join(filter(None, said)), style="red", soft_wrap=True)
        self.console.print(_("Every text has an answer."))

    def _tell(self) -> None:
        for sentence in encoding_sentences(self.encoding.state):
            self.console.print(sentence, style="dim", soft_wrap=True)

    def _fresh(self, row: int) -> None:
        self.row = row
        self.chosen, self.note, self.guess_shown = list[str](), "", False

    def _show(self, asked: AskedText) -> None:
        console = self.console
        console.print(f"\n{asked.why}", style="dim", soft_wrap=True)
        console.print(asked.text, style="bold")
        labels = self.session.labels
        numbered = [f"{place} {label}" for place, label in enumerate(labels[:9], 1)] + list(labels[9:])
        console.print("  ".join(numbered), soft_wrap=True)
        more = _("l label by name") + "  " if len(labels) > 9 else ""
        several = _("Enter done") + "  " if self.session.multi_label else ""
        console.print(f"{several}{more}{_(HELP)}", style="dim", soft_wrap=True)

    def _press(self, key: str, asked: AskedText) -> bool:
        """Act on a key; whether the text has to be shown again."""
        labels = self.session.labels
        if key in "123456789" and int(key) <= min(9, len(labels)):
            return self._label(labels[int(key) - 1], asked)
        if key in "\r\n" and self.session.multi_label and self.chosen:
            self._answer(asked, self.chosen)
            return True
        act = {
            "l": self._named, "u": self._undo, "s": self._skip, "n": self._unsure, "a": self._add,
            "m": self._note, "g": self._guess, "i": self._progress,
        }.get(key.lower())  # fmt: skip
        return act(asked) if act else False

    def _label(self, label: str, asked: AskedText) -> bool:
        if not self.session.multi_label:
            self._answer(asked, [label])
            return True
        if label in self.chosen:
            self.chosen.remove(label)
        else:
            self.chosen.append(label)
        chosen = listed(self.chosen) or _("none")
        self.console.print(_("chosen: {labels}", labels=chosen), soft_wrap=True)
        return False

    def _answer(self, asked: AskedText, labels: list[str]) -> None:
        self.session.answer(asked.row, labels, note=self.note, guess_shown=self.guess_shown)

    def _named(self, asked: AskedText) -> bool:
        name = self.keys.line(_("The label, or how it begins"))
        labels = self.session.labels
        found = [label for label in labels if label == name] or [
            label for label in labels if name and label.startswith(name)
        ]
        if len(found) != 1:
            raise UsageError(f"{len(found)} labels begin with {name!r}")
        return self._label(found[0], asked)

    def _undo(self, asked: AskedText) -> bool:
        if not self.session.undo():
            raise UsageError("there is no answer to take back")
        return True

    def _skip(self, asked: AskedText) -> bool:
        self.session.skip(asked.row, note=self.note)
        return True

    def _unsure(self, asked: AskedText) -> bool:
        self.session.skip(asked.row, unsure=True, note=self.note)
        return True

    def _add(self, asked: AskedText) -> bool:
        self.session.add_label(self.keys.line(_("New label")))
        return True

    def _note(self, asked: AskedText) -> bool:
        self.note = self.keys.line(_("Note about this text"))
        return False

    def _guess(self, asked: AskedText) -> bool:
        found = self.session.guesses(asked.row)[:5]
        self.guess_shown = self.guess_shown or bool(found)
        said = "  ".join(f"{one.label} {one.probability:.1%}" for one in found)
        none = _("No guess: this text is for the estimate, or the head knows too little.")
        self.console.print(said or none, soft_wrap=True)
        return False

    def _progress(self, asked: AskedText) -> bool:
        session, encoding = self.session, self.encoding.state
        said = [counts_sentence(session), accuracy_sentence(session, session.estimate())]
        for sentence in (*said, more_sentence(session.curve().more), *encoding_sentences(encoding)):
            if sentence:
                self.console.print(sentence, soft_wrap=True)
        return False
