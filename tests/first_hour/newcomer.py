"""A new user: an empty folder, one csv, `featcache run`, then every command that was printed, in order.

python -m tests.first_hour.newcomer    # writes the transcripts again; read their diff
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRANSCRIPTS = Path(__file__).parent / "transcripts"
WIDTHS = {"zh": 80, "en": 120}  # columns
ROWS = 240
COMMAND = re.compile(r'featcache [a-z-]+(?: (?:"[^"]*"|--[a-z-]+(?: [\w./,]+)?))*')
PROGRESS = re.compile(r"^scoring$|^(reading|writing) | 0/0\b")
FILLED = {"TEXT": {"zh": "房间很干净，服务也好", "en": "The room was clean and quiet"}}
LEFT_OUT = ("demo", "serve", "run", "init")  # a demo of its own, a server, and what the walk begins with
MOST = 12  # commands


@dataclass(frozen=True)
class Called:
    """One command as it was typed, and what it answered."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return f"$ {shlex.join(('featcache', *self.argv))}\n{self.err}{self.out}"


def write_table(path: Path, language: str) -> None:
    """A csv as people have it: in Chinese as Excel writes it, with their own column names and labels."""
    rows = list(itertools.islice(_reviews(language), ROWS))
    header = ("编号", "评论", "类别") if language == "zh" else ("id", "review", "sentiment")
    with path.open("w", encoding="gb18030" if language == "zh" else "utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows((number, *row) for number, row in enumerate(rows, start=1))


def _reviews(language: str) -> Iterator[tuple[str, str]]:
    if language == "zh":
        from featcache.demo.demo import raw_reviews

        found: dict[str, list[str]] = {"negative": [], "positive": []}
        for text, label in raw_reviews():
            if 8 <= len(text) <= 60 and "\n" not in text:
                found[label].append(text)
        for bad, good in zip(found["negative"], found["positive"], strict=False):
            yield from ((bad, "差评"), (good, "好评"))
        return
    things = ("room", "battery", "book", "screen", "staff", "breakfast", "keyboard", "story", "price", "bed")
    places = ("in Boston", "near the station", "I bought in May", "of my brother", "for the money", "here")
    good = ("was lovely", "works very well", "is better than I hoped", "made us happy", "is worth it")
    bad = (
        "was dirty",
        "broke after a week",
        "is worse than I feared",
        "made us angry",
        "is a waste of money",
    )
    for number, (thing, place) in enumerate(itertools.product(things * 3, places)):
        for label, words in (("negative", bad), ("positive", good)):
            if number % 7 == 3:  # people err
                words = good if words is bad else bad
            first, second = words[number % 5], words[(number // 5 + 2) % 5]
            yield f"The {thing} {place} {first} and {second}.", label


def walk(call: Callable[..., Called], language: str) -> Iterator[Called]:
    """`featcache run` on one csv in this empty folder, then every command that an answer names.

    Args:
        call: runs one command.
    """
    yield call("extract")  # before there is anything
    write_table(Path("reviews.csv"), language)
    waiting, done = [("run", "reviews.csv")], set[tuple[str, ...]]()
    while waiting and len(done) < MOST:
        argv = waiting.pop(0)
        done.add(argv)
        answer = call(*argv)
        yield answer
        for found in commands_in(answer.text, language):
            if found not in done and found not in waiting:
                waiting.append(found)


def commands_in(text: str, language: str) -> Iterator[tuple[str, ...]]:
    """Commands that a text tells the user to type; those with a part that only they know are left out."""
    for found in COMMAND.findall(text.partition("\n")[2]):
        try:
            words = shlex.split(found)[1:]
        except ValueError:  # a quote that ends on the next line
            continue
        words = [FILLED[word][language] if word in FILLED else word for word in words]
        if words[0] in LEFT_OUT or not re.fullmatch(r"[a-z-]+", words[0]):
            continue
        if not any(word.isupper() for word in words):
            yield tuple(words)


def shape(text: str) -> list[str]:
    """The lines of a transcript without what differs from machine to machine: numbers, order, progress."""
    text = re.sub(r"/\S+/", "", text)
    text = re.sub(r"(no-backbone|(?:linear|logistic|exact)-[a-z-]+)-\d+", "RUN", text)
    text = re.sub(r"[-+]?\d[\d.,]*", "0", text)
    text = re.sub(r"0 (s|min|h|B|kB|MB|GB)\b", "0 U", re.sub(r"0 min 0 s", "0 s", text))
    lines = [re.sub(r"^\* |\btie | +|─+", " ", line).strip() for line in text.splitlines()]
    return sorted(line for line in set(lines) if line and not PROGRESS.search(line))


def main() -> None:
    """Write the transcripts, from real processes."""
    for language, columns in WIDTHS.items():
        environment = os.environ | {"COLUMNS": str(columns), "HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}

        def call(*argv: str, environment: dict[str, str] = environment) -> Called:
            command = [sys.executable, "-m", "featcache_cli.main", *argv]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            return Called(argv, done.returncode, done.stdout, done.stderr)

        with tempfile.TemporaryDirectory() as folder:
            here = Path.cwd()
            os.chdir(folder)
            try:
                texts = [answer.text for answer in walk(call, language)]
            finally:
                os.chdir(here)
        path = TRANSCRIPTS / f"{language}-{columns}.txt"
        path.write_text("\n".join(text.rstrip() + "\n" for text in texts), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
