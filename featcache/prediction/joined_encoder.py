"""The encoders of a head that reads several backbones: one pass of each over the same texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from featcache.backbone.encoder import Encoder
from featcache.backbone.tokens.encoded import Encoded
from featcache.backbone.tokens.tokenization import TextTokens, Tokens
from featcache.cache.view_names import named_view
from featcache.errors import UsageError
from featcache.finetuning.run_backbone import BackboneChoice, RunBackbone
from featcache.fingerprint import EncoderDocument, joined_document
from featcache.runs.run import Run


def run_encoder(run: Run, choice: BackboneChoice) -> Encoder | None:
    """What makes the features that the head of a run reads; None for words alone.

    Args:
        choice: of several backbones, `model` and `adapter` name those that have moved: `A=FOLDER,B=FOLDER`.

    Raises:
        HeadError, BackboneError, UsageError: see `RunBackbone.find` and `RunBackbone.encoder`.
    """
    head = run.head()
    if not head.views:
        return None
    names = [each.name for each in head.encoder.named]
    if not names:
        return RunBackbone.find(run, choice).encoder()
    models, adapters = (_by_name(where, names) for where in (choice.model, choice.adapter))
    encoders = {}
    for name in names:
        own = replace(choice, model=models.get(name), adapter=adapters.get(name))
        encoders[name] = RunBackbone.find(run, own, name=name).encoder()
    return JoinedEncoder(encoders)


def _by_name(given: str | None, names: Sequence[str]) -> dict[str, str]:
    """`A=FOLDER,B=FOLDER` as folders by the names of backbones."""
    parts = [part.partition("=") for part in given.split(",")] if given else []
    if odd := [name for name, equals, _ in parts if not equals or name not in names]:
        raise UsageError(
            f"{odd[0]!r}: this head reads several backbones, named {', '.join(names)}",
            hint="say which one has moved: --model NAME=FOLDER",
        )
    return {name: folder for name, _, folder in parts}


@dataclass(frozen=True)
class JoinedTokens(Tokens):
    """The tokens of the same texts for several encoders: those of the first, and of `others` by name."""

    others: Mapping[str, Tokens] = field(default_factory=dict)


class JoinedEncoder(Encoder):
    """Encoders by the names of their backbones, used as one.

    Lengths, counts of tokens and the budget of a batch are those of the first.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        (self.name, first), *others = encoders.items()
        self.first, self.others = first, dict(others)
        self.backbone, self.storage, self.prompt = first.backbone, first.storage, first.prompt
        self.max_length, self.long_text, self.overlap = first.max_length, first.long_text, first.overlap
        self.views = [
            replace(view, name=named_view(name, view.name))
            for name, encoder in encoders.items()
            for view in encoder.views
        ]
        self.notes = [note for encoder in encoders.values() for note in encoder.notes]
        self.batch_tokens = min(encoder.batch_tokens for encoder in encoders.values())

    @property
    def document(self) -> EncoderDocument:
        return joined_document({self.name: self.first.document} | {
            name: encoder.document for name, encoder in self.others.items()
        })  # fmt: skip

    @property
    def width(self) -> int:
        return self.first.width + sum(encoder.width for encoder in self.others.values())

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> JoinedTokens:
        """The tokens of each encoder."""
        others = {name: encoder.tokenize(texts, pairs) for name, encoder in self.others.items()}
        return JoinedTokens(**vars(self.first.tokenize(texts, pairs)), others=others)

    def measure(self, text: str, pair: str | None = None) -> TextTokens:
        """Of the first encoder."""
        return self.first.measure(text, pair)

    def encode(self, tokens: Tokens, on_batch: Callable[[int, int], None] | None = None) -> Encoded:
        """The features of all encoders, by views with the names of their backbones."""
        assert isinstance(tokens, JoinedTokens)
        own = self.first.encode(tokens, on_batch)
        made = {self.name: own} | {
            name: encoder.encode(tokens.others[name]) for name, encoder in self.others.items()
        }
        views = {
            named_view(name, view): x for name, encoded in made.items() for view, x in encoded.views.items()
        }
        truncated = np.logical_or.reduce([encoded.truncated for encoded in made.values()])
        return Encoded(views, own.n_tokens, truncated)
