"""Static models: vectors equal those of model2vec and of sentence-transformers, alone and among others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from featcache.backbone.encoder import Encoder
from featcache.backbone.model_files.find import find_model
from featcache.errors import BackboneError, UsageError
from featcache.settings import BackboneSettings, FeatureSettings
from tests.support.static_models import (
    WIDTH,
    by_hand,
    table_of,
    write_model2vec,
    write_static_embedding,
)
from tests.support.stock import WORDS, mixed
from tests.support.tiny import VOCABULARY, write_tokenizer

TEXTS = [*mixed(), "好 ☃ 房间 ☃☃", "☃", "", "   ", "GOOD room, [UNK] [CLS] 好", "ß 差" * 40]
ALIKE = {"rtol": 0, "atol": 2e-6}


def encoder_of(folder: Path, **changes: object) -> Encoder:
    features = FeatureSettings(**({"storage": "float32"} | changes))  # type: ignore[arg-type]
    return Encoder.load(BackboneSettings(model=str(folder), device="cpu"), features)


def vectors(encoder: Encoder, texts: list[str]) -> np.ndarray:
    (found,) = encoder(texts).views.values()
    return found


@pytest.fixture(scope="module")
def potion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model2vec(tmp_path_factory.mktemp("static") / "potion", table_of())


# --- equal to the libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("modules", [True, False])
def test_model2vec(tmp_path: Path, normalize: bool, modules: bool) -> None:
    folder = write_model2vec(tmp_path / "m", table_of(), normalize=normalize, modules=modules)
    encoder = encoder_of(folder)
    assert [view.name for view in encoder.views] == ["last/mean-normalized" if normalize else "last/mean"]
    wanted = by_hand(folder, table_of(), TEXTS, drop=True, normalize=normalize)
    np.testing.assert_allclose(vectors(encoder, TEXTS), wanted, **ALIKE)


def test_model2vec_with_a_quantised_vocabulary(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    mapping = draw.integers(0, 17, len(VOCABULARY))
    weights = draw.uniform(0.1, 3, len(VOCABULARY)).astype(np.float32)
    small = table_of(17).astype(np.float16)
    folder = write_model2vec(tmp_path / "m", small, mapping=mapping, weights=weights)
    table = small.astype(np.float32)[mapping] * weights[:, None]
    wanted = by_hand(folder, table, TEXTS, drop=True, normalize=True)
    np.testing.assert_allclose(vectors(encoder_of(folder), TEXTS), wanted, **ALIKE)


def test_model2vec_reads_512_tokens_beside_the_unknown_ones(potion: Path) -> None:
    texts = ["好 ☃ " * 600, "差 " * 511, "差 " * 513]
    encoder = encoder_of(potion)
    wanted = by_hand(potion, table_of(), texts, drop=True, normalize=True, longest=512)
    found = encoder(texts)
    np.testing.assert_allclose(found.views["last/mean-normalized"], wanted, **ALIKE)
    assert found.n_tokens.tolist() == [512, 511, 512] and found.truncated.tolist() == [True, False, True]


@pytest.mark.parametrize(("path", "after"), [("", ()), ("0_StaticEmbedding", ("Normalize",))])
def test_a_static_embedding_reads_whole_texts_and_unknown_tokens(
    tmp_path: Path, path: str, after: tuple[str, ...]
) -> None:
    folder = write_static_embedding(tmp_path / "m", table_of(), path, *after)
    texts = [*TEXTS, "好 差 ☃ " * 700]
    encoder = encoder_of(folder)
    wanted = by_hand(folder / path, table_of(), texts, drop=False, normalize=bool(after))
    np.testing.assert_allclose(vectors(encoder, texts), wanted, **ALIKE)
    assert not encoder(texts).truncated.any()


def test_sentence_transformers_makes_the_same_vectors(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    modules = [StaticEmbedding(tokenizer, embedding_weights=table_of()), Normalize()]
    model = library.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(tmp_path / "saved"))
    found = vectors(encoder_of(tmp_path / "saved"), TEXTS)
    np.testing.assert_allclose(found, model.encode(TEXTS, show_progress_bar=False), **ALIKE)


# --- what holds for every backbone --------------------------------------------------------------


@given(st.permutations(TEXTS), st.integers(1, 300))
@settings(max_examples=15, deadline=None)
def test_a_vector_does_not_depend_on_the_texts_beside_it(potion: Path, texts: list[str], budget: int) -> None:
    encoder = encoder_of(potion, views=("last/mean",))
    alone = np.concatenate([vectors(encoder, [text]) for text in texts])
    encoder.batch_tokens = budget
    np.testing.assert_array_equal(vectors(encoder, texts), alone)


def test_means_are_taken_from_the_table_where_all_views_are_means(
    potion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laying out the vector of each token first, as other poolings need, gives the same."""
    quick, whole = encoder_of(potion), encoder_of(potion, views=("last/auto", "last/max"))
    wanted = whole(TEXTS).views["last/mean-normalized"]
    monkeypatch.setattr(type(quick.backbone), "states", None)
    np.testing.assert_allclose(vectors(quick, TEXTS), wanted, **ALIKE)


