"""What a cold `featcache predict` imports: each of these modules takes a tenth of a second or more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.made_run import made_run

HEAVY = (
    "transformers", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "scipy",
    "sklearn", "pandas", "pyarrow", "datasets", "h5py", "matplotlib", "ray", "aiohttp",
    "featcache_cli.commands.bench",
)  # fmt: skip


def test_predict_imports_no_heavy_module(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    run = made_run(tiny("bert"), tmp_path / "run")
    program = (
        "import sys, featcache_cli.main as cli\n"
        f"code = cli.main(['predict', '--run', {str(run.folder)!r}, '一个好房间'])\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stdout + done.stderr
