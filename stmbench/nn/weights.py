"""Checkpoint files in and out; foreign names and shapes are adapted here, at the edge, dict to dict.

Ours are safetensors whose header carries what the weights are. The published networks of Hu et al. 2022
(arXiv:2211.05781) come as pickles ``{"model": state_dict, ...}``; of those, and of any other pickle, only
tensors, plain containers and an `argparse.Namespace` are read. A pickle that wants anything else is refused.
Of a file that holds plain and averaged weights, the plain ones (``model``) are taken unless asked.
Of a detector (ours, or as mmdetection saves them) a classifier takes the backbone; its head stays as it is,
and so do the norms between levels, which the published detectors do not have.
"""

import argparse
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn

from stmbench.nn import windows
from stmbench.nn.backbone import resize_position_map

Adapt = Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]  # foreign weights to a model's own

# Published names to ours, each rule applied in turn.
_RENAMES = [
    (r"^downsample_layers\.0\.stem\.0\.", "stem.first.conv."),
    (r"^downsample_layers\.0\.stem\.1\.", "stem.first.norm."),
    (r"^downsample_layers\.0\.stem\.3\.", "stem.second.conv."),
    (r"^downsample_layers\.0\.stem\.4\.", "stem.second.norm."),
    (r"^downsample_layers\.(\d+)\.reduction\.0\.", r"levels.\1.downsample.conv."),
    (r"^downsample_layers\.(\d+)\.reduction\.1\.", r"levels.\1.downsample.norm."),
    (r"^stage_norms\.(\d+)\.", r"levels.\1.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^conv_head\.0\.", "head.conv."),
    (r"^conv_head\.1\.", "head.norm."),
    (r"^stages\.(\d+)\.0\.pos_embed$", r"levels.\1.position_map"),
    (r"^stages\.(\d+)\.(\d+)\.", r"levels.\1.blocks.\2."),
    (r"\.gamma_?([12])$", r".gamma\1"),
    (r"\.attn\.pos_embed\.", ".mixer."),  # halo
    (r"\.attn\.sr\.", ".mixer.reduce.0."),  # sra
    (r"\.attn\.norm\.", ".mixer.reduce.1."),
    (r"\.dw_norm\.", ".norm1."),  # dwconv
    (r"\.pw_norm\.", ".norm2."),
    (r"\.dw_input_proj\.", ".mixer.proj_in."),
    (r"\.dwconv\.", ".mixer.conv."),
    (r"\.dw_out_proj\.", ".mixer.proj_out."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.attn\.dw_conv\.0\.", ".mixer.conv."),  # dcnv3
    (r"\.attn\.dw_conv\.1\.norm\.", ".mixer.norm."),
    (r"\.attn\.sampling_offsets\.", ".mixer.offset."),
    (r"\.attn\.attention_weights\.", ".mixer.modulation."),
    (r"\.attn\.value_proj\.", ".mixer.value."),
    (r"\.attn\.output_proj\.", ".mixer.proj."),
    (r"\.attn\.", ".mixer."),
]
# timm's names of the original networks to ours, by a key that tells them
_TIMM = {
    "layers.0.blocks.0.attn.relative_position_bias_table": [  # swin
        (r"^patch_embed\.proj\.", "stem.first."),
        (r"^patch_embed\.norm\.", "stem.norm."),
        (r"^layers\.", "levels."),
        (r"\.attn\.", ".mixer."),
        (r"^norm\.", "head.norm."),
    ],
    "stages.0.blocks.0.conv_dw.weight": [  # convnext
        (r"^stem\.0\.", "stem.first."),
        (r"^stem\.1\.", "stem.norm."),
        (r"^stages\.", "levels."),
        (r"\.downsample\.0\.", ".downsample.norm."),
        (r"\.downsample\.1\.", ".downsample.conv."),
        (r"\.conv_dw\.", ".mixer.conv."),
    ],
    "stages.0.blocks.0.mlp.dwconv.weight": [  # pvt_v2
        (r"^patch_embed\.proj\.", "stem.first."),
        (r"^patch_embed\.norm\.", "stem.norm."),
        (r"^stages\.", "levels."),
        (r"\.downsample\.proj\.", ".downsample.conv."),
        (r"\.attn\.sr\.", ".mixer.reduce.0."),
        (r"\.attn\.norm\.", ".mixer.reduce.1."),
        (r"\.attn\.", ".mixer."),
        (r"\.mlp\.dwconv\.", ".mlp.conv."),
        (r"^head\.", "head.fc."),
    ],
}
# How learnt positions of another size become those of a shape
_POSITIONS: dict[str, Callable[[Tensor, torch.Size], Tensor]] = {
    "position_map": lambda found, shape: resize_position_map(found, *shape[2:]),
    "relative_position_bias_table": lambda found, shape: windows.resize_swin(found, shape[0]),
    "height_rel": lambda found, shape: windows.resize_halo(found, shape[0]),
    "width_rel": lambda found, shape: windows.resize_halo(found, shape[0]),
}
_BACKBONES = ("pyramid.backbone.", "backbone.")  # what the tensors of a detector's backbone begin with
_NOT_DETECTORS = re.compile(r"^head\.|^levels\.\d+\.norm\.")  # what it may lack of ours
DERIVED = re.compile(r"\.(relative_position_index|attn_mask)$")  # buffers we make anew
_POINTWISE = re.compile(r"\.mixer\.(kv|proj_in|proj_out)\.weight$")  # 1x1 convolutions there, linear here
_LAYER_SCALE = re.compile(r"\.gamma[12]$")  # of many shapes there, one-dimensional here


def kinds_of(path: str | Path) -> tuple[str, ...]:
    """Which weights a checkpoint file holds: `plain`, `ema`, or both.

    Raises:
        ValueError: the file cannot be read (see `read_weights`).
    """
    return told_kinds(path, read_weights(path)[1])


def told_kinds(path: str | Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The same of a file that has been read, by its metadata."""
    if Path(path).suffix == ".safetensors":
        return (metadata.get("weights", "plain"),)
    return ("plain", "ema") if "ema" in metadata else ("plain",)


def read_weights(path: str | Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint file under the names they have there, and its metadata.

    Of a pickle that holds plain and averaged weights the plain ones, or with `ema` the averaged ones; its
    metadata has a key "ema" then.

    Raises:
        ValueError: no such file, a damaged one, one without weights, or one that contains code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No weights file at {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_pickle(path)
    content = content if isinstance(content, dict) else {}
    averaged = content.get("model_ema") or content.get("state_dict_ema")
    state = averaged if ema and averaged else content.get("model", content.get("state_dict", content))
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(
            f"{path} holds no weights, neither as a state dict nor under 'model' or 'state_dict'."
        )
    metadata = {"epoch": str(content["epoch"])} if isinstance(content.get("epoch"), int) else {}
    if averaged:
        metadata["ema"] = "also"
    return clean_state_dict(state), metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}.") from None


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of foreign pickle protocols; what cannot be read is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it contains code ({name[1]})" if name else "it is damaged, or contains code"
        raise ValueError(f"{path} is refused: {what}; only tensors and plain values are loaded.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no PyTorch checkpoint, or a damaged one.") from error


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict, or timm's of an original network, under our names; one of ours as it is."""
    published = any(key.startswith("downsample_layers.") for key in state)
    rules = _RENAMES if published else next((_TIMM[key] for key in _TIMM if key in state), None)
    if rules is None:
        return dict(state)
    converted = {}
    for key, value in state.items():
        if DERIVED.search(key):
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if _POINTWISE.search(key):
            value = value.flatten(1)
        converted[key] = value.flatten() if _LAYER_SCALE.search(key) else value
    return converted


def backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a detector's backbone, by the names they have without it; {} if it is no detector."""
    prefix = next((prefix for prefix in _BACKBONES if any(key.startswith(prefix) for key in state)), None)
    if prefix is None:
        return {}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def completed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A detector's backbone as the whole of a classifier, which keeps of its own what the detector lacks."""
    own = {key: value for key, value in model.state_dict().items() if _NOT_DETECTORS.match(key)}
    return own | dict(state)


def adapt(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`convert`, and learnt positions, of maps and of windows, resized to those of the model."""
    state = convert(backbone_of(state) or state)
    for key, parameter in model.named_parameters():
        resize = _POSITIONS.get(key.rpartition(".")[2])
        if resize and key in state:
            state[key] = resize(state[key], parameter.shape)
    return state


def adapt_on_load(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """`adapt` as a pre-hook of `load_state_dict`, for whoever loads by himself as timm's scripts do."""
    keys = [key for key in state if key.startswith(prefix)]
    own = {key.removeprefix(prefix): state.pop(key) for key in keys}
    state.update({prefix + key: value for key, value in adapt(own, model).items()})


def adapt_inputs(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`adapt`, and the first convolution for another number of channels, as timm does it.

    Raises:
        ValueError: neither of the two numbers of channels is 3.
    """
    state = adapt(state, model)
    (name,) = (f"{layer}.weight" for layer in layers(model, "first_conv"))
    channels = model.get_parameter(name).shape[1]
    if name not in state or state[name].ndim != 4 or state[name].shape[1] == channels:
        return state
    if state[name].shape[1] != 3:
        raise ValueError(
            f"weights for images of {state[name].shape[1]} channels, the network for {channels}: "
            "only weights for 3 channels can be adapted."
        )
    state[name] = adapt_input_conv(channels, state[name])
    return state


def load_weights(
    model: nn.Module, path: str | Path, *, ema: bool = False, adapt: Adapt = adapt_inputs
) -> dict[str, str]:
    """Load a checkpoint, ours or a published one, into a model; return its metadata.

    Of a file that holds both, the plain weights, or with `ema` the averaged ones. `adapt` gives foreign
    weights the model's names and sizes; its own are for our backbone.

    Every key must fit then, but for a classifier of another number of classes: it stays as the model has it.
    Of a detector, every key of the backbone must.

    Raises:
        ValueError: the file cannot be read (see `read_weights`), or holds another network.
    """
    found, metadata = read_weights(path, ema=ema)
    state = _adapted(found, model, path, adapt)
    if backbone_of(found):
        state = completed(state, model)
    _keep_classifier(state, model)
    _check_fits(state, model, path)
    model.load_state_dict(state)
    return metadata


def classes_of(path: str | Path, model: nn.Module, *, adapt: Adapt = adapt_inputs) -> int | None:
    """How many classes a checkpoint of this model's kind tells apart; None for one without a classifier.

    Raises:
        ValueError: the file cannot be read (see `read_weights`).
    """
    state = _adapted(read_weights(path)[0], model, path, adapt)
    heads = (state.get(f"{layer}.weight") for layer in layers(model, "classifier"))
    return next((len(weight) for weight in heads if weight is not None), None)


def remarks(path: str | Path, model: nn.Module) -> list[str]:
    """What a user should know before these weights become those of a network of ours, in a line each.

    Raises:
        ValueError: the file cannot be read (see `read_weights`).
    """
    found = read_weights(path)[0]
    inside = backbone_of(found)
    theirs, ours = windows.side(convert(inside or found)), windows.side(model.state_dict())
    said = []
    if theirs != ours:
        advice = f"--set model.window={theirs} takes them as they are"
        said.append(f"{path} has windows of {theirs}, the network {ours}: positions are resized; {advice}.")
    if inside:
        said.append(
            f"{path} is a detector: its backbone is taken; the head and what else it lacks start anew."
        )
    return said


def layers(model: nn.Module, role: str) -> tuple[str, ...]:
    """The layers that are the model's `first_conv` or its `classifier`, as timm's models say it and ours."""
    config: Any = model.pretrained_cfg
    found = config.get(role) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def fits(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether a state dict has the model's keys and shapes, whatever its number of classes."""
    state = dict(state)
    _keep_classifier(state, model)
    return not any(_misfits(state, model))


def _adapted(
    state: Mapping[str, Tensor], model: nn.Module, path: str | Path, adapt: Adapt
) -> dict[str, Tensor]:
    try:
        return adapt(state, model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _keep_classifier(state: dict[str, Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    for layer in layers(model, "classifier"):
        weight, ours = (found.get(f"{layer}.weight") for found in (state, own))
        if weight is None or (ours is not None and len(weight) == len(ours)):
            continue
        for key in (f"{layer}.weight", f"{layer}.bias"):
            state.pop(key, None)
            if key in own:
                state[key] = own[key]


def _misfits(state: Mapping[str, Tensor], model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """The keys that are missing, unexpected, and of another shape."""
    own = model.state_dict()
    return (
        [key for key in own if key not in state],
        [key for key in state if key not in own],
        [key for key in own if key in state and own[key].shape != state[key].shape],
    )


def _check_fits(state: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> None:
    missing, unexpected, reshaped = _misfits(state, model)
    if missing or unexpected or reshaped:
        first = ", ".join([*missing, *unexpected, *reshaped][:5])
        raise ValueError(
            f"{path} holds another network: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(reshaped)} of another shape; the first: {first}."
        )


def save_weights(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors; the file appears whole or not at all.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    copies = {key: value.detach().cpu() for key, value in state.items()}
    # Cloned, for a layer may have two names, and safetensors refuses tensors that share their memory.
    tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in copies.items()}
    write_whole(Path(path), safetensors.torch.save(tensors, dict(metadata)))


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it appears whole or not at all, and lasts once this returns.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
