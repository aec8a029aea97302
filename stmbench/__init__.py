"""stmbench: fair comparisons of spatial token mixers in one unified vision backbone.

``import stmbench`` is light: torch and timm are imported by what needs them, on first use. Whenever timm
is imported, before or after, every model of ours becomes known to ``timm.create_model``.
"""

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from stmbench.nn import create_model as create_model

__version__ = "0.1.0"
__all__ = ["__version__", "create_model"]


def _register_with_timm(_timm: object) -> None:
    from stmbench.nn.registry import register

    register()


wrapt.register_post_import_hook(_register_with_timm, "timm")


def __getattr__(name: str) -> Any:
    if name == "create_model":
        from stmbench.nn import create_model

        return create_model
    raise AttributeError(f"module 'stmbench' has no attribute '{name}'")
