"""The page of `featcache label` in a browser: keys alone, both languages, all screens, a server that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from featcache.labelling.answers import AnswersFile, AnswersHeader
from featcache.labelling.app import LabelService
from featcache.labelling.encoding import BackgroundEncoding
from featcache.labelling.session import LabelSession
from featcache.labelling.texts import TextsToLabel
from tests.support.browser import Browser, Page
from tests.support.chinese import english_words
from tests.support.cli_tools import COMMAND
from tests.support.served import served

pytestmark = pytest.mark.enable_socket

HOSTILE = "<img src=x onerror=document.title='hacked'>"
WORDS = ("好房间", "坏房间", "服务很好", "酒店很差", "电池便宜", "书很贵", "很好", "很差")


def session_of(folder: Path, labels: tuple[str, ...], *, multi_label: bool = False) -> LabelSession:
    """200 texts of two kinds with features that tell them apart."""
    texts = TextsToLabel.of([f"{HOSTILE if number == 7 else '酒店的房间'} {number}" for number in range(200)])
    header = AnswersHeader(labels=labels, multi_label=multi_label)
    session = LabelSession(texts, AnswersFile(folder / "a.jsonl", header), "anna")
    sign = np.arange(200)[:, None] % 2 * 2 - 1
    noise = np.random.default_rng(0).standard_normal((200, 40))
    session.use_features((sign * 6 + noise).astype(np.float32))
    return session


@contextmanager
def opened(browser: Browser, session: LabelSession, language: str = "en") -> Iterator[Page]:
    """The page of a server of its own; at the end it has not complained."""
    with served(LabelService(session, BackgroundEncoding(session, None), language)) as address:
        page = Page(browser, address)
        page.wait("document.querySelector('#labels button')")
        yield page
        complaints = page.complaints()
        page.close()
    assert [one for one in complaints if "status of 4" not in one] == []  # refusals, which it shows


def shown(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def press(page: Page, *keys: str) -> None:
    """Press keys that each give an answer or take one back."""
    for key in keys:
        before = shown(page, "#counts") + shown(page, "#text")
        page.key(key)
        script = "document.querySelector('#counts').textContent + document.querySelector('#text').textContent"
        page.wait(f"{script} !== {json.dumps(before)}")


@pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "zh"])
def test_keys_answer_on_every_screen_without_a_violation(
    browser: Browser, tmp_path: Path, language: str
) -> None:
    labels = ("好评", "差评", *(f"{HOSTILE} {number}" for number in range(10)))
    session = session_of(tmp_path, labels)
    with opened(browser, session, language) as page:
        asked = shown(page, "#text")
        press(page, "1", "2", "u", "s", "n")
        page.key("l")
        page.type("#field-text", f"{HOSTILE} 9")
        press(page, "Enter")
        assert [(line.answer, *line.labels) for line in session.answers.lines] == [
            ("labels", "好评"), ("labels", "差评"), ("undo",), ("skip",), ("unsure",), ("labels", labels[-1]),
        ]  # fmt: skip
        assert session.answers.lines[0].text == session.texts.hashes[session.texts.texts.index(asked)]
        page.key("a")
        page.type("#field-text", "1")
        page.key("Enter")
        page.wait("document.querySelectorAll('#labels button').length === 13")
        page.key("m")
        page.type("#field-text", "one digit is a label, 2 is a key")
        page.key("Enter")
        press(page, "2")
        assert session.answers.lines[-1].note and session.answers.lines[-1].labels == ("差评",)
        for _ in range(30):
            press(page, "21"[session.question().row % 2])  # type: ignore[union-attr]
        page.key("b")
        page.wait("document.querySelector('#many-list li')")
        page.wait("document.querySelector('#curve').checkVisibility()")
        assert page.run("document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
        if language == "zh":
            assert english_words(page.text(), "featcache label anna jsonl mixed", HOSTILE) == ["English"]
        for width, dark in ((390, False), (800, True), (1280, True)):
            page.resize(width)
            page.paint(dark=dark)
            assert page.violations() == [] and page.overflow() == []
        assert page.run("document.title") == "featcache label"


def test_another_language_and_another_tab(browser: Browser, tmp_path: Path) -> None:
    session = session_of(tmp_path, ("good", "bad"))
    with opened(browser, session) as page:
        why = shown(page, "#why")
        page.click("#language")
        page.wait("document.documentElement.lang === 'zh-CN'")
        page.wait(f"document.querySelector('#why').textContent !== {json.dumps(why)}")
        page.call("Page.reload")  # it is remembered
        page.wait("document.querySelector('#actions')?.innerText.includes('撤销')")
        row = session.question().row  # type: ignore[union-attr]
        session.answer(row, ["good"])  # in another tab
        page.key("1")
        page.wait("document.querySelector('#problem').textContent.includes('另一条文本')")
        assert len(session.answers.lines) == 1  # the text that was not seen has no answer
        press(page, "1")


def test_several_labels_by_keys(browser: Browser, tmp_path: Path) -> None:
    session = session_of(tmp_path, ("good", "bad", "late"), multi_label=True)
    with opened(browser, session) as page:
        page.key("1")
        page.key("3")
        page.key("2")
        page.key("2")
        assert page.run("document.querySelectorAll('#labels [aria-pressed=true]').length") == 2
        assert page.violations() == []
        press(page, "Enter")
        assert session.answers.lines[-1].labels == ("good", "late")


@contextmanager
def command(port: int, *more: str) -> Iterator[subprocess.Popen[str]]:
    """`featcache label` as a process of its own, once it listens."""
    argv = [str(COMMAND), "label", "texts.csv", "--port", str(port), "--annotator", "anna", *more]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            while f":{port}" not in (line := process.stderr.readline()):
                assert line, "it has ended"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_thirty_answers_by_keyboard_through_a_reload_and_a_killed_server(
    browser: Browser, tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"{WORDS[number % 8]} {number}" for number in range(80)]
    Path("texts.csv").write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
    Path("featcache.toml").write_text(
        f'[backbone]\nmodel = "{tiny("bert")}"\n[features]\nviews = ["last/mean"]\n', encoding="utf-8"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    wanted: list[tuple[str, str]] = []

    def answer(page: Page, keys: str) -> None:
        for key in keys:
            asked, kind = shown(page, "#text"), {"u": "undo", "s": "skip", "n": "unsure"}.get(key)
            wanted.append((wanted[-1][0] if key == "u" else asked, kind or ("好评", "差评")[int(key) - 1]))
            press(page, key)

    with command(port, "--labels", "好评,差评", "--lang", "zh") as process:
        page = Page(browser, f"http://127.0.0.1:{port}")
        page.wait("document.querySelector('#labels button')")
        answer(page, "1212121212" + "u2sn")
        page.call("Page.reload")
        page.wait("document.querySelector('#labels button')")
        answer(page, "12121")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    page.key("1")
    page.wait("document.querySelector('#problem').textContent.includes('无法连接')")
    with command(port, "--lang", "zh"):
        page.wait("!document.querySelector('#problem').textContent")
        answer(page, "212121212121212")
        lines: list[dict[str, Any]] = [
            json.loads(line) for line in Path("texts.labels.jsonl").read_text("utf-8").splitlines()
        ]
    text_of = dict(zip(TextsToLabel.of(texts).hashes, texts, strict=True))
    given = [(text_of[line["text"]], *(line["labels"] or [line["answer"]])) for line in lines[1:]]
    assert given == wanted and sum(line["answer"] == "labels" for line in lines[1:]) == 31
