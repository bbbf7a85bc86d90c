"""Addresses and views of endpoints: what is accepted, what is refused, and what tells two apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.endpoint.model import EndpointModel, EndpointView, find_any_model
from featcache.backbone.model_files.find import find_model
from featcache.errors import FeatcacheError, NoInnerLayers, UsageError
from featcache.settings import BackboneSettings, FeatureSettings


@pytest.mark.parametrize(
    ("text", "address", "name"),
    [
        ("openai+http://localhost:8080/v1#bge", "http://localhost:8080/v1", "bge"),
        ("openai+https://API.OpenAI.com:443/v1/#m", "https://api.openai.com/v1", "m"),
        ("OpenAI+http://host:80/v1/embeddings#BAAI/bge-m3", "http://host/v1", "BAAI/bge-m3"),
        ("openai+http://[::1]:9/v1#m", "http://[::1]:9/v1", "m"),
        ("openai+https://h/api/paas/v4#embedding-3", "https://h/api/paas/v4", "embedding-3"),
    ],
)
def test_one_server_has_one_address(text: str, address: str, name: str) -> None:
    found = EndpointModel.parse(text)
    assert (found.address, found.name, found.url) == (address, name, f"{address}/embeddings")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openai+http://me:secret1@host/v1#m", "a user or a password"),
        ("openai+http://host/v1?api-key=secret1#m", "a query"),
        ("openai+http://host/v1", "names no model"),
        ("openai+http://host/v1# ", "names no model"),
        ("openai+ftp://host/v1#m", "no endpoint"),
        ("openai+http:///v1#m", "no endpoint"),
        ("openai+http://host:99999/v1#m", "out of range"),
        ("openai+http://[::1/v1#m", "--model"),
    ],
)
def test_an_address_that_cannot_be_stored_is_refused_without_its_secret(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        EndpointModel.parse(text)
    assert said in str(error.value) and error.value.hint and "secret1" not in str(error.value)


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_a_sentence(text: str) -> None:
    try:
        found = EndpointModel.parse(f"openai+{text}")
    except FeatcacheError:
        return
    assert EndpointModel.parse(f"openai+{found.address}#{found.name}") == found


def test_what_needs_files_refuses_an_endpoint_by_its_name() -> None:
    settings = BackboneSettings(model="openai+http://localhost:8080/v1#bge", revision="2024-05")
    assert find_any_model(settings) == EndpointModel("http://localhost:8080/v1", "bge", "2024-05")
    with pytest.raises(UsageError, match="the model bge is behind an endpoint"):
        find_model(settings)


@pytest.mark.parametrize(
    ("view", "dimensions", "first"),
    [
        ("vector", None, None),
        ("vector-dimensions256", 256, None),
        ("vector-first64-normalized", None, 64),
        ("vector-dimensions256-first64-normalized", 256, 64),
    ],
)
def test_a_view_says_what_is_done_with_the_vector(
    view: str, dimensions: int | None, first: int | None
) -> None:
    assert EndpointView.parse(view) == EndpointView(view, dimensions, first)


@pytest.mark.parametrize(
    "view",
    ["last/mean", "-4/cls", "depth", "vector-first0-normalized", "vector-first64", "vector-dimensions"],
)
def test_other_views_are_refused(view: str) -> None:
    with pytest.raises(NoInnerLayers, match="one vector a text") as error:
        EndpointModel("http://h/v1", "m").follow(FeatureSettings(views=(view,)))
    assert "vector-first256-normalized" in (error.value.hint or "")


def test_settings_of_a_local_model_are_refused_where_they_would_not_count() -> None:
    model = EndpointModel("http://h/v1", "m")
    for features in (FeatureSettings(max_length=128), FeatureSettings(long_text="chunks")):
        with pytest.raises(UsageError, match="its server truncates"):
            model.follow(features)
    with pytest.raises(UsageError, match="a request each"):
        model.follow(FeatureSettings(views=("vector-dimensions8", "vector")))
    followed = model.follow(FeatureSettings())
    assert followed.features.views == ("vector",) and followed.views == {"last/auto": ("vector",)}


def test_two_endpoints_have_two_requests_and_two_documents() -> None:
    models = [
        EndpointModel("http://h/v1", "m"),
        EndpointModel("http://other/v1", "m"),
        EndpointModel("http://h/v1", "n"),
        EndpointModel("http://h/v1", "m", "v2"),
    ]
    features = FeatureSettings(views=("vector",), prompt="")
    assert len({str(model.requested(features)) for model in models}) == 4
    assert len({str(model.document(features, 8)) for model in models}) == 4
    assert models[0].document(features, 8) != models[0].document(features, 9)
