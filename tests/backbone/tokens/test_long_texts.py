"""Long texts in overlapping windows, or by their two ends: every token accounted for."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbone.encoder import Encoder, document_settings
from featcache.backbone.tokens.long_texts import Frame, Windows, chunks, groups, head_and_tail
from featcache.errors import BackboneError, UsageError
from featcache.extraction.api import extract_splits, find_features
from featcache.fingerprint import Dtypes
from featcache.prediction.predictor import Predictor
from featcache.runs.train import train_head
from featcache.settings import load_settings
from tests.support.extraction import counted, write_case
from tests.support.source_files import jsonl, write
from tests.support.stock import (
    VIEWS,
    assert_features,
    canonical_name,
    encoder,
    load,
    loaded,
    mixed,
    pooled,
    sentence,
    stock,
)
from tests.support.tiny import DECODERS, VOCABULARY, build, write_tokenizer

Folder = Callable[[str], Path]
LIMIT, OVERLAP = 20, 6
TEXTS = mixed((100, 3, 18, 19, 45, 1, 44, 200, 33))
CHUNKS = {"long_text": "chunks", "max_length": LIMIT, "overlap": OVERLAP}
FAMILIES = ["bert", "roberta", "gpt2", "llama", "deberta-v2"]


def reference_windows(folder: Path, text: str) -> list[list[int]]:
    """As the `tokenizers` library splits a text."""
    options = {"truncation": True, "max_length": LIMIT, "stride": OVERLAP, "return_overflowing_tokens": True}
    return [list(ids) for ids in stock(folder).tokenizer(text, **options)["input_ids"]]


def reference(folder: Path, text: str, view: str) -> np.ndarray:
    """Every window run alone by stock transformers, pooled, and joined by hand."""
    model, parts = stock(folder).model, reference_windows(folder, text)
    known = inspect.signature(type(model).forward).parameters
    vectors = []
    for ids in parts:
        with torch.no_grad():
            types = (
                {}
                if "token_type_ids" not in known
                else {"token_type_ids": torch.zeros(1, len(ids), dtype=int)}
            )
            output = model(torch.tensor([ids]), output_hidden_states=True, **types)
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        vectors.append(pooled([layer[0].double().numpy() for layer in layers], view))
    if view.endswith("/mean"):
        return sum(len(ids) * vector for ids, vector in zip(parts, vectors, strict=True)) / sum(
            map(len, parts)
        )
    if view.endswith("/max"):
        return np.max(vectors, axis=0)
    return vectors[-1] if view.endswith("/last") else np.mean(vectors, axis=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_equal_the_reference(family: str, lively_tiny: Folder) -> None:
    folder = lively_tiny(family)
    expected = {view: np.stack([reference(folder, text, view) for text in TEXTS]) for view in VIEWS}
    for budget in (None, 50):
        found = encoder(loaded(folder), batch_tokens=budget, **CHUNKS)(TEXTS)
        assert_features(found.views, expected, 3)
        assert found.n_tokens.tolist() == [len(stock(folder).token_ids(text)) for text in TEXTS]
        assert not found.truncated.any()
    sparse = encoder(loaded(folder), "last/cls", "last/last", **CHUNKS)(TEXTS)
    assert_features(sparse.views, {view: expected[view] for view in ("last/cls", "last/last")}, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_equal_the_windows_of_the_tokenizer(family: str, tiny: Folder) -> None:
    tokens = encoder(loaded(tiny(family)), **CHUNKS).tokenize(TEXTS)
    expected = [reference_windows(tiny(family), text) for text in TEXTS]
    assert tokens.windows is not None
    assert tokens.windows.counts.tolist() == [len(parts) for parts in expected]
    flat = [ids for parts in expected for ids in parts]
    assert [tokens.batch(np.array([row])).input_ids.tolist() for row in range(len(flat))] == flat
    if tokens.type_ids is not None:
        assert len(tokens.type_ids) == len(tokens.ids)


@pytest.mark.parametrize("how", ["chunks", "head-tail"])
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_texts_that_fit_are_encoded_as_without_splitting(how: str, storage: str, tiny: Folder) -> None:
    """Bit for bit, so that only the long ones change."""
    short = mixed((3, 18, 17, 9))
    plain = encoder(loaded(tiny("bert")), max_length=LIMIT, storage=storage)(short)
    found = encoder(loaded(tiny("bert")), long_text=how, max_length=LIMIT, overlap=OVERLAP, storage=storage)(
        short
    )
    for name, values in plain.views.items():
        assert found.views[name].dtype == values.dtype
        np.testing.assert_array_equal(found.views[name], values)
    assert found.n_tokens.tolist() == plain.n_tokens.tolist()
    assert not found.truncated.any()


@pytest.mark.parametrize("family", ["bert", "gpt2", "deberta-v2"])
def test_head_and_tail_equals_the_reference(family: str, lively_tiny: Folder) -> None:
    folder = lively_tiny(family)
    around = 0 if family in DECODERS else 2
    room = LIMIT - around
    kept = []
    for text in TEXTS:
        words = text.split()
        long = len(words) > room
        kept.append(" ".join([*words[: room - room // 2], *words[-(room // 2) :]]) if long else text)
    found = encoder(loaded(folder), long_text="head-tail", max_length=LIMIT)(TEXTS)
    assert_features(found.views, stock(folder).matrix(kept), 3)
    assert found.truncated.tolist() == [len(text.split()) > room for text in TEXTS]
    assert found.n_tokens.tolist() == [min(len(text.split()) + around, LIMIT) for text in TEXTS]


# ---------------------------------------------------------------- laws

frames = st.builds(
    Frame,
    first=st.integers(0, 2),
    last=st.integers(0, 2),
    prompt=st.lists(st.integers(0, 1), max_size=3).map(tuple),
)


@given(frame=frames, body=st.integers(0, 120), room=st.integers(1, 25), share=st.floats(0, 0.5))
def test_chunks_of_any_text(frame: Frame, body: int, room: int, share: float) -> None:
    around = (*[9] * frame.first, *frame.prompt)
    ids = np.array([*around, *range(100, 100 + body), *[9] * frame.last], dtype=np.int32)
    limit, overlap = len(around) + room + frame.last, int(room * share)
    parts = chunks(ids, frame, limit, overlap)
    assert set(np.concatenate(parts).tolist()) == set(range(len(ids)))  # not a token is lost
    if len(ids) <= limit:
        assert len(parts) == 1 and parts[0].tolist() == list(range(len(ids)))
        return
    inner = [part[len(around) : len(part) - frame.last] for part in parts]
    for part in parts:
        assert len(part) <= limit and (np.diff(part) > 0).all()
        assert tuple(ids[part[: len(around)]]) == around  # special tokens and prompt are in each
        assert tuple(ids[part[len(part) - frame.last :]]) == (9,) * frame.last
    for one, two in itertools.pairwise(inner):
        assert len(one) == room and one[len(one) - overlap :].tolist() == two[:overlap].tolist()
    assert sum(map(len, inner)) == body + overlap * (len(inner) - 1)


@given(frame=frames, body=st.integers(1, 120), room=st.integers(1, 40))
def test_head_and_tail_of_any_text(frame: Frame, body: int, room: int) -> None:
    around = (*[9] * frame.first, *frame.prompt)
    limit = len(around) + room + frame.last
    ids = np.array([*around, *range(100, 100 + body), *[9] * frame.last], dtype=np.int32)
    (part,) = head_and_tail(ids, frame, limit)
    assert len(part) == min(len(ids), limit)
    assert (np.diff(part) > 0).all() and part[0] == 0
    assert part[-1] == len(ids) - 1 or (room == 1 and frame.last == 0)
    if len(ids) > limit:
        gaps = np.flatnonzero(np.diff(part) > 1)
        assert len(gaps) == 1 or (room == 1 and frame.last == 0)
        before = int(gaps[0]) + 1 if len(gaps) else len(part)
        assert 0 <= (before - len(around)) - (len(part) - before - frame.last) <= 1


def test_frame_head_of_a_prompt_merged_with_the_text() -> None:
    frame = Frame(1, 1, (5, 6, 7))  # "query", ":", " ": the blank is one token with the first word
    assert frame.head(np.array([2, 5, 6, 40, 41, 3])) == 3
    assert frame.head(np.array([2, 5, 6, 7, 41, 3])) == 4
    assert frame.head(np.array([2, 9, 5, 6, 7, 3])) == 1
    assert frame.head(np.array([2, 5])) == 2


@given(st.lists(st.text(max_size=8), min_size=1, max_size=9), st.integers(1, 20))
def test_groups_hold_every_text_once(texts: list[str], most: int) -> None:
    parts = [texts[part] for part in groups(texts, most)]
    assert [text for part in parts for text in part] == texts
    assert all(len(part) == 1 or sum(map(len, part)) <= most for part in parts)
    assert all(parts)


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_windows_join_equals_a_loop_over_texts(counts: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 30, sum(counts))
    values = draw.normal(size=(sum(counts), 3)).astype(np.float32)
    windows = Windows(np.array(counts), lengths, np.array(counts))
    parts = np.split(np.arange(len(values)), np.cumsum(counts)[:-1])
    expected = {
        "mean": [np.average(values[part], axis=0, weights=lengths[part]) for part in parts],
        "cls": [values[part].mean(axis=0) for part in parts],
        "last": [values[part[-1]] for part in parts],
        "max": [values[part].max(axis=0) for part in parts],
    }
    for pooling, vectors in expected.items():
        joined = windows.join(values, [pooling])
        assert joined.dtype == np.float32
        np.testing.assert_allclose(joined, np.stack(vectors), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- prompt, order, neighbours


def test_every_window_begins_with_the_prompt(lively_tiny: Folder) -> None:
    folder, text = lively_tiny("bert"), sentence(30)
    made = encoder(loaded(folder), "last/mean", prompt="very 坏 ", **CHUNKS)
    room, words = LIMIT - 4, text.split()
    starts = [0, room - OVERLAP, 2 * (room - OVERLAP)]
    expected = [" ".join(["very 坏", *words[at : at + room]]) for at in starts]
    tokens = made.tokenize([text])
    found = [tokens.batch(np.array([row])).input_ids.tolist() for row in range(len(tokens.lengths))]
    assert found == [stock(folder).token_ids(part) for part in expected]


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_no_text_sees_another_and_order_does_not_matter(family: str, tiny: Folder) -> None:
    made = encoder(loaded(tiny(family)), **CHUNKS)
    before = made(TEXTS).views
    changed = made([sentence(100, 99), *TEXTS[1:]]).views
    for name, values in before.items():
        np.testing.assert_array_equal(changed[name][1:], values[1:])
        assert abs(changed[name][0] - values[0]).max() > 1e-3
    order = [4, 0, 7, 2]
    alone = encoder(loaded(tiny(family)), batch_tokens=33, **CHUNKS)(
        [TEXTS[number] for number in order]
    ).views
    for name, values in before.items():
        np.testing.assert_allclose(alone[name], values[order], rtol=0, atol=1e-5)


def test_the_end_of_a_long_text_counts(tiny: Folder) -> None:
    one, two = f"{sentence(90)} 好", f"{sentence(90)} 坏"
    for how, differ in (("truncate", False), ("chunks", True), ("head-tail", True)):
        found = encoder(loaded(tiny("bert")), "last/mean", **{**CHUNKS, "long_text": how})([one, two])
        assert (abs(np.subtract(*found.views["last/mean"])).max() > 1e-3) == differ


def test_progress_counts_texts_not_windows(tiny: Folder) -> None:
    made = encoder(loaded(tiny("bert")), "last/cls", batch_tokens=50, **CHUNKS)
    tokens, steps = made.tokenize(TEXTS), []
    made.encode(tokens, lambda texts, count: steps.append((texts, count)))
    assert len(steps) > 5
    assert tuple(np.sum(steps, axis=0)) == (len(TEXTS), int(tokens.lengths.sum()))
    assert all(texts >= 0 for texts, _ in steps)


# ---------------------------------------------------------------- refused, hostile


def test_pairs_are_refused(tiny: Folder) -> None:
    for how in ("chunks", "head-tail"):
        with pytest.raises(UsageError, match=f"--long-text {how} takes single texts"):
            encoder(loaded(tiny("bert")), long_text=how, max_length=30, overlap=2)(["good"], ["bad"])


@pytest.mark.parametrize(("overlap", "prompt"), [(10, ""), (64, ""), (7, "very good very good very good ")])
def test_an_overlap_without_room_is_refused(overlap: int, prompt: str, tiny: Folder) -> None:
    with pytest.raises(UsageError, match=f"--overlap {overlap}") as caught:
        encoder(loaded(tiny("bert")), prompt=prompt, **{**CHUNKS, "overlap": overlap})
    allowed = int(str(caught.value).partition("use --overlap ")[2].split()[0])
    encoder(loaded(tiny("bert")), prompt=prompt, **{**CHUNKS, "overlap": allowed})
    with pytest.raises(UsageError):
        encoder(loaded(tiny("bert")), prompt=prompt, **{**CHUNKS, "overlap": allowed + 1})


@pytest.mark.parametrize("how", ["chunks", "head-tail"])
def test_a_prompt_that_leaves_no_room_is_refused(how: str, tiny: Folder) -> None:
    for words in (18, 19, 40):
        with pytest.raises(UsageError, match="--max-length 20 leaves no room for text") as caught:
            encoder(loaded(tiny("bert")), prompt=sentence(words), long_text=how, max_length=20, overlap=0)
        assert "larger --max-length" in str(caught.value)


def test_an_unknown_policy_is_refused(tiny: Folder) -> None:
    with pytest.raises(UsageError, match="--long-text middle"):
        encoder(loaded(tiny("bert")), long_text="middle")


def test_no_texts_and_texts_without_tokens(tiny: Folder) -> None:
    for how in ("chunks", "head-tail"):
        made = encoder(loaded(tiny("llama")), long_text=how)
        assert len(made([]).n_tokens) == 0
        with pytest.raises(BackboneError, match=r"no token of '\\u200b'") as caught:
            made([sentence(400), "good", "\u200b"])
        assert caught.value.row == 2  # type: ignore[attr-defined]


def test_a_refused_window_names_its_text(tiny: Folder) -> None:
    backbone = load(tiny("bert"))
    word = int(stock(tiny("bert")).token_ids("坏")[1])
    backbone.model.get_input_embeddings().weight[word] = float("nan")
    clean = " ".join(["good"] * 70)
    with pytest.raises(BackboneError, match="NaN") as caught:
        encoder(backbone, "last/mean", **CHUNKS)([clean, clean, f"{clean} 坏", "very"])
    assert caught.value.row == 2  # type: ignore[attr-defined]


def test_a_slow_tokenizer_makes_the_same_windows(tiny: Folder, tmp_path: Path) -> None:
    """One in pure Python, which has no windows of its own."""
    folder = shutil.copytree(tiny("bert"), tmp_path / "slow")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    config = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "wordpiece",
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    backbone = load(folder)
    assert not backbone.tokenizer.is_fast
    slow, fast = (
        encoder(one, prompt="the ", **CHUNKS).tokenize(TEXTS) for one in (backbone, loaded(tiny("bert")))
    )
    np.testing.assert_array_equal(slow.ids, fast.ids)
    np.testing.assert_array_equal(slow.lengths, fast.lengths)


def test_a_text_of_a_megabyte(tiny: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing grows faster than the text does, and nothing is said about its length."""
    text = "酒店很好房间干净服务差" * 30_000  # 990,000 bytes, 330,000 tokens
    backbone = load(build_long(tiny))
    capfd.readouterr()
    made = encoder(backbone, "1/mean", max_length=512, overlap=64, long_text="chunks", storage="float16")
    tokens = made.tokenize([text, "good"])
    assert tokens.windows is not None and tokens.windows.counts.tolist() == [-(-(330_000 - 64) // 446), 1]
    assert tokens.windows.n_tokens.tolist() == [330_002, 3]
    assert len(tokens.ids) < 1.2 * 330_002
    cut = encoder(backbone, "1/mean", max_length=512, long_text="head-tail").tokenize([text])
    assert cut.lengths.tolist() == [512]
    assert capfd.readouterr() == ("", "")


def build_long(tiny: Folder) -> Path:
    folder = tiny("bert").with_name("bert-512")
    if not folder.exists():
        build("bert", folder, max_position_embeddings=512)
        write_tokenizer(folder, limit=512)
    return folder


# ---------------------------------------------------------------- documents, extraction, prediction


def test_the_document_holds_the_policy(tiny: Folder) -> None:
    backbone = loaded(tiny("bert"))
    plain = encoder(backbone, max_length=LIMIT).document
    assert (plain.long_text, "overlap" in plain.to_json()) == ("truncate", False)
    others = [
        encoder(backbone, **CHUNKS).document,
        encoder(backbone, **{**CHUNKS, "overlap": 3}).document,
        encoder(backbone, **{**CHUNKS, "long_text": "head-tail"}).document,
    ]
    assert len({json.dumps(document.to_json()) for document in [plain, *others]}) == 4
    same = encoder(backbone, max_length=LIMIT, overlap=3).document  # no windows, no overlap
    assert same == plain
    for document in [plain, *others]:
        assert Encoder(backbone, document_settings(document, VIEWS)).document == replace(
            document, dtype=Dtypes("float32", "float32")
        )


@pytest.mark.parametrize(
    ("policy", "whole"),
    [
        ({"long_text": "chunks", "max_length": 64, "overlap": 10}, True),
        ({"long_text": "head-tail", "max_length": 64}, False),
        ({"extend_positions": "interpolate", "max_length": 1510}, True),
    ],
    ids=str,
)
def test_a_text_of_1500_tokens_from_extraction_to_prediction(
    policy: dict[str, Any], whole: bool, tiny: Folder, tmp_path: Path, arrow_cache: None
) -> None:
    texts = write_long_reviews(tmp_path / "reviews")
    folders = {"dataset": "reviews", "cache_dir": "cache", "reports_dir": "reports"}
    settings = load_settings(
        {name: str(tmp_path / folder) for name, folder in folders.items()}
        | {"model": str(tiny("bert")), "dtype": "float32", "device": "cpu", "storage": "float32"}
        | {"views": "last/mean", "epochs": 3}
        | policy
    )
    made = extract_splits(settings, list(texts))
    assert [part.encoded for part in made] == [24, 9, 9]
    assert (made[2].truncated == 0) == whole
    assert (made[2].tokens > 1500) == whole
    with counted() as passes:
        assert all(part.cached for part in extract_splits(settings, list(texts)))
    assert not passes
    run = train_head(settings)
    predictor = Predictor.from_run(run, device="cpu")
    cached = run.head().predict_proba(find_features(settings, "test").features("last/mean").x)
    np.testing.assert_allclose(predictor.predict_proba(texts["test"]), cached, rtol=0, atol=1e-5)
    assert predictor.predict(texts["test"][-1:])[0].truncated != whole


def write_long_reviews(folder: Path) -> dict[str, list[str]]:
    """Reviews of 9 to 90 words by split, the last one of 1,500."""
    draw, found = np.random.default_rng(3), {}
    for split, count in (("train", 24), ("validation", 9), ("test", 9)):
        words = [sentence(int(draw.integers(9, 90)), 100 * len(split) + i) for i in range(count - 1)]
        words.append(sentence(1500, len(split)))
        found[split] = [f"{text} {'好' if i % 2 else '坏'}" for i, text in enumerate(words)]
        rows = [{"text": text, "label": i % 2} for i, text in enumerate(found[split])]
        write(folder / f"{split}.jsonl", jsonl(*rows))
    return found


def test_each_policy_has_features_of_its_own(tiny: Folder, tmp_path: Path, arrow_cache: None) -> None:
    case = write_case(tmp_path, tiny("bert"), max_length=16, overlap=3)
    plain = case.extract()
    assert plain.truncated > 0
    policies: list[dict[str, Any]] = [
        {"long_text": "chunks"}, {"long_text": "chunks", "overlap": 4}, {"long_text": "head-tail"}
    ]  # fmt: skip
    made = [case.extract(**policy) for policy in policies]
    assert len({one.fingerprint for one in [plain, *made]}) == 4
    assert all(one.encoded == plain.encoded for one in made)  # none took rows from another
    assert case.extract(overlap=7).cached  # without effect if texts are truncated
    assert all(case.extract(**policy).cached for policy in policies)
    assert canonical_name("last/cls", 3) in made[0].views
