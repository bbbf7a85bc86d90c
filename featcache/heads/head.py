"""A head: a scorer with what it belongs to; saved as safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.fingerprint import EncoderDocument, fingerprint
from featcache.heads.scorers import SCORERS, Scorer
from featcache.system.durable import write_file

HEAD_FORMAT = 2
READABLE = (1, 2)  # format 1: linear heads without temperature


@dataclass(frozen=True)
class Head:
    """From features to the probability of each label, whatever trained it.

    Attributes:
        scorer: features `[N, D]` as they are stored -> logits `[N, C]`.
        label_names: C names, in the order of the logits.
        view: the view it was trained on, e.g. `last/mean`.
        encoder: the encoder document of the features it was trained on.
        kind: how it was trained: `linear`, `logistic`, `mlp`, ...
        temperature: what logits are divided by, fitted on validation (Guo et al., arXiv:1706.04599).
        thresholds: float64 `[C]` for a multi-label head: a label is said from this probability on.
            None for a single label.
    """

    scorer: Scorer
    label_names: tuple[str, ...]
    view: str
    encoder: EncoderDocument
    kind: str
    temperature: float = 1.0
    thresholds: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        """What features it fits: SHA-256 of encoder document and view."""
        return view_fingerprint(self.encoder, self.view)

    @property
    def parameters(self) -> int:
        return self.scorer.parameters

    @property
    def multi_label(self) -> bool:
        return self.thresholds is not None

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float32 `[N, C]`, some rows at a time so that `x` may be mapped."""
        return self.scorer.logits(x)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float64 `[N, C]`; rows add up to 1 unless labels are independent."""
        return probabilities_of(self.logits(x), self.temperature, multi_label=self.multi_label)

    def save(self, folder: Path, name: str = "head") -> None:
        """Write `<name>.safetensors` and `<name>.json` into `folder`."""
        from safetensors.numpy import save

        note = {
            "format": HEAD_FORMAT,
            "kind": self.kind,
            "scorer": self.scorer.kind,
            "view": self.view,
            "label_names": list(self.label_names),
            "temperature": self.temperature,
            "thresholds": None if self.thresholds is None else [float(value) for value in self.thresholds],
            "fingerprint": self.fingerprint,
            "encoder": self.encoder.to_json(),
        }
        write_file(folder / f"{name}.safetensors", save(self.scorer.tensors()))
        write_file(folder / f"{name}.json", json.dumps(note, indent=1, ensure_ascii=False).encode())


def load_head(folder: Path, name: str = "head") -> Head:
    """A head that `Head.save` wrote; runs no code, believes no size.

    Raises:
        HeadError: missing, unreadable, of another format, or parts that do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        note = json.loads((folder / f"{name}.json").read_bytes())
        tensors = load_file(folder / f"{name}.safetensors")
    except FileNotFoundError as error:
        raise HeadError(f"no head in {folder}: {error.filename} is missing") from None
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise HeadError(f"cannot read the head in {folder}: {error}") from error
    if not isinstance(note, dict) or note.get("format") not in READABLE:
        raise HeadError(f"{folder / name}.json has another head format; this is {HEAD_FORMAT}")
    encoder = _check_note(note, folder)
    scorer = SCORERS[note.get("scorer", "linear")].from_tensors(tensors)
    thresholds = note.get("thresholds")
    head = Head(
        scorer,
        tuple(note["label_names"]),
        note["view"],
        encoder,
        note["kind"],
        float(note.get("temperature", 1.0)),
        None if thresholds is None else np.array(thresholds, np.float64),
    )
    _check(head, note, folder)
    return head


def view_fingerprint(encoder: EncoderDocument, view: str) -> str:
    """The identity of the features of one view, whatever texts they are of."""
    return fingerprint({"encoder": encoder.to_json(), "view": view})


def probabilities_of(logits: np.ndarray, temperature: float, *, multi_label: bool) -> np.ndarray:
    """Logits `[N, C]` -> float64 probabilities `[N, C]`: softmax, or a sigmoid each for multi-label."""
    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * scaled)))
    return softmax(scaled)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` -> float64 probabilities `[N, C]`."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _check_note(note: Mapping[str, Any], folder: Path) -> EncoderDocument:
    """The encoder document, after a check that every field of the head is there and of its kind."""
    names = note.get("label_names")
    fine = (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
        and all(isinstance(note.get(part), str) for part in ("view", "kind", "fingerprint"))
        and note.get("scorer", "linear") in SCORERS
        and _is_number(note.get("temperature", 1.0))
        and 0 < note.get("temperature", 1.0) < 1e6
        and _are_shares(note.get("thresholds"), len(names))
    )
    try:
        encoder = EncoderDocument.from_json(note.get("encoder"))
    except ValueError:
        fine = False
    if not fine:
        raise HeadError(f"the head in {folder} is incomplete or was changed by hand")
    return encoder


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_shares(values: Any, count: int) -> bool:
    if values is None:
        return True
    fine = isinstance(values, list) and len(values) == count
    return fine and all(_is_number(value) and 0 <= value <= 1 for value in values)


def _check(head: Head, note: Mapping[str, Any], folder: Path) -> None:
    classes = len(head.label_names)
    if head.scorer.classes != classes:
        raise HeadError(
            f"the head in {folder} does not fit its {classes} labels: it has {head.scorer.classes}"
        )
    try:
        own = head.fingerprint
    except ValueError:  # NaN, which JSON does not have
        own = ""
    if note["fingerprint"] != own:
        raise HeadError(f"the head in {folder} was changed by hand: its fingerprint does not hold")
