"""What exists, as tables of names: mixers, their scales, and the stages of a run.

Nothing here imports torch. An entry names its code as ``"module:attribute"``; `resolve` is the one
place that imports it. Other packages add mixers and stages through the entry-point groups
``stmbench.mixers`` (a `Mixer`) and ``stmbench.stages`` (a function), without touching this file.

Sizes are those of the unified backbones of Hu et al., "Demystify Transformers & Convolutions in Modern
Image Deep Networks" (2022, arXiv:2211.05781); `micro` to `base` as published there.
"""

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal

TIMM = "timm:"  # what the name of one of timm's own models begins with, in place of a mixer's

Quad = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of the backbone around one mixer. A tuple has one entry per level."""

    widths: Quad
    depths: Quad
    drop_path: float
    mlp_ratios: Quad = (4, 4, 4, 4)


@dataclass(frozen=True, slots=True)
class Design:
    """What stands around the mixers, part by part; `stmbench.nn.originals` has those that are not unified."""

    stem: Literal["unified", "patches", "overlapping patches"] = "unified"
    downsampling: Literal["unified", "patch merging", "patches", "overlapping patches"] = "unified"
    level_norms: bool = True
    block: Literal["unified", "unscaled", "single residual", "convolutional MLP"] = "unified"
    head: Literal["unified", "norm, pool", "pool, norm", "pool"] = "unified"
    position: Literal["unified", "none"] = "unified"  # the maps of positions, of a mixer that has some
    norm_eps: float = 1e-6  # of the LayerNorms of the parts that are not unified


@dataclass(frozen=True, slots=True)
class Mixer:
    """A row of the catalogue: a mixer and what its family needs beside the operator itself.

    `level_options` gives each keyword argument of the mixer one value per level; `block_options` gives
    it a cycle of values for the successive blocks of a level. `head_width` (channels per head) or
    `level_options["num_heads"]` settles the heads, where there are any.
    """

    name: str
    title: str
    target: str  # "module:class" of the nn.Module
    source: str  # the paper
    scales: Mapping[str, Scale]
    original: Design | None = None  # what stands around it in its own network
    original_scales: Mapping[str, Scale] = field(default_factory=dict)  # where these are not the unified ones
    published: str = ""  # its name among the published networks, if it is one
    aliases: tuple[str, ...] = ()
    norm_eps: float = 1e-5  # of the LayerNorms inside a block
    head_width: int | None = None
    window: int = 0  # the side of its windows, if it has some; another one is its argument of this name
    position_map: bool = False  # a learnt absolute position map per level, added to the residual stream
    position_parameters: tuple[str, ...] = ()  # learnt tables of positions: no weight decay
    zero_layers: tuple[str, ...] = ()  # the mixer's layers that start at zero
    level_options: Mapping[str, tuple[Any, Any, Any, Any]] = field(default_factory=dict)
    block_options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def options(self, width: int, level: int, block: int, window: int = 0) -> dict[str, Any]:
        """The keyword arguments (beside `dim`) of the mixer in one block of one level of `width` channels.

        With windows of another side than its own, if that is not 0; their shift remains half of it.

        Raises:
            ValueError: it has no windows.
        """
        options = {key: values[level] for key, values in self.level_options.items()}
        options |= {key: values[block % len(values)] for key, values in self.block_options.items()}
        if self.head_width is not None:
            options["num_heads"] = width // self.head_width
        if window:
            check_window(self.name, window)
            options["window"] = window
            if options.get("shift"):
                options["shift"] = window // 2
        return options


def _double(width: int) -> Quad:
    return (width, 2 * width, 4 * width, 8 * width)


# arXiv:2211.05781; widths, depths and drop path per mixer as in its published networks.
_ATTENTION_SCALES = {
    "micro": Scale(_double(32), (2, 2, 9, 2), 0.0),
    "tiny": Scale(_double(96), (2, 2, 6, 2), 0.2),
    "small": Scale(_double(96), (2, 2, 18, 2), 0.3),
    "base": Scale(_double(128), (2, 2, 18, 2), 0.5),
}
_CONV_SCALES = {
    "micro": Scale(_double(32), (3, 3, 8, 3), 0.0),
    "tiny": Scale(_double(96), (2, 2, 9, 2), 0.1),
    "small": Scale(_double(96), (2, 2, 24, 2), 0.4),
    "base": Scale(_double(128), (2, 2, 24, 2), 0.5),
}
# The same, of every mixer in detection.
DETECTION_DROP_PATH = {"micro": 0.1, "tiny": 0.2, "small": 0.2, "base": 0.3}

_SRA_WIDTHS: Quad = (64, 128, 320, 512)
_SWIN = Design("patches", "patch merging", False, "unscaled", "norm, pool", norm_eps=1e-5)
_MIXERS = [
    Mixer(
        name="halo",
        title="halo attention",
        target="stmbench.mixers.halo:HaloAttention",
        source="Vaswani et al. 2021, arXiv:2103.12731",
        scales=_ATTENTION_SCALES,
        original=_SWIN,  # the ResNet of its paper is another family: it starts from its nearest relative's
        published="unified_halo",
        aliases=("halonet",),
        head_width=32,
        window=7,
        position_parameters=("height_rel", "width_rel"),
    ),
    Mixer(
        name="swin",
        title="shifted-window attention",
        target="stmbench.mixers.swin:ShiftedWindowAttention",
        source="Liu et al. 2021, arXiv:2103.14030",
        scales=_ATTENTION_SCALES,
        original=_SWIN,
        published="unified_swin",
        norm_eps=1e-6,
        head_width=32,
        window=7,
        position_parameters=("relative_position_bias_table",),
        block_options={"shift": (0, 3)},
    ),
    Mixer(
        name="sra",
        title="spatial-reduction attention",
        target="stmbench.mixers.sra:SpatialReductionAttention",
        source="Wang et al. 2021, arXiv:2102.12122",
        scales={
            "micro": Scale((32, 64, 160, 256), (2, 2, 3, 2), 0.0, (8, 8, 4, 4)),
            "tiny": Scale(_SRA_WIDTHS, (3, 4, 9, 3), 0.1, (8, 8, 4, 4)),
            "small": Scale(_SRA_WIDTHS, (3, 4, 21, 3), 0.3, (8, 8, 4, 4)),
            "base": Scale(_SRA_WIDTHS, (3, 8, 45, 3), 0.5, (4, 4, 4, 4)),
        },
        original=Design(
            "overlapping patches", "overlapping patches", True, "convolutional MLP", "pool", "none"
        ),
        original_scales={  # B0, B2, B3 and B5 of Wang et al. 2022, arXiv:2106.13797; drop path as unified
            "micro": Scale((32, 64, 160, 256), (2, 2, 2, 2), 0.0, (8, 8, 4, 4)),
            "tiny": Scale(_SRA_WIDTHS, (3, 4, 6, 3), 0.1, (8, 8, 4, 4)),
            "small": Scale(_SRA_WIDTHS, (3, 4, 18, 3), 0.3, (8, 8, 4, 4)),
            "base": Scale(_SRA_WIDTHS, (3, 6, 40, 3), 0.5, (4, 4, 4, 4)),
        },
        published="unified_pvt",
        aliases=("pvt",),
        position_map=True,
        position_parameters=("position_map",),
        level_options={"num_heads": (1, 2, 5, 8), "reduction": (8, 4, 2, 1)},
    ),
    Mixer(
        name="dwconv",
        title="depthwise convolution",
        target="stmbench.mixers.dwconv:DepthwiseConv",
        source="Liu et al. 2022, arXiv:2201.03545",
        scales=_CONV_SCALES,
        original=Design("patches", "patches", False, "single residual", "pool, norm"),
        original_scales={
            "tiny": Scale(_double(96), (3, 3, 9, 3), 0.1),
            "small": Scale(_double(96), (3, 3, 27, 3), 0.4),
            "base": Scale(_double(128), (3, 3, 27, 3), 0.5),
        },
        published="unified_convnext",
        aliases=("convnext",),
        norm_eps=1e-6,
    ),
    Mixer(
        name="dcnv3",
        title="deformable convolution v3",
        target="stmbench.mixers.dcnv3:DeformableConvV3",
        source="Wang et al. 2023, arXiv:2211.05778",
        scales={
            "micro": Scale(_double(32), (2, 2, 9, 2), 0.0),
            "tiny": Scale(_double(64), (4, 4, 18, 4), 0.1),
            "small": Scale(_double(80), (4, 4, 21, 4), 0.3),
            "base": Scale(_double(112), (4, 4, 21, 4), 0.5),
            "large": Scale(_double(160), (5, 5, 22, 5), 0.5),
        },
        published="unified_dcn_v3",
        aliases=("internimage",),
        zero_layers=("offset", "modulation"),  # starts as the mean of the regular 3x3 grid, as in its paper
    ),
    # The controls: whatever these reach, the backbone reaches without a mixer worth the name.
    Mixer(
        name="pool",
        title="3x3 average minus input (control)",
        target="stmbench.mixers.pool:Pool",
        source="Yu et al. 2022, arXiv:2111.11418",
        scales=_CONV_SCALES,
        aliases=("poolformer",),
        norm_eps=1e-6,
    ),
    Mixer(
        name="identity",
        title="nothing between positions (control)",
        target="stmbench.mixers.identity:Identity",
        source="Yu et al. 2022, arXiv:2210.13452",
        scales=_CONV_SCALES,
        norm_eps=1e-6,
    ),
]

# In the order in which `--stage all` runs them, where the recipe lists them.
_STAGES = {
    "build": "stmbench.stages.build:run",
    "train": "stmbench.stages.train:run",
    "eval": "stmbench.stages.evaluate:run",
    "detect": "stmbench.stages.detect:run",
    "profile": "stmbench.stages.profile:run",
    "erf": "stmbench.stages.erf:run",
    "invariance": "stmbench.stages.invariance:run",
    "robustness": "stmbench.stages.robustness:run",
    "probe": "stmbench.stages.probe:run",
}

DETECTION = ("build", "detect", "profile")  # the stages of a protocol of detection

SHARED = ("train", "eval", "detect")  # the stages in which all processes take part, where there are several


@functools.cache
def mixers() -> dict[str, Mixer]:
    """Every mixer by name: ours in the paper's order, then those of installed plug-ins."""
    table = {row.name: row for row in _MIXERS}
    for entry in entry_points(group="stmbench.mixers"):
        table.setdefault(entry.name, entry.load())
    return table


