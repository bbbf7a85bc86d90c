"""The page in a browser: what a person sees of it, in both colour schemes and languages."""

from __future__ import annotations

import ast
import gzip
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from featcache.heads.head import Head
from featcache.heads.numbers.scale import NumberScale, PredictionInterval
from featcache.heads.scorers import Linear
from featcache.prediction.predictor import Predictor
from featcache.runs.train import train_head
from featcache.serving.app import RunInfo, Service
from featcache.serving.examples import Example
from featcache.serving.request import Limits
from featcache.settings import load_settings
from tests.support.abstaining import abstaining_predictor
from tests.support.browser import Browser, Page
from tests.support.review_files import write_reviews
from tests.support.served import served
from tests.support.stock import sentence
from tests.support.tiny_predictor import tiny_predictor

pytestmark = pytest.mark.enable_socket

EXAMPLES = [Example("好 房间", None, "差评"), Example("坏 电池", None, "<b>好评</b>")]
HOSTILE = "<img src=x onerror=document.title='hacked'>"


@pytest.fixture(autouse=True)
def _one_thread(predictor: Predictor) -> None:
    """Tiny models do not share the processors with the browser."""


@contextmanager
def opened(
    browser: Browser, predictor: Predictor, limits: Limits | None = None, **options: Any
) -> Iterator[Page]:
    """The page of a server of its own; at the end it has not complained."""
    service = Service(predictor, limits, RunInfo("linear-1"), examples=lambda: EXAMPLES)
    with served(service) as address:
        page = Page(browser, address, **options)
        page.wait("document.querySelector('#examples li')")
        yield page
        complaints = [
            one for one in page.complaints() if "status of 4" not in one
        ]  # refusals, which it shows
        page.close()
    assert complaints == []


def ask(page: Page, text: str) -> None:
    """Type a text and press Enter; returns when it is answered or refused."""
    before = page.run("document.querySelectorAll('#history li').length")
    page.type("#text", text)
    page.key("Enter")
    answered = f"document.querySelectorAll('#history li').length > {before}"
    page.wait(f"{answered} || document.querySelector('#problem').innerText")


