"""How fast training images come, beside timm's own loader of the same folder with the same augmentation.

python tests/benchmarks/bench_loader.py [IMAGES] [ROUNDS] [PROCESSES] [SIZE]

Epochs of both, in turns, over JPEGs of 500 x 400 pixels, with all that the published protocol does to an
image; ours also with decoded images kept in memory, and what its seeds cost by themselves. Run it on a calm
machine.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader

import stmbench.data
from stmbench.data.sampling import own_randomness, set_seed
from stmbench.recipe import Recipe, load

BATCH = 32


def make_photos(root: Path, count: int) -> None:
    """Two classes of smooth noise with some grain, about as large as ImageNet's files."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
        pixels = np.asarray(coarse.resize((500, 400), Image.Resampling.BICUBIC), np.int16)
        pixels = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        path = root / ("val" if i < 2 else "train") / f"{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def ours(root: Path, recipe: Recipe) -> Iterable[Any]:
    info = stmbench.data.find(str(root))
    return stmbench.data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=BATCH)


def timms(root: Path, recipe: Recipe) -> Iterable[Any]:
    data, augment = recipe.data, recipe.augment
    return create_loader(
        create_dataset("", root=str(root / "train")),  # pyright: ignore[reportArgumentType]
        input_size=(3, data.image_size, data.image_size),
        batch_size=BATCH,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        re_prob=augment.erase,
        re_mode=augment.erase_mode,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        num_workers=data.workers,
        device=torch.device("cpu"),
    )


def rate(loader: Iterable[Any]) -> float:
    """Images per second of an epoch, for which the processes are there already."""
    started = time.perf_counter()
    images = sum(len(labels) for _, labels in loader)
    return images / (time.perf_counter() - started)


def microseconds(call: Callable[[], object], count: int = 2000) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return 1e6 * (time.perf_counter() - started) / count


def isolate() -> None:
    with own_randomness():
        pass


def main() -> None:
    given = [*map(int, sys.argv[1:]), *(400, 8, 2, 224)[len(sys.argv) - 1 :]]
    images, rounds, processes, size = given
    settings = [f"data.workers={processes}", f"data.image_size={size}", "schedule.epochs=300"]
    recipe = load("imagenet_attention", [*settings, "data.cache=none"])
    cached = load("imagenet_attention", [*settings, "data.cache=memory"])
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), images + 2)
        loaders = {
            "timm's": timms(Path(folder), recipe),
            "ours": ours(Path(folder), recipe),
            "ours, in memory": ours(Path(folder), cached),
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for i in range(rounds + 1):
            for name in list(loaders)[:: 1 if i % 2 else -1]:
                rates[name].append(rate(loaders[name]))
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found[1:], rates["timm's"][1:], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)  # the first round starts the processes
        print(
            f"{name:<16}{statistics.median(found[1:]):7.1f} images/s, {median:.3f} of timm's "
            f"(quartiles {low:.3f} to {high:.3f}, {rounds} rounds)"
        )
    each = microseconds(lambda: set_seed(2**63 + 5)) + microseconds(isolate) / BATCH
    image = 1e6 * max(1, processes) / statistics.median(rates["ours"][1:])
    print(f"seeds: {each:.1f} us an image, {100 * each / image:.2f} % of what a process takes for it")


if __name__ == "__main__":
    main()