def mixer(name: str) -> Mixer:
    """The mixer with this name or alias; ValueError names the nearest one."""
    aliases = {alias: row.name for row in mixers().values() for alias in row.aliases}
    return mixers()[aliases.get(name) or known("mixer", name, mixers(), aliases)]


def check_window(network: str, window: int) -> None:
    """ValueError where windows are given to a mixer, or a timm model, without this choice; 0 is anybody's."""
    having = [row.name for row in mixers().values() if row.window]
    if window and network not in having:
        raise ValueError(f"{network} has no windows to choose: model.window is of {' and '.join(having)}.")


def window(network: str, recipes: int) -> int:
    """The side of a network's windows by a recipe's `model.window`; 0 for its own, or if it has none."""
    return recipes if network in mixers() and mixers()[network].window else 0


# Of a design, in the ladder's order.
PARTS = ("stem", "downsampling", "level_norms", "block", "head", "position")


def rungs(mixer_name: str, scale_name: str) -> dict[str, tuple[Design, Scale]]:
    """The networks from a mixer's original one to the unified one, by name; each differs from the one before.

    `original`, then one after the other `depths` and the parts of a design, each the name of what is
    unified with it, and for the last one `unified`. `unified` alone where no original is known.
    """
    row, size = mixer(mixer_name), scale(mixer_name, scale_name)
    if row.original is None:
        return {"unified": (Design(), size)}
    found = {
        "original": (row.original, row.original_scales.get(scale_name, size)),
        "depths": (row.original, size),
    }
    if found["depths"] == found["original"]:
        del found["depths"]
    parts = row.original
    for part in PARTS:
        before, parts = parts, dataclasses.replace(parts, **{part: getattr(Design(), part)})
        if parts != before:
            found[part] = (parts, size)
    del found[next(reversed(found))]
    return found | {"unified": (Design(), size)}


def rung(mixer_name: str, scale_name: str, name: str) -> tuple[Design, Scale]:
    """One of them; ValueError lists what there is."""
    found = rungs(mixer_name, scale_name)
    return found[known(f"design of {mixer_name}", name, found)]


def scale(mixer_name: str, name: str) -> Scale:
    """One scale of a mixer; ValueError lists the scales it has."""
    row = mixer(mixer_name)
    return row.scales[known(f"scale of {row.name}", name, row.scales)]


@functools.cache
def stages() -> dict[str, str]:
    """Every stage as name -> "module:function", in the order in which a run takes them."""
    table = dict(_STAGES)
    for entry in entry_points(group="stmbench.stages"):
        table.setdefault(entry.name, entry.value)
    return table


def known(kind: str, name: str, names: Iterable[str], aliases: Iterable[str] = ()) -> str:
    """Return `name` if it is one of `names`, else raise a ValueError that helps."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), [*names, *aliases], n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(names)}."
    raise ValueError(f"Unknown {kind} '{name}'. {hint}")


def resolve(target: str) -> Any:
    """Import the object that ``"module:attribute"`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
