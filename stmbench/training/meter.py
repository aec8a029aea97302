"""What an epoch of training has come to so far: losses, hits, images per second, the time without data."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stmbench import world


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a micro-batch came to."""

    value: Tensor  # scalar: the mean over its images
    images: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # scalars that are shown and recorded too
    hits: Tensor | None = None  # scalar: images whose class was right, where that has a meaning


class Meter:
    """Running sums of an epoch, kept on the device; reading them is the one wait for it."""

    def __init__(self, device: str) -> None:
        self.loss = torch.zeros((), device=device)
        self.hits = torch.zeros((), device=device)
        self.parts: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.has_hits = False
        self.lr = math.nan
        self.earlier = self.waited = 0.0  # seconds: of a process that began the epoch, and for data
        self.begin()

    def begin(self) -> None:
        """From now on time counts."""
        self.started = time.perf_counter()

    def add(self, loss: Loss) -> None:
        self.loss += loss.value.detach()
        for name, value in loss.parts.items():
            self.parts[name] = self.parts.get(name, 0) + value.detach()
        if loss.hits is not None:
            self.hits += loss.hits
            self.has_hits = True
        self.steps += 1
        self.images += loss.images

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the time in which the next batch is waited for."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    def data_wait(self) -> float:
        """The share of the time that this process waited for data."""
        return self.waited / self.seconds()

    def read(self, epoch: int) -> dict[str, float]:
        """The mean losses, and images/s over all processes.

        Raises:
            DivergedError: the loss is no longer a number.
        """
        loss, hits, *parts = self._total().tolist()
        steps, images = world.size() * self.steps, world.size() * self.images
        check_finite(loss / steps, epoch)
        numbers = {"loss": loss / steps, "images/s": images / self.seconds()}
        numbers |= {name: part / steps for name, part in zip(self.parts, parts, strict=True)}
        if self.has_hits:
            numbers["acc"] = 100 * hits / images
        return numbers

    def _total(self) -> Tensor:
        return world.total(torch.stack([self.loss, self.hits, *self.parts.values()]))

    def state(self) -> dict[str, Any]:
        """What the epoch has come to: of the sums each process's equal share."""
        loss, hits, *parts = (self._total() / world.size()).unbind()
        sums = {"loss": loss, "hits": hits, "parts": dict(zip(self.parts, parts, strict=True))}
        counts = {key: getattr(self, key) for key in ("steps", "images", "has_hits", "lr", "waited")}
        return sums | counts | {"earlier": self.seconds()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for key, value in state.items():
            setattr(self, key, value)


def check_finite(loss: float, epoch: int) -> None:
    """`DivergedError` for a loss that is no number."""
    if not math.isfinite(loss):
        kept = f"the weights of epoch {epoch - 1} are kept" if epoch > 1 else "there are no good weights yet"
        raise DivergedError(
            f"The loss became {loss} in epoch {epoch}; {kept}. "
            "Try a lower --set optimizer.lr=... or --set optimizer.clip_grad=1."
        )
