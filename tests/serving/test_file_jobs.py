"""Files of clients: what is labelled, what is refused, and what remains of it."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from featcache.data.formats.open import open_rows
from featcache.data.formats.write import OutputForm
from featcache.prediction.file import predict_file
from featcache.prediction.predictor import Predictor
from featcache.serving import file_jobs
from featcache.serving.app import RunInfo, Service
from featcache.serving.request import Limits
from featcache.settings import DataSettings
from tests.support.stock import sentence
from tests.support.tiny_predictor import HeldPredictor

TEXTS = ["好 房间", "very bad book", "=1+1 好", sentence(70), "差"]
CSV = "text,who\n" + "".join(f'"{text}",{number}\n' for number, text in enumerate(TEXTS))
Send = Callable[..., Any]


@contextlib.contextmanager
def client_of(
    predictor: Predictor, columns: DataSettings | None = None, **limits: Any
) -> Iterator[TestClient]:
    service = Service(predictor, Limits(**limits), RunInfo("linear-1", columns=columns))
    with TestClient(service.app, base_url="http://127.0.0.1") as client:
        client.service = service  # type: ignore[attr-defined]
        yield client


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with client_of(predictor, characters=2000, file_bytes=20_000, file_rows=300, files=4) as client:
        yield client


def send(client: TestClient, name: str, content: bytes, query: str = "") -> Any:
    headers = {"Content-Type": "application/octet-stream"}
    return client.post(f"/files?name={quote(name)}{query}", content=content, headers=headers)


def ended(client: TestClient, id: str) -> Any:
    """The document of a file once it is labelled or has failed."""
    for _ in range(1200):
        found = client.get(f"/files/{id}").json()
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def outcome(client: TestClient, name: str, content: bytes, query: str = "") -> Any:
    """The document of a file that was sent; it is removed again."""
    reply = send(client, name, content, query)
    assert reply.status_code == 202, reply.text
    found = ended(client, reply.json()["id"])
    client.delete(f"/files/{found['id']}")
    return found


def folder_of(client: TestClient) -> Path:
    return Path(client.service.jobs._folder.name)  # type: ignore[attr-defined]


def test_a_file_becomes_what_predict_makes_of_it(
    client: TestClient, predictor: Predictor, tmp_path: Path
) -> None:
    given = tmp_path / "reviews.csv"
    given.write_text(CSV, encoding="utf-8")
    predict_file(predictor, open_rows(given, "csv"), tmp_path / "direct.csv", OutputForm("csv"))
    job = send(client, "reviews.csv", given.read_bytes()).json()
    found = ended(client, job["id"])
    assert (found["state"], found["done"], found["total"]) == ("done", 5, 5)
    result = found["result"]
    assert (result["rows"], result["bad_rows"], result["truncated"]) == (5, 0, 1)
    assert sum(result["counts"].values()) == 5 and result["name"] == "reviews-labelled.csv"
    reply = client.get(f"/files/{job['id']}/labelled")
    assert "reviews-labelled.csv" in reply.headers["content-disposition"]
    rows, direct = (
        list(csv.DictReader(io.StringIO(text)))
        for text in (reply.text, (tmp_path / "direct.csv").read_text(encoding="utf-8"))
    )
    assert rows[2]["text"] == "'=1+1 好"  # no spreadsheet calculates it
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in direct]
    for row, other in zip(rows, direct, strict=True):
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=2e-6)
    assert client.get(f"/files/{job['id']}/bad-rows").status_code == 404
    assert client.delete(f"/files/{job['id']}").status_code == 200
    assert client.get(f"/files/{job['id']}").status_code == 404
    assert list(folder_of(client).iterdir()) == []  # nothing stays of it


def packed(name: str, content: bytes) -> bytes:
    """A zip file of one file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return out.getvalue()


def excel() -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    book = openpyxl.Workbook()
    for row in [["text"], *([text] for text in TEXTS[:2])]:
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "written"),
    [
        ("a.csv", CSV.encode("gb18030"), "a-labelled.csv"),
        ("A.CSV.GZ", gzip.compress(CSV.encode()), "A-labelled.csv"),
        ("a.tsv", CSV.replace(",", "\t").encode(), "a-labelled.tsv"),
        ("a.b.txt", "\n".join(TEXTS).encode(), "a.b-labelled.txt"),
        (
            "a.jsonl",
            b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS),
            "a-labelled.jsonl",
        ),
        ("a.json", json.dumps([{"text": text} for text in TEXTS]).encode(), "a-labelled.json"),
        ("a.zip", packed("inside.csv", CSV.encode()), "a-labelled.csv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_format_is_read(name: str, content: bytes, written: str, client: TestClient) -> None:
    found = outcome(client, name, content)
    assert found["state"] == "done", found
    assert (found["result"]["rows"], found["result"]["bad_rows"]) == (5, 0)
    assert found["result"]["name"] == written


def test_excel_and_parquet_are_read(client: TestClient) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = outcome(client, "a.xlsx", excel())
    assert found["result"]["rows"] == 2 and found["result"]["name"] == "a-labelled.csv"
    out = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), out)
    found = outcome(client, "a.parquet", out.getvalue())
    assert found["result"]["rows"] == 5 and found["result"]["name"] == "a-labelled.parquet"


