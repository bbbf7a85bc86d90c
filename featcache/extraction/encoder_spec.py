"""What extraction needs to know of an encoder, wherever its model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.fingerprint import EncoderDocument

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder


@dataclass(frozen=True)
class EncoderSpec:
    """A description of an encoder; a value that can be sent to another machine.

    Attributes:
        document: all that turns a text into a vector.
        views: the stored name of each view by the name it was asked for.
        width: numbers in the vectors of one row, of all stored views.
        batch_tokens: token budget of a batch.
        device, dtype, packing, packing_note, fused: how it computes; kept in the record of the file.
        notes: for the user.
    """

    document: EncoderDocument
    views: Mapping[str, str]
    width: int
    batch_tokens: int
    device: str
    dtype: str
    packing: str = "packed"
    packing_note: str = ""
    fused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, encoder: Encoder, views: Sequence[str]) -> EncoderSpec:
        """The description of a loaded encoder; `views`: as they were asked for."""
        from featcache.backbone.pooling import parse_view

        backbone = encoder.backbone
        return cls(
            document=encoder.document,
            views={text: parse_view(text, backbone.num_blocks).name for text in views},
            width=encoder.width,
            batch_tokens=encoder.batch_tokens,
            device=str(backbone.device),
            dtype=backbone.dtype_name,
            packing=backbone.packing,
            packing_note=backbone.packing_note,
            fused=tuple(backbone.fused),
            notes=tuple(encoder.notes),
        )

    @property
    def stored_views(self) -> list[str]:
        """The stored names, sorted."""
        return sorted(set(self.views.values()))

    @property
    def max_length(self) -> int | None:
        """Tokens at which a text is truncated; None where long texts are split into windows, or a server
        decides."""
        decided = self.document.long_text != "chunks" and self.document.endpoint is None
        return self.document.max_length if decided else None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's vectors."""
        itemsize: int = np.dtype(self.document.dtype.storage).itemsize
        return self.width * itemsize
