"""The backbone that a run was trained with, and the run's encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from featcache.backbone.encoder import Encoder, document_settings
from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.errors import HeadError
from featcache.fingerprint import EncoderDocument, TunedPart, differences
from featcache.heads.head import Head
from featcache.runs.run import Run
from featcache.settings import BackboneSettings


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
        cls, run: Run, model: str | None = None, *, device: str = "auto", exact: bool = False
    ) -> RunBackbone:
        """The backbone of `run`, checked before its weights are loaded.

        Args:
            model: its folder or hub id, if it is not where it was when the head was trained.

        Raises:
            HeadError: the head cannot be read, or the backbone that is there has other files.
            BackboneError, UsageError: the backbone is not there.
        """
        head, made = run.head(), run.record.backbone
        settings = BackboneSettings(
            model=model or made.model,
            revision=None if model else made.commit or made.revision,
            hub=made.hub,
            trust_remote_code=made.trust_remote_code and not exact,
            device="cpu" if exact else device,
            dtype="float32" if exact else head.encoder.dtype.compute,
            batch_tokens=None if exact else made.batch_tokens,
        )
        files = find_model(settings)
        other = differences({"files": head.encoder.files}, {"files": files.hashes})
        if other:
            raise HeadError(
                f"{run.name} was trained with other files than those of {files.name}: "
                + "; ".join(map(str, other)),
                hint="give the backbone it was trained with: --model FOLDER",
            )
        return cls(run, head, settings, files, exact)

    def encoder(self) -> Encoder:
        """The encoder of the head's features, with extended positions and trained weights in place.

        Raises:
            HeadError: the trained weights are missing, were changed, or belong to another backbone.
            BackboneError: the backbone cannot be loaded.
        """
        document = self.head.encoder
        features = document_settings(document, (self.head.view,))
        if self.exact:
            features = replace(features, storage="float32")
        if document.tuned is None:
            return Encoder.load(self.settings, features, self.files)
        from featcache.finetuning.weights import load_plain, trained_weights, with_weights

        weights = trained_weights(self.run.folder, document)
        plain = load_plain(self.settings, self.files)
        Encoder(plain, features)  # extends the position table, if the settings ask for it
        backbone = with_weights(plain, self.settings, weights)
        encoder = TunedEncoder(backbone, features, self.settings.batch_tokens)
        encoder.tuned = document.tuned
        return encoder


class TunedEncoder(Encoder):
    """An encoder whose backbone was fine-tuned; `tuned` says with which weights."""

    tuned: TunedPart | None = None

    @property
    def document(self) -> EncoderDocument:
        return replace(super().document, tuned=self.tuned)
