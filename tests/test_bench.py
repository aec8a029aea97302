"""Contenders are read as they were typed; groups are taken, timed in turns, set aside and compared."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from stmbench import bench
from stmbench.bench import Contender, Options, Result, contenders
from stmbench.measure.worker import Prepared, Rates, Round, Setting, WorkerError
from stmbench.record import Note, Progress
from stmbench.training import network

# Reading contenders


def test_a_contender_has_what_all_have_and_its_own() -> None:
    options = Options(scale="tiny", batch_size=8, image_size=32, channels=1, mode="train", device="cpu")
    halo, other = contenders(
        ["halonet", "dwconv@scale=micro,precision=bf16,memory_format=contiguous"], options
    )
    assert (halo.job.mixer, halo.job.scale, other.job.mixer, other.job.scale) == (
        *("halo", "tiny"),
        *("dwconv", "micro"),
    )
    shared = {"mode": "train", "batch": 8, "shape": (1, 32, 32), "device": "cpu", "execution": "eager"}
    assert halo.setting == Setting(**shared, precision="fp32", memory_format="channels_last")
    assert other.setting == Setting(**shared, precision="bf16", memory_format="contiguous")


def test_the_network_of_a_contender_can_be_made() -> None:
    ours, theirs = contenders(["dwconv", "timm:resnet18"], Options(image_size=32, channels=1, classes=5))
    for contender in (ours, theirs):
        model = network.make(contender.job, contender.classes).eval()
        assert model(torch.zeros(contender.setting.batch, *contender.setting.shape)).shape == (1, 5)


def test_the_same_name_twice_is_two_contenders() -> None:
    assert [each.name for each in contenders(["halo", "halo", "halo"], Options())] == [
        *("halo", "halo (2)", "halo (3)")
    ]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["halo"], {}, "Name two contenders or more"),
        (["halo", "hallo"], {}, "Unknown mixer 'hallo'. Did you mean 'halo'?"),
        (["halo", "halo@scale=huge"], {}, "Unknown scale of halo 'huge'"),
        (
            ["halo", "halo@precison=bf16"],
            {},
            "Unknown key of a contender 'precison'. Did you mean 'precision'?",
        ),
        (["halo", "halo@mode=train"], {}, "Unknown key of a contender 'mode'"),
        (["halo", "halo@precision=bf61"], {}, "Unknown precision 'bf61'. Did you mean 'bf16'?"),
        (["halo", "halo@bf16"], {}, "A contender is NAME or NAME@key=value,key=value, not 'halo@bf16'."),
        (["halo", "swin"], {"memory_format": "channel_last"}, "Did you mean 'channels_last'?"),
        (["halo", "swin"], {"mode": "training"}, "Did you mean 'train'?"),
        (["halo", "swin"], {"channels": 2}, "--channels is 1 or 3, not 2."),
        (["halo", "timm:levit_128s"], {"image_size": 28}, "--image-size 224"),
        (["halo", "swin@precision=tf32"], {}, "swin@precision=tf32: tf32 needs a CUDA device"),
        (["halo", "swin@execution=cudagraph"], {}, "cudagraph needs a CUDA device"),
        (["halo", "timm:resnt18"], {}, "Did you mean 'timm:resnet18'?"),
        (["halo", "timm:resnet18@scale=tiny"], {}, "timm:resnet18 has no scale"),
        (["halo", "halo@weights=gone.pth"], {}, "No weights at gone.pth."),
        (["halo", "swin"], {"device": "gpu"}, "Unknown device 'gpu'"),
    ],
)
def test_what_a_user_can_get_wrong(names: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        contenders(names, dataclasses.replace(Options(device="cpu"), **options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"model": {"nonsense": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match="weights"):
        contenders(["dwconv", f"dwconv@weights={file}"], Options(image_size=32))


# Taking groups


@dataclass
class Machine:
    """Stands for the measuring processes: what they take, how fast they are, and what happened."""

    seconds: Callable[[Contender, int], float]  # of a pass, by the contender and its group
    pace: Callable[[Contender, int], float | None] = lambda contender, group: 1e9
    fails: Callable[[Contender, int, str], str] = lambda contender, group, step: ""
    taken: Callable[[Contender], tuple[str, tuple[str, ...]]] = lambda contender: ("plain", ())
    started: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    alive: int = 0

    def start(self, contender: Contender) -> "Process":
        self.started[contender.name] = group = self.started.get(contender.name, -1) + 1
        return Process(self, contender, group)


@dataclass
class Process:
    machine: Machine
    contender: Contender
    group: int

    def __enter__(self) -> Self:
        self.machine.alive += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.alive -= 1

    def _may_fail(self, step: str) -> None:
        self.machine.log.append(f"{step} {self.contender.name} {self.group}")
        if reason := self.machine.fails(self.contender, self.group, step):
            raise WorkerError("memory", reason)

    def prepare(self) -> Prepared:
        self._may_fail("prepare")
        backend, said = self.machine.taken(self.contender)
        settled = {"compile_s": None, "warm_up": (0.1,), "settled": True, "no_energy": ""}
        return Prepared(**settled, backend=backend, fallbacks=said)

    def wait(self) -> None:
        pass

    def sample(self, count: int, least_s: float, calibrate: bool = True) -> Round:
        self._may_fail("sample")
        rates = Rates(self.machine.pace(self.contender, self.group), 1e9)
        seconds = (self.machine.seconds(self.contender, self.group),) * count
        return Round(seconds=seconds, before={}, after={}, others=0.2, steal=0, rates=(rates, rates))


Taken = Callable[..., tuple[Result, list[Progress]]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Run a bench on a `Machine`; every process must have ended."""

    def take(names: list[str], machine: Machine, groups: int = 12) -> tuple[Result, list[Progress]]:
        monkeypatch.setattr(Contender, "start", lambda self: machine.start(self))
        *progress, result = bench.run(contenders(names, Options(device="cpu")), groups)
        assert machine.alive == 0
        assert isinstance(result, Result)
        return result, [event for event in progress if isinstance(event, Progress)]

    return take


