"""Every mixer and scale under timm's roof: ``timm.create_model("unified_halo_tiny", ...)``.

A network is known by its mixer's name and, where that differs, by the name of its published checkpoints
(``unified_sra_tiny``, ``unified_pvt_tiny``). `register` may run while our own modules are still being
imported (timm is imported by them), so the backbone is only imported when a model is made.
"""

import functools
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from stmbench import catalog
from stmbench.nn.pretrained import pretrained_cfg

default_cfgs: dict[str, Any] = {}  # where timm looks for a model's configuration


@functools.cache
def register() -> None:
    """Make every model of the catalogue known to timm, once."""
    names = {}
    for row in catalog.mixers().values():
        for scale in row.scales:
            names[f"unified_{row.name}_{scale}"] = (row.name, scale)
            if row.published:
                names[f"{row.published}_{scale}"] = (row.name, scale)
    default_cfgs.update(generate_default_cfgs({name: pretrained_cfg() for name in names}))
    for name, (mixer, scale) in names.items():
        register_model(_entrypoint(name, mixer, scale))


def _entrypoint(name: str, mixer: str, scale: str) -> Any:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from stmbench.nn.weights import adapt

        return build_model_with_cfg(
            functools.partial(_build, mixer, scale),
            name,
            pretrained,
            pretrained_filter_fn=adapt,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **kwargs,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The unified backbone around {mixer} at scale {scale}."
    return create


def _build(
    mixer: str,
    scale: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    global_pool: str = "avg",
) -> nn.Module:
    """`stmbench.create_model` under timm's names of the arguments."""
    from stmbench.nn import create_model
    from stmbench.nn.weights import adapt_on_load

    model = create_model(
        mixer,
        scale,
        num_classes=num_classes,
        in_channels=in_chans,
        image_size=img_size,
        drop_path=drop_path_rate,
        drop_rate=drop_rate,
        global_pool=global_pool,
    )
    model.register_load_state_dict_pre_hook(adapt_on_load)
    return model
