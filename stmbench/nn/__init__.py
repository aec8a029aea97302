"""The unified backbone around a mixer of the catalogue, and the weights that go into it."""

from pathlib import Path

from torch import nn

from stmbench import catalog
from stmbench.nn.backbone import Backbone
from stmbench.nn.weights import load_weights

__all__ = ["create_model"]

_FORCE = "stmbench.mixers.backends:force"  # by its name, as all of the mixers are known here


def create_model(
    mixer: str,
    scale: str = "tiny",
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    drop_path: float | None = None,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    weights: str | Path | None = None,
    size_of: str | None = None,
    backend: str = "",
    design: str = "unified",
    window: int = 0,
) -> Backbone:
    """The unified backbone around `mixer` (a name or alias of the catalogue) at `scale`.

    Args:
        image_size: pixels (or height and width) that learnt position maps are made for; any size may be fed.
        drop_path: stochastic depth of the last block; by default the scale's own.
        drop_rate: dropout before the classifier.
        global_pool: "avg", "max", or whatever else timm's pooling knows.
        weights: a checkpoint file, ours or a published one; see `stmbench.nn.weights.load_weights`.
        size_of: another mixer, whose backbone it is (widths, depths, position maps): only the mixers differ.
        backend: how every mixer computes, where it can; by default the fastest way there is for each input.
        design: what stands around the mixer: `unified`, `original`, as in its own network, or a step
            between them; `catalog.rungs` lists a mixer's.
        window: the side of the windows of `halo` (its blocks) and `swin`; 0 for their own, 7.

    Raises:
        ValueError: no such mixer, scale, backend or design, a size that cannot be, a window where there are
            none, weights that do not fit.
    """
    row, around = catalog.mixer(mixer), catalog.mixer(size_of or mixer)
    parts, size = catalog.rung(around.name, scale, design)
    sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not (isinstance(sizes, tuple | list) and len(sizes) == 2 and all(isinstance(n, int) for n in sizes)):
        raise ValueError(f"image_size is a number of pixels or (height, width), not {image_size!r}.")
    height, width = sizes
    if min(height, width, in_channels) < 1 or num_classes < 0:
        raise ValueError("image_size and in_channels must be at least 1, num_classes at least 0.")
    mixer_class = catalog.resolve(row.target)

    # ConvNeXt's own block is around the depthwise convolution alone
    bare = {"projections": False} if parts.block == "single residual" and row is around else {}

    def make_mixer(level: int, block: int) -> nn.Module:
        options = row.options(size.widths[level], level, block, window)
        return mixer_class(size.widths[level], **options, **bare)

    model = Backbone(
        size.widths,
        size.depths,
        make_mixer,
        design=parts,
        mlp_ratios=size.mlp_ratios,
        norm_eps=around.norm_eps,
        drop_path=size.drop_path if drop_path is None else drop_path,
        position_map=around.position_map and parts.position == "unified",
        position_parameters=(*row.position_parameters, *around.position_parameters),
        zero_layers=row.zero_layers,
        mixer_name=row.name,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=(height, width),
        global_pool=global_pool,
        drop_rate=drop_rate,
    )
    catalog.resolve(_FORCE)(model, backend)
    if weights is not None:
        load_weights(model, weights)
    return model
