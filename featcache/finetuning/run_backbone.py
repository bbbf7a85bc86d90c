"""The backbone that a run was trained with, and the run's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from featcache.backbone.attentive import Attention
from featcache.backbone.encoder import Encoder, document_settings
from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.backbone.model_files.kinds import ENDPOINT, FILES, kind_of
from featcache.cache.view_names import join_views, split_name
from featcache.errors import BackboneError, HeadError
from featcache.fingerprint import EncoderDocument, TunedPart, differences
from featcache.heads.head import Head
from featcache.importing.vector_file import said_of
from featcache.runs.record import BackboneRecord
from featcache.runs.run import Run
from featcache.settings import BackboneSettings


@dataclass(frozen=True)
class BackboneChoice:
    """What this user says about the backbone of a run; what run.json says is the word of whoever trained it.

    Attributes:
        model: its folder or hub id, if it is not where it was when the head was trained.
        revision, hub: of `model`; see `--revision`, `--hub`.
        device: see `--device`.
        trust_remote_code: let the model's own Python code run, where the head was trained with it.
        adapter: folder of the adapter, if it is not where it was; see `--adapter`.
    """

    model: str | None = None
    revision: str | None = None
    hub: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class RunBackbone:
    """The files of the very backbone that a run was trained with, and how to compute with them.

    Attributes:
        exact: in float32 on the CPU, without the model's own Python code: the reference of exports.
    """

    run: Run
    head: Head
    settings: BackboneSettings
    files: ModelFiles
    exact: bool

    @classmethod
    def find(
        cls, run: Run, head: Head, choice: BackboneChoice, *, exact: bool = False, name: str | None = None
    ) -> RunBackbone:
        """The backbone of `run`, checked before its weights are loaded.

        Args:
            head: of the run.
            name: of a run with several backbones, which of them; `head` is then as if it read no other.

        Raises:
            HeadError: the backbone that is there has other files, or is one of several.
            BackboneError, UsageError: the backbone is not there, or needs code that may not run.
        """
        made = run.record.backbone
        if head.encoder.named:
            head, made = named_head(head, run, name)
        refuse_vectors(head)
        if head.encoder.endpoint is not None:
            raise HeadError(
                f"{run.name} reads vectors of {head.encoder.endpoint.model}, which is behind an endpoint; "
                "this needs the files of a backbone",
                hint="predict and serve work with it, and ask the endpoint for each text",
            )
        if choice.model and (kind := kind_of(choice.model)) != FILES:
            named = "an endpoint" if kind == ENDPOINT else "imported vectors"
            raise HeadError(
                f"{run.name} was trained with the backbone {made.model}, and --model names {named}",
                hint="leave --model out, or give the folder of that backbone",
            )
        code = [name for name in head.encoder.files if name.endswith(".py")]
        if code and (exact or not choice.trust_remote_code):
            raise _needs_code(run, code, exact=exact)
        settings = BackboneSettings(
            model=choice.model or made.model,
            revision=choice.revision if choice.model else made.commit or made.revision,
            hub=choice.hub or made.hub,
            trust_remote_code=bool(code),
            device="cpu" if exact else choice.device,
            dtype="float32" if exact else head.encoder.dtype.compute,
            batch_tokens=None if exact else made.batch_tokens,
            adapter=choice.adapter or made.adapter,
        )
        files = find_model(settings)
        other = differences({"files": head.encoder.files}, {"files": files.hashes_of(head.views)})
        if other:
            raise HeadError(
                f"{run.name} was trained with other files than those of {files.name}: "
                + "; ".join(map(str, other)),
                hint="give the backbone it was trained with: --model FOLDER"
                + (", and its adapter: --adapter FOLDER" if settings.adapter else ""),
            )
        return cls(run, head, settings, files, exact)

    def encoder(self) -> Encoder:
        """The encoder of the head's features, with extended positions and trained weights in place.

        Raises:
            HeadError: the trained weights are missing, were changed, or belong to another backbone.
            BackboneError: the backbone cannot be loaded.
        """
        document = self.head.encoder
        features = document_settings(document, self.head.views)
        if self.exact:
            features = replace(features, storage="float32")
        if document.tuned is None:
            attention = {view: Attention.of(*parts) for view, parts in self.head.attention.items()}
            return Encoder.load(self.settings, features, self.files, attention)
        from featcache.finetuning.weights import load_plain, trained_weights, with_weights

        weights = trained_weights(self.run.folder, document)
        plain = load_plain(self.settings, self.files)
        Encoder(plain, features)  # extends the position table, if the settings ask for it
        backbone = with_weights(plain, self.settings, weights)
        encoder = TunedEncoder(backbone, features, self.settings.batch_tokens)
        encoder.tuned = document.tuned
        return encoder


def refuse_vectors(head: Head) -> None:
    """Refuse a head on imported vectors where texts are to be encoded.

    Raises:
        HeadError
    """
    if (part := head.encoder.vectors) is not None:
        raise HeadError(
            f"this head reads imported {said_of(part)}; nothing here turns a text into such a vector",
            hint="give vectors of new texts: featcache predict --input FILE --vectors FILE --output FILE",
        )


def named_head(head: Head, run: Run, name: str | None) -> tuple[Head, BackboneRecord]:
    """A head as if it read the views of one of its backbones alone, and what the run keeps of that one.

    Raises:
        HeadError: no name, or one that run.json does not know.
    """
    known, documents = run.record.backbone.named, {one.name: one.encoder for one in head.encoder.named}
    if name is None:
        raise HeadError(
            f"{run.name} reads several backbones, {', '.join(documents)}, and no model holds them all",
            hint="predict with featcache: featcache predict, featcache serve",
        )
    if name not in known:
        raise HeadError(
            f"run.json of {run.name} does not say which backbone {name!r} is",
            hint="train that head again: featcache train-head",
        )
    views = [own for of, own in map(split_name, head.views) if of == name]
    return replace(head, encoder=documents[name], view=join_views(views)), known[name]


def _needs_code(run: Run, code: Sequence[str], *, exact: bool) -> BackboneError:
    what = f"the backbone of {run.name}, {run.record.backbone.model}, has code of its own ({', '.join(code)})"
    if exact:
        return BackboneError(f"{what}, which an export cannot contain")
    return BackboneError(
        f"{what}, which only you can let run, whatever the run says",
        hint="if you trust whoever wrote that code: --trust-remote-code, or in featcache.toml its model "
        "and trust_remote_code = true",
    )


class TunedEncoder(Encoder):
    """An encoder whose backbone was fine-tuned; `tuned` says with which weights."""

    tuned: TunedPart | None = None

    @property
    def document(self) -> EncoderDocument:
        return replace(super().document, tuned=self.tuned)