def steady(contender: Contender, group: int) -> float:
    """Times that drift by half over the groups and wobble by a per cent; swin takes a fifth longer."""
    slowness = 1.2 if contender.name.startswith("swin") else 1.0
    wobble = 1 + 0.01 * math.sin(7 * group + len(contender.name))
    return 0.01 * slowness * wobble * (1 + 0.5 * group / 12)


def test_a_slower_one_is_found_and_an_equal_one_is_not(taken: Taken) -> None:
    result, progress = taken(["halo", "swin", "halo"], Machine(steady))
    halo, swin, again = result.rows
    assert (halo.ratio, halo.reason) == (None, "")
    assert swin.ratio
    assert (swin.ratio.verdict, swin.ratio.value) == ("slower", pytest.approx(1.2, rel=0.02))
    assert swin.ratio.low <= swin.ratio.value <= swin.ratio.high
    assert again.ratio
    assert again.ratio.verdict == "inconclusive"
    assert len(swin.log_ratios) == result.groups == 12
    assert (result.set_aside, result.others) == (0, 0.2)
    assert [event.done for event in progress] == list(range(12))
    assert swin.seconds == pytest.approx(0.0150, rel=0.03)  # the median over the drift


def test_processes_are_fresh_in_every_group_and_timed_in_turns(taken: Taken) -> None:
    machine = Machine(steady)
    taken(["halo", "swin"], machine, groups=6)
    assert machine.started == {"halo": 5, "swin": 5}
    for group, order in ((0, "halo swin swin halo halo swin"), (1, "swin halo halo swin swin halo")):
        steps = [line.split() for line in machine.log if line.endswith(str(group))]
        assert [step for step, *_ in steps] == ["prepare"] * 2 + ["sample"] * 6
        assert [name for step, name, _ in steps if step == "sample"] == order.split()


