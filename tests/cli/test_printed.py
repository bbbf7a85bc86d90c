"""Labels and names with escapes, line breaks and markup: on terminals, in pipes, in files that are shared."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.support.cli_tools import Cli, Terminal, edit_run, make_work, read_rows, shell, write_rows
from tests.support.stock import one_thread

pytestmark = pytest.mark.bad_input
LABELS = ("=1+1\x1b[31m\x9b2J", "bad\nlabel\t<script>alert(1)</script> `#|\u202e")
ESCAPES = ("\x1b[31m", "\x9b", "\u202e")
MODEL_NAME = "be`rt\x1b[31m<b>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny: object) -> Path:
    """A working folder whose labels and model have such names, with a run."""
    from featcache_cli.main import main
    from tests.support.cli_tools import arrow_in
    from tests.support.review_files import write_reviews

    folder = tmp_path_factory.mktemp("hostile")
    model = folder / "models" / MODEL_NAME
    shutil.copytree(tiny("bert"), model)  # type: ignore[operator]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(make_work(folder, model, views="last/cls"))
        for path in write_reviews(folder / "plain").values():
            rows = read_rows(path)
            names = sorted({row["label"] for row in rows})
            given = [(row["text"], LABELS[names.index(row["label"])]) for row in rows]
            write_rows(folder / "reviews" / path.name, given)
        with arrow_in(folder / "arrow"), one_thread():
            assert main(["extract", "--all-splits", "--quiet"]) == 0
            assert main(["train-head", "--epochs", "3", "--quiet"]) == 0
    return folder


@pytest.fixture
def here(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(hostile)
    return hostile


COMMANDS = (
    "compare", "compare linear-last-cls-1", "cache info --all", "predict 好 坏", "inspect", "compare --json",
    "cache info --all --json", "predict 好 --json", "report --json",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_no_escape_reaches_a_pipe(command: str, here: Path, cli: Cli) -> None:
    argv = command.split()
    found = cli.ok(*argv)
    assert not [escape for escape in ESCAPES for text in (found.out, found.err) if escape in text]
    if "--json" in argv:
        json.loads(found.out)
    elif argv[0] == "predict":
        lines = found.out.splitlines()
        assert len(lines) == 2 and all(line.count("\t") == 2 for line in lines)


def test_json_has_the_labels_as_they_are(here: Path, cli: Cli) -> None:
    assert set(cli.ok("predict", "好", "--json").json[0]["probabilities"]) == set(LABELS)


def test_no_escape_reaches_a_terminal(here: Path) -> None:
    with Terminal("predict", "好", "--quiet") as terminal:
        assert terminal.finish() == 0
    assert "<script>" in terminal.seen or "=1+1" in terminal.seen
    assert "\x1b[31m" not in terminal.seen and "\x9b" not in terminal.seen


def test_the_page_and_the_card_escape_them(here: Path, cli: Cli) -> None:
    cli.ok("report", "--output", "page.html", "--quiet")
    cli.ok("export", "linear-last-cls-1", "--output", "exported", "--force", "--quiet")
    page, markdown, card = (
        Path(name).read_text(encoding="utf-8") for name in ("page.html", "page.md", "exported/README.md")
    )
    text, _, settings = card.partition("## Data and settings")
    for shown in (page, markdown, text):
        assert not [escape for escape in ESCAPES if escape in shown]
        assert "<script>alert" not in shown and "rt\ufffd" in shown
    assert "\n- =1+1" in text and "be\\`rt" in text
    assert not [escape for escape in ESCAPES if escape in settings]


def test_csv_cells_that_begin_like_a_formula(here: Path, cli: Cli) -> None:
    rows = [("=cmd|' /C calc'!A0", "-5"), ("-1+1", "-"), ("好", "+1,5"), ("@a", "x")]
    with open("in.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "n"), *rows])
    label = ("predict", "--input", "in.csv", "--force", "--output")
    made = cli.ok(*label, "out.csv", "--json").json
    raw = cli.ok(*label, "raw.csv", "--json", "--raw-cells").json
    guarded, kept = _cells("out.csv"), _cells("raw.csv")
    assert [row["text"] for row in guarded] == ["'=cmd|' /C calc'!A0", "'-1+1", "好", "'@a"]
    assert [row["n"] for row in guarded] == [number for _, number in rows]
    assert [(row["text"], row["n"]) for row in kept] == rows
    assert {row["prediction"] for row in kept} <= set(LABELS)
    assert all(row["prediction"][:2] != "=1" for row in guarded)
    labels = sum(row["prediction"] == LABELS[0] for row in kept)
    assert (made["changed_cells"], raw["changed_cells"]) == (3 + labels, 0)
    said = cli.ok(*label, "out.csv").err
    assert f"a ' was put before {3 + labels} cells that begin like a formula" in said
    assert "--raw-cells" in said


def _cells(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_labels_of_a_txt_file_are_a_line_each(here: Path, cli: Cli) -> None:
    Path("in.txt").write_text("好\n坏\n差\n", encoding="utf-8")
    cli.ok("predict", "--input", "in.txt", "--output", "out.txt", "--force", "--quiet")
    found = Path("out.txt").read_text(encoding="utf-8")
    assert found.count("\n") == 3 and not [escape for escape in ESCAPES if escape in found]


SHARED = (
    ["export", "linear-last-cls-1", "--output", "shared/hf"],
    ["report", "linear-last-cls-1", "--output", "shared/report.html"],
    ["cache", "export", "TRAIN", "--output", "shared/x.npy"],
    ["cache", "export", "TRAIN", "--output", "shared/x.parquet"],
    ["predict", "--input", "reviews/test.jsonl", "--output", "shared/labelled.csv"],
)


def test_shared_files_name_no_folder_of_this_machine(
    trained: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exports, cards, pages, heads: no home folder, no working folder, no folder of the model."""
    edit_run("linear-last-cls-1", data={"data_files": {"train": str(trained / "reviews" / "train.jsonl")}})
    next(trained.glob("cache/*/*/validation*.h5")).unlink()  # noted on the page, with the file's name alone
    train = next(trained.glob("cache/*/*/train*.h5"))
    (trained / "shared").mkdir()
    with one_thread():
        for argv in SHARED:
            view = ["--view", "last/cls"] if argv[0] == "cache" else []
            cli.ok(*(str(train) if word == "TRAIN" else word for word in argv), *view, "--quiet")
    for name in ("head.json", "head.safetensors", "predictions-test.parquet"):
        shutil.copy(trained / "reports" / "linear-last-cls-1" / name, trained / "shared" / name)
    here = Path(__file__).resolve().parents[2]
    private = [str(folder).encode() for folder in (tmp_path_factory.getbasetemp(), f"{Path.home()}/", here)]
    files = {path: path.read_bytes() for path in (trained / "shared").rglob("*") if path.is_file()}
    assert {path.suffix for path in files} >= {".html", ".md", ".json", ".safetensors", ".npy"}
    assert [path.name for path, content in files.items() if any(one in content for one in private)] == []
    page = (trained / "shared" / "report.md").read_text(encoding="utf-8")
    assert "validation features are not shown" in page and "train.jsonl" in page


def test_a_real_pipe_gets_no_escape(here: Path) -> None:
    done = shell("cache", "info", "--all")
    assert done.code == 0 and not [escape for escape in ESCAPES if escape in done.out]
