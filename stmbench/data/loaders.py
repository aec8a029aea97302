"""Batches on a device, made of timm's transforms, collation and prefetcher (Wightman 2019, timm).

What a training batch holds follows from (seed, epoch, place): see `stmbench.data.sampling`. How many
processes make it, how far ahead, and from which memory only decides how soon it is there. Data sets that are
read as a stream cannot be indexed: their order and augmentation depend on the number of processes too.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from stmbench.data.cache import PixelCache
from stmbench.data.idx import IdxReader
from stmbench.data.images import Images, Stream
from stmbench.data.info import DataInfo, Part, Reader
from stmbench.data.prefixed import TimmStream
from stmbench.data.resources import batches_ahead, loader_processes, memory_budget
from stmbench.data.sampling import ERASING, Deal, EpochSampler, Seeded, own_randomness, set_seed
from stmbench.recipe import Recipe

SAMPLE = 64  # images whose sizes say how much memory all need, decoded
MARGIN = 1.1  # times as much is taken to be needed
STREAM_PROCESSES = 4  # of which a stream's order depends: not the machine's choice


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, and black for 0 bits: RandAugment draws them, Pillow 13 refuses what older ones made black."""
    return auto_augment.posterize(image, bits, **options) if bits else image.point(lambda _: 0)


auto_augment.NAME_TO_OP.update(
    {name: _posterize for name, op in auto_augment.NAME_TO_OP.items() if op is auto_augment.posterize}
)


Start = Callable[[int, int], None]  # takes an epoch and a step