def test_a_slow_process_is_set_aside_whoever_it_helps(taken: Taken) -> None:
    slow = {("halo", 1), ("halo (2)", 4), ("halo", 6)}

    def seconds(contender: Contender, group: int) -> float:
        return steady(contender, group) * (2 if (contender.name, group) in slow else 1)

    def pace(contender: Contender, group: int) -> float:
        return 5e8 if (contender.name, group) in slow else 1e9 + group

    result, progress = taken(["halo", "halo"], Machine(seconds, pace))
    assert (result.groups, result.set_aside) == (12, 3)
    assert max(map(abs, result.rows[1].log_ratios)) < 0.1
    assert (progress[0].total, progress[-1].total) == (12, 15)


def test_a_machine_that_is_never_calm_ends_too(taken: Taken) -> None:
    result, _ = taken(["halo", "swin"], Machine(steady, lambda _, group: 1e9 if group % 2 else 5e8))
    assert (result.groups, result.set_aside) == (12, 4)


def test_without_memory_for_the_calibration_all_groups_count(taken: Taken) -> None:
    result, _ = taken(["halo", "swin"], Machine(steady, lambda *_: None), groups=6)
    assert (result.groups, result.set_aside) == (6, 0)


@pytest.mark.parametrize("step", ["prepare", "sample"])
def test_a_failing_contender_is_a_row_and_the_others_stand(taken: Taken, step: str) -> None:
    def fails(contender: Contender, group: int, at: str) -> str:
        return "Out of memory" if (contender.name, group, at) == ("swin", 2, step) else ""

    machine = Machine(steady, fails=fails)
    result, _ = taken(["halo", "swin", "dwconv"], machine)
    halo, swin, dwconv = result.rows
    assert (swin.reason, swin.ratio) == ("Out of memory", None)
    assert swin.seconds  # of the groups before
    assert (halo.reason, dwconv.reason) == ("", "")
    assert dwconv.ratio
    assert result.groups == 12
    assert machine.started["swin"] == 2  # not started again


def test_when_the_reference_fails_the_others_are_timed_once(taken: Taken) -> None:
    machine = Machine(steady, fails=lambda contender, *_: "killed" * (contender.name == "halo"))
    result, _ = taken(["halo", "swin", "dwconv"], machine)
    assert result.rows[0].reason == "killed"
    assert all(row.seconds and row.ratio is None for row in result.rows[1:])
    assert machine.started["swin"] == 1  # beside the one that was ended with the reference


def test_when_all_fail_there_is_a_result_still(taken: Taken) -> None:
    result, _ = taken(["halo", "swin"], Machine(steady, fails=lambda *_: "no compiler"))
    assert [(row.reason, row.seconds) for row in result.rows] == [("no compiler", None)] * 2


def test_a_row_says_the_backend_and_a_fallback_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(steady, taken=lambda contender: ("quick", ("it fell",) * (contender.name == "swin")))
    monkeypatch.setattr(Contender, "start", lambda self: machine.start(self))
    *events, result = bench.run(contenders(["halo", "swin"], Options(device="cpu")), 6)
    assert isinstance(result, Result)
    assert [row.backend for row in result.rows] == ["quick", "quick"]
    assert [event.text for event in events if isinstance(event, Note)] == ["swin: it fell"]


def test_stopping_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(contender: Contender, group: int) -> float:
        raise KeyboardInterrupt

    machine = Machine(stop)
    monkeypatch.setattr(Contender, "start", lambda self: machine.start(self))
    with pytest.raises(KeyboardInterrupt):
        list(bench.run(contenders(["halo", "swin"], Options(device="cpu")), 6))
    assert machine.alive == 0


@pytest.mark.slow
def test_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    options = Options(image_size=28, channels=1, classes=10, device="cpu")
    *_, result = bench.run(contenders(["identity", "dcnv3"], options), bench.FEWEST)
    assert isinstance(result, Result)
    assert result.rows[1].ratio
    assert result.rows[1].ratio.verdict == "slower"


def test_a_training_step_has_more_than_one_image() -> None:
    asked = contenders(["dwconv", "swin"], Options(image_size=28, mode="train", device="cpu"))
    assert [each.setting.batch for each in asked] == [8, 8]
    [one, _] = contenders(["dwconv", "swin"], Options(image_size=28, device="cpu"))
    assert one.setting.batch == 1
