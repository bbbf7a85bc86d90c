"""`depth`: the views of four layers, from the middle of a backbone to its top.

Layers of one backbone know different things of a text (Tenney et al. 2019, arXiv:1905.05950), and one forward
pass leaves all of them.
"""

from __future__ import annotations

from featcache.backbone.model_files.find import ModelFiles
from featcache.errors import UsageError

DEPTH = "depth"
LAYERS = 4
DECODERS = ("ForCausalLM", "LMHeadModel")  # ends of the classes of models whose first token sees no other


def depth_views(files: ModelFiles) -> tuple[str, ...]:
    """The mean and the first token of each layer (of decoders the last token), e.g. `last/cls`, `-3/mean`.

    Of 12 blocks these are the outputs of blocks 12, 10, 8 and 6.

    Raises:
        UsageError: config.json names no number of blocks.
    """
    blocks = files.blocks
    if blocks is None:
        raise UsageError(
            f"--views depth: the config.json of {files.name} names no number of layers",
            hint="name the views, for example --views last/mean,-3/mean",
        )
    if not blocks:  # a table of token vectors
        return ("last/mean",)
    step = max(1, round(blocks / 6))
    depths = [depth for depth in range(0, LAYERS * step, step) if depth < blocks]
    layers = ["last" if depth == 0 else str(-depth - 1) for depth in depths]
    token = "last" if any(name.endswith(DECODERS) for name in files.architectures) else "cls"
    return tuple(f"{layer}/{pooling}" for layer in layers for pooling in (token, "mean"))
