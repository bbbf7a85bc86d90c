"""`torch.compile` for parts of blocks: what is chosen, that results stay, and who decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from featcache.backbone import compile as compiling
from featcache.backbone.compile import OPTIONS, compile_parts, worth_compiling
from featcache.backbone.model import Backbone
from tests.support.stock import MIXED, encoder, load, mixed, sentence

Folder = Callable[[str], Path]
VIEWS = ("last/cls", "last/mean", "-2/mean")
PARTS = {
    "bert": ["AddNorm", "BertIntermediate", "AddNorm"],
    "distilbert": ["FFN"],
    "modernbert": ["ModernBertMLP"],
    "gpt2": ["GPT2MLP"],
    "llama": ["LlamaRMSNorm", "LlamaRMSNorm", "LlamaMLP"],
    "qwen3": ["Qwen3RMSNorm"] * 4 + ["Qwen3MLP"],
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def runs_of(backbone: Backbone) -> list[Callable[[], Any]]:
    batches = [backbone.probe_batch([20] * count) for count in (8, 3)]
    return [partial(backbone.states, batch, [backbone.num_blocks]) for batch in batches]


def compiled(backbone: Backbone, **options: Any) -> list[str]:
    assert backbone.blocks is not None
    return compile_parts(backbone.blocks, runs_of(backbone), **({"gain": 0.0, "backend": "eager"} | options))


@pytest.mark.parametrize("family", PARTS)
def test_parts_are_the_modules_between_attentions(family: str, tiny: Folder) -> None:
    backbone = load(tiny(family))
    assert backbone.blocks is not None
    parts = compiling._parts(backbone.blocks[0], runs_of(backbone)[0])
    assert [type(backbone.blocks[0].get_submodule(part.name)).__name__ for part in parts] == PARTS[family]


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[] if family == "llama" else pytest.mark.slow) for family in PARTS],
)
def test_compiled_parts_give_the_same_features(family: str, tiny: Folder) -> None:
    backbone, texts = load(tiny(family)), mixed()
    made = encoder(backbone, *VIEWS, batch_tokens=70)
    before = made(texts).views
    notes = compiled(backbone, backend="aot_eager")
    assert notes
    assert all(note.endswith(" (3)") for note in notes)  # in all three blocks
    after = made(texts).views
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=0, atol=1e-6)


def test_compile_parts_compiles_once_for_batches_of_any_shape(tiny: Folder) -> None:
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    backbone = load(tiny("bert"))
    made = encoder(backbone, "last/mean", "last/cls")
    assert len(compiled(backbone, backend=count)) == 3
    made([sentence(9)])
    before = len(graphs)
    assert before <= 3 * 4  # three parts; at most: tried, then first, second and later blocks
    for words in range(2, 40, 3):
        made([sentence(words, seed) for seed in range(words % 5 + 1)])
    assert len(graphs) <= before + 3


def test_compile_parts_keeps_parts_that_get_no_faster(tiny: Folder) -> None:
    backbone = load(tiny("bert"))
    assert compiled(backbone, gain=1e9) == []
    assert all("forward" not in vars(module) for module in backbone.model.modules())


def test_compile_parts_keeps_parts_that_give_other_values(tiny: Folder) -> None:
    def wrong(graph: Any, _: Any) -> Any:
        return lambda *inputs: tuple(1.01 * output for output in graph.forward(*inputs))

    backbone = load(tiny("bert"))
    kinds = PARTS["bert"]
    assert compiled(backbone, backend=wrong) == [
        f"not compiled: {kind} (gives other values)" for kind in kinds
    ]
    assert all("forward" not in vars(module) for module in backbone.model.modules())


def test_compile_parts_reports_parts_that_cannot_be_compiled(tiny: Folder) -> None:
    def broken(graph: Any, _: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation")

    backbone, texts = load(tiny("llama")), mixed()
    before = encoder(backbone)(texts).views
    notes = compiled(backbone, backend=broken)
    assert len(notes) == 3
    assert all(note.startswith("not compiled: Llama") for note in notes)
    after = encoder(backbone)(texts).views
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_compile_parts_reports_that_memory_ran_out(tiny: Folder) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    blocks = load(tiny("bert")).blocks
    assert blocks is not None
    assert compile_parts(blocks, [full]) == ["not compiled: out of memory"]


def test_compile_parts_compiles_only_equal_parts_of_blocks() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    class Other(Pair):
        pass

    class Block(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: torch.Tensor) -> Any:
            return self.part(x)

    blocks = nn.ModuleList([Block(Pair()), Block(Other()), Block(Pair())])
    x = torch.randn(4, 3)
    notes = compile_parts(blocks, [lambda: blocks[0](x)], gain=0.0, backend="eager")
    assert notes == ["compiled Pair (2)"]
    assert ["forward" in vars(block.part) for block in blocks] == [True, False, True]
    torch.testing.assert_close(blocks[2](x), torch.relu(x) + 1)


def test_pooled_tokens_alone_run_through_compiled_parts(tiny: Folder) -> None:
    """The highest block's forward is swapped and put back for each batch; its parts stay compiled."""
    backbone = load(tiny("bert"))
    made, texts = encoder(backbone, "last/cls", batch_tokens=60), mixed(MIXED)
    before = made(texts).views["last/cls"]
    assert backbone.runs_pooled_alone
    compiled(backbone)
    for _ in range(2):
        np.testing.assert_allclose(made(texts).views["last/cls"], before, rtol=0, atol=1e-6)
    assert backbone.blocks is not None
    assert "forward" in vars(backbone.blocks[2].output)
    assert "forward" not in vars(backbone.blocks[2])


