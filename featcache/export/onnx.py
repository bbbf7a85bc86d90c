"""A run as one ONNX graph, token ids to logits, in a folder that onnxruntime and its tokenizer load.

The graph is the stock model in float32 up to the run's layer, then the pooling, then the head with its
temperature. onnxruntime loads the written graph, with the tokenizer in the same folder, and its logits are
compared twice: closely with the run in float32, and with the run's own predictor, which may compute in 16 or
8 bits. Only then the folder gets its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.backbone.encoder import Encoder
from featcache.backbone.load import text_model_class, text_part
from featcache.backbone.model import quiet_transformers
from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.backbone.position_table import extend_table, position_table
from featcache.errors import BackboneError, HeadError
from featcache.export.onnx_graph import OUTPUT, Classifier, write_graph
from featcache.export.reference import (
    SAMPLES,
    ExportedModel,
    RunToExport,
    largest_difference,
    model_card,
    new_folder,
    refuse_far_numbers,
    refuse_folder,
    refuse_other_parts,
)
from featcache.fingerprint import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.heads.head import Head
from featcache.heads.scorers import Attentive, Linear, Mlp
from featcache.prediction.predictor import Predictor
from featcache.runs.run import Run
from featcache.system.documents import read_document
from featcache.system.packages import require_extra

GRAPH, NOTE = "model.onnx", "featcache.json"
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of a logit, absolute, or relative to the largest one: the same arithmetic twice
# The run's own predictor rounds, at least features to 16 bits. Measured with bfloat16: up to 0.011.
OWN_TOLERANCE: Mapping[str, float] = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.1, "int8": 0.3}


def export_onnx(
    run: Run,
    folder: Path,
    *,
    model: str | None = None,
    adapter: str | None = None,
    texts: Sequence[str] = SAMPLES,
    force: bool = False,
) -> ExportedModel:
    """Write a run as a folder for onnxruntime.

    `model.onnx` takes `input_ids` and `attention_mask` (and `token_type_ids`, where the backbone was given
    them), int64 `[batch, tokens]`, padded on the right, and gives `logits`, float32 `[batch, C]`, divided by
    the temperature. Beside it are the tokenizer's files, the backbone's `config.json` with the names of the
    labels, `featcache.json` with all that a program must know, and a model card.

    Args:
        folder: made here; replaced only with `force`.
        model, adapter: folders of the backbone and its adapter, if they have moved since.
        texts: on which logits are compared, in one padded batch; some short and long ones by default.

    Raises:
        HeadError: a graph cannot hold the head, or how it treats long texts.
        BackboneError: a backbone that cannot be exported, or other logits; nothing is written.
        UsageError: `folder` is there or cannot be written, or onnx or onnxruntime is not installed.
    """
    refuse_folder(folder, run, force=force)
    require_packages()
    _require_exportable(run.head())
    source = RunToExport(run, model, adapter)
    made = _OnnxModel.of(source, texts)
    own = Predictor.from_run(run, model=model, adapter=adapter).encoder
    assert isinstance(own, Encoder)  # the head reads features of a backbone with files
    rounded = source.logits(own, texts)
    rounding = own.backbone.dtype_name
    del own
    with new_folder(folder, force=force) as temporary:
        with quiet_transformers():
            made.save(temporary)
        found = _logits(temporary, source, texts)
        found, wanted, rounded = map(source.comparable, (found, made.logits, rounded))
        difference = largest_difference(found, wanted, TOLERANCE, "the run in float32")
        own_difference = largest_difference(found, rounded, OWN_TOLERANCE[rounding], "the run's predictor")
        written = ExportedModel(folder, made.model_class, difference, len(texts), own_difference)
        (temporary / "README.md").write_text(_card(source, written, rounding), encoding="utf-8")
    return written


def require_packages() -> None:
    """Check that the packages of the export are installed.

    Raises:
        UsageError: names those that are missing.
    """
    require_extra("the ONNX export", "onnx", NEEDED)


def _require_exportable(head: Head) -> None:
    refuse_other_parts(head)
    refuse_far_numbers(head)
    if not isinstance(head.scorer, (Attentive, Linear, Mlp)):
        raise HeadError(
            f"a {head.scorer.kind} head holds rows, not weights, and cannot be exported",
            hint="train another one, e.g. featcache train-head --head linear",
        )
    if not head.encoder.pool_prompt:
        raise HeadError(
            "a graph does not know which tokens are the prompt's, and this head was made without them",
            hint="train one on features with --pool-prompt",
        )
    how = head.encoder.long_text
    if how != "truncate":
        raise HeadError(
            f"--long-text {how} is done outside of the model, so a graph cannot hold it",
            hint="export a run with --long-text truncate",
        )


# --- making and writing it ----------------------------------------------------------------------


@dataclass(frozen=True)
class _OnnxModel:
    """All that is written except the card, and the logits float32 `[N, C]` that it must give."""

    source: RunToExport
    classifier: Classifier
    tokenizer: Any
    inputs: tuple[str, ...]
    logits: np.ndarray

    @classmethod
    def of(cls, source: RunToExport, texts: Sequence[str]) -> _OnnxModel:
        encoder = source.encoder()
        if encoder.backbone.packing not in ("packed", "padded"):
            raise BackboneError(
                f"a graph reads padded batches, and {encoder.backbone.packing_note}",
                hint="predict with featcache, or train a head on another model",
            )
        logits = source.logits(encoder, texts)
        typed = encoder.tokenize(["a"], source.second(["a"])).type_ids is not None
        inputs = ["input_ids", "attention_mask"]
        if typed and "token_type_ids" in encoder.backbone.arguments:
            inputs.append("token_type_ids")
        poolers = [encoder.poolers[view] for view in source.head.views]
        with quiet_transformers():
            model = _stock_model(source, encoder)
        classifier = Classifier(model, poolers, source.head).eval()
        return cls(source, classifier, _tokenizer(source), tuple(inputs), logits)

    @property
    def model_class(self) -> str:
        return type(self.classifier.model).__name__

    def save(self, folder: Path) -> None:
        """Write all but the card.

        Raises:
            BackboneError: the exporter cannot trace the model, or onnx cannot write it.
        """
        try:
            write_graph(self.classifier, self.inputs, folder / GRAPH)
        except OSError:
            raise
        except Exception as error:  # the exporter, onnxscript and onnx raise every kind there is
            reason = next(iter(str(error).strip().splitlines()), "")
            raise BackboneError(
                f"{self.source.files.name} ({self.model_class}) cannot be exported to ONNX: "
                f"{type(error).__name__}: {reason}; nothing was written",
                hint="--format huggingface exports linear heads of some families",
            ) from error
        config = self.classifier.model.config
        config.update(self.source.label_config())
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        note = replace(
            GraphNote.of(self.source.head, self.inputs, self.source.pairs),
            abstention=self.source.abstention,
            interval=self.source.interval,
        )
        (folder / NOTE).write_text(json.dumps(note.to_json(), ensure_ascii=False, indent=1), encoding="utf-8")


def _stock_model(source: RunToExport, encoder: Encoder) -> Any:
    """The backbone as transformers loads it, with the run's positions and trained weights in it."""
    from transformers import AutoConfig

    folder = loadable_folder(source.files)
    config = AutoConfig.from_pretrained(source.files.folder, local_files_only=True)
    model = text_part(
        text_model_class(config).from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    )
    if extension := encoder.backbone.extension:
        table = position_table(model)
        assert table is not None  # it was extended when the encoder was loaded
        extend_table(model, table, encoder.backbone.first_position, extension)
    source.put_trained(model)
    return model.eval()


