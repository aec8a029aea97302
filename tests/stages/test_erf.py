"""The stage `erf` from the images to maps and shares, for networks of ours and of timm."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch

import stmbench.data.images
from stmbench import catalog
from stmbench.data.idx import IdxReader
from stmbench.measure.receptive import SHARES, Fields
from stmbench.mixers import backends
from stmbench.nn.weights import save_weights
from stmbench.recipe import Erf
from stmbench.record import Artifact, Event, Job, Measurement, Note
from stmbench.stages import erf
from stmbench.training import network


def looking(job: Job, mixer: str, *sizes: int, images: int = 6, batch_size: int = 4) -> Job:
    """The job to look at a network of other weights than its seed makes, whose blocks are at work."""
    timm = mixer.startswith(catalog.TIMM)
    look = Erf(images=images, sizes=sizes, batch_size=batch_size)
    recipe = dataclasses.replace(job.recipe, erf=look)
    job = dataclasses.replace(job, mixer=mixer, scale="" if timm else "micro", stages=("erf",), recipe=recipe)
    model = network.make(dataclasses.replace(job, seed=1), 4)
    state = {
        name: torch.full_like(value, 0.5) if name.endswith(("gamma1", "gamma2")) else value
        for name, value in model.state_dict().items()
    }
    save_weights(job.folder / "given.safetensors", state, {"epoch": "1"})
    return dataclasses.replace(job, weights=str(job.folder / "given.safetensors"))


def numbers(events: Iterable[Event]) -> dict[tuple[str, str], Measurement]:
    found = [event for event in events if isinstance(event, Measurement)]
    by_place = {(each.name, each.condition): each for each in found}
    assert len(by_place) == len(found)
    assert all(len(each.condition) <= 255 for each in found)
    return by_place


def notes(events: Iterable[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def at(level: int, share: int, size: int, weights: str) -> str:
    return f"level={level},precision=fp32,protocol=erf/1,share={share},size={size},weights={weights}"


def test_every_level_size_and_kind_of_weights_has_its_shares_and_its_map(tiny_job: Job) -> None:
    job = looking(tiny_job, "dwconv")  # no sizes: the recipe's own and twice that
    events = list(erf.run(job))
    found = numbers(events)
    for weights in ("plain", "random"):
        for size in (28, 56):
            for level in range(1, 5):
                sides = []
                for share in SHARES:
                    side, low, high = (
                        found[f"side{end}", at(level, share, size, weights)] for end in ("", ".low", ".high")
                    )
                    assert side.unit == "px"
                    assert low.value <= side.value <= high.value
                    sides.append(side.value)
                    area = found["area", at(level, share, size, weights)]
                    assert area.unit == "%"
                    assert area.value <= 100 * (side.value / size) ** 2 + 1e-9
                    assert 0 < found["densest", at(level, share, size, weights)].value <= area.value
                assert sides == sorted(sides)
                where = f"level={level},precision=fp32,protocol=erf/1,size={size},weights={weights}"
                assert found["offset", where].unit == "px"
            where = f"protocol=erf/1,size={size},weights={weights}"
            assert (found["images", where].value, found["skipped", where].value) == (6, 0)
    artifacts = {event.path.name: event for event in events if isinstance(event, Artifact)}
    assert set(artifacts) == {f"erf_{s}_{w}.npz" for s in (28, 56) for w in ("plain", "random")}
    assert artifacts["erf_56_plain.npz"].condition == "protocol=erf/1,size=56,weights=plain"


def test_the_artifact_says_what_it_is_of(tiny_job: Job) -> None:
    job = looking(tiny_job, "dwconv", 28)
    found = numbers(erf.run(job))
    kept = np.load(job.folder / "erf_28_plain.npz")
    assert kept["maps"].shape == (4, 28, 28)
    assert kept["maps"].dtype == np.float32
    np.testing.assert_allclose(kept["maps"].sum((1, 2)), 1, rtol=1e-5)
    assert kept["grids"].tolist() == [[7, 7], [4, 4], [2, 2], [1, 1]]
    assert kept["centres"].tolist() == [[12, 12], [16, 16], [16, 16], [0, 0]]
    assert kept["images"].tolist() == [0, 3, 6, 10, 13, 16]  # of 20
    assert kept["files"].tolist() == [f"image {index}" for index in kept["images"]]
    assert kept["dtype"].item() == "float32"
    (y, x), radius = kept["centres"][1], int(found["side", at(2, 50, 28, "plain")].value) // 2
    within = [
        kept["maps"][1, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1].sum()
        for r in (radius - 1, radius)
    ]
    assert within[0] < 0.5 <= within[1]


def test_the_control_is_the_network_as_the_seed_makes_it(tiny_job: Job) -> None:
    job = looking(tiny_job, "dwconv", 28)
    model = network.make(dataclasses.replace(job, weights=None, seed=7), 4)
    save_weights(job.folder / "given.safetensors", model.state_dict(), {"epoch": "1"})
    alike = {}
    for seed in (7, 8):
        list(erf.run(dataclasses.replace(job, seed=seed)))
        plain, random = (np.load(job.folder / f"erf_28_{kind}.npz")["maps"] for kind in ("plain", "random"))
        alike[seed] = bool((plain == random).all())
    assert alike == {7: True, 8: False}


def test_the_same_job_gives_the_same_numbers(tiny_job: Job) -> None:
    job = looking(tiny_job, "halo", 28)
    first = numbers(erf.run(job))
    maps = np.load(job.folder / "erf_28_plain.npz")["maps"]
    assert numbers(erf.run(job)) == first
    assert (np.load(job.folder / "erf_28_plain.npz")["maps"] == maps).all()


@pytest.mark.parametrize("mixer", list(catalog.mixers()))
def test_every_mixer_is_seen_through_whatever_its_backend(tiny_job: Job, mixer: str) -> None:
    job = looking(tiny_job, mixer, 56, images=2)
    events = list(erf.run(job))
    assert all(math.isfinite(each.value) for each in numbers(events).values())
    assert not notes(events)
    best = np.load(job.folder / "erf_56_plain.npz")["maps"]
    list(erf.run(dataclasses.replace(job, backend=backends.PLAIN)))
    plain = np.load(job.folder / "erf_56_plain.npz")["maps"]
    np.testing.assert_allclose(best, plain, rtol=1e-3, atol=1e-3 * plain.max())


def test_a_forced_backend_that_cannot_run_is_a_note(tiny_job: Job) -> None:
    backends._say.cache_clear()  # it is said once a process
    job = dataclasses.replace(looking(tiny_job, "halo", 28, images=2), backend="flex")
    assert any("'flex' cannot run" in text for text in notes(erf.run(job)))


def test_the_levels_of_a_timm_model_are_those_behind_its_stem(tiny_job: Job) -> None:
    job = looking(tiny_job, "timm:test_resnet", 64)
    found = numbers(erf.run(job))
    assert {key[1] for key in found if key[0] == "side"} == {
        at(level, share, 64, kind)
        for level in range(1, 5)
        for share in SHARES
        for kind in ("plain", "random")
    }
    kept = np.load(job.folder / "erf_64_plain.npz")
    assert kept["grids"].tolist() == [[16, 16], [8, 8], [4, 4], [2, 2]]
    assert kept["centres"].tolist() == [[32, 32]] * 4


def test_a_size_that_the_model_cannot_take_fails_alone(tiny_job: Job) -> None:
    data = dataclasses.replace(tiny_job.recipe.data, image_size=32)
    job = dataclasses.replace(tiny_job, recipe=dataclasses.replace(tiny_job.recipe, data=data))
    job = looking(job, "timm:vit_tiny_patch16_224", 48, 32)
    events = list(erf.run(job))
    found = numbers(events)
    failed = found["images", "protocol=erf/1,size=48,weights=plain"]
    assert math.isnan(failed.value)
    assert failed.reason == "Input height (48) doesn't match model (32)"
    assert any("at 48 px" in text and failed.reason in text for text in notes(events))
    blocks = len(np.load(job.folder / "erf_32_plain.npz")["grids"])
    assert all(math.isfinite(found["side", at(level + 1, 50, 32, "plain")].value) for level in range(blocks))
    with pytest.raises(RuntimeError, match=r"could be measured: Input height \(48\)"):
        list(erf.run(looking(job, "timm:vit_tiny_patch16_224", 48)))


def test_running_out_of_memory_names_the_batch_size(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Fields, "add", fail)
    with pytest.raises(RuntimeError, match=r"4 images at once; try --set erf\.batch_size=2\."):
        list(erf.run(looking(tiny_job, "dwconv", 28)))


def test_a_model_without_levels_is_refused(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "make", lambda *_: torch.nn.Linear(2, 2))
    monkeypatch.setattr(network, "headline", lambda *_: ("plain", torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="timm:odd does not hand out the features of its levels"):
        list(erf.run(dataclasses.replace(tiny_job, mixer="timm:odd")))


def test_weights_that_are_not_finite_are_failures_and_the_control_counts(tiny_job: Job) -> None:
    job = looking(tiny_job, "dwconv", 28)
    model = network.make(job, 4)
    state = {
        name: value * torch.nan if "levels.3" in name else value for name, value in model.state_dict().items()
    }
    save_weights(job.folder / "given.safetensors", state, {"epoch": "1"})
    events = list(erf.run(job))
    found = numbers(events)
    failed = found["side", at(4, 50, 28, "plain")]
    assert (math.isnan(failed.value), failed.reason) == (True, "its gradient is not finite")
    assert notes(events) == [
        "No receptive field of level 4 at 28 px, plain weights: its gradient is not finite."
    ]
    assert math.isfinite(found["side", at(3, 50, 28, "plain")].value)
    assert math.isfinite(found["side", at(4, 50, 28, "random")].value)


def test_unreadable_images_are_left_out_and_counted(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = looking(tiny_job, "halo", 28, images=0, batch_size=2)  # whose windows cannot be of no image
    read = IdxReader.__getitem__

    def broken(self: IdxReader, index: int) -> object:
        if index in (2, 3, 9):  # 2 and 3 are a whole batch
            raise OSError("cut off")
        return read(self, index)

    monkeypatch.setattr(IdxReader, "__getitem__", broken)
    monkeypatch.setattr(stmbench.data.images, "MOST_UNREADABLE", 0.2)
    seen, add = [], Fields.add
    monkeypatch.setattr(Fields, "add", lambda self, images: (seen.append(len(images)), add(self, images)))
    found = numbers(erf.run(job))
    assert sum(seen) == 2 * 17
    where = "protocol=erf/1,size=28,weights=plain"
    assert (found["images", where].value, found["skipped", where].value) == (17, 3)
    kept = np.load(job.folder / "erf_28_plain.npz")
    assert kept["images"].tolist() == [index for index in range(20) if index not in (2, 3, 9)]
    assert len(kept["files"]) == 17


def test_tf32_is_off_while_a_network_is_looked_at(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, add = [], Fields.add

    def look(self: Fields, images: torch.Tensor) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        add(self, images)

    monkeypatch.setattr(Fields, "add", look)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for _ in erf.run(looking(tiny_job, "dwconv", 28)):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert set(seen) == {(False, False)}