# ---------------------------------------------------------------- when


def test_worth_compiling_needs_many_minutes_of_work() -> None:
    cuda, bert_base, seven_billion = torch.device("cuda"), 85_000_000, 6_500_000_000
    assert worth_compiling(cuda, bert_base, 10_000_000)
    assert not worth_compiling(cuda, bert_base, 1_000_000)
    assert worth_compiling(cuda, seven_billion, 100_000)
    assert not worth_compiling(cuda, seven_billion, 10_000)
    assert not worth_compiling(torch.device("cpu"), seven_billion, 10**9)


def test_prepare_compiles_once_and_notes_it(tiny: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(tiny("bert"))
    fused, asked = list(backbone.fused), []

    def fake(blocks: Any, runs: Any, **options: Any) -> list[str]:
        asked.append((blocks, options))
        for run in runs:
            run()
        return ["compiled BertOutput (3)"]

    monkeypatch.setattr(compiling, "compile_parts", fake)
    backbone.prepare(10**12)
    assert asked == []  # on a CPU
    monkeypatch.setattr(compiling, "worth_compiling", lambda device, weights, texts: texts > 1000)
    backbone.prepare(1000)
    assert asked == []
    for _ in range(2):
        backbone.prepare(1001)
    assert asked == [(backbone.blocks, {"options": OPTIONS})]
    assert backbone.fused == [*fused, "compiled BertOutput (3)"]


@pytest.mark.parametrize("family", ["mpnet", "albert"])
def test_prepare_skips_padded_models_and_models_without_blocks(
    family: str, tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "worth_compiling", lambda *_: True)
    monkeypatch.setattr(compiling, "compile_parts", lambda *_, **__: pytest.fail("asked to compile"))
    load(tiny(family)).prepare(10**12)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), [("bert", "float32"), ("llama", "bfloat16")])
def test_inductor_gives_the_same_features(
    family: str, dtype: str, tiny: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options that CUDA gets. Needs a C++ compiler; inductor knows no laid-out oneDNN weights."""
    monkeypatch.setattr("featcache.backbone.model.fuse", lambda *_, **__: [])
    backbone, texts = load(tiny(family), dtype=dtype), mixed()
    before = encoder(backbone, *VIEWS)(texts).views
    notes = compiled(backbone, backend="inductor", options=OPTIONS)
    assert [note.split()[1] for note in notes] == PARTS[family]
    after = encoder(backbone, *VIEWS)(texts).views
    for name, values in before.items():
        tolerance = 1e-5 if dtype == "float32" else 0.02 * abs(values).max()
        np.testing.assert_allclose(after[name], values, rtol=0, atol=tolerance)