def _tokenizer(source: RunToExport) -> Any:
    """The run's, set to pad on the right."""
    tokenizer = source.tokenizer()
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # any token will do: the mask says where padding is
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class GraphNote:
    """The content of featcache.json: all that a program must know to use the graph as the run does.

    Attributes:
        thresholds: of a multi-label head, in the order of `labels`.
        tokenize: the call of the tokenizer, as Python.
        costs: by true and predicted label, in the order of `labels`; predicted is the label that is expected
            to cost least. None, and not in the file, where it is the most probable one.
        abstention: see `RunToExport.abstention`; not in the file where it is None.
        task: `regression` where the output is a number; not in the file for labels.
        interval: see `RunToExport.interval`; likewise.
    """

    format: int = 1
    labels: tuple[str, ...]
    multi_label: bool
    thresholds: tuple[float, ...] | None
    temperature: float
    temperature_in_logits: bool = True
    prompt: str
    pairs: bool
    max_length: int
    truncation_side: str
    padding_side: str = "right"
    tokenize: str
    view: str
    inputs: tuple[str, ...]
    output: str = OUTPUT
    costs: tuple[tuple[float, ...], ...] | None = None
    abstention: dict[str, Any] | None = None
    task: str | None = None
    interval: dict[str, Any] | None = None

    @classmethod
    def of(cls, head: Head, inputs: tuple[str, ...], pairs: bool) -> GraphNote:
        call = "prompt + text, pair" if pairs else "prompt + text"
        return cls(
            labels=head.label_names,
            multi_label=head.multi_label,
            thresholds=None if head.thresholds is None else tuple(head.thresholds.tolist()),
            temperature=head.temperature,
            prompt=head.encoder.prompt,
            pairs=pairs,
            max_length=head.encoder.max_length,
            truncation_side=head.encoder.truncation_side,
            tokenize=f"tokenizer({call}, padding=True, truncation=True, max_length=max_length)",
            view=head.view,
            inputs=inputs,
            costs=None if head.costs is None else tuple(map(tuple, head.costs.tolist())),
            task=None if head.numbers is None else head.task,
        )

    def to_json(self) -> dict[str, Any]:
        optional = ("costs", "abstention", "task", "interval")
        return {name: value for name, value in asdict(self).items() if name not in optional or value}


