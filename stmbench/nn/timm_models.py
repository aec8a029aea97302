"""Models of timm as the networks of runs: ``timm:NAME``, made without any download.

NAME is an architecture of timm's, or one with the tag of its weights (``resnet18.tv_in1k``): the tag settles
how images are prepared for them. Weights come from a local file alone. A model gets the recipe's number of
classes, channels, image size and drop path; the rest is as timm has it.
"""

import difflib
import json
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from stmbench.catalog import TIMM
from stmbench.nn.weights import fits, layers

PREPARATION = ("mean", "std", "interpolation", "crop_pct")  # of an image, in the recipe's terms


def is_timm(name: str) -> bool:
    """Whether a network's name is that of one of timm's models."""
    return name.startswith(TIMM)


def check_name(name: str) -> None:
    """ValueError for a name (``timm:...``) that timm does not know, or that it would download."""
    model = name.removeprefix(TIMM)
    if not model.isprintable() or set(model) & set(":/\\"):
        raise ValueError(
            f"'{name}' would be downloaded: name one of timm's architectures (timm:resnet18), "
            "and give its weights as a file with --weights."
        )
    if is_known(model):
        return
    near = difflib.get_close_matches(model.lower(), _names(), n=1)
    hint = f"Did you mean '{TIMM}{near[0]}'?" if near else "`timm.list_models()` lists them in Python."
    raise ValueError(f"Unknown timm model '{model}'. {hint}")


def is_known(model: str) -> bool:
    """Whether timm has a model of this name, which may say a tag of its weights."""
    return model in _names()


def _names() -> list[str]:
    return [*timm.list_models(), *timm.list_pretrained()]


def create(
    name: str, *, num_classes: int, in_channels: int, image_size: int, drop_path: float | None
) -> nn.Module:
    """The model with random weights; `drop_path` is left out where the model has none.

    Raises:
        ValueError: the model cannot be made for such images.
    """
    model = name.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(model)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if config and config.fixed_input_size:  # others take any size, and no argument for it
        options["img_size"] = image_size
    try:
        return _create(model, options, drop_path)
    except Exception as error:  # each model refuses in its own way
        raise _misfit(name, in_channels, image_size, error) from error


def _create(model: str, options: Mapping[str, Any], drop_path: float | None) -> nn.Module:
    if drop_path is not None:
        try:
            return timm.create_model(model, drop_path_rate=drop_path, **options)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
    return timm.create_model(model, **options)


def check_images(model: nn.Module, name: str, *, num_classes: int, in_channels: int, image_size: int) -> None:
    """Show the model one image, for few models say what they take; ValueError if it fits neither end."""
    was_training = model.training
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, in_channels, image_size, image_size))
    except Exception as error:
        raise _misfit(name, in_channels, image_size, error) from error
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        raise ValueError(f"{name} is no classifier of images: it does not answer with a number per class.")


def _misfit(name: str, in_channels: int, image_size: int, error: Exception) -> ValueError:
    config = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    made_for = config.input_size if config and config.input_size else (3, 224, 224)
    what = f"{image_size}x{image_size} images of {in_channels} channel{'s' * (in_channels != 1)}"
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    advice = f"--set data.image_size={made_for[-1]} is what it was made for"
    return ValueError(f"{name} does not take {what} ({why.rstrip('.')}): {advice}.")


def preparation(
    model: nn.Module, metadata: Mapping[str, str], *, channels: int, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """How images are prepared for weights of this model, by the recipe's names.

    A file that a run left says under what it was trained; for any other it is the `config` that came with it
    (timm's ``pretrained_cfg``), or the model's own, which have a `crop_mode` too.
    """
    if "preprocessing" in metadata:
        return json.loads(metadata["preprocessing"])
    told = resolve_model_data_config(model, pretrained_cfg=dict(config) if config else None)
    found = {key: told[key] for key in (*PREPARATION, "crop_mode")}
    if len(found["mean"]) != channels:  # it speaks of colours, and says nothing of such weights
        del found["mean"], found["std"]
    return found


def adapt(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights of the model under its present names and sizes, by the filter timm has for it, if any.

    Raises:
        ValueError: they are for images of another number of channels.
    """
    state = dict(state)
    clean = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if clean is not None and not fits(state, model):
        try:
            state = dict(clean(state, model))
        except Exception:  # what is not this model's fails in any way; the keys will tell
            return state
    _check_channels(state, model)
    return state


def _check_channels(state: Mapping[str, Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    for layer in layers(model, "first_conv"):
        key = f"{layer}.weight"
        if key in state and key in own and state[key].ndim == own[key].ndim == 4:
            theirs, ours = state[key].shape[1], own[key].shape[1]
            if theirs != ours:
                raise ValueError(
                    f"weights for images of {theirs} channels, and the recipe's have {ours}: "
                    f"take a recipe with data.channels = {theirs}."
                )
