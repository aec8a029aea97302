"""What a measuring process holds: one network, made ready to run as its setting says."""

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.measure import clock, machine
from stmbench.measure.ceilings import Yardstick, set_tf32
from stmbench.measure.process import failure
from stmbench.measure.setting import AUTOCAST, FORMATS, Memory, Prepared, Rates, Round, Setting
from stmbench.mixers import backends
from stmbench.nn.backbone import Backbone
from stmbench.nn.detector import Detector

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
OBJECTS = 7  # on an image that a detector is trained on
CALIBRATION_S = 0.03  # of the matrix product and of the copy, each before and after a round


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """torch's AdamW, fused into one kernel per step."""
    return torch.optim.AdamW(model.parameters(), fused=True)


class Subject:
    """A network under one setting; lives in the measuring process, see `stmbench.measure.worker.Worker`."""

    def __init__(
        self, make: Callable[[], nn.Module], setting: Setting, make_optimizer: MakeOptimizer, threads: int
    ) -> None:
        self.setting, self._make, self._make_optimizer = setting, make, make_optimizer
        torch.set_num_threads(threads)
        set_tf32(setting.precision == "tf32")
        if setting.device.startswith("cuda"):
            torch.cuda.init()  # there are no memory statistics to reset before
            torch.cuda.set_device(torch.device(setting.device).index or 0)
        self._energy = machine.Energy(setting.device)
        self._yardstick: Yardstick | None = None

    def wait(self) -> None:
        """Answered as soon as there is anybody to answer."""

    def prepare(self) -> Prepared:
        """Make, compile and warm up the network."""
        said: list[str] = []
        with backends.fallbacks(said.append):
            prepared = self._prepare()
            path = self._path()  # last: its pass is no part of the memory that was needed
        return dataclasses.replace(prepared, backend=path, fallbacks=tuple(said))

    def _prepare(self) -> Prepared:
        device = self.setting.device
        machine.reset_peak(device)
        base = machine.memory(device)
        self._model = self._make()
        once = self._eager = self._passes(self._model)  # held: a graph replays over memory that this owns
        compile_s = None
        if self.setting.execution != "eager":
            started = time.perf_counter()
            try:
                once = _first_pass(once) if self.setting.execution == "compiled" else _captured(once)
            except Exception as error:
                raise failure(error, otherwise="compile") from error
            clock.waiter(device)()
            compile_s = time.perf_counter() - started
        warm_up, settled = clock.warm_up(once, device)
        self._once = once
        reserved = torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else None
        self._memory = Memory(base=base, peak=machine.peak(device), reserved=reserved)
        with contextlib.suppress(MemoryError, torch.OutOfMemoryError):  # goes without, rather than not at all
            self._yardstick = Yardstick(device, self.setting.precision)
        gc.freeze()  # what is there now stays: collecting before each round has little to look through
        return Prepared(
            compile_s=compile_s, warm_up=tuple(warm_up), settled=settled, no_energy=self._energy.missing
        )

    def _path(self) -> str:
        """The backends that the passes take."""
        setting = self.setting
        model = self._model.pyramid if isinstance(self._model, Detector) else self._model
        if not any(isinstance(part, Backbone) for part in model.modules()):
            return ""
        image = torch.zeros(1, *setting.shape, device=setting.device)
        grad = torch.enable_grad() if setting.mode == "train" else torch.inference_mode()
        with grad, _autocast(setting):
            return backends.paths(
                model, image, batch=setting.batch, compiling=setting.execution == "compiled"
            )

    def sample(self, count: int, least_s: float, calibrate: bool) -> Round:
        """Time passes, between two looks at the machine."""
        device, yardstick = self.setting.device, self._yardstick if calibrate else None
        rates_before = _rates(yardstick)
        for _ in range(clock.FEWEST):  # the calibration has taken the caches
            self._once()
        clock.waiter(device)()
        before = machine.state(device)  # now, with the clocks of work, not of waiting
        load = machine.Load()
        self._energy.start()
        seconds, device_seconds = clock.time_passes(self._once, count, device, least_s)
        joules = self._energy.joules()
        after = machine.state(device)
        others, steal = load.shares()
        return Round(
            seconds=tuple(seconds),
            device_seconds=tuple(device_seconds),
            before=before,
            after=after,
            others=others,
            steal=steal,
            rates=(rates_before, _rates(yardstick)),
            energy=None if joules is None else joules / len(seconds),
        )

    def memory(self) -> Memory:
        """As it was when `prepare` ended."""
        return self._memory

    def _passes(self, model: nn.Module) -> Callable[[], object]:
        setting = self.setting
        # The overload for a memory format alone is all that torch's stubs know.
        model = model.to(setting.device, memory_format=FORMATS[setting.memory_format])  # pyright: ignore
        images = torch.randn(setting.batch, *setting.shape, device=setting.device)
        images = images.contiguous(memory_format=FORMATS[setting.memory_format])
        if setting.mode == "train":
            return training_step(model, images, setting, self._make_optimizer)
        model.eval()
        forward = _forward(model, setting)

        def infer() -> Tensor:
            with torch.inference_mode():
                return forward(images)

        return infer


