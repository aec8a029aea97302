"""The unified backbone: four levels of one block around any spatial token mixer.

Hu et al. 2022, "Demystify Transformers & Convolutions in Modern Image Deep Networks" (arXiv:2211.05781):
an overlapping stem, overlapping downsampling, a LayerNorm after each level, a convolutional head. Any of
these parts can be that of the mixer's original network instead: see `catalog.Design`.

Departure: activations stay (B, H, W, C) from stem to head, and convolutions see them as NCHW views in
channels_last memory format, so that nothing is transposed in between.

It speaks timm's language: images are NCHW, and so are the features it hands out (as views).
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stmbench.catalog import Design
from stmbench.nn import originals
from stmbench.nn.block import Block, Residual
from stmbench.nn.heads import Head
from stmbench.nn.init import init_weights
from stmbench.nn.pretrained import pretrained_cfg
from stmbench.record import Macs

NORM_EPS = 1e-6  # of the LayerNorms outside the blocks


class ConvNorm(nn.Module):
    """A 3x3 convolution with stride 2 and a LayerNorm, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=bias)
        self.norm = nn.LayerNorm(out_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image that comes out as `height` x `width` positions."""
        return Macs(height * width * self.conv.weight.numel())


class Stem(nn.Module):
    """Two convolutions with stride 2, (B, H, W, 3) -> (B, ceil(H/4), ceil(W/4), C)."""

    first_conv = "first.conv"

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, dim // 2, bias=True)
        self.second = ConvNorm(dim // 2, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` pixels."""
        return self.first.macs(-(-height // 2), -(-width // 2)) + self.second.macs(
            *level_size(0, height, width)
        )


class Level(nn.Module):
    """The blocks of one resolution, one per mixer, between a downsampling and a LayerNorm, if it has one.

    The first level has no `in_dim`: its downsampling is the stem. A level that carries a learnt map of
    absolute positions makes it for `map_size` (height, width), and adds it before its first block.
    """

    blocks: Sequence[Residual]

    def __init__(
        self,
        in_dim: int | None,
        dim: int,
        mixers: Sequence[nn.Module],
        *,
        map_size: tuple[int, int] | None,
        mlp_ratio: int,
        norm_eps: float,
        drop_paths: Sequence[float],
        design: Design,
    ) -> None:
        super().__init__()
        self.downsample: Any = nn.Identity() if in_dim is None else make_downsample(design, in_dim, dim)
        self.position_map = None
        if map_size is not None:
            self.position_map = nn.Parameter(torch.empty(1, dim, *map_size))  # (1, C, H, W)
            nn.init.trunc_normal_(self.position_map, std=0.02)
        blocks = [
            make_block(design, dim, mixer, mlp_ratio=mlp_ratio, norm_eps=norm_eps, drop_path=drop_path)
            for mixer, drop_path in zip(mixers, drop_paths, strict=True)
        ]
        self.blocks = cast(Sequence[Residual], nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS) if design.level_norms else nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) of the level before -> (B, ceil(H/2), ceil(W/2), C')."""
        x = self.downsample(x)
        if self.position_map is not None:
            x = x + resize_position_map(self.position_map, x.shape[1], x.shape[2]).permute(0, 2, 3, 1)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)

    def macs(self, height: int, width: int) -> dict[str, Macs]:
        """Multiply-accumulates of one image of `height` x `width` positions in this level, by part."""
        macs = {}
        if not isinstance(self.downsample, nn.Identity):
            macs["downsample"] = self.downsample.macs(height, width)
        macs["mixers"] = sum((block.mixer.macs(height, width) for block in self.blocks), Macs(0))
        macs["mlps"] = sum((block.mlp_macs(height, width) for block in self.blocks), Macs(0))
        return macs


class Backbone(nn.Module):
    """An image classifier of four levels; `make_mixer(level, block)` makes each block's mixer.

    `design` says what stands around them. Tuples have one entry per level. `drop_path` is the last block's
    rate; it grows linearly from 0. `image_size` (height, width) only settles the size of position maps: any
    size may be fed. `position_parameters` are the names of the learnt tables of positions, which take no
    weight decay; `zero_layers` those of the mixers' layers that start at zero. `mixer_name` is what recipes
    call the mixer, where they treat mixers unlike.
    """

    levels: Sequence[Level]
    stem: Any
    head: Any  # until features-only pruning takes it away

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        make_mixer: Callable[[int, int], nn.Module],
        *,
        design: Design = Design(),  # noqa: B008 - frozen
        mlp_ratios: Sequence[int] = (4, 4, 4, 4),
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
        position_map: bool = False,
        position_parameters: Sequence[str] = (),
        zero_layers: Sequence[str] = (),
        mixer_name: str = "",
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.mixer_name = mixer_name
        self.position_parameters = tuple(position_parameters)
        self.stem = make_stem(design, in_channels, widths[0])
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        levels = [
            Level(
                widths[level - 1] if level else None,
                widths[level],
                [make_mixer(level, block) for block in range(depth)],
                map_size=level_size(level, *image_size) if position_map else None,
                mlp_ratio=mlp_ratios[level],
                norm_eps=norm_eps,
                drop_paths=[next(rates) for _ in range(depth)],
                design=design,
            )
            for level, depth in enumerate(depths)
        ]
        self.levels = cast(Sequence[Level], nn.ModuleList(levels))
        self.head = make_head(design, widths[-1], num_classes, global_pool, drop_rate)
        self.num_features = widths[-1]
        self.head_hidden_size = self.head.hidden
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**level, "module": f"levels.{level}"}
            for level, width in enumerate(widths)
        ]
        self.pretrained_cfg = pretrained_cfg(
            num_classes, (in_channels, *image_size), f"stem.{self.stem.first_conv}"
        )
        self.default_cfg = self.pretrained_cfg
        self.apply(init_weights)
        for name, parameter in self.named_parameters():
            if name.split(".")[-2] in zero_layers:
                nn.init.zeros_(parameter)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> normalised features of the last level (B, C, ceil(H/32), ceil(W/32))."""
        x = self._stem(x)
        for level in self.levels:
            x = level(x)
        return x.permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits, or the `head_hidden_size` numbers they are computed from."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, num_classes), or pooled features where there are no classes."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features of the chosen levels, with the last features in front unless `intermediates_only`.

        Each level ends in its own LayerNorm, whatever `norm` says: the next level is fed from there too.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, not '{output_fmt}'.")
        order = (0, 3, 1, 2) if output_fmt == "NCHW" else (0, 1, 2, 3)
        take, last = feature_take_indices(len(self.levels), indices)
        intermediates = []
        x = self._stem(x)
        for index, level in enumerate(self.levels):
            if stop_early and index > last:
                break
            x = level(x)
            if index in take:
                intermediates.append(x.permute(order))
        return intermediates if intermediates_only else (x.permute(0, 3, 1, 2), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the levels behind the last chosen one, and the head; a level's LayerNorm stays with it."""
        take, last = feature_take_indices(len(self.levels), indices)
        pruned = last < len(self.levels) - 1
        self.levels = self.levels[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if pruned or prune_head:
            self.num_classes = 0
            self.head = nn.Identity()
        return take

    def _stem(self, images: Tensor) -> Tensor:
        # The one copy there is, and none for images that come in channels_last.
        images = images.contiguous(memory_format=torch.channels_last)
        return self.stem(images.permute(0, 2, 3, 1))

    def get_classifier(self) -> nn.Module:
        """The linear layer that gives the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A freshly initialised classifier; 0 classes for none."""
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.head.reset(num_classes, self.head.global_pool.pool_type if global_pool is None else global_pool)
        self.head.to(weight.device, weight.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        for level in self.levels:
            level.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters beside norms, biases and layer scales that take no weight decay."""
        return {
            name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.position_parameters
        }

    def layer_scales(self) -> set[str]:
        """Names of the parameters that scale a residual branch."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2].startswith("gamma")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns of parameter groups from stem to head, for layer-wise learning rates."""
        blocks = [
            (r"^levels\.(\d+)\.(?:downsample|position_map)", (0,)),
            (r"^levels\.(\d+)\.blocks\.(\d+)", None),
            (r"^levels\.(\d+)\.norm", (99999,)),  # with the block before it
        ]
        return {"stem": r"^stem", "blocks": r"^levels\.(\d+)" if coarse else blocks}

    def macs(self, height: int, width: int) -> dict[str, Macs]:
        """Multiply-accumulates of one image of `height` x `width` pixels, by part of the network.

        Convolutions, linear layers, attention products and sampling; not norms, activations and additions.
        """
        macs = {"stem": self.stem.macs(height, width)}
        for index, level in enumerate(self.levels):
            parts = level.macs(*level_size(index, height, width))
            macs |= {f"level{index + 1}.{part}": value for part, value in parts.items()}
        if not isinstance(self.head, nn.Identity):
            macs["head"] = self.head.macs(*level_size(len(self.levels) - 1, height, width))
        return macs

    def parts(self) -> dict[str, list[str]]:
        """The names of the modules that make up each part of `macs`."""
        parts = {"stem": ["stem"]}
        for index, level in enumerate(self.levels):
            name, module = f"level{index + 1}", f"levels.{index}"
            if index:
                parts[f"{name}.downsample"] = [f"{module}.downsample"]
            parts[f"{name}.mixers"] = [f"{module}.blocks.{block}.mixer" for block in range(len(level.blocks))]
            parts[f"{name}.mlps"] = [f"{module}.blocks.{block}.mlp" for block in range(len(level.blocks))]
        return parts if isinstance(self.head, nn.Identity) else parts | {"head": ["head"]}


# The parts that a design names


def make_stem(design: Design, in_channels: int, dim: int) -> nn.Module:
    if design.stem == "unified":
        return Stem(in_channels, dim)
    overlap = design.stem == "overlapping patches"
    return originals.PatchStem(in_channels, dim, overlap=overlap, eps=design.norm_eps)


def make_downsample(design: Design, in_dim: int, dim: int) -> nn.Module:
    if design.downsampling == "unified":
        return ConvNorm(in_dim, dim, bias=False)
    if design.downsampling == "overlapping patches":
        return ConvNorm(in_dim, dim, bias=True)
    kind = originals.PatchMerging if design.downsampling == "patch merging" else originals.NormPatches
    return kind(in_dim, dim, eps=design.norm_eps)


def make_block(design: Design, dim: int, mixer: nn.Module, *, norm_eps: float, **options: Any) -> Residual:
    if design.block == "single residual":
        return originals.SingleBlock(dim, mixer, norm_eps=design.norm_eps, **options)
    if design.block == "convolutional MLP":
        return originals.ConvMlpBlock(dim, mixer, norm_eps=design.norm_eps, **options)
    if design.block == "unscaled":
        return Block(dim, mixer, norm_eps=design.norm_eps, layer_scale=False, **options)
    return Block(dim, mixer, norm_eps=norm_eps, **options)


def make_head(design: Design, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> nn.Module:
    if design.head == "unified":
        return Head(dim, num_classes, global_pool, drop_rate)
    place = {"norm, pool": "before", "pool, norm": "after", "pool": ""}[design.head]
    return originals.PooledHead(dim, num_classes, global_pool, drop_rate, norm=place, eps=design.norm_eps)


def level_size(level: int, height: int, width: int) -> tuple[int, int]:
    """Positions along each axis in a level (from 0) of the network fed with `height` x `width` pixels."""
    stride = 4 * 2**level
    return -(-height // stride), -(-width // stride)


def resize_position_map(position_map: Tensor, height: int, width: int) -> Tensor:
    """A map (1, C, H, W) interpolated to another size; itself where it fits.

    The one way maps are resized, when weights are loaded and when a network is fed another size than it
    was built for, so that both give the same answer.
    """
    if position_map.shape[2:] == (height, width):
        return position_map
    return F.interpolate(position_map, (height, width), mode="bilinear", align_corners=False)
