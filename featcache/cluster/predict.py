"""`predict --engine ray`: actors of a Ray cluster label files, with one output file for each part.

`predict_file` makes each output file. The same call continues with the parts that are not done.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.cluster.cluster import Actor, ActorPool, Engine, connected, deal, require_ray
from featcache.cluster.output_parts import OutputFolder, OutputPart, PartRecord, plan_parts, states_of
from featcache.data.formats.open import open_rows
from featcache.data.formats.write import OutputForm
from featcache.errors import UsageError
from featcache.finetuning.run_backbone import BackboneChoice
from featcache.fingerprint import file_hash, fingerprint
from featcache.plain_file import LONGEST_ARRAYS, read_plain
from featcache.prediction.file import LabelledFile, predict_file
from featcache.prediction.journal import FIRST_BAD
from featcache.runs.run import Run, load_run
from featcache.settings import AbstentionSettings, DataSettings
from featcache.system.downloads import fetched
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.stores import is_remote

if TYPE_CHECKING:
    from featcache.prediction.predictor import Predictor


@dataclass(frozen=True)
class Reading:
    """How the files are read and written.

    Attributes:
        text, pair: names of the columns.
        header: False: csv and tsv files have no header.
        prefix, raw_cells: see `OutputForm`.
        encoding: of text files; by default found by a look at each.
    """

    text: str
    pair: str | None = None
    header: bool = True
    prefix: str = ""
    raw_cells: bool = False
    encoding: str | None = None

    def to_json(self) -> dict[str, object]:
        """Without what is not set and earlier versions did not have, so that their work is continued."""
        return {name: value for name, value in asdict(self).items() if name != "encoding" or value}


@dataclass(frozen=True)
class FilesToLabel:
    """The files to label and the output folder.

    Attributes:
        sources: paths or URLs; the ending of each tells its format.
        output: folder or URL; made if it does not exist.
        abstention: another level than the head's, see `Predictor.abstain_at`.
    """

    sources: Sequence[str]
    output: str
    reading: Reading
    abstention: AbstentionSettings | None = None


def predict_with_ray(
    run: Run,
    files: FilesToLabel,
    engine: Engine,
    *,
    backbone: BackboneChoice = BackboneChoice(),  # noqa: B008 - it is frozen
    force: bool = False,
    on_progress: OnProgress = ignore,
) -> LabelledFile:
    """Label every row of some files into files of a folder, in the order of the sources.

    The rows, columns and labels are those that `predict_file` writes; the actors get the head with
    their order, and read sources and model under the same names as this process.

    Args:
        backbone: what this user says about the backbone of the run.
        force: replace the output of other work, once there are actors.
        on_progress: called with notes, and after each task of a few parts.

    Returns:
        The sum over all parts; `path` is the folder.

    Raises:
        UsageError: the output holds other work, the head reads an endpoint, or Ray cannot be used.
        FeatcacheError: the error that an actor raised; finished files are kept.
    """
    require_ray()
    _refuse_endpoints(run)
    began = time.perf_counter()
    parts = plan_parts(files.sources)
    key = _key(run, files, parts)
    folder = OutputFolder.of(files.output)
    with folder.locked():
        fresh = folder.is_to_begin(key, force=force)
        if fresh and not force:
            folder.begin(key)
        found = {} if fresh else folder.records(parts)
        resumed, finished = sum(record.rows for record in found.values()), set(found)
        if len(found) < len(parts):
            with connected(engine.ray_address):
                pool = ActorPool.of(engine.workers or "auto", backbone.device)
                if fresh and force:  # the old output is removed only when there are actors
                    folder.begin(key)
                order = PredictOrder(
                    run=_content(run),
                    parts=parts,
                    output=folder.place,
                    reading=files.reading,
                    backbone=_absolute(run, backbone),
                    threads=pool.threads,
                    abstention=files.abstention,
                )
                _predict_missing(order, pool, found, on_progress)
    tokens = sum(record.tokens for number, record in found.items() if number not in finished)
    seconds = time.perf_counter() - began
    return _sum(files.output, [found[part.number] for part in parts], resumed, seconds, tokens)


def _key(run: Run, files: FilesToLabel, parts: Sequence[OutputPart]) -> str:
    """A hash of the head, of how the files are read, and of the states of the files."""
    states = states_of(files.sources)
    return fingerprint(
        {
            "head": [file_hash(run.folder / name) for name in ("head.json", "head.safetensors")],
            "reading": files.reading.to_json(),
            **({"abstention": asdict(files.abstention)} if files.abstention else {}),
            "blocks": [[asdict(part), states[part.source]] for part in parts],
        }
    )


def _predict_missing(
    order: PredictOrder, pool: ActorPool, found: dict[int, PartRecord], on_progress: OnProgress
) -> None:
    """Have actors label the parts that are not in `found`, and add their records to it."""
    parts, tokens = order.parts, 0
    total = 0 if any(part.rows is None for part in parts) else sum(part.rows or 0 for part in parts)

    def left() -> list[int]:
        return [part.number for part in parts if part.number not in found]

    def note(text: str) -> None:
        on_progress(Progress("note", text=text))

    note(f"{len(left())} parts for {pool}")
    for done in deal(_PredictingActor, order, left, pool, note):
        found |= done.answer
        tokens += sum(record.tokens for record in done.answer.values())
        rows = sum(record.rows for record in found.values())
        on_progress(Progress("predict", done=rows, total=total, tokens=tokens))


def _sum(
    output: str, records: Sequence[PartRecord], resumed: int, seconds: float, tokens: int
) -> LabelledFile:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    bad = sum(record.bad for record in records)
    held = [record.abstained for record in records if record.abstained is not None]
    return LabelledFile(
        path=output,
        rows=sum(record.rows for record in records),
        bad=bad,
        truncated=sum(record.truncated for record in records),
        resumed=resumed,
        seconds=seconds,
        tokens=tokens,
        counts=dict(counts),
        bad_path=f"{output.rstrip('/')}/part-*.bad.jsonl" if bad else None,
        first_bad=tuple(row for record in records for row in record.first_bad)[:FIRST_BAD],
        mostly_unknown=sum(record.mostly_unknown for record in records),
        abstained=sum(held) if held else None,
    )


# -- on the nodes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictOrder:
    """Everything that an actor needs.

    Attributes:
        run: the contents of the run's files, by name.
        output: folder or URL.
        backbone: its model is a name or an absolute path; None: as in the run.
        threads: threads of torch.
        abstention: see `FilesToLabel`.
    """

    run: Mapping[str, bytes]
    parts: Sequence[OutputPart]
    output: str
    reading: Reading
    backbone: BackboneChoice
    threads: int
    abstention: AbstentionSettings | None = None


def _content(run: Run) -> dict[str, bytes]:
    """The contents of the files of a run that a predictor needs."""
    found = [*run.folder.glob("*.json"), *run.folder.glob("*.safetensors")]
    return {path.name: read_plain(path, LONGEST_ARRAYS) for path in found}


def _refuse_endpoints(run: Run) -> None:
    """Limits of requests and of cost hold for one process."""
    head = run.head()
    for one in [each.encoder for each in head.encoder.named] or [head.encoder]:
        if head.views and one.endpoint is not None:
            raise UsageError(
                f"{run.name} reads vectors of {one.endpoint.model}, which is behind an endpoint: each actor "
                "would have its own limits of requests and of cost",
                hint="leave --engine ray out: one process sends many requests at a time",
            )


def _absolute(run: Run, given: BackboneChoice) -> BackboneChoice:
    """Paths of folders made absolute; a hub id stays with the run, which knows its revision."""
    made = run.record.backbone
    if not made.named:
        adapter = given.adapter or made.adapter
        model = _folder(given.model or made.model) or given.model
        return replace(given, model=model, adapter=adapter and _absolute_path(adapter))
    from featcache.prediction.joined_encoder import by_name  # here: it imports torch

    models, adapters = (by_name(where, [*made.named]) for where in (given.model, given.adapter))
    for name, own in made.named.items():
        if folder := _folder(models.get(name) or own.model):
            models[name] = folder
        if adapter := adapters.get(name) or own.adapter:
            adapters[name] = _absolute_path(adapter)
    model, adapter = (
        ",".join(f"{name}={where}" for name, where in each.items()) or None for each in (models, adapters)
    )
    return replace(given, model=model, adapter=adapter)


def _folder(named: str) -> str | None:
    """The absolute path of a model that is a folder."""
    return _absolute_path(named) if named and Path(named).expanduser().is_dir() else None


def _absolute_path(path: str) -> str:
    return str(Path(path).expanduser().absolute())


class _PredictingActor(Actor[PredictOrder]):
    """Labels parts; loads the model with the first."""

    predictor: Predictor | None = None

    def work(self, numbers: list[int]) -> dict[int, PartRecord]:
        """Label these parts; returns the record of each."""
        if self.predictor is None:
            self.predictor = self._load()
        folder = OutputFolder.of(self.order.output)
        return {number: self._label(self.predictor, folder, self.order.parts[number]) for number in numbers}

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
            predictor = Predictor.from_run(found, **asdict(self.order.backbone))
        if self.order.abstention:
            predictor.abstain_at(self.order.abstention)
        return predictor

    def _label(self, predictor: Predictor, folder: OutputFolder, part: OutputPart) -> PartRecord:
        there = folder.record(part, folder.info(part))
        if there is not None:  # made by an actor that was lost before it answered
            return there
        reading = self.order.reading
        plain = DataSettings(encoding=reading.encoding)
        columns = replace(plain, text_column=reading.text, pair_column=reading.pair)
        path = fetched(part.source) if is_remote(part.source) else Path(part.source)
        groups = None if part.groups is None else range(*part.groups)
        rows = open_rows(
            path, part.kind, plain if part.kind == "txt" else columns,
            header=reading.header, groups=groups,
        )  # fmt: skip
        predictor.check_pairs(rows.pair is not None)
        form = OutputForm(part.kind, reading.prefix, reading.raw_cells)
        made = predict_file(predictor, rows, folder.target(part), form, force=True)
        return folder.finish(part, made)
