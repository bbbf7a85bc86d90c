"""The model behind an endpoint: its address, its name, and the views of it that there are."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.backbone.model_files.kinds import ENDPOINT, kind_of
from featcache.backbone.model_files.sentence_transformers import AUTO, Followed, follow
from featcache.errors import NoInnerLayers, UsageError
from featcache.fingerprint import Dtypes, EncoderDocument, EndpointPart, RequestedEncoder
from featcache.settings import BackboneSettings, FeatureSettings

FORM = "write it as in openai+https://api.openai.com/v1#text-embedding-3-small"
VECTOR = "vector"  # the view of what the server sends
COMPUTED = "endpoint"  # in the place of a compute dtype, which the server does not tell
_VIEW = re.compile(r"vector(?:-dimensions([1-9]\d{0,5}))?(?:-first([1-9]\d{0,5})-normalized)?")
VIEWS = (
    "vector; vector-dimensions256 asks the server for 256 numbers; "
    "vector-first256-normalized takes the first 256 and scales them to length 1"
)


@dataclass(frozen=True)
class EndpointView:
    """A view of what an endpoint sends.

    Attributes:
        dimensions: numbers that the server is asked for; None: not asked.
        first: how many of them are kept, and scaled to length 1; None: all, as they are.
    """

    name: str
    dimensions: int | None
    first: int | None

    @classmethod
    def parse(cls, text: str) -> EndpointView:
        """The view of this name.

        Raises:
            NoInnerLayers: an endpoint has no such view.
        """
        found = _VIEW.fullmatch(text)
        if found is None:
            raise NoInnerLayers(f"an endpoint gives one vector a text: it has no view {text}", hint=VIEWS)
        dimensions, first = (None if part is None else int(part) for part in found.groups())
        if dimensions is not None and first is not None and first > dimensions:
            raise UsageError(f"view {text}: of {dimensions} numbers the first {first} cannot be taken")
        return cls(text, dimensions, first)


@dataclass(frozen=True)
class EndpointModel:
    """A model behind an endpoint.

    Attributes:
        address: to which `/embeddings` is added, e.g. `http://localhost:8080/v1`.
        name: as the server knows the model.
        revision: what the user declares, for a server whose model changes under one name.
    """

    address: str
    name: str
    revision: str | None = None

    commit = None  # as of `ModelFiles`

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> EndpointModel:
        """The model that `--model openai+http://HOST:PORT/v1#MODEL` names.

        Raises:
            UsageError: no such address, or one with a password, a key or a query.
        """
        address, _, name = text.partition("#")
        try:
            parts = urlsplit(address.strip())
            port = parts.port
        except ValueError as error:
            raise UsageError(f"--model {_without_login(text)}: {error}", hint=FORM) from None
        scheme, host = parts.scheme.lower().removeprefix("openai+"), (parts.hostname or "").lower()
        shown = _without_login(text)
        if "@" in parts.netloc:
            raise UsageError(
                f"--model {shown}: a user or a password does not belong into an address, which is stored",
                hint="put the key into the environment: FEATCACHE_API_KEY",
            )
        if parts.query:
            raise UsageError(f"--model {shown}: an address with a query (?...) is not supported", hint=FORM)
        if scheme not in ("http", "https") or not host or not name.strip():
            what = "names no model after #" if scheme in ("http", "https") and host else "is no endpoint"
            raise UsageError(f"--model {shown} {what}", hint=FORM)
        place = f"[{host}]" if ":" in host else host
        if port is not None and port != {"http": 80, "https": 443}[scheme]:
            place += f":{port}"
        path = parts.path.rstrip("/").removesuffix("/embeddings")
        return cls(f"{scheme}://{place}{path}", name.strip(), revision)

    @property
    def host(self) -> str:
        return urlsplit(self.address).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def url(self) -> str:
        return f"{self.address}/embeddings"

    # -- what it has in common with `ModelFiles` ---------------------------------------------------

    def width_of(self, views: Sequence[str]) -> int | None:
        """Numbers in the vectors of all `views`; None where the names do not say it."""
        parsed = [EndpointView.parse(view) for view in dict.fromkeys(views)]
        widths = [view.first or view.dimensions for view in parsed]
        return None if None in widths else sum(width for width in widths if width)

    def follow(self, features: FeatureSettings) -> Followed:
        """Settings of features in which nothing is `auto`.

        Raises:
            NoInnerLayers: a view that an endpoint does not have.
            UsageError: settings that only a model on this machine can follow.
        """
        default = FeatureSettings()
        for name in ("prompt_name", "max_length", "lower_case", "extend_positions", "long_text"):
            if getattr(features, name) not in (getattr(default, name), False):
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{flag}: an endpoint reads texts as they are, and its server truncates them",
                    hint=f"leave {flag} out",
                )
        views = {view: VECTOR if view == f"last/{AUTO}" else view for view in features.views}
        asked = {EndpointView.parse(name).dimensions for name in views.values()}
        if len(asked) > 1:
            raise UsageError(
                "views with different -dimensions need a request each",
                hint="extract them one after the other",
            )
        prompt = "" if features.prompt == AUTO else features.prompt
        stored = tuple(dict.fromkeys(views.values()))
        made = replace(features, views=stored, prompt=prompt, lower_case=None, pool_prompt=None)
        return Followed(made, {view: (name,) for view, name in views.items()})

    # -- identity ----------------------------------------------------------------------------------

    def requested(self, features: FeatureSettings) -> RequestedEncoder:
        """The encoder's part of a request; `features`: of `follow`."""
        views = [EndpointView.parse(view) for view in features.views]
        part = {"address": self.address, "model": self.name, "revision": self.revision,
                "dimensions": views[0].dimensions}  # fmt: skip
        return replace(RequestedEncoder.of({}, COMPUTED, features), endpoint=part)

    def document(self, features: FeatureSettings, width: int) -> EncoderDocument:
        """All that turns a text into a vector; `width`: numbers that the server sends for one text."""
        dimensions = EndpointView.parse(features.views[0]).dimensions
        part = EndpointPart(
            address=self.address, model=self.name, width=width, dimensions=dimensions, revision=self.revision
        )
        return EncoderDocument(
            files={}, prompt=features.prompt, max_length=0, truncation_side="server",
            dtype=Dtypes(COMPUTED, features.storage), endpoint=part,
        )  # fmt: skip


AnyModel = ModelFiles | EndpointModel


def find_any_model(settings: BackboneSettings) -> AnyModel:
    """The model of `--model`, of whatever kind.

    Raises:
        BackboneError, UsageError: see `find_model`, `EndpointModel.parse`.
    """
    if kind_of(settings.model) == ENDPOINT:
        return EndpointModel.parse(settings.model, settings.revision)
    return find_model(settings)


def follow_any(features: FeatureSettings, model: AnyModel) -> Followed:
    """Settings in which nothing is `auto`, by a model of whatever kind."""
    return model.follow(features) if isinstance(model, EndpointModel) else follow(features, model)


def _without_login(text: str) -> str:
    """An address without user, password and query, for messages."""
    return re.sub(r"\?[^#]*", "", re.sub(r"//[^/#]*@", "//", text))
