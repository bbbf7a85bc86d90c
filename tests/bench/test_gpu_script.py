"""benchmarks/gpu.py, as far as it can be tried without a GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
README = "# Benchmarks\n<!-- gpu.py writes from here -->\nold\n<!-- to here -->\nmore\n"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_stage_on_the_cpu_and_the_table(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    argv = [sys.executable, str(SCRIPT), "--device", "cpu", "--scale", "0.001", "--out", str(tmp_path)]
    argv += ["--model", str(tiny("bert")), "--stages", "50 tokens"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    result = document["stages"]["50 tokens"]["result"]
    assert result["texts"] == 24 and result["tokens"] == 24 * 50 and result["featcache"]["texts_per_s"] > 0
    assert result["unavailable"] == {"sentence_transformers_fp16": "float16 is for a GPU"}
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks") and text.endswith("more\n") and "old" not in text
    assert "| 50 tokens |" in text and "Arctic Inference 1.41 M" in text


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    argv = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "torch sees no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_or_hangs_costs_the_others_nothing(script: Any) -> None:
    failed = script.run(script.Stage("a", 60, ("-c", "import sys; sys.exit('it broke')")), 60)
    assert failed["failed"] == "it broke"
    slow = script.run(script.Stage("b", 1, ("-c", "import time; time.sleep(60)")), 60)
    assert slow == {"failed": "took more than 1 s"}
    late = script.run(script.Stage("c", 60, ("-c", "pass")), 5)
    assert late == {"failed": "no time was left"}
    pytest_said = "print('FAILED one'); print('1 failed'); raise SystemExit(1)"
    tests = script.run(script.Stage("d", 60, ("-c", pytest_said), last=False), 60)
    assert tests["said"] == "1 failed" and tests["failures"] == ["FAILED one"]


def test_the_table_has_peers_shares_and_what_is_missing(script: Any) -> None:
    result = {
        "texts": 10, "tokens": 5120, "ratios": {"sentence_transformers_fp16": 1.5}, "unavailable": {},
        "featcache": {"texts_per_s": 3320.0, "share_of_peak": 0.41},
        "peers": {"sentence_transformers_fp16": {"texts_per_s": 2213.0}},
    }  # fmt: skip
    document = {
        "date": "2026-01-01",
        "machine": {"device": "A GPU", "versions": {"torch": "2.11", "transformers": "5.17"}},
        "stages": {
            "512 tokens": {"result": result},
            "training": {"result": {"share_of_peak": {"top-blocks:2": 0.4}}},
            "heads": {
                "result": {
                    "shape": {"rows": 9600, "width": 768, "epochs": 100},
                    "on_device": {
                        "device": "cuda",
                        "heads": [
                            {"head": "exact", "cpu_seconds": 2.0, "device_seconds": 0.5, "apart": 3e-6}
                        ],
                    },
                }
            },
            "128 tokens": {"failed": "took more than 110 s"},
            "tests": {"exit_code": 0, "said": "31 passed in 9 s"},
        },
    }
    text = script.table(document)
    peers = "Arctic Inference 1.64 M, Text Embeddings Inference 1.62 M"
    assert f"| 512 tokens | 1.70 M | 0.41 | 1.13 M | 1.5x | {peers} |" in text
    assert "top-blocks:2 0.40" in text and "31 passed" in text
    assert "| exact | 2.00 | 0.50 | 4.0x | 3.0e-06 |" in text
    assert "Not measured: 128 tokens (took more than 110 s)." in text


def test_every_test_of_cuda_is_run(script: Any) -> None:
    (tests, *_) = script.stages("cuda", Path("model"), dict.fromkeys(script.COUNTS, Path()), script.COUNTS)
    assert {Path(part).name for part in tests.command} >= {"test_cuda.py", "test_cuda_heads.py"}
