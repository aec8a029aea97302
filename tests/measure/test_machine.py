"""What the machine tells is read; what it does not tell is left out."""

import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from stmbench.measure import machine


def test_a_state_has_what_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    found = machine.state("cpu")
    assert found["threads"] == torch.get_num_threads()
    assert found["affinity"]
    assert "cpu_mhz" not in found
    assert not any(name.startswith("gpu") for name in found)


class Nvml:
    """A GPU's library of which some calls fail, as they do."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        self.joules = 10.0

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-abc"
        return "handle"

    def nvmlDeviceGetClockInfo(self, _: str, kind: int) -> int:  # noqa: N802
        return 1000 * kind

    def nvmlDeviceGetTemperature(self, *_: Any) -> int:  # noqa: N802
        raise RuntimeError("not supported")

    def nvmlDeviceGetPowerUsage(self, _: str) -> int:  # noqa: N802
        return 250_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _: str) -> int:  # noqa: N802
        return 0x1 | 0x4 | 0x40

    def nvmlDeviceGetComputeRunningProcesses(self, _: str) -> list[object]:  # noqa: N802
        return [object(), object()]

    def nvmlDeviceGetViolationStatus(self, _: str, policy: int) -> Any:  # noqa: N802
        return SimpleNamespace(violationTime=policy * 10**9)

    def nvmlDeviceGetTotalEnergyConsumption(self, _: str) -> int:  # noqa: N802
        self.joules += 5
        return int(1000 * self.joules)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    class Properties:
        uuid = "abc"

    library = Nvml()
    monkeypatch.setattr(machine, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    return library


@pytest.mark.usefixtures("nvml")
def test_a_gpus_readings_fail_one_by_one() -> None:
    found = machine.state("cuda")
    gpu = {name: value for name, value in found.items() if name.startswith("gpu")}
    assert gpu == {
        "gpu_mhz": 1000,
        "gpu_memory_mhz": 2000,
        "gpu_watts": 250.0,
        "gpu_processes": 2,
        "gpu_held_back": {"power": 0.0, "temperature": 1.0},  # NVML's numbers of the two policies
        "gpu_throttled": ["power cap", "temperature (hardware)"],
    }


def test_without_nvml_a_gpu_has_no_readings_and_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    monkeypatch.setattr(machine.pynvml, "nvmlInit", fail)
    assert machine.gpu_readings("cuda") == {}
    assert machine.Energy("cuda").missing == "NVML Shared Library Not Found"


@pytest.mark.usefixtures("nvml")
def test_joules_of_a_gpu_come_from_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_ENERGY_S", 0.0)
    meter = machine.Energy("cuda")
    assert meter.missing == ""
    meter.start()
    assert meter.joules() == 5.0


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    for name, zone in (zones | {"intel-rapl:0:0": "core"}).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{zone}\n")
        (tmp_path / name / "energy_uj").write_text("9000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
    monkeypatch.setattr(machine, "POWERCAP", tmp_path)
    return tmp_path


def test_joules_of_cpu_packages_are_added_and_wrap_around(
    rapl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LEAST_ENERGY_S", 0.0)
    meter = machine.Energy("cpu")
    meter.start()
    (rapl / "intel-rapl:0" / "energy_uj").write_text("9500000\n")
    (rapl / "intel-rapl:1" / "energy_uj").write_text("1000000\n")
    (rapl / "intel-rapl:0:0" / "energy_uj").write_text("9900000\n")  # a part of its package
    (rapl / "intel-rapl:2" / "energy_uj").write_text("9900000\n")  # the platform, both packages included
    assert meter.joules() == pytest.approx(0.5 + 2.0)


def test_a_second_is_the_least_for_energy(rapl: Path) -> None:
    meter = machine.Energy("cpu")
    meter.start()
    assert meter.joules() is None
    assert rapl


def test_why_there_is_no_energy(rapl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert machine.Energy("cpu").missing.startswith(f"no permission to read {rapl}")
    monkeypatch.setattr(machine, "POWERCAP", rapl / "none")
    meter = machine.Energy("cpu")
    assert "RAPL" in meter.missing
    meter.start()
    assert meter.joules() is None
    assert "mps" in machine.Energy("mps").missing


def test_the_shares_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(dict[str, float]):
        _asdict = dict.copy

    now = Times(user=10.0, system=0.0, idle=10.0, iowait=0.0, steal=0.0, guest=5.0)
    own = iter((1.0, 5.0))
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: now)
    monkeypatch.setattr(machine.time, "process_time", lambda: next(own))
    load = machine.Load()
    now = Times(user=15.0, system=1.0, idle=12.0, iowait=1.0, steal=1.0, guest=9.0)  # 10 s, 4 of them our own
    assert load.shares() == pytest.approx((0.2, 0.1))
    monkeypatch.setattr(machine.time, "process_time", lambda: 0.0)
    assert machine.Load().shares() == (0.0, 0.0)


def test_peak_memory_counts_from_its_mark() -> None:
    machine.reset_peak("cpu")
    before = machine.memory("cpu")
    with mmap.mmap(-1, 100_000_000) as fresh:  # torch may be given back what an earlier test let go
        for page in range(0, len(fresh), mmap.PAGESIZE):
            fresh[page] = 1
    assert 90e6 < machine.peak("cpu") - before < 150e6