# --- checking what was written ------------------------------------------------------------------


def _logits(folder: Path, source: RunToExport, texts: Sequence[str]) -> np.ndarray:
    """float32 `[N, C]` by onnxruntime, of one padded batch, computed as in the model card."""
    from onnxruntime import InferenceSession
    from transformers import AutoTokenizer

    note = read_document(GraphNote, (folder / NOTE).read_bytes(), NOTE, BackboneError)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(
        [note.prompt + text for text in texts], source.second(texts), padding=True, truncation=True,
        max_length=note.max_length, return_tensors="np",
    )  # fmt: skip
    try:
        session = InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
        feed = {name: tokens[name].astype(np.int64) for name in note.inputs}
        found: np.ndarray = session.run([OUTPUT], feed)[0]
    except Exception as error:  # its errors have no base of their own
        raise BackboneError(
            f"onnxruntime cannot run the exported model: {error}; nothing was written",
            hint="please report it with the model's name",
        ) from error
    return found


def _card(source: RunToExport, made: ExportedModel, rounding: str) -> str:
    text = 'tokenizer([note["prompt"] + text for text in texts]'
    usage = [
        "import json", "import numpy as np", "import onnxruntime",
        "from transformers import AutoTokenizer", "",
        f'folder = "."  # where {GRAPH} lies',
        f'note = json.load(open(f"{{folder}}/{NOTE}", encoding="utf-8"))',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{GRAPH}")',
        'texts = ["房间很干净", "Broke after one day."]',
        *(['pairs = ["服务也好", "I am disappointed."]'] if source.pairs else []),
        f"tokens = {text}{', pairs' if source.pairs else ''}, padding=True, truncation=True,",
        '                   max_length=note["max_length"], return_tensors="np")',
        f'logits = session.run(["{OUTPUT}"], '
        '{name: tokens[name].astype("int64") for name in note["inputs"]})[0]',
        *(_SAYING[source.head.task] if source.head.costs is None else _CHEAPEST),
    ]  # fmt: skip
    notes = [
        f"Inputs: int64 `[batch, tokens]`, padded on the right. Output: `{OUTPUT}`, float32"
        " `[batch, labels]`; the temperature is in them. The caller puts the prompt before the text;"
        f" texts longer than {source.head.encoder.max_length} tokens are truncated.",
        f"On {made.compared} texts, in one padded batch, onnxruntime's logits differ from the run's in"
        f" float32 by at most {made.difference:.1e}, and from those of its own predictor ({rounding}) by"
        f" at most {made.own_difference:.1e}.",
    ]
    return model_card(source, "onnx", f"ONNX (`{made.model_class}`, float32)", usage, notes)


_SHARES = [
    "shares = np.exp(logits - logits.max(axis=1, keepdims=True))",
    "shares /= shares.sum(axis=1, keepdims=True)",
]
_CHEAPEST = [
    *_SHARES,
    'print([note["labels"][row.argmin()] for row in shares @ np.array(note["costs"])])',
]
_SAYING = {
    REGRESSION: ["print(logits[:, 0])"],
    SINGLE_LABEL: [
        *_SHARES,
        'print([(note["labels"][row.argmax()], round(float(row.max()), 4)) for row in shares])',
    ],
    MULTI_LABEL: [
        "shares = 1 / (1 + np.exp(-logits))",
        'said = shares >= np.array(note["thresholds"])',
        'print([[name for name, yes in zip(note["labels"], row) if yes] for row in said])',
    ],
}
