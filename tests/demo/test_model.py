"""The real encoder of the demo: its config, its tokenizer, and the quality of its features."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featcache.demo.demo import PROMPT


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(demo_model)


def test_config_matches_the_published_one(demo_model: Path) -> None:
    config = json.loads((demo_model / "config.json").read_text(encoding="utf-8"))
    expected = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "type_vocab_size": 2,
        "vocab_size": 250002,
    }
    assert {name: config[name] for name in expected} == expected


def test_tokenizer_has_its_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert len(tokenizer) == 250002
    assert tokenizer.model_max_length == 512
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    special = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    assert {name: getattr(tokenizer, f"{name}_token") for name in special} == special
    ids = [getattr(tokenizer, f"{name}_token_id") for name in special]
    assert ids == [0, 2, 1, 3, 250001]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [0, 35378, 8999, 2]),  # as published for XLM-RoBERTa
        ("  Hello \t\n world", [0, 35378, 8999, 2]),
        ("你好，世界！", [0, 6, 124084, 4, 3221, 38, 2]),
        ("", [0, 2]),
    ],
)
def test_tokenizer_ids_of_known_texts(tokenizer: Any, text: str, ids: list[int]) -> None:
    assert tokenizer(text)["input_ids"] == ids


def test_tokenizer_on_pairs(tokenizer: Any) -> None:
    pair = tokenizer("Hello", "world")
    assert pair["input_ids"] == [0, 35378, 2, 2, 8999, 2]
    assert set(tokenizer("Hello")) == {"input_ids", "attention_mask"}
    asked = tokenizer("Hello", "world", return_token_type_ids=True)
    assert set(asked["token_type_ids"]) == {0}


def test_tokenizer_knows_chinese_words(tokenizer: Any) -> None:
    ids = tokenizer("这家酒店的服务很好，房间干净，下次还会再来。")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(ids) < 20
    text = "这家酒店的服务很好"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_tokenizer_truncates_and_pads_on_the_right(tokenizer: Any) -> None:
    batch = tokenizer(["好 " * 2000, "Hello"], truncation=True, padding=True)
    long, short = batch["input_ids"]
    assert (len(long), long[0], long[-1]) == (512, 0, 2)
    assert short == [0, 35378, 2] + [1] * 509
    assert batch["attention_mask"][1] == [1] * 3 + [0] * 509


def test_loading_prints_nothing(demo_model: Path) -> None:
    pytest.importorskip("transformers")
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from transformers import AutoTokenizer\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])('你好')\n"
    )
    arguments = [sys.executable, "-c", code, str(demo_model)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def embed(demo_model: Path, tokenizer: Any) -> Callable[[list[str]], NDArray[Any]]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(
        demo_model, dtype=torch.float32, add_pooling_layer=False
    ).eval()

    def embed(texts: list[str]) -> NDArray[Any]:
        batch = tokenizer([PROMPT + text for text in texts], padding=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1)
        return np.asarray(torch.nn.functional.normalize(means, dim=1))

    return embed


def test_features_of_translations_are_nearest(embed: Callable[[list[str]], NDArray[Any]]) -> None:
    chinese = ["这家酒店的服务非常好", "我的笔记本电脑坏了", "这本书写得很无聊", "巴黎天气晴朗"]
    english = [
        "The service of this hotel is very good",
        "My laptop is broken",
        "This book is boring",
        "The weather in Paris is sunny",
    ]
    cosine = embed(chinese) @ embed(english).T
    translations = np.diag(cosine)
    unrelated = cosine[~np.eye(len(chinese), dtype=bool)]
    assert translations.min() > unrelated.max() + 0.03
