"""`predict --engine ray`: files labelled by the actors of a Ray cluster, one output file a block.

Blocks and the folder of the output are those of `predict_parts`; each output is made as `predict_files` makes
one. The same call goes on with the blocks that are not done.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cluster.cluster import Actor, ActorPool, connected, deal, require_ray
from featcache.cluster.output_parts import Block, OutputFolder, divide, states_of
from featcache.data.formats.open import open_rows
from featcache.fingerprint import file_hash, fingerprint
from featcache.prediction.file import LabelledFile, predict_file
from featcache.prediction.journal import FIRST_BAD, UnlabelledRow
from featcache.runs.run import Run, load_run
from featcache.settings import DataSettings
from featcache.system.downloads import fetched
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.stores import is_remote

if TYPE_CHECKING:
    from featcache.prediction.predictor import Predictor


@dataclass(frozen=True)
class Reading:
    """How the files are read and written.

    Attributes:
        text, pair: columns.
        header: False: csv and tsv files begin with a row.
        prefix: put before the names of the added columns.
    """

    text: str
    pair: str | None = None
    header: bool = True
    prefix: str = ""


def predict_with_ray(
    run: Run,
    sources: Sequence[str],
    output: str,
    reading: Reading,
    *,
    model: str | None = None,
    device: str = "auto",
    workers: int | str = "auto",
    address: str | None = None,
    force: bool = False,
    report: OnProgress = ignore,
    tell: Callable[[str], None] = lambda _: None,
) -> LabelledFile:
    """Label every row of `sources` into files of the folder `output`, in the order of the sources.

    The rows, columns and labels are those that `predict_file` writes; the actors get the head with their
    order, and read sources and model under the same names as this process.

    Args:
        sources: paths or URLs of one form or several, each known by its ending.
        output: folder or URL; made where it is not there.
        model: where the backbone lies now, if not where it lay when the head was trained.
        workers, address: see `ray_extract.extract_with_ray`.
        force: replace what is there, from the moment on at which there are actors for it.
        report: called when a task of a few blocks is done.
        tell: is told what a person may want to know.

    Returns:
        The sum over all blocks; `path` is the folder.

    Raises:
        UsageError: `output` holds other work, or Ray cannot be used.
        FeatcacheError: what an actor raised; finished files are kept.
    """
    require_ray()
    began = time.perf_counter()
    blocks = divide(sources)
    states = states_of(sources)
    key = fingerprint(
        {
            "head": [file_hash(run.folder / name) for name in ("head.json", "head.safetensors")],
            "reading": asdict(reading),
            "blocks": [[asdict(block), states[block.source]] for block in blocks],
        }
    )
    folder = OutputFolder.of(output)
    with folder.locked():
        anew = folder.is_to_begin(key, force=force)
        if anew and not force:
            folder.begin(key)
        found = {} if anew else folder.notes(blocks)
        resumed, tokens = sum(said["rows"] for said in found.values()), 0
        total = None if any(block.rows is None for block in blocks) else sum(b.rows or 0 for b in blocks)

        def left() -> list[int]:
            return [block.number for block in blocks if block.number not in found]

        if left():
            with connected(address):
                pool = ActorPool.of(workers, device)
                if anew and force:  # what is there goes when there are actors to make it anew, not before
                    folder.begin(key)
                tell(f"{len(left())} blocks for {pool}")
                order = PredictOrder(
                    _content(run), blocks, folder.place, reading, _model(run, model), device, pool.threads
                )
                for done in deal(_Predicting, order, left, pool, tell):
                    found |= done.answer
                    tokens += sum(said["tokens"] for said in done.answer.values())
                    rows = sum(said["rows"] for said in found.values())
                    report(Progress("predict", done=rows, total=total or 0, tokens=tokens))
    return _sum(output, [found[block.number] for block in blocks], resumed, began, tokens)


def _sum(
    output: str, found: Sequence[Mapping[str, Any]], resumed: int, began: float, tokens: int
) -> LabelledFile:
    counts: dict[str, int] = {}
    for said in found:
        for label, count in said["counts"].items():
            counts[label] = counts.get(label, 0) + count
    rows, bad, truncated = (sum(said[name] for said in found) for name in ("rows", "bad", "truncated"))
    first = tuple(UnlabelledRow(**row) for said in found for row in said["first_bad"])[:FIRST_BAD]
    beside = f"{output.rstrip('/')}/part-*.bad.jsonl" if bad else None
    seconds = time.perf_counter() - began
    return LabelledFile(
        path=output, rows=rows, bad=bad, truncated=truncated, resumed=resumed, seconds=seconds,
        tokens=tokens, counts=counts, bad_path=beside, first_bad=first,
    )  # fmt: skip


# -- on the nodes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictOrder:
    """All that an actor is told.

    Attributes:
        run: the files that make the head, by name.
        output: folder or URL.
        model: where the backbone lies; None: where the run says.
        threads: of torch.
    """

    run: Mapping[str, bytes]
    blocks: Sequence[Block]
    output: str
    reading: Reading
    model: str | None
    device: str
    threads: int


def _content(run: Run) -> dict[str, bytes]:
    """All that makes a predictor of a run."""
    found = [*run.folder.glob("*.json"), *run.folder.glob("*.safetensors")]
    return {path.name: path.read_bytes() for path in found}


def _model(run: Run, model: str | None) -> str | None:
    """A folder's path made absolute; a hub id stays with the run, which knows its revision."""
    path = Path(model or run.record.backbone.model).expanduser()
    return str(path.absolute()) if path.is_dir() else model


class _Predicting(Actor[PredictOrder]):
    """Labels blocks; its model is loaded with the first."""

    predictor: Predictor | None = None

    def work(self, numbers: list[int]) -> dict[int, dict[str, Any]]:
        """What is in the output of each of these blocks, which is there."""
        if self.predictor is None:
            self.predictor = self._load()
        folder = OutputFolder.of(self.order.output)
        label = partial(self._label, self.predictor, folder)
        return {number: label(self.order.blocks[number]) for number in numbers}

    def _load(self) -> Predictor:
        import torch

        from featcache.prediction.predictor import Predictor

        torch.set_num_threads(self.order.threads)
        with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
            run = Path(folder) / "run"
            run.mkdir()
            for name, content in self.order.run.items():
                (run / name).write_bytes(content)
            found = load_run(run.parent, run.name)
            return Predictor.from_run(found, model=self.order.model, device=self.order.device)

    def _label(self, predictor: Predictor, folder: OutputFolder, block: Block) -> dict[str, Any]:
        there = folder.note(block, folder.info(block))
        if there is not None:  # by an actor that was lost before it said so
            return there
        reading = self.order.reading
        columns = DataSettings(text_column=reading.text, pair_column=reading.pair)
        path = fetched(block.source) if is_remote(block.source) else Path(block.source)
        groups = None if block.groups is None else range(*block.groups)
        rows = open_rows(
            path, block.kind, DataSettings() if block.kind == "txt" else columns,
            header=reading.header, groups=groups,
        )  # fmt: skip
        predictor.check_pairs(rows.pair is not None)
        said = predict_file(
            predictor, rows, folder.target(block), block.kind, prefix=reading.prefix, force=True
        )
        return folder.finish(block, said)
