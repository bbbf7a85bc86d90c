"""What featcache does on one GPU: tests, extraction beside its peers, training, heads; no network is needed.

    make gpu                                    (python3 benchmarks/gpu.py, with any python that has torch)

Each stage is a process of its own with a time limit: one that fails or hangs costs the others nothing.
The results are in gpu.json as soon as a stage is done; at the end the table in README.md is written again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHOLE = 480.0  # seconds for all stages
PEERS = "sentence_transformers_fp16"
NEEDED = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "h5py",
    "datasets", "pyarrow", "xxhash", "filelock", "msgspec", "fsspec", "rich", "rich-argparse",
)  # fmt: skip
WANTED = ("sentence-transformers", "flash-attn", "pytest", "pytest-socket", "hypothesis")
# Tokens a second of BERT-base shapes on an H200, as their makers have published them.
PUBLISHED = {
    "Arctic Inference": {512: 1.64e6, 50: 1.41e6},
    "Text Embeddings Inference": {512: 1.62e6, 50: 0.62e6},
}
COUNTS = {"50 tokens": 20_000, "128 tokens": 8_000, "512 tokens": 2_000, "reviews": 50_000, "labelled": 4_000}
BEGIN, END = "<!-- gpu.py writes from here -->\n", "<!-- to here -->\n"
LETTERS = [chr(0x4E00 + number) for number in range(20_000)]
MEDIAN, SPREAD = 66, 0.75  # tokens of a hotel review: log-normal, as in ChnSentiCorp


@dataclass(frozen=True)
class Stage:
    """One command, or the description of the machine where there is none.

    Attributes:
        limit: seconds.
        last: the last line of stdout is the result as JSON; otherwise the exit code is.
    """

    name: str
    limit: float
    command: tuple[str, ...] = ()
    last: bool = True


def stages(device: str, model: Path, texts: dict[str, Path], rows: dict[str, int]) -> Iterator[Stage]:
    """What is measured, the most important first."""
    featcache = ("-m", "featcache_cli.main", "bench")
    where = ("--model", str(model), "--device", device, "--json")
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_cuda*.py"))
    tests = ("-m", "pytest", "-p", "no:cacheprovider", *files)
    yield Stage("tests", 150, tests, last=False)
    for name in ("512 tokens", "50 tokens", "reviews", "128 tokens"):
        longest = "512" if name != "reviews" else "350"
        yield Stage(name, 110, (
            *featcache, "extract", *where, "--dataset", str(texts[name]), "--max-length", longest,
            "--rows", str(rows[name]), "--peers", PEERS,
        ))  # fmt: skip
    yield Stage("training", 90, (
        *featcache, "finetune", *where, "--dataset", str(texts["labelled"]), "--view", "last/mean",
        "--max-length", "128",
    ))  # fmt: skip
    yield Stage("heads", 90, (*featcache, "heads", "--json", "--device", device, "--epochs", "20"))


def write_texts(folder: Path, scale: float) -> tuple[dict[str, Path], dict[str, int]]:
    """Made-up Chinese texts with a label each, by the name of the stage; and how many there are."""
    dice, files, rows = random.Random(0), dict[str, Path](), dict[str, int]()
    for name, count in COUNTS.items():
        rows[name] = max(int(count * scale), 24)
        files[name] = folder / name.replace(" ", "-")
        files[name].mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            with open(files[name] / f"{split}.jsonl", "w", encoding="utf-8") as file:
                for number in range(rows[name] if split == "train" else 24):
                    length = int(name.split()[0]) - 2 if name[0].isdigit() else _review_length(dice)
                    text = "".join(dice.choices(LETTERS, k=length))
                    file.write(json.dumps({"text": text, "label": number % 2}, ensure_ascii=False) + "\n")
    return files, rows


def _review_length(dice: random.Random) -> int:
    return min(max(int(dice.lognormvariate(0, SPREAD) * MEDIAN), 4), 348)


def make_model(folder: Path) -> Path:
    """BERT-base shapes with random weights, and a vocabulary of Chinese characters."""
    vocabulary = folder / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    vocabulary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, HERE / "make_bert_base.py", vocabulary, folder / "bert-base"], check=True)
    return folder / "bert-base"


def environment() -> dict[str, str]:
    """That of the stages, in which `featcache` and `featcache_cli` are those of this checkout."""
    links = ROOT / "build" / "types"
    links.mkdir(parents=True, exist_ok=True)
    for name, source in (("featcache", "featcache"), ("featcache_cli", "cli")):
        if not (links / name).exists():
            (links / name).symlink_to(Path("..", "..", source))
    before = [part for part in (os.environ.get("PYTHONPATH"),) if part]
    paths = os.pathsep.join([str(links), str(ROOT), *before])
    return os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


def machine(device: str) -> dict[str, Any]:
    """Versions, the GPU, and what is missing.

    Raises:
        SystemExit: something without which no stage runs.
    """
    versions: dict[str, str | None] = {}
    for name in (*NEEDED, *WANTED):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    if missing := [name for name in NEEDED if versions[name] is None]:
        sys.exit(f"missing: {', '.join(missing)}; install them, or name a folder that has them in PYTHONPATH")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu tries the stages without one")
    about: dict[str, Any] = {"versions": versions, "device": "cpu", "cuda": torch.version.cuda}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        about |= {"device": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)}
    return about


def run(stage: Stage, seconds: float) -> dict[str, Any]:
    """The result of a stage, or why there is none."""
    began, limit = time.monotonic(), min(stage.limit, seconds)
    if seconds < 10:
        return {"failed": "no time was left"}
    try:
        done = subprocess.run(
            [sys.executable, *stage.command], cwd=ROOT, env=environment(), capture_output=True, text=True,
            timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {limit:.0f} s"}
    found: dict[str, Any] = {"stage_seconds": round(time.monotonic() - began, 1)}
    lines = done.stdout.strip().splitlines() or [""]
    if not stage.last:
        return found | {"exit_code": done.returncode, "said": lines[-1], **_failures(done.returncode, lines)}
    if done.returncode:
        return found | {"failed": "\n".join(done.stderr.strip().splitlines()[-12:])}
    return found | {"result": json.loads(done.stdout)}


def _failures(code: int, lines: Sequence[str]) -> dict[str, Any]:
    if not code:
        return {}
    return {"failures": [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))][:40]}


def table(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about, found = document["machine"], document["stages"]
    versions = about["versions"]
    lines = [
        f"{about['device']}, torch {versions['torch']}, transformers {versions['transformers']}; "
        f"{document['date']}. BERT-base shapes with random",
        "weights, made-up Chinese texts, last/cls; *peak*: the bf16 matrix product of this GPU.",
        "",
        "| texts | featcache, tokens/s | of the peak | sentence-transformers fp16 | faster by | published |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("50 tokens", "128 tokens", "512 tokens", "reviews"):
        if "result" in found.get(name, {}):
            lines.append(_extract_row(name, found[name]["result"]))
    if "result" in found.get("training", {}):
        training = found["training"]["result"]
        shares = ", ".join(f"{part} {share:.2f}" for part, share in training["share_of_peak"].items())
        lines += ["", f"Training above the cut, share of the peak: {shares}."]
    if "result" in found.get("heads", {}):
        lines += ["", *_heads_rows(found["heads"]["result"])]
    reasons = {name: each["failed"] for name, each in found.items() if each.get("failed")}
    failed = [f"{name} ({reason.splitlines()[-1].strip()})" for name, reason in reasons.items()]
    tests = found.get("tests", {})
    lines += ["", f"Tests of CUDA: {tests.get('said') or tests.get('failed', 'not run')}."]
    lines += [f"Not measured: {'; '.join(failed)}."] if failed else []
    return "\n".join(lines) + "\n"


def _extract_row(name: str, result: dict[str, Any]) -> str:
    a_text = result["tokens"] / result["texts"]
    ours, peer = result["featcache"], result["peers"].get(PEERS)
    length = int(name.split()[0]) if name[0].isdigit() else 0
    published = [f"{who} {rates[length] / 1e6:.2f} M" for who, rates in PUBLISHED.items() if length in rates]
    cells = [
        name,
        f"{ours['texts_per_s'] * a_text / 1e6:.2f} M",
        f"{ours['share_of_peak']:.2f}",
        f"{peer['texts_per_s'] * a_text / 1e6:.2f} M" if peer else result["unavailable"].get(PEERS, ""),
        f"{result['ratios'][PEERS]:.1f}x" if peer else "",
        ", ".join(published),
    ]
    return f"| {' | '.join(cells)} |"


def _heads_rows(result: dict[str, Any]) -> Iterator[str]:
    shape, found = result["shape"], result["on_device"]
    yield (
        f"Heads on {shape['rows']:,} x {shape['width']} made-up features, {shape['epochs']} epochs; *apart*: "
        "the largest difference of a logit:"
    )
    yield from ("", "| head | CPU, s | GPU, s | faster by | apart |", "|---|---|---|---|---|")
    for one in found["heads"]:
        faster = one["cpu_seconds"] / one["device_seconds"]
        yield (
            f"| {one['head']} | {one['cpu_seconds']:.2f} | {one['device_seconds']:.2f} | {faster:.1f}x | "
            f"{one['apart']:.1e} |"
        )


def write_table(document: dict[str, Any], readme: Path) -> None:
    """Put the table between its two marks."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}{table(document)}{END}{after}", encoding="utf-8")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    where = "folder of gpu.json and of the README.md with the table"
    parser.add_argument("--out", type=Path, default=HERE, help=where)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the texts")
    parser.add_argument("--model", type=Path, help="folder of a model (default: BERT-base shapes, made here)")
    parser.add_argument("--stages", help="only these, A,B,...")
    asked = parser.parse_args()
    end = time.monotonic() + WHOLE
    about = {"date": time.strftime("%Y-%m-%d"), "machine": machine(asked.device)}
    document: dict[str, Any] = about | {"stages": {}}
    work = ROOT / "build" / "gpu"
    texts, rows = write_texts(work, asked.scale)
    wanted = asked.stages.split(",") if asked.stages else None
    for stage in stages(asked.device, asked.model or make_model(work), texts, rows):
        if wanted is not None and stage.name not in wanted:
            continue
        print(f"{stage.name} ...", flush=True)
        document["stages"][stage.name] = found = run(stage, end - time.monotonic())
        (asked.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{stage.name}: {found.get('failed') or found.get('said') or 'done'}", flush=True)
    write_table(document, asked.out / "README.md")
    print(table(document))


if __name__ == "__main__":
    main()