def test_prompts_pairs_windows_and_both_ends(potion: Path) -> None:
    def mean(text: str) -> np.ndarray:
        return by_hand(potion, table_of(), [text], drop=True, normalize=False)[0]

    prompted = encoder_of(potion, views=("last/mean",), prompt="good ")
    np.testing.assert_allclose(vectors(prompted, ["好"])[0], mean("good 好"), **ALIKE)
    plain = encoder_of(potion, views=("last/mean",), max_length=4)
    (paired,) = plain(["好 好 好 好 好"], ["差"]).views.values()  # the longer text loses tokens
    np.testing.assert_allclose(paired[0], mean("好 好 好 差"), **ALIKE)
    whole = encoder_of(potion, views=("last/mean",), max_length=4, long_text="chunks", overlap=0)
    text = "好 差 ☃ " * 9
    np.testing.assert_allclose(vectors(whole, [text])[0], mean(text), **ALIKE)
    ends = encoder_of(potion, views=("last/mean",), max_length=4, long_text="head-tail")
    assert ends(["好 " * 9]).n_tokens.tolist() == [4]


def test_unknown_tokens_are_counted_though_they_do_not_count_in_the_mean(potion: Path) -> None:
    tokens = encoder_of(potion).tokenize(["好 ☃", "☃ ☃", "好"])
    assert tokens.lengths.tolist() == [1, 1, 1]
    assert tokens.unknown is not None and tokens.unknown.unknown.tolist() == [1, 2, 0]
    assert tokens.unknown_shares.tolist() == [0.5, 2 / 3, 0]


def test_places_of_tokens(potion: Path) -> None:
    encoder = encoder_of(potion)
    assert encoder.token_places(["好☃ good", "☃"]) == [[(0, 1), (3, 7)], [(0, 0)]]
    short = encoder_of(potion, max_length=3).measure("好 差 ☃ 房 间")
    assert (short.truncated, short.unread) == (True, ((8, 9),))


def test_views(potion: Path) -> None:
    depth = encoder_of(potion, views=("last/auto", "depth"))
    assert [view.name for view in depth.views] == ["last/mean-normalized"] and depth.max_length == 512
    assert "mean of the token vectors, normalised, at most 512 tokens" in depth.notes[0]
    several = encoder_of(potion, views=("last/mean", "0/max", "last/mean-first8-normalized"))(["好 差"])
    assert {name: x.shape[1] for name, x in several.views.items()} == {
        "last/mean": WIDTH, "last/max": WIDTH, "last/mean-first8-normalized": 8,
    }  # fmt: skip
    for view, words in (("last/cls", "knows nothing of its text"), ("last/cls+mean", "last/mean"),
                        ("last/last", "knows nothing"), ("-2/mean", "0 blocks")):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            encoder_of(potion, views=(view,))
        assert words in f"{caught.value.what} {caught.value.hint}"


def test_files_say_what_it_is_before_it_is_loaded(potion: Path, tmp_path: Path) -> None:
    files = find_model(BackboneSettings(model=str(potion)))
    assert sorted(files.hashes) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (files.is_static, files.width, files.blocks) == (True, WIDTH, 0)
    assert files.width_of(["last/mean", "last/mean-first8"]) == WIDTH + 8
    other = write_static_embedding(tmp_path / "m", table_of(width=8), "0_StaticEmbedding")
    files = find_model(BackboneSettings(model=str(other)))
    assert sorted(files.hashes) == ["model.safetensors", "tokenizer.json"] and files.width == 8
    assert encoder_of(other).document.files == files.hashes


def test_dtypes(potion: Path) -> None:
    def computed(dtype: str) -> Encoder:
        settings = BackboneSettings(model=str(potion), device="cpu", dtype=dtype)
        return Encoder.load(settings, FeatureSettings(storage="float32"))

    assert computed("auto").document.dtype.compute == "float32"
    near = vectors(computed("bfloat16"), TEXTS) - vectors(computed("float32"), TEXTS)
    assert 0 < np.abs(near).max() < 0.02


# --- damaged folders ----------------------------------------------------------------------------


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"table": table_of()}, "a table of token vectors is needed"),
        ({"embeddings": table_of()[0]}, "not [24]"),
        ({"embeddings": table_of(20)}, "but the table has 20 rows"),
        ({"embeddings": table_of(5), "mapping": np.full(len(VOCABULARY), 5)}, "row 5 of a table of 5"),
        ({"embeddings": table_of(5), "mapping": np.full(len(VOCABULARY), -1)}, "mapping"),
        ({"embeddings": table_of(5), "mapping": table_of()}, "its mapping is no list"),
        ({"embeddings": table_of(), "weights": np.ones(3, np.float32)}, "[3] weights for"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, tensors: dict[str, np.ndarray], words: str) -> None:
    folder = write_model2vec(tmp_path / "m", table_of())
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BackboneError) as caught:
        encoder_of(folder)
    assert words in caught.value.what and caught.value.hint


@pytest.mark.bad_input("wrong vectors")
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_files_that_are_missing_or_cut(tmp_path: Path, name: str) -> None:
    folder = write_model2vec(tmp_path / "m", table_of())
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(BackboneError, match=r"cannot (load|read)"):
        encoder_of(folder)
    (folder / name).unlink()
    with pytest.raises(BackboneError) as caught:
        encoder_of(folder)
    assert caught.value.hint


def test_words_are_all_known(potion: Path) -> None:
    """The texts of these tests are not unknown by accident."""
    assert encoder_of(potion).tokenize([" ".join(WORDS)]).unknown_shares.tolist() == [0]
