"""Where weights lie: a file, a folder as the Hugging Face hub has them, or elsewhere. Nothing is downloaded.

Weights that are not here are refused in one line that says which file to fetch, where, and what to give then.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm

from stmbench import catalog

# Of the same weights, in timm's and transformers' folders.
_NAMES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_HUB = re.compile(r"^(?:hf[-_]hub:|hf://|https://huggingface\.co/)(?P<id>[\w.-]+/[\w.-]+)", re.IGNORECASE)
_SCALES = ("micro", "tiny", "small", "base")  # of the unified networks that are published
_PROJECT = "github.com/OpenGVLab/STM-Evaluation"  # that published the unified networks


def locate(given: str | Path, networks: Sequence[str] = (), scale: str = "") -> Path:
    """The checkpoint file that is named, or lies in the folder that is.

    Args:
        given: a file, or a folder with one: ``model.safetensors`` or ``pytorch_model.bin`` before others.
        networks: whose weights they are to be, and their `scale`: for the advice where there is no such file.

    Raises:
        ValueError: there is none, or a folder with several; what to do about it.
    """
    path = Path(given)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return path
    raise ValueError(_advice(str(given), networks, scale))


def config_of(file: Path) -> dict[str, Any]:
    """What the ``config.json`` beside a checkpoint in a Hugging Face folder says; {} without one."""
    config = file.parent / "config.json"
    if file.name not in _NAMES or not config.is_file():
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is no JSON: {error}.") from None
    return content if isinstance(content, dict) else {}


def timm_name(config: dict[str, Any]) -> str:
    """The model of timm that such a file names, with the tag of its weights if timm knows it; "" for none."""
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        return ""
    tag = (config.get("pretrained_cfg") or {}).get("tag")
    tagged = f"{name}.{tag}"
    return catalog.TIMM + (tagged if tag and tagged in timm.list_pretrained(f"{name}.*") else name)


def _in_folder(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
        if parts := sorted(folder.glob(f"{Path(name).stem}-*-of-*{Path(name).suffix}")):
            raise ValueError(f"{folder} has its weights in {len(parts)} parts: save them as one {name}.")
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"{folder} holds no weights: neither {' nor '.join(_NAMES)}.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} holds several weights ({names}): name one of these files.")
    return found[0]


def _advice(given: str, networks: Sequence[str], scale: str) -> str:
    url = re.sub(r"^(https?):/+", r"\1://", given)  # as paths lose a slash
    if hub := _HUB.match(url):
        return f"Nothing is downloaded: {_fetch_from_hub(hub['id'])}."
    if "://" in url:
        return f"Nothing is downloaded: fetch {url} and give its file, --weights {url.rpartition('/')[2]}."
    advice = _published(Path(given).stem)
    if not advice and len(networks) == 1:
        advice = _released(networks[0], scale, named=given == "published")
    return f"No weights file at {given}." + (f" {advice}" if advice else "")


def _fetch_from_hub(name: str, file: str = "") -> str:
    folder = name.rpartition("/")[2]
    words = f"{name} {file}".strip()
    return f"fetch it by `hf download {words} --local-dir {folder}` and give the folder, --weights {folder}"


def _released(network: str, scale: str, *, named: bool) -> str:
    """Where weights of a network that somebody released are; of a mixer only if these were `named`."""
    if not network.startswith(catalog.TIMM):
        return _published(_release(catalog.mixer(network), scale)) if named else ""
    config = timm.get_pretrained_cfg(network.removeprefix(catalog.TIMM), allow_unregistered=False)
    if config is None or not (config.hf_hub_id or config.url):
        return f"timm has no weights of {network} either."
    if not config.hf_hub_id:
        return f"Those of {network} are at {config.url}: fetch them and give the file."
    advice = _fetch_from_hub(config.hf_hub_id, config.hf_hub_filename or _NAMES[0])
    other = f", or {config.url} and give that file" if config.url else ""
    return f"For those of {network}, {advice}{other}."


def _published(stem: str) -> str:
    """Where a file of this name was published, if it was."""
    for row in catalog.mixers().values():
        for scale in _SCALES if row.published else ():
            if stem in (_release(row, scale), f"{row.published}_{scale}"):
                what = f"{row.name} {scale} as published by Hu et al. 2022 (arXiv:2211.05781)"
                file = f"{_release(row, scale)}.pth"
                return f"{file} is {what}: fetch it from their project, {_PROJECT}, and give its path."
    return ""


def _release(row: catalog.Mixer, scale: str) -> str:
    """The name of a published file, less its .pth: U-HaloNet's is unified_halonet_tiny."""
    return f"unified_{(*row.aliases, row.name)[0]}_{scale}"
