"""The encoders of a head that reads several backbones: one pass of each over the same texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.backbone.encoder import Encoder
from featcache.backbone.endpoint.encoder import EndpointEncoder, SentTexts
from featcache.backbone.tokens.encoded import Encoded
from featcache.backbone.tokens.tokenization import TextTokens, Tokens
from featcache.cache.view_names import named_view
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import UsageError
from featcache.finetuning.run_backbone import BackboneChoice, RunBackbone, named_head, refuse_vectors
from featcache.finetuning.run_endpoint import run_endpoint
from featcache.fingerprint import EncoderDocument, joined_document
from featcache.heads.head import Head
from featcache.runs.run import Run

OneEncoder = Encoder | EndpointEncoder


def run_encoder(
    run: Run,
    head: Head,
    choice: BackboneChoice,
    endpoint: EndpointSettings | None = None,
    given: str | None = None,
) -> OneEncoder | JoinedEncoder | None:
    """What makes the features that the head of a run reads; None for words alone.

    Args:
        head: of the run.
        choice: of several backbones, `model` and `adapter` name those that have moved, and the endpoints that
            may be asked: `A=FOLDER,B=openai+https://...`.
        endpoint: how endpoints are asked.
        given: of several backbones, the name of the one whose vectors are there already.

    Raises:
        HeadError, BackboneError, UsageError: see `RunBackbone.find`, `RunBackbone.encoder`, `run_endpoint`.
    """
    asked = endpoint or EndpointSettings()
    known = [each.name for each in head.encoder.named]
    names = [name for name in known if name != given]
    if not head.views or (known and not names):
        return None
    if not known:
        if (part := head.encoder.endpoint) is not None:
            return run_endpoint(run, head, part, choice.model, asked)
        return RunBackbone.find(run, head, choice).encoder()
    heads = {name: named_head(head, run, name)[0] for name in names}
    for own in heads.values():
        refuse_vectors(own)
    models, adapters = (by_name(where, known) for where in (choice.model, choice.adapter))
    encoders: dict[str, OneEncoder] = {}
    for name, own in heads.items():
        if (part := own.encoder.endpoint) is not None:
            encoders[name] = run_endpoint(run, own, part, models.get(name), asked, name=name)
        else:
            chosen = replace(choice, model=models.get(name), adapter=adapters.get(name))
            encoders[name] = RunBackbone.find(run, head, chosen, name=name).encoder()
    return JoinedEncoder(encoders)


def by_name(given: str | None, names: Sequence[str]) -> dict[str, str]:
    """`A=FOLDER,B=FOLDER` as folders by the names of backbones.

    Raises:
        UsageError: a part without a name, or with one that is not among `names`.
    """
    parts = [part.partition("=") for part in given.split(",")] if given else []
    if odd := [name for name, equals, _ in parts if not equals or name not in names]:
        raise UsageError(
            f"{odd[0]!r}: this head reads several backbones, named {', '.join(names)}",
            hint="say which one has moved: --model NAME=FOLDER",
        )
    return {name: folder for name, _, folder in parts}


@dataclass(frozen=True, eq=False)
class JoinedTokens:
    """The same texts, ready for each of several encoders.

    Attributes:
        by_name: of an endpoint the texts that are on their way.
    """

    by_name: Mapping[str, Tokens | SentTexts]

    @property
    def unknown_shares(self) -> np.ndarray:
        """float64 `[N]`, of the first encoder."""
        return next(iter(self.by_name.values())).unknown_shares


class JoinedEncoder:
    """Encoders by the names of their backbones, used as one.

    Lengths, counts of tokens and progress are those of the first: one with a model on this machine, where
    there is one. Endpoints come last: what a tokenizer refuses is not sent, and they answer while the models
    on this machine run.
    """

    def __init__(self, encoders: Mapping[str, OneEncoder]) -> None:
        self.encoders = dict(sorted(encoders.items(), key=lambda item: isinstance(item[1], EndpointEncoder)))
        self.first = next(iter(self.encoders.values()))
        self.max_length, self.long_text = self.first.max_length, self.first.long_text
        self.views = [
            replace(view, name=named_view(name, view.name))
            for name, encoder in encoders.items()
            for view in encoder.views
        ]
        self.batch_tokens = min(encoder.batch_tokens for encoder in encoders.values())

    @property
    def document(self) -> EncoderDocument:
        return joined_document({name: encoder.document for name, encoder in self.encoders.items()})

    @property
    def model_name(self) -> str:
        """The names of all models."""
        return ", ".join(encoder.model_name for encoder in self.encoders.values())

    def prepare(self, texts: int) -> None:
        """Get ready for about so many texts."""
        for encoder in self.encoders.values():
            encoder.prepare(texts)

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> JoinedTokens:
        """The tokens of each encoder."""
        return JoinedTokens({name: each.tokenize(texts, pairs) for name, each in self.encoders.items()})

    def measure(self, text: str, pair: str | None = None) -> TextTokens | None:
        """Of the first encoder."""
        return self.first.measure(text, pair)

    def encode(self, tokens: JoinedTokens, on_batch: Callable[[int, int], None] | None = None) -> Encoded:
        """The features of all encoders, by views with the names of their backbones."""
        made: dict[str, Encoded] = {}
        left = dict(self.encoders)
        try:
            for name, encoder in self.encoders.items():
                del left[name]
                told = on_batch if encoder is self.first else None
                made[name] = encoder.encode(tokens.by_name[name], told)  # type: ignore[arg-type]  # of its own
        except BaseException:
            for name, encoder in left.items():  # else texts are paid for whose answers nobody reads
                if isinstance(encoder, EndpointEncoder):
                    encoder.give_up(tokens.by_name[name])  # type: ignore[arg-type]  # of its own
            raise
        views = {
            named_view(name, view): x for name, encoded in made.items() for view, x in encoded.views.items()
        }
        truncated = np.logical_or.reduce([encoded.truncated for encoded in made.values()])
        return Encoded(views, next(iter(made.values())).n_tokens, truncated)
