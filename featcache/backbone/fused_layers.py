"""Faster modules that replace a frozen model's own at load time; results are the same up to rounding.

Modules are found by what they consist of and not by their family's name. Each new module runs beside the
one it replaces on random input, and replaces it only if both agree. With `int8`, which the user chooses, the
new linear layers multiply 8-bit integers (`Int8Linear`), which is more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from featcache.backbone import private_torch
from featcache.backbone.linear.int8 import FbgemmLinear, Int8Linear
from featcache.errors import BackboneError

PEAKS = "input_peaks"  # attribute of a linear layer whose inputs were measured
# Names under which families keep the three projections of self-attention.
PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))


def fuse(model: nn.Module, blocks: nn.Module, *, int8: bool = False) -> list[str]:
    """Replace modules in `blocks` of a frozen model by faster ones; returns messages for the user.

    - the three projections of attention become one product,
    - a linear layer and the GELU after it become one call of oneDNN (CPU), or cuBLAS (CUDA, tanh alone),
    - on CPUs the weights of every linear layer are laid out for oneDNN once, not at every call.

    Raises:
        BackboneError: `int8`, and a linear layer of the blocks cannot be computed in 8 bits here.
    """
    first = next(model.parameters())
    in_float32 = int8 and first.device.type == "cpu" and first.dtype == torch.float32
    if not in_float32 and not _has_onednn(model):
        if int8:
            raise BackboneError(
                "int8 needs a CPU and a torch with oneDNN's 8-bit products", hint="use --dtype auto"
            )
        return _fuse_pairs(blocks, CudaLinear) if first.device.type == "cuda" else []
    if not int8 and private_torch.is_emulated("bfloat16", first.device):
        return []  # oneDNN has no such products for this processor
    kind: LinearKind = (FbgemmLinear if in_float32 else Int8Linear) if int8 else OneDnnLinear
    done = _fuse_pairs(blocks, kind)
    if count := sum(_lay_out_linears(module, kind) for module in list(blocks.modules())):
        done.append(f"weights laid out once ({count})")
    left = [name for name, module in blocks.named_modules() if _is_linear(module)]
    if int8 and left:
        raise BackboneError(f"the layer {left[0]} cannot be had in int8", hint="use --dtype auto")
    return done


def _fuse_pairs(blocks: nn.Module, kind: LinearKind) -> list[str]:
    """The swaps that are the same on every device."""
    counts = {
        "one product for q, k, v": sum(_fuse_projections(module, kind) for module in list(blocks.modules())),
        "linear + GELU": sum(_fuse_gelu(module, kind) for module in list(blocks.modules())),
    }
    return [f"{what} ({count})" for what, count in counts.items() if count]


class CudaLinear(nn.Module):
    """`gelu(x W^T + b)` or without the GELU, by cuBLAS, which adds the tanh GELU to a product at no cost.

    The erf GELU is no faster in one module than in two, and is left alone. In float32 the two GELUs differ
    by more than rounding: `_gelu_kind` tells them apart.

    Args:
        weight: `[out, in]`.
        bias: `[out]` or None.
        gelu: `none` or `tanh`.
    """

    gelus: ClassVar[tuple[str, ...]] = ("tanh",)

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, gelu: str = "none") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        self.gelu = gelu
        # CPUs take the same call to mean the erf GELU.
        fused = gelu == "tanh" and bias is not None and weight.device.type == "cuda"
        self.addmm_gelu = private_torch.addmm_gelu(weight.device) if fused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.addmm_gelu is not None:
            out: torch.Tensor = self.addmm_gelu(self.bias, x.reshape(-1, self.in_features), self.weight.T)
            return out.view(*x.shape[:-1], self.out_features)
        product = functional.linear(x, self.weight, self.bias)
        return product if self.gelu == "none" else functional.gelu(product, approximate="tanh")


class OneDnnLinear(nn.Module):
    """`gelu(x W^T + b)` or without the GELU, by oneDNN, with the weights laid out beforehand.

    Args:
        weight: `[out, in]`, bfloat16.
        bias: `[out]` or None.
        gelu: `none`, `erf` or `tanh`.
    """

    gelus: ClassVar[tuple[str, ...]] = ("erf", "tanh")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, gelu: str = "none") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.laid_out = private_torch.lay_out(weight)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return private_torch.linear(x, self.laid_out, self.bias, self.gelu)


def measure_inputs(blocks: nn.Module, run: Callable[[], object]) -> None:
    """Record on every linear layer of `blocks` the largest value of each input while `run` runs the model.

    `fuse` reads it to scale the inputs of 8-bit layers.
    """

    def note(linear: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        peaks = args[0].detach().flatten(0, -2).abs().amax(0)
        before = getattr(linear, PEAKS, None)
        setattr(linear, PEAKS, peaks if before is None else torch.maximum(before, peaks))

    with ExitStack() as hooks:
        for module in filter(_is_linear, blocks.modules()):
            hooks.enter_context(module.register_forward_pre_hook(note))
        run()


LinearKind = type[CudaLinear] | type[OneDnnLinear] | type[Int8Linear]


class SharedProjection(nn.Module):
    """Query, key and value in one product, of which three `ProjectionPart` return the parts."""

    def __init__(self, linears: list[nn.Linear], kind: LinearKind = OneDnnLinear) -> None:
        super().__init__()
        self.linear = _made(kind, linears)
        self.sizes = [linear.out_features for linear in linears]
        self._input: torch.Tensor | None = None
        self._parts: tuple[torch.Tensor, ...] = ()

    def part(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """The output of projection `number`; the first one asked for computes the product."""
        if self._input is not x:
            self._input, self._parts = x, self.linear(x).split(self.sizes, dim=-1)
        result = self._parts[number]
        if number == len(self.sizes) - 1:  # all families read value last: free the tensors
            self._input, self._parts = None, ()
        return result


class ProjectionPart(nn.Module):
    """Replaces one of the projections."""

    def __init__(self, shared: SharedProjection, number: int) -> None:
        super().__init__()
        self.shared, self.number = shared, number
        self.out_features = shared.sizes[number]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared.part(self.number, x)


def _has_onednn(model: nn.Module) -> bool:
    """Whether the swaps can be made here: bfloat16 on a CPU, by a torch with oneDNN."""
    first = next(model.parameters())
    return (
        first.device.type == "cpu" and first.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
    )


def _fuse_projections(module: nn.Module, kind: LinearKind) -> int:
    for names in PROJECTIONS:
        found = [getattr(module, name, None) for name in names]
        linears = [linear for linear in found if type(linear) is nn.Linear]
        if len(linears) < len(names):
            continue
        if len({(linear.in_features, linear.bias is None) for linear in linears}) > 1:
            continue
        shared = SharedProjection(linears, kind)
        parts = [ProjectionPart(shared, number) for number in range(len(names))]
        x = _sample(linears[0])
        if all(_agree(part(x), linear(x), kind) for part, linear in zip(parts, linears, strict=True)):
            for name, part in zip(names, parts, strict=True):
                setattr(module, name, part)
            return 1
    return 0


def _fuse_gelu(module: nn.Module, kind: LinearKind) -> int:
    """Move a module's only GELU into the linear layer that feeds it; how many were moved: 0 or 1.

    The layer that feeds it is found by running the module: its output is the tensor that the GELU gets.
    """
    owned = list(module.named_children())
    activations = [(name, gelu) for name, child in owned if (gelu := _gelu_kind(child))]
    if len(activations) != 1:
        return 0
    name, gelu = activations[0]
    if gelu not in kind.gelus:
        return 0
    feeding = _feeding(module, getattr(module, name))
    if feeding is None:
        return 0
    linear, activation = getattr(module, feeding), getattr(module, name)
    fused = _made(kind, [linear], gelu)
    x = _sample(linear)
    if not _agree(fused(x), activation(linear(x)), kind):
        return 0
    x = _sample(next(child for _, child in owned if _is_linear(child)))  # what `_feeding` ran the module on
    before = module(x)
    setattr(module, feeding, fused)
    setattr(module, name, nn.Identity())
    if isinstance(before, torch.Tensor) and _agree(module(x), before, kind):
        return 1
    setattr(module, feeding, linear)  # its output is also used without the GELU
    setattr(module, name, activation)
    return 0


def _feeding(module: nn.Module, activation: nn.Module) -> str | None:
    """The name of the linear child whose output is, untouched, the input of `activation`."""
    made: list[tuple[str, torch.Tensor]] = []
    seen: list[str | None] = []
    linears = [(name, child) for name, child in module.named_children() if _is_linear(child)]

    def see(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(next((name for name, output in made if output is args[0]), None))

    with ExitStack() as hooks:
        for name, child in linears:
            note = child.register_forward_hook(lambda _, __, output, name=name: made.append((name, output)))
            hooks.enter_context(note)
        hooks.enter_context(activation.register_forward_pre_hook(see))
        try:
            if linears:
                module(_sample(linears[0][1]))
        except Exception:  # a module that takes more than one tensor cannot be fused
            return None
    return seen[0] if len(seen) == 1 else None


def _lay_out_linears(module: nn.Module, kind: LinearKind) -> int:
    count = 0
    for name, child in list(module.named_children()):
        if _is_linear(child):
            laid_out = _made(kind, [child])
            x = _sample(child)
            if _agree(laid_out(x), child(x), kind):
                setattr(module, name, laid_out)
                count += 1
    return count


def agree(found: torch.Tensor, expected: torch.Tensor, share: float | None = None) -> bool:
    """Equal to `share` of the largest value; by default to 1e-5 in float32, 1e-2 in 16 bits."""
    share = share or (1e-5 if expected.dtype == torch.float32 else 1e-2)
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= share * expected.float().abs().max().clamp_min(1e-6))


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's `Conv1D`: a linear layer with its weights transposed."""
    return type(module).__name__ == "Conv1D"


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or is_conv1d(module)