def texts_of(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent.trim())"
    )
    return found


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 60])
def test_the_page_passes_axe_on_every_screen(
    classes: int, browser: Browser, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    names = [f"{HOSTILE if number == 1 else '类别'} {number}" for number in range(classes)]
    rows = tmp_path / "reviews.csv"
    rows.write_text("text\n好 房间\n \n" + "坏\n" * 30, encoding="utf-8")
    with opened(browser, tiny_predictor(tiny("bert"), names=names)) as page:
        ask(page, sentence(80))
        ask(page, "好 房间")
        page.click("#curl")
        page.choose_files("#choose", rows)
        page.wait("document.querySelector('#jobs a')")
        page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        page.type("#text", " ")
        page.key("Enter")
        page.wait("document.querySelector('#problem').innerText")
        page.type("#text", sentence(80))
        page.wait("document.querySelector('.behind s')")
        for width, dark in ((390, False), (1280, True)):
            page.resize(width)
            page.paint(dark=dark)
            assert page.violations() == [] and page.overflow() == []
        assert page.run("document.title") == "linear-1 · featcache"  # the label is text, and no markup


def test_bars_have_numbers_and_the_sixth_label_on_is_folded(
    browser: Browser, tiny: Callable[[str], Path]
) -> None:
    predictor = tiny_predictor(tiny("bert"), names=[f"class {number}" for number in range(10)])
    (wanted,) = predictor.predict(["好 房间"])
    ordered = sorted(wanted.probabilities.items(), key=lambda item: -item[1])
    with opened(browser, predictor) as page:
        ask(page, "好 房间")
        assert texts_of(page, "#answer .label")[0].startswith(wanted.label)
        assert texts_of(page, ".bars .name") == [f"✓ {ordered[0][0]}", *(name for name, _ in ordered[1:])]
        shares = [float(text.removesuffix(" %")) for text in texts_of(page, ".bars .number")]
        assert shares == pytest.approx([100 * share for _, share in ordered], abs=0.051)
        assert page.run("document.querySelectorAll('#answer details .bars li').length") == 5
        assert texts_of(page, "#answer summary") == ["and 5 more"]
        widths = page.run("""[...document.querySelectorAll('#answer > .bars .track')].map((one) =>
            [one.offsetWidth, one.firstChild.offsetWidth / one.offsetWidth])""")
        for (track, filled), (_, share) in zip(widths, ordered, strict=False):
            assert track > 100 and filled == pytest.approx(share, abs=0.01)


def test_thresholds_and_answers_that_are_not_given(
    browser: Browser, predictor: Predictor, tiny: Callable[[str], Path]
) -> None:
    several = tiny_predictor(tiny("bert"), several=True)
    with opened(browser, several) as page:
        ask(page, "好 房间")
        given = several.predict(["好 房间"])[0].labels
        assert [name for name in texts_of(page, ".bars .name") if name.startswith("✓")] == [
            f"✓ {name}"
            for name in sorted(given, key=lambda one: -several.predict(["好 房间"])[0].probabilities[one])
        ]
        assert sorted(texts_of(page, ".bars .least")) == ["from 45.0 %", "from 50.0 %", "from 55.0 %"]
    texts = [sentence(length) for length in range(3, 20)]
    held = abstaining_predictor(predictor, texts)
    answers = {one.abstained: one for one in held.predict(texts)}
    with opened(browser, held) as page:
        ask(page, answers[True].text)
        assert texts_of(page, "#answer .label") == ["No answer"]
        assert texts_of(page, "#answer .held") == [answers[True].reason]
        ask(page, answers[False].text)
        assert texts_of(page, "#answer .held")[0].startswith("It answers from ")
        assert "at least 50.0 % of texts are answered" in page.text()


def test_numbers_have_their_interval(browser: Browser, predictor: Predictor) -> None:
    assert predictor.encoder is not None
    scorer = Linear(np.full((1, 32), 0.1, np.float32), np.zeros(1, np.float32))
    interval = PredictionInterval(level=0.9, half_width=0.5, rows=100)
    head = Head(
        scorer, (), predictor.head.view, predictor.encoder.document, "ridge",
        numbers=NumberScale(mean=2.0, deviation=1.0, interval=interval),
    )  # fmt: skip
    numbers = Predictor(predictor.encoder, head)
    (wanted,) = numbers.predict_numbers(["好 房间"])
    with opened(browser, numbers) as page:
        ask(page, "好 房间")
        assert float(texts_of(page, "#answer .label")[0]) == pytest.approx(wanted.number, rel=1e-4)
        assert "intervals contain 90 % of the numbers" in page.text()
        assert not page.run("document.querySelector('.bars')")


def test_tokens_are_counted_while_somebody_types(browser: Browser, predictor: Predictor) -> None:
    with opened(browser, predictor) as page:
        page.type("#text", "好 房间")
        page.wait("document.querySelector('#tokens').innerText === 'Tokens: 5 of at most 64'")
        long = "😀 " + sentence(80)  # the browser counts this sign as two
        page.type("#text", long)
        page.wait(
            "document.querySelector('#tokens').innerText.startsWith('Tokens: 83, of which 64 are read')"
        )
        assert predictor.encoder is not None
        ((begin, end),) = predictor.encoder.measure(long).unread
        assert page.run("document.querySelector('.behind s').textContent") == long[begin:end]
        # The copy behind the field has its size and its lines.
        assert page.run("""(() => { const area = document.querySelector('#text');
            const behind = area.previousElementSibling;
            return [area.clientWidth - behind.clientWidth, area.clientHeight - behind.clientHeight,
                    Math.abs(area.scrollHeight - behind.scrollHeight) <= 24]; })()""") == [0, 0, True]
        page.type("#text", "好")
        page.wait("!document.querySelector('.behind s')")


def test_what_is_wrong_is_said_beside_the_field(browser: Browser, predictor: Predictor) -> None:
    with opened(browser, predictor, Limits(characters=300)) as page:
        for text, words in ((" \n ", "There is no text yet"), ("好" * 301, "301 characters; at most 300")):
            page.type("#text", text)
            page.click("#send")
            page.wait(f"document.querySelector('#problem').innerText.includes({json.dumps(words)})")
        assert page.run("document.querySelector('#problem').getAttribute('role')") == "alert"
        ask(page, "好")
        assert texts_of(page, "#problem") == [""]
    with served(Service(predictor)) as address:
        page = Page(browser, address)
        page.wait("document.querySelector('#about').innerText")
    page.type("#text", "好")  # the server has stopped
    page.click("#send")
    page.wait("document.querySelector('#problem').innerText.includes('The server does not answer')")
    page.close()


def test_examples_and_earlier_answers_come_back_with_a_click(browser: Browser, predictor: Predictor) -> None:
    with opened(browser, predictor) as page:
        assert texts_of(page, "#examples b") == ["差评", "<b>好评</b>"]
        page.click("#examples button")
        page.wait("document.querySelectorAll('#history li').length === 1")
        assert page.run("document.querySelector('#text').value") == "好 房间"
        ask(page, HOSTILE)
        first, second = texts_of(page, "#history li span")
        assert (first, second) == (HOSTILE, "好 房间")
        page.click("#history li:nth-child(2) button")
        assert page.run("document.querySelector('#text').value") == "好 房间"
        (wanted,) = predictor.predict(["好 房间"])
        assert texts_of(page, "#answer .label")[0].startswith(wanted.label)
        page.call("Page.reload")
        page.wait("document.querySelectorAll('#history li').length === 2")
        page.click("#forget")
        assert not page.run("document.querySelector('#history').checkVisibility()")
        assert page.run("sessionStorage.getItem('featcache-history')") == "[]"


def test_the_page_speaks_the_language_of_the_browser_and_the_other_one(
    browser: Browser, predictor: Predictor
) -> None:
    with opened(browser, predictor, languages="zh-CN,zh") as page:
        assert page.run("document.documentElement.lang") == "zh-CN"
        chinese = page.text()
        assert "Label it" not in chinese and texts_of(page, "#language") == ["English"]
        ask(page, " ")
        assert "There is no" not in page.text()
        page.click("#language")
        page.wait("document.documentElement.lang === 'en'")
        assert "Label it" in page.text() and texts_of(page, "#language") == ["中文"]
        page.call("Page.reload")  # it is remembered
        page.wait("document.querySelector('#language').innerText === '中文'")


def test_the_request_for_other_programs_gives_the_same_answer(browser: Browser, predictor: Predictor) -> None:
    text = "好 'very' \"bad\" $HOME `x` \\ 😀\n房间"
    with opened(browser, predictor) as page:
        page.type("#text", text)
        page.click("#send")
        page.wait("document.querySelector('#answer .label')")
        page.click("#curl")
        command = shlex.split(page.run("document.querySelector('#snippet').textContent"))
        assert json.loads(command[-1]) == {"text": text} and command[:2] == [
            "curl",
            page.run("location.origin") + "/predict",
        ]
        found = subprocess.run(["curl", "-s", *command[1:]], capture_output=True, check=True).stdout
        assert json.loads(found)["label"] == predictor.predict([text])[0].label
        page.click("#python")
        call = ast.parse(page.run("document.querySelector('#snippet').textContent"))
        given = next(node for node in ast.walk(call) if isinstance(node, ast.keyword) and node.arg == "json")
        assert ast.literal_eval(given.value) == {"text": text}
        assert texts_of(page, "#copied")[0]


def test_marks_show_what_decided(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_reviews(Path("reviews"), 90)
    run = train_head(load_settings({"model": "none/at-all", "dataset": "reviews"}), "lexical")
    predictor = Predictor.from_run(run)
    text = "😀房间喜欢，很干净，但太差"
    (why,) = predictor.explain(predictor.predict([text]))
    with opened(browser, predictor) as page:
        ask(page, text)
        assert texts_of(page, ".marked") == [text]
        marks = page.run("""[...document.querySelectorAll('.marked mark')].map((one) => {
            const style = getComputedStyle(one);
            return [one.textContent, style.borderBottomStyle, style.borderBottomWidth]; })""")
        assert [(mark, style) for mark, style, _ in marks] == [
            (text[begin:end], "solid" if weight > 0 else "dashed") for begin, end, weight in why.spans
        ]
        assert len(marks) > 1 and {width for *_, width in marks} == {"2px"}
        strongest = max(why.spans, key=lambda one: abs(one[2]))
        assert f"The strongest: {text[strongest[0] : strongest[1]]}" in page.text()
        assert page.violations() == []


def test_files_are_labelled_with_progress_and_fetched(
    browser: Browser, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, odd = tmp_path / f"{HOSTILE.replace('/', '')}.csv", tmp_path / "bad.csv", tmp_path / "odd.csv"
    good.write_text("text\n好\n \n坏\n", encoding="utf-8")
    bad.write_bytes(gzip.compress(b"text\n"))
    odd.write_text("x,y\n好,坏\n", encoding="utf-8")
    with opened(browser, predictor, Limits(file_bytes=500)) as page:
        page.choose_files("#choose", good)
        page.wait("document.querySelector('#jobs a')")
        assert texts_of(page, "#jobs strong") == [good.name]
        row = texts_of(page, "#jobs li")[0]
        assert "Rows labelled: 2 of 3" in row and "line 3: column 'text' is empty" in row
        fetched = page.run("fetch(document.querySelector('#jobs a').href).then((reply) => reply.text())")
        assert (
            fetched.splitlines()[0].startswith("text,prediction,probability")
            and len(fetched.splitlines()) == 4
        )
        page.call("Page.reload")  # the list is still there
        page.wait("document.querySelector('#jobs a')")
        page.choose_files("#choose", bad)
        page.wait("document.querySelector('#jobs > li:first-child > .wrong')")
        page.choose_files("#choose", odd)
        page.wait("document.querySelector('#jobs').innerText.includes('no text column found in odd.csv')")
        assert "--text-column" not in page.text()  # there is a field for it
        page.wait("document.querySelector('#columns').open")
        page.type("#text-column", "y")
        page.run("[...document.querySelectorAll('#jobs > li:first-child button')].at(-1).click()")
        page.wait("document.querySelector('#jobs > li:first-child a')")
        for _ in range(3):
            page.click("#jobs button")
        page.wait("!document.querySelector('#jobs li')")
        odd.write_text("x" * 501)
        page.choose_files("#choose", odd)
        page.wait("document.querySelector('#files-problem').innerText === 'odd.csv is larger than 500 B.'")


def test_a_file_can_be_cancelled(
    browser: Browser, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, go_on = tmp_path / "rows.txt", threading.Event()
    rows.write_text("好\n" * 40, encoding="utf-8")
    prepare = predictor.head.rows

    def held(*values: Any) -> Any:
        assert go_on.wait(60)
        return prepare(*values)

    slow = Predictor(predictor.encoder, replace(predictor.head))
    monkeypatch.setattr(
        Head, "rows", lambda self, *values: held(*values) if self is slow.head else prepare(*values)
    )
    with opened(browser, slow) as page:
        page.choose_files("#choose", rows)
        page.wait("document.querySelector('#jobs').innerText.includes('of 40')")
        page.click("#jobs button")
        page.wait("!document.querySelector('#jobs li')")
        go_on.set()
        ask(page, "好")
        assert texts_of(page, "#answer .label")


def test_the_page_without_files(browser: Browser, predictor: Predictor) -> None:
    with opened(browser, predictor, Limits(file_bytes=0)) as page:
        assert not page.run("document.querySelector('#files').checkVisibility()")
