"""A BERT-base with random weights and a given vocabulary: real shapes for speed work, no download.

python benchmarks/make_bert_base.py VOCAB_TXT FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel


def make(vocabulary: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and vocab.txt into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    size = len(vocabulary.read_text(encoding="utf-8").splitlines())
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=size), add_pooling_layer=False).save_pretrained(folder)
    shutil.copy(vocabulary, folder / "vocab.txt")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    make(Path(sys.argv[1]), Path(sys.argv[2]))
