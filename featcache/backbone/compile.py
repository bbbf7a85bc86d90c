"""`torch.compile` for the parts of a frozen model's blocks that it makes faster.

Compiling takes a minute, so it is for work that takes many. A part lies between attentions: the largest
modules of a block that take no `packed` argument, other than torch's own single layers, which have nothing
to fuse. Each part runs compiled and uncompiled on what the model gives it, and is replaced if both agree
and the compiled one is faster.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from featcache.backbone import fused_layers
from featcache.backbone.fused_layers import agree, is_conv1d

# Weights that tokens are multiplied with, times texts, from which on compiling is considered. At 200 flops
# for each (texts of 100 tokens) this is 1e17: ten minutes at 170 TFLOP/s. Parts gain 5 to 20 percent of
# that, and compiling costs about a minute.
WORTH = 5e14
GAIN = 1.05  # a part must be this much faster
OPTIONS = {"emulate_precision_casts": True}  # round where the uncompiled part rounds


@dataclass(frozen=True)
class BlockPart:
    """A module of a block, by its name in it, with the arguments that a run of the model gave it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def worth_compiling(device: torch.device, block_weights: int, texts: int) -> bool:
    """Whether so many texts pay for a minute of compiling; a resumed run decides as the first one did."""
    return device.type == "cuda" and float(block_weights) * texts >= WORTH


def compile_parts(
    blocks: nn.ModuleList, runs: Sequence[Callable[[], Any]], *, gain: float = GAIN, **options: Any
) -> list[str]:
    """Compile the parts of `blocks` that become faster; returns messages for the user.

    Args:
        blocks: equal blocks of a frozen model; parts are tried in the first block and replaced in all
            blocks that have the same.
        runs: each runs the model on a batch; batches differ in size, the first is the largest and timed.
        gain: how many times faster a compiled part must be.
        options: of `torch.compile`.
    """
    notes: list[str] = []
    try:
        seen = [_parts(blocks[0], run) for run in runs]
    except torch.OutOfMemoryError:
        return ["not compiled: out of memory"]
    for part in seen[0]:
        module = blocks[0].get_submodule(part.name)
        same = [other for parts in seen for other in parts if other.name == part.name]
        try:
            faster = _times_faster(module, same, options)
        except Exception as error:  # inductor and its compilers raise every kind there is
            notes.append(f"not compiled: {type(module).__name__} ({type(error).__name__})")
            continue
        if faster is None:
            notes.append(f"not compiled: {type(module).__name__} (gives other values)")
        elif faster >= gain:
            count = sum(_compile(block, part.name, type(module), options) for block in blocks)
            notes.append(f"compiled {type(module).__name__} ({count})")
    return notes


def _parts(block: nn.Module, run: Callable[[], Any]) -> list[BlockPart]:
    """The parts of a block that run within `run`."""
    called: dict[str, BlockPart] = {}
    inner = {name: module for name, module in block.named_modules() if name}

    def see(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called[name] = BlockPart(name, args, kwargs)

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in inner.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(see, name), with_kwargs=True))
        run()
    chosen: list[BlockPart] = []
    for name, part in called.items():  # in the order of calls: a module before those within it
        within = any(name.startswith(f"{other.name}.") for other in chosen)
        if not within and _is_part(inner[name], part):
            chosen.append(part)
    return chosen


def _is_part(module: nn.Module, part: BlockPart) -> bool:
    """Whether it takes tensors and no `packed`, and is more than a single layer of torch's own."""
    given = [*part.args, *(value for value in part.kwargs.values() if value is not None)]
    single = type(module).__module__.startswith(("torch.nn.", fused_layers.__name__)) or is_conv1d(module)
    return "packed" not in part.kwargs and bool(given) and all(map(torch.is_tensor, given)) and not single


def _times_faster(module: nn.Module, parts: list[BlockPart], options: dict[str, Any]) -> float | None:
    """How many times faster the compiled module is on the first of `parts`; None if its values differ."""
    compiled = torch.compile(module.forward, dynamic=True, **options)
    with torch.inference_mode():
        for part in parts:
            found, expected = compiled(*part.args, **part.kwargs), module(*part.args, **part.kwargs)
            if not isinstance(expected, torch.Tensor) or not agree(found, expected):
                return None
        plain, fast = (_seconds(run, parts[0]) for run in (module, compiled))
    return plain / fast


def _seconds(run: Callable[..., Any], part: BlockPart) -> float:
    """The median of some runs."""
    on_cuda = any(torch.is_tensor(value) and value.is_cuda for value in (*part.args, *part.kwargs.values()))
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    times = []
    for _ in range(9):
        wait()
        began = time.perf_counter()
        run(*part.args, **part.kwargs)
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _compile(block: nn.Module, name: str, kind: type[nn.Module], options: dict[str, Any]) -> int:
    """Compile `block`'s part of that name in place, if it is of that kind; how many were: 0 or 1."""
    module = dict(block.named_modules()).get(name)
    if type(module) is not kind:
        return 0
    module.forward = torch.compile(module.forward, dynamic=True, **options)
    return 1