def _weights(linear: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`[out, in]` and `[out]`."""
    weight = linear.weight if type(linear) is nn.Linear else linear.weight.T
    return weight.detach(), None if linear.bias is None else linear.bias.detach()


def _gelu_kind(module: nn.Module) -> str | None:
    """`erf` or `tanh` for an activation that is that GELU, by its values."""
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return None
    if "gelu" not in type(module).__name__.lower():
        return None
    x = torch.linspace(-4, 4, 101)
    for kind, reference in (("erf", functional.gelu(x)), ("tanh", functional.gelu(x, approximate="tanh"))):
        if torch.allclose(module(x), reference, atol=1e-6, rtol=0):
            return kind
    return None


def _made(kind: LinearKind, linears: Sequence[Any], gelu: str = "none") -> nn.Module:
    """One layer of `kind` for linear layers that share their input, their outputs side by side."""
    weights, biases = zip(*(_weights(linear) for linear in linears), strict=True)
    bias = None if biases[0] is None else torch.cat(biases)
    if issubclass(kind, Int8Linear):
        weight = torch.cat(weights)
        # Layers that widen are fed by a norm, whose large values are always the same inputs. After attention
        # or a GELU it is another one for each token: shifting sizes there made the features worse.
        widens = weight.shape[0] > weight.shape[1]
        return kind(weight, bias, gelu, getattr(linears[0], PEAKS, None) if widens else None)
    return kind(torch.cat(weights), bias, gelu)


def _sample(linear: Any) -> torch.Tensor:
    """Random input `[1, 7, in]` for a linear layer, the same each time, as large as measured."""
    weight = _weights(linear)[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 7, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    peaks = getattr(linear, PEAKS, None)
    return x if peaks is None else x * peaks / 3


def _agree(new: torch.Tensor, old: torch.Tensor, kind: LinearKind) -> bool:
    """Equal but for rounding; in 8 bits to a tenth of the norm."""
    if issubclass(kind, Int8Linear):
        return bool((new.float() - old.float()).norm() <= 0.1 * old.float().norm())
    return agree(new, old)
