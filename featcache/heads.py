"""A head: `W, b` with what they belong to; saved as safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.files import write_file
from featcache.fingerprint import fingerprint

HEAD_FORMAT = 1


@dataclass(frozen=True)
class Head:
    """A linear map from features to class logits, whatever trained it.

    Attributes:
        weight: float32 `[C, D]`, for features as they are stored: standardisation is folded in.
        bias: float32 `[C]`.
        label_names: C names, in the order of the logits.
        view: the view it was trained on, e.g. `last/mean`.
        encoder: the encoder document of the features it was trained on.
        kind: `linear` (AdamW) or `logistic` (scikit-learn).
    """

    weight: np.ndarray
    bias: np.ndarray
    label_names: tuple[str, ...]
    view: str
    encoder: Mapping[str, Any]
    kind: str

    @property
    def fingerprint(self) -> str:
        """What features it fits: SHA-256 of encoder document and view."""
        return view_fingerprint(self.encoder, self.view)

    @property
    def parameters(self) -> int:
        return int(self.weight.size + self.bias.size)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float32 `[N, C]`, some rows at a time so that `x` may be mapped."""
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise HeadError(f"this head wants features [N, {self.weight.shape[1]}], got {list(x.shape)}")
        rows = range(0, len(x), 65536)
        parts = [np.asarray(x[i : i + 65536], np.float32) @ self.weight.T + self.bias for i in rows]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.bias)), np.float32)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Features `[N, D]` -> float64 `[N, C]` that add up to 1."""
        return softmax(self.logits(x))

    def save(self, folder: Path, name: str = "head") -> None:
        """Write `<name>.safetensors` and `<name>.json` into `folder`."""
        from safetensors.numpy import save

        note = {
            "format": HEAD_FORMAT,
            "kind": self.kind,
            "view": self.view,
            "label_names": list(self.label_names),
            "fingerprint": self.fingerprint,
            "encoder": dict(self.encoder),
        }
        tensors = {"weight": self.weight, "bias": self.bias}
        write_file(folder / f"{name}.safetensors", save(tensors))
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
    if not isinstance(note, dict) or note.get("format") != HEAD_FORMAT:
        raise HeadError(f"{folder / name}.json has another head format; this is {HEAD_FORMAT}")
    _check_note(note, folder)
    if not {"weight", "bias"} <= set(tensors):
        raise HeadError(f"the head in {folder} has no weight and bias")
    weight, bias = (tensors[part].astype(np.float32, copy=False) for part in ("weight", "bias"))
    head = Head(weight, bias, tuple(note["label_names"]), note["view"], note["encoder"], note["kind"])
    _check(head, note, folder)
    return head


def _check_note(note: Mapping[str, Any], folder: Path) -> None:
    """Every field is there and of its kind; label names are texts, each one once."""
    names = note.get("label_names")
    fine = (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
        and isinstance(note.get("encoder"), dict)
        and all(isinstance(note.get(part), str) for part in ("view", "kind", "fingerprint"))
    )
    if not fine:
        raise HeadError(f"the head in {folder} is incomplete or was changed by hand")


def view_fingerprint(encoder: Mapping[str, Any], view: str) -> str:
    """The identity of the features of one view, whatever texts they are of."""
    return fingerprint({"encoder": dict(encoder), "view": view})


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` -> float64 probabilities `[N, C]`."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _check(head: Head, note: Mapping[str, Any], folder: Path) -> None:
    classes = len(head.label_names)
    if head.weight.ndim != 2 or head.weight.shape[0] != classes or head.bias.shape != (classes,):
        raise HeadError(
            f"the head in {folder} does not fit its {classes} labels: "
            f"W {list(head.weight.shape)}, b {list(head.bias.shape)}"
        )
    if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
        raise HeadError(f"the head in {folder} holds NaN or infinite weights")
    try:
        own = head.fingerprint
    except ValueError:  # NaN, which JSON does not have
        own = ""
    if note["fingerprint"] != own:
        raise HeadError(f"the head in {folder} was changed by hand: its fingerprint does not hold")