class Batches(Protocol):
    """This process's batches of an epoch, for training; each a tuple that begins with its images."""

    @property
    def processes(self) -> int:
        """That make the batches; 0 for the caller's own."""
        ...

    @property
    def skipped(self) -> int:
        """Images that could not be read so far."""
        ...

    def check_skipped(self) -> None: ...

    def start(self, epoch: int, step: int) -> None:
        """The next iteration is of `epoch` (from 1), from batch number `step` (from 0) on."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class Loader:
    """Iterates over ``(images, labels)``: float32 (B, C, H, W), normalised, and int64 (B,), on the device.

    Its length is the number of batches of this rank in one epoch. Each iteration is of the next epoch, the
    first of epoch 1, unless `start` says otherwise. The global random generators stay as they are.
    """

    def __init__(
        self,
        batches: PrefetchLoader,
        dataset: Images | Stream,
        starts: Sequence[Start] = (),
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset, self.rank, self.world = dataset, rank, world
        self._batches, self._starts = batches, starts
        self.processes: int = batches.loader.num_workers  # that make the batches; 0: the caller's own does
        self._next = (1, 0)

    def __len__(self) -> int:
        return len(self._batches)

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration is of `epoch`, from 1, beginning with this rank's batch number `step`, from 0.

        Of a stream the batches before it are read and dropped.
        """
        self._next = (epoch, step)

    def __iter__(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Raise `UnreadableImagesError` as soon as more than 1 % of the images turn out unreadable."""
        epoch, step = self._next
        self._next = (epoch + 1, 0)
        dropped = step if isinstance(self.dataset, Stream) else 0
        for start in self._starts:
            start(epoch, step - dropped)
        for batch in itertools.islice(self._batches, dropped, None):
            self.check_skipped()
            yield batch

    @property
    def skipped(self) -> int:
        """How many different images could not be read so far, of those that this rank was to read."""
        return self.dataset.skipped

    def check_skipped(self) -> None:
        """Raise `UnreadableImagesError` if more than 1 % of the images could not be read."""
        self.dataset.check_skipped()


class SeededErasing(RandomErasing):
    """timm's random erasing (Zhong et al. 2017, arXiv:1708.04896), drawn from the seeds of places."""

    def __init__(self, recipe: Recipe, deal: Deal, device: str) -> None:
        super().__init__(recipe.augment.erase, mode=recipe.augment.erase_mode, device=device)
        self._deal = deal
        self.start(1, 0)

    def start(self, epoch: int, step: int) -> None:
        """The next batch is number `step` of `epoch`."""
        self._epoch, self._step = epoch, step

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 - timm's name
        """Erase in the images (m, C, H, W) themselves."""
        seeds = self._deal.seeds(self._epoch, self._step, ERASING).tolist()
        self._step += 1
        with own_randomness(self.device):
            for image, seed in zip(input, seeds, strict=True):
                set_seed(seed, self.device)
                super().__call__(image)
        return input


def train_loader(
    info: DataInfo, recipe: Recipe, *, device: str, seed: int, micro_batch: int, rank: int = 0, world: int = 1
) -> Loader:
    """Shuffled, augmented batches of exactly `micro_batch` images; what is left over is dropped.

    Raises:
        ValueError: timm does not know the recipe's augmentation, or the data set is a stream that cannot be
            repeated or dealt out as asked.
    """
    deal = Deal(seed=seed, micro_batch=micro_batch, rank=rank, world=world)
    make = _train_stream if isinstance(info.train, TimmStream) else _train_images
    dataset, batches, start = make(info, recipe, device, deal)
    dataset.transform = _augmentation(recipe)
    starts = [start]
    if recipe.augment.erase:
        batches.random_erasing = erasing = SeededErasing(recipe, deal, device)
        starts.append(erasing.start)
    return Loader(batches, dataset, starts, rank=rank, world=world)


def eval_loader(info: DataInfo, recipe: Recipe, *, device: str, rank: int = 0, world: int = 1) -> Loader:
    """The validation images number `rank`, ``rank + world`` and so on, each once, without augmentation."""
    size = recipe.eval.batch_size
    dataset: Images | Stream
    if isinstance(info.val, TimmStream):
        opened = _open(info.val, recipe, is_training=False, batch_size=size)
        opened.dist_rank, opened.dist_num_replicas = 0, 1  # timm would pad, and count some images twice
        dataset, processes = Stream(opened, info.num_classes, rank, world), 1
    else:
        reader = cast(Reader, info.val)
        if world > 1:
            reader = Part(reader, tuple(range(rank, len(reader), world)))
        dataset = Images(reader, channels=recipe.data.channels, training=False)
        processes = loader_processes(recipe.data.workers, device)
    dataset.transform = _transform(recipe, crop_pct=recipe.data.crop_pct)
    batches = _batches(dataset, recipe, device, size, processes, batch_size=size)
    return Loader(batches, dataset, rank=rank, world=world)


def loader_rate(loader: Batches, seconds: float) -> float:
    """Images per second that a loader gives to one who does nothing else, at the beginning of epoch 1.

    It is timed for about so long, an epoch at most, in whole rounds of as many batches as its processes
    make side by side. The first round, in which they start, counts only where there is no other.
    """
    loader.start(1, 0)
    a_round = max(1, loader.processes)
    times, images = [time.perf_counter()], [0]  # after each round
    for number, batch in enumerate(loader, 1):
        images[-1] += len(batch[0])
        if number % a_round == 0 or number == len(loader):
            times.append(time.perf_counter())
            images.append(0)
            if times[-1] - times[1] > seconds:
                break
    skipped = min(1, len(times) - 2)
    return sum(images[skipped:]) / (times[-1] - times[skipped])


def mixup(recipe: Recipe, num_classes: int, micro_batch: int) -> Mixup | None:
    """timm's mixup and cutmix with label smoothing, or None where the recipe has neither.

    Raises:
        ValueError: images are mixed in pairs, and the micro-batch is odd.
    """
    augment = recipe.augment
    if not (augment.mixup or augment.cutmix):
        return None
    if micro_batch % 2:
        raise ValueError(
            f"recipe '{recipe.name}': mixup and cutmix need an even batch, not {micro_batch} images."
        )
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def _train_images(
    info: DataInfo, recipe: Recipe, device: str, deal: Deal
) -> tuple[Images, PrefetchLoader, Start]:
    dataset = Images(cast(Reader, info.train), channels=recipe.data.channels, training=True)
    dataset.cache = _cache(dataset, recipe)
    sampler = EpochSampler(len(dataset), deal, recipe.augment.repeats)
    processes = loader_processes(recipe.data.workers, device)
    options: dict[str, Any] = {"batch_sampler": sampler}
    if dataset.cache and processes:
        options["multiprocessing_context"] = "fork"  # whose children share the cache
    batches = _batches(Seeded(dataset), recipe, device, deal.micro_batch, processes, **options)
    return dataset, batches, sampler.start


def _train_stream(
    info: DataInfo, recipe: Recipe, device: str, deal: Deal
) -> tuple[Stream, PrefetchLoader, Start]:
    if recipe.augment.repeats > 1:
        raise ValueError(
            f"{info.name} is a stream, whose images cannot be repeated: augment.repeats must be 1."
        )
    size = deal.micro_batch
    opened = _open(cast(TimmStream, info.train), recipe, is_training=True, batch_size=size, seed=deal.seed)
    if (opened.dist_rank, opened.dist_num_replicas) != (deal.rank, deal.world):
        raise ValueError(
            f"{info.name} is a stream, which timm deals out to the processes that torchrun starts, "
            f"and not to {deal.world} others: use a data set that is read at random."
        )
    dataset = Stream(opened, info.num_classes)
    workers = recipe.data.workers
    # Only a process of its own starts afresh.
    processes = STREAM_PROCESSES if workers < 0 else max(1, workers)
    batches = _batches(dataset, recipe, device, size, processes, batch_size=size, drop_last=True)
    generator = cast(torch.Generator, batches.loader.generator)

    def start(epoch: int, step: int) -> None:
        order, augmentation = np.random.SeedSequence([deal.seed, epoch]).generate_state(2).tolist()
        dataset.set_epoch(order % 2**16)
        generator.manual_seed(augmentation)

    return dataset, batches, start


def _open(stream: TimmStream, recipe: Recipe, **options: Any) -> Any:
    mode = "L" if recipe.data.channels == 1 else "RGB"
    return stream.open(input_img_mode=mode, **options)


def _cache(images: Images, recipe: Recipe) -> PixelCache | None:
    """Memory for decoded images: with "auto" if all fit into it, and are decoded more than once."""
    wanted = recipe.data.cache
    if wanted == "none" or isinstance(images.reader, IdxReader):  # those lie in memory as they are
        return None
    budget = memory_budget()
    if wanted == "auto":
        once = recipe.schedule.epochs * recipe.augment.repeats <= 1
        if once or MARGIN * len(images) * images.mean_bytes(SAMPLE) > budget:
            return None
    return PixelCache(len(images), budget)


def _augmentation(recipe: Recipe) -> Any:
    augment = recipe.augment
    try:
        return _transform(
            recipe,
            is_training=True,
            train_crop_mode=augment.crop,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,  # timm's 0 would still cost time
            auto_augment=augment.auto_augment or None,
        )
    except AssertionError:
        raise ValueError(
            f"recipe '{recipe.name}': timm does not know augment.auto_augment = '{augment.auto_augment}'."
        ) from None


def _transform(recipe: Recipe, **options: Any) -> Any:
    data = recipe.data
    return create_transform(
        (data.channels, data.image_size, data.image_size),
        mean=data.mean,
        interpolation=data.interpolation,
        use_prefetcher=True,  # it ends in uint8, which is normalised on the device
        **options,
    )


def _batches(
    dataset: Any, recipe: Recipe, device: str, size: int, processes: int, **options: Any
) -> PrefetchLoader:
    data = recipe.data
    stream = isinstance(dataset, Stream)
    if stream:
        dataset.set_loader_cfg(num_workers=processes)
    loader = DataLoader(
        dataset,
        num_workers=processes,
        prefetch_factor=batches_ahead(processes, size * data.channels * data.image_size**2),
        persistent_workers=processes > 0 and not stream,  # a fresh process starts a stream afresh
        collate_fn=fast_collate,
        pin_memory=device.startswith("cuda"),
        generator=torch.Generator(),  # the caller's own is left alone
        **options,
    )
    return PrefetchLoader(loader, data.mean, data.std, data.channels, torch.device(device))