def _rates(yardstick: Yardstick | None) -> Rates:
    with contextlib.suppress(RuntimeError):  # no memory left for it, or no such product on this device
        if yardstick:
            return yardstick.rates(CALIBRATION_S)
    return Rates(None, None)


def training_step(
    model: nn.Module, images: Tensor, setting: Setting, make_optimizer: MakeOptimizer
) -> Callable[[], object]:
    """A function that takes one step: forward, the loss on random labels or boxes, backward, optimizer.

    The learning rate is 0: weights that learnt the one batch by heart would make the last steps' gradients
    denormal, which is slow, and a step of 0 takes no less time.
    """
    loss_of = _detection_loss(model, images) if isinstance(model, Detector) else _class_loss(model, images)
    model.train()
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        if setting.execution == "cudagraph":
            group["capturable"] = True
    kind = torch.device(setting.device).type
    scaler = torch.GradScaler(kind, enabled=setting.precision == "fp16")
    forward = _forward(model, setting)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss_of(forward)).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _class_loss(model: nn.Module, images: Tensor) -> Callable[[Callable[..., Tensor]], Tensor]:
    """Cross-entropy on random labels."""
    with torch.no_grad():
        classes = model.eval()(images[:1]).shape[1]
    labels = torch.randint(classes, (len(images),), device=images.device)
    return lambda forward: F.cross_entropy(forward(images).float(), labels)


def _detection_loss(model: Detector, images: Tensor) -> Callable[[Callable[..., Any]], Tensor]:
    """The sum of a detector's losses on as many objects an image as COCO has, each a quarter of its sides."""
    height, width = images.shape[2:]
    sides = torch.tensor([width, height], device=images.device)
    targets = []
    for _ in images:
        corners = torch.rand(OBJECTS, 2, device=images.device) * 0.75 * sides  # (N, 2): x, y
        masks = torch.ones(OBJECTS, height, width, dtype=torch.uint8, device=images.device)
        labels = torch.randint(1, model.num_classes + 1, (OBJECTS,), device=images.device)
        boxes = torch.cat([corners, corners + 0.25 * sides], 1)  # (N, 4)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return lambda forward: torch.stack([*forward(images, targets).values()]).sum()


def _forward(model: nn.Module, setting: Setting) -> Callable[..., Tensor]:
    """The network's forward pass, compiled and under autocast as the setting says."""
    forward = torch.compile(model) if setting.execution == "compiled" else model
    if setting.precision not in AUTOCAST:
        return forward

    def cast(*inputs: object) -> Tensor:
        with _autocast(setting):
            return forward(*inputs)

    return cast


def _autocast(setting: Setting) -> contextlib.AbstractContextManager[object]:
    """Autocast as the setting's precision asks for."""
    if setting.precision not in AUTOCAST:
        return contextlib.nullcontext()
    cached = setting.execution != "cudagraph"  # a graph must not use a cast that was made before it
    kind = torch.device(setting.device).type
    return torch.autocast(kind, AUTOCAST[setting.precision], cache_enabled=cached)


def _first_pass(once: Callable[[], object]) -> Callable[[], object]:
    once()
    return once


def _captured(once: Callable[[], object]) -> Callable[[], object]:
    """The replay of one pass as a CUDA graph, after the passes on a side stream that capturing asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            once()
    except Exception as error:
        raise error.__context__ or error from None  # ending a failed capture fails too, and hides why
    return graph.replay