def test_rows_without_a_label_are_listed(client: TestClient) -> None:
    rows = [{"text": "好"}, {"text": " "}, {"text": "坏" * 2001}, {"text": 5}]
    job = send(client, "a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows)).json()
    found = ended(client, job["id"])["result"]
    assert (found["rows"], found["bad_rows"]) == (4, 3)
    problems = [row["problem"] for row in found["first_bad_rows"]]
    assert [row["line"] for row in found["first_bad_rows"]] == [2, 3, 4]
    assert "empty" in problems[0] and "2,000 characters" in problems[1] and "int" in problems[2]
    listed = client.get(f"/files/{job['id']}/bad-rows").text.splitlines()
    assert [json.loads(line)["row"] for line in listed] == [2, 3, 4]
    client.delete(f"/files/{job['id']}")


def test_columns_are_those_named_then_those_of_the_training_then_the_usual_ones(predictor: Predictor) -> None:
    table = "note,remark,text\n好,坏,差\n"
    with client_of(predictor, DataSettings(text_column="remark")) as client:
        for query, content, column in (
            ("&text_column=note", table, "note"),
            ("", table, "remark"),
            ("", table.replace("remark", "else"), "text"),
        ):
            found = outcome(client, "a.csv", content.encode(), query)
            assert found["state"] == "done" and f"text: {column}" in found["notes"][0], found
        found = outcome(client, "a.csv", b"x,y\n1,2\n")
        assert found["state"] == "failed" and found["error"].startswith("no text column found in a.csv")


def lying() -> bytes:
    """An Excel file whose only part says that it is 10 bytes long."""
    content = bytearray(packed("xl/worksheets/sheet1.xml", b" " * 1_000_000))
    for place in (content.find(b"PK\x03\x04") + 22, content.find(b"PK\x01\x02") + 24):
        content[place : place + 4] = (10).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text\n" + b"x\n" * 301, "a.csv has more than 300 rows"),
        ("a.csv.gz", gzip.compress(b"x" * 100_000), "a.csv.gz unpacks to more than 80,000 bytes"),
        ("a.csv.gz", gzip.compress(CSV.encode())[:-12], "cannot read a.csv.gz"),
        ("a.csv.gz", b"no gzip", "cannot read a.csv.gz"),
        ("a.zip", packed("a.csv", b"x" * 100_000), "a.zip unpacks to more than 80,000 bytes"),
        ("a.xlsx", packed("a.xml", b"x" * 100_000), "a.xlsx unpacks to more than 80,000 bytes"),
        ("a.xlsx", lying(), "cannot read a.xlsx"),
        ("a.zip", packed("../../a.csv", CSV.encode()), "names a file outside"),
        ("a.zip", packed("a.arrow", b"ARROW1"), "holds an Arrow"),
        ("a.zip", b"PK", "cannot read"),
        ("a.xlsx", b"\x00" * 999, "cannot read a.xlsx"),
        ("a.parquet", b"PAR1" + b"\xff" * 99 + b"PAR1", "cannot read a.parquet"),
        ("a.json", b"[" * 9999, "a.json"),
        ("a.jsonl", b'{"text": "\\ud800"}', "none of the first 1 rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed bytes hold the time
)
def test_hostile_files_fail_with_a_sentence(
    name: str, content: bytes, words: str, client: TestClient
) -> None:
    found = outcome(client, name, content)
    assert found["state"] == "failed" and words in found["error"], found
    assert "/tmp" not in json.dumps(found) and str(folder_of(client)) not in json.dumps(found)
    assert client.post("/predict", json={"text": "好"}).status_code == 200
    assert list(folder_of(client).iterdir()) == []


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/cron.d/evil.csv", "evil.csv"),
        ("C:\\Users\\me\\reviews.csv", "reviews.csv"),
        ("<img src=x onerror=alert(1)>.csv", "<img src=x onerror=alert(1)>.csv"),
        ("a\r\nSet-Cookie: x=1\u202e.csv", None),
        ("评论 " * 200 + ".csv", None),
        (".csv.csv", ".csv.csv"),
    ],
)
def test_hostile_names_are_only_names(name: str, shown: str | None, client: TestClient) -> None:
    reply = send(client, name, CSV.encode())
    job = reply.json()
    assert shown is None or job["name"] == shown
    assert len(job["name"]) <= 120 and job["name"].isprintable()
    assert ended(client, job["id"])["state"] == "done"
    result = client.get(f"/files/{job['id']}/labelled")
    assert result.status_code == 200 and "set-cookie" not in result.headers
    assert result.headers["content-disposition"].startswith("attachment")
    client.delete(f"/files/{job['id']}")


