"""What a run is made with: command, code, machine and libraries, gathered once when it starts."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from stmbench import catalog, world
from stmbench.nn.timm_models import is_timm
from stmbench.plan import Request
from stmbench.store import NewRun
from stmbench.training.network import precision

_PACKAGES = ("stmbench", "torch", "torchvision", "timm", "numpy")
# Of ours, what decides a number; how it is stored or shown does not.
_SOURCES = (
    "data",
    "measure",
    "mixers",
    "nn",
    "stages",
    "training",
    "catalog.py",
    "recipe.py",
    "record.py",
    "sections.py",
    "world.py",
)


def gather(asked: Request, mixer: str) -> NewRun:
    """Everything about a run of one of the asked mixers that a reader may need a year later."""
    commit, dirty = git()
    return NewRun(
        mixer=mixer,
        scale=asked.scale_of(mixer),
        stages=asked.stages,
        seed=asked.seed,
        recipe_name=asked.recipe.name,
        recipe_digest=asked.recipe.digest,
        recipe_values=asked.recipe.values(),
        overrides=asked.overrides,
        data_source=asked.info.source,
        data_name=asked.info.name,
        data_fingerprint=asked.info.fingerprint,
        weights=asked.weights or "",
        weights_sha256=_sha256_of(asked.weights),
        preprocessing=asked.preprocessing,
        backend=asked.backend,
        design=asked.design_of(mixer),
        device=torch.device(asked.device).type,
        hardware=hardware(asked.device),
        precision=precision(asked.recipe, asked.device),
        threads=torch.get_num_threads(),
        argv=world.command(),
        git_commit=commit,
        git_dirty=dirty,
        versions=versions() | {"sources": sources(mixer)},
        fingerprint=fingerprint(asked, mixer),
    )


def fingerprint(asked: Request, mixer: str) -> str:
    """A digest of all that decides the result of a run: two with the same one answer the same question.

    The network and the weights it starts from, the recipe's values but for those that decide nothing, the
    data, the seed, the precision, the kind of device and the sources. Not which stages are run, nor the
    machine, nor the versions of libraries: those are evidence.
    """
    values = asked.recipe.deciding()
    del values["data"]["source"]
    decides = {
        "network": [mixer, asked.scale_of(mixer), asked.design_of(mixer), asked.backend],
        "weights": _sha256_of(asked.weights),
        "preprocessing": dict(asked.preprocessing),
        "recipe": values,
        "data": asked.info.fingerprint,
        "seed": asked.seed,
        "precision": precision(asked.recipe, asked.device),
        "device": torch.device(asked.device).type,
        "sources": sources(mixer),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@functools.cache
def sources(mixer: str) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the code that trains and measures, a plug-in's own too."""
    package = Path(__file__).parent
    paths = [path for name in _SOURCES for path in _python(package / name)]
    if not is_timm(mixer):
        found = importlib.util.find_spec(catalog.mixer(mixer).target.partition(":")[0])
        paths += [Path(found.origin)] if found and found.origin else []
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _python(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def hardware(device: str) -> str:
    """The device's model: of the GPU, or of the CPU and its number of cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()} ({os.cpu_count()} cores)"


def versions() -> dict[str, str]:
    """Versions of Python, the packages results depend on, CUDA, cuDNN and the GPU's driver."""
    found = {"python": platform.python_version(), "os": platform.platform()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    if torch.version.cuda and torch.cuda.is_available():
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        found["driver"] = driver.partition("\n")[0]
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def sha256(path: str) -> str:
    """The SHA-256 of a file; ValueError where it is gone."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is gone.")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of(weights: str | None) -> str:
    return sha256(weights) if weights else ""


def git() -> tuple[str, bool]:
    """The commit of stmbench's own checkout and whether it was changed; ("", False) from a wheel."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "", False
    git = ("git", "-C", str(root))
    return _output(*git, "rev-parse", "HEAD"), bool(_output(*git, "status", "--porcelain"))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
