"""Make the pictures of README from the demo: `make pictures`, or this script with `--folder DEMO`.

Runs `featcache demo` in a folder (a new one by default), draws what it prints as an SVG, and takes a picture
of the page that `featcache report` writes with headless chromium.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from PIL import Image
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
COMMAND = Path(sys.executable).with_name("featcache")
COLUMNS = 84
PAGE = (1000, 1130)  # pixels of the report that are shown
MOST_BYTES = 300_000
LANGUAGES = {"": (), "-zh": ("--lang", "zh")}  # flags, by the ending of the names of the pictures
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    """Run the demo and the report in a folder, in each language, and draw both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the demo runs; one that ran there is reused")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="featcache-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    for ending, flags in LANGUAGES.items():
        shutil.rmtree(folder / "reports", ignore_errors=True)  # runs of an earlier demo
        printed = run(folder, "demo", *flags)
        run(folder, "report", "--output", "report.html", "--quiet", *flags)
        terminal(printed, " ".join(["featcache demo", *flags]), PICTURES / f"terminal{ending}.svg")
        report(folder / "report.html", PICTURES / f"report{ending}.png")
    for path in sorted(PICTURES.iterdir()):
        size = path.stat().st_size
        print(f"{path.name}: {size:,} bytes")
        assert size < MOST_BYTES, f"{path.name} is too large"


def run(folder: Path, *argv: str) -> str:
    """What a command prints on stdout, with the escapes of a terminal."""
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [COMMAND, *argv],
        cwd=folder,
        env=os.environ | terminal,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # progress is no part of the picture
    )
    return done.stdout.decode("utf-8")


def terminal(printed: str, command: str, target: Path) -> None:
    """Draw the tables and the verdict as an SVG that loads no font."""
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.from_ansi(f"$ {command}"))
    console.print(Text.from_ansi(printed.strip("\n")))
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=command), flags=re.S)
    target.write_text(re.sub(r'(textLength=")([\d.]+)("[^>]*>)([^<]+)', _with_cells, svg), encoding="utf-8")


def _with_cells(found: re.Match[str]) -> str:
    """A text of the SVG as wide as its cells: rich counts characters; Chinese ones take two cells."""
    before, length, after, text = found.groups()
    shown = html.unescape(text)
    return f"{before}{float(length) / len(shown) * cell_len(shown):.1f}{after}{text}"


def report(page: Path, target: Path) -> None:
    """Take a picture of the beginning of the page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser, f"no browser: install one of {', '.join(BROWSERS)}"
    width, height = PAGE
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        flags += [f"--window-size={width},{height}", f"--screenshot={target}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True)
    Image.open(target).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