@pytest.mark.parametrize("name", ["", "a", ".csv", "..", "a.pdf", "a.arrow", "a.parquet.gz", "a.csv.exe"])
def test_files_of_other_kinds_are_refused(name: str, client: TestClient) -> None:
    reply = send(client, name, b"x")
    assert reply.status_code == 415 and "it is none of csv" in reply.json()["error"]


def test_a_file_is_refused_while_it_arrives(client: TestClient) -> None:
    reply = send(client, "a.csv", b"x" * 20_001)
    assert reply.status_code == 413 and "larger than 20000 bytes" in reply.json()["error"]
    sent = [0]

    def endless() -> Iterator[bytes]:
        while sent[0] < 1000:
            sent[0] += 1
            yield b"x" * 500

    reply = send(client, "a.csv", endless())  # type: ignore[arg-type]
    assert reply.status_code == 413 and reply.headers["connection"] == "close"
    for kind in ("text/plain", "multipart/form-data", "application/json"):  # what other sites can send
        reply = client.post("/files?name=a.csv", content=b"text\nx", headers={"Content-Type": kind})
        assert reply.status_code == 415
    assert list(folder_of(client).iterdir()) == []
    with pytest.MonkeyPatch.context() as patch, client_of(client.service.predictor, file_bytes=0) as other:  # type: ignore[attr-defined]
        del patch
        assert send(other, "a.csv", b"x").status_code == 403


@contextlib.contextmanager
def holding(client: TestClient) -> Iterator[threading.Event]:
    """The model waits for the event before it looks at the rows of a file."""
    go_on, service = threading.Event(), client.service  # type: ignore[attr-defined]
    answer = type(service.jobs.predictor).answer

    def held(self: Any, *args: Any) -> Any:
        assert go_on.wait(60)
        return answer(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(service.jobs.predictor), "answer", held)
        yield go_on
        go_on.set()


def test_files_wait_their_turn_and_can_be_cancelled(client: TestClient) -> None:
    with holding(client) as go_on:
        first, second, third = (send(client, f"{n}.csv", CSV.encode()).json() for n in range(3))
        states = [client.get(f"/files/{one['id']}").json() for one in (first, second, third)]
        assert [one["before"] for one in states] == [0, 1, 2]
        assert [one["state"] for one in states][1:] == ["waiting", "waiting"]
        assert client.post("/predict", json={"text": "好"}).status_code == 200  # texts do not wait for files
        for one in (first, second):
            assert client.delete(f"/files/{one['id']}").status_code == 200
            assert client.get(f"/files/{one['id']}").status_code == 404
        go_on.set()
        assert ended(client, third["id"])["state"] == "done"
    assert [path.name for path in folder_of(client).iterdir()] == [third["id"]]
    client.delete(f"/files/{third['id']}")


def test_too_many_files_are_refused_until_one_is_old(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(client) as go_on:
        jobs = [send(client, f"{n}.csv", CSV.encode()).json()["id"] for n in range(4)]
        full = send(client, "more.csv", CSV.encode())
        assert full.status_code == 429 and full.headers["retry-after"] and "4 files" in full.json()["error"]
        go_on.set()
        for id in jobs:
            ended(client, id)
    assert send(client, "more.csv", CSV.encode()).status_code == 429  # somebody has just asked for each
    monkeypatch.setattr(file_jobs, "IDLE_SECONDS", 0.0)
    more = send(client, "more.csv", CSV.encode())
    assert more.status_code == 202 and client.get(f"/files/{jobs[0]}").status_code == 404
    monkeypatch.setattr(file_jobs, "KEPT_SECONDS", 0.0)
    ended(client, more.json()["id"])
    client.service.jobs.sweep()  # type: ignore[attr-defined]
    assert client.get(f"/files/{more.json()['id']}").status_code == 404
    assert list(folder_of(client).iterdir()) == []


def test_a_server_that_stops_removes_all_files(predictor: Predictor) -> None:
    with client_of(predictor) as client:
        folder = folder_of(client)
        with holding(client) as go_on:
            send(client, "a.csv", CSV.encode())
            send(client, "b.csv", CSV.encode())
            assert folder.stat().st_mode & 0o077 == 0  # nobody else reads what clients send
            threading.Timer(0.3, go_on.set).start()
    assert not folder.exists()


def test_single_texts_come_between_the_batches_of_a_file(predictor: Predictor) -> None:
    """In turn: a long file does not hold up a text, and many texts do not hold up a file."""
    service = Service(predictor)
    held = HeldPredictor(predictor)
    service.batcher.predictor = held  # type: ignore[assignment]
    order = list[str]()
    service.batcher.submit(["first"], None, time.monotonic() + 60)
    assert held.inside.wait(30)
    jobs = [service.batcher.call(lambda n=n: order.append(f"file {n}")) for n in range(2)]  # type: ignore[misc]
    asked = service.batcher.submit(["好"], None, time.monotonic() + 60)
    asked.add_done_callback(lambda _: order.append("text"))
    held.go_on.set()
    for job in jobs:
        job.result(30)
    asked.result(30)
    service.jobs.stop()
    service.batcher.stop()
    assert order == ["file 0", "text", "file 1"]
