"""What the machine is doing: its state, its load, its energy counters and its memory.

Everything here is read, nothing is set (but the kernel's own peak-memory mark). What a machine does not
tell, or does not let us read, is left out.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

POWERCAP = Path("/sys/class/powercap")  # where Linux shows Intel's and AMD's energy counters (RAPL)
LEAST_ENERGY_S = 1.0  # NVML's counter moves every 20 to 100 ms
# NVML's reasons for a clock below the asked one that slow a round; idling and set clocks are none of them.
THROTTLES = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "temperature (driver)",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "temperature (hardware)",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}

# What may keep the clocks down for a time, of which NVML keeps the sum.
POLICIES = {"power": pynvml.NVML_PERF_POLICY_POWER, "temperature": pynvml.NVML_PERF_POLICY_THERMAL}


def state(device: str) -> dict[str, Any]:
    """Threads, flags, load and clocks, as plain types; on CUDA also the GPU's."""
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    # The GPU first: it slows its clocks as soon as it has nothing to do.
    readings = gpu_readings(device) if device.startswith("cuda") else {}
    readings |= {
        "affinity": lambda: psutil.Process().cpu_affinity(),
        "load": lambda: os.getloadavg()[0],
        "cpu_mhz": lambda: psutil.cpu_freq().current,
    }
    for name, read in readings.items():
        with contextlib.suppress(Exception):  # each system lacks another of them
            found[name] = read()
    return found


def gpu_readings(device: str) -> dict[str, Callable[[], Any]]:
    """NVML's readings of a CUDA device, by name; each of them may fail. Empty without NVML."""
    try:
        handle = gpu_handle(device)
    except Exception:  # no driver library, or a GPU that NVML does not know by this name
        return {}
    return {
        "gpu_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "gpu_memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "gpu_celsius": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "gpu_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "gpu_held_back": lambda: {
            name: int(pynvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) / 1e9
            for name, policy in POLICIES.items()
        },
        "gpu_throttled": lambda: throttles(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "gpu_processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    }


def gpu_handle(device: str) -> Any:
    """NVML's handle of torch's device, by its UUID: NVML counts the GPUs that are hidden from torch, too."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def throttles(mask: int) -> list[str]:
    """The names of NVML's throttle reasons in a bit mask that slow a round."""
    return [name for bit, name in THROTTLES.items() if mask & bit]


class Load:
    """How the machine's CPU time is spent from now on."""

    def __init__(self) -> None:
        self._own, self._times = time.process_time(), psutil.cpu_times()._asdict()

    def shares(self) -> tuple[float, float]:
        """Shares (0 to 1) of the CPU time since the start: of other processes, of other machines."""
        own = time.process_time() - self._own
        now = psutil.cpu_times()._asdict()
        spent = {name: max(0.0, now[name] - before) for name, before in self._times.items()}
        for part in ("guest", "guest_nice"):  # contained in `user` and `nice`
            spent.pop(part, None)
        total = sum(spent.values())
        if not total:
            return 0.0, 0.0
        steal = spent.pop("steal", 0.0)
        busy = sum(spent.values()) - spent.get("idle", 0.0) - spent.get("iowait", 0.0)
        return max(0.0, busy - own) / total, steal / total


class Energy:
    """The joules a device takes. `missing` says why they cannot be known here; "" where they can."""

    def __init__(self, device: str) -> None:
        self.missing = ""
        self._read: Callable[[], float] | None = None
        self._started = self._before = 0.0
        kind = torch.device(device).type
        try:
            if kind == "cuda":
                self._read = _nvml_counter(device)
            elif kind == "cpu":
                self._read = _rapl_counter()
            else:
                self.missing = f"there is no counter of it for {kind}"
        except PermissionError as error:
            self.missing = f"no permission to read {error.filename}"
        except Exception as error:  # NVML's errors are many, and none of them matters but for its text
            self.missing = str(error) or type(error).__name__

    def start(self) -> None:
        """Count from now on."""
        self._started, self._before = time.perf_counter(), self._read() if self._read else 0.0

    def joules(self) -> float | None:
        """Since `start`; None where unknown, or in less than a second, too short for the counters."""
        if self._read is None or time.perf_counter() - self._started < LEAST_ENERGY_S:
            return None
        return self._read() - self._before


def _nvml_counter(device: str) -> Callable[[], float]:
    handle = gpu_handle(device)
    pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _rapl_counter() -> Callable[[], float]:
    zones = [path for path in sorted(POWERCAP.glob("intel-rapl:*")) if path.name.count(":") == 1]
    packages = [
        path for path in zones if (path / "name").read_text().startswith("package")
    ]  # psys holds them
    if not packages:
        raise OSError("this machine shows no RAPL counter")
    counters = [_accumulated(path) for path in packages]
    return lambda: sum(read() for read in counters)


def _accumulated(package: Path) -> Callable[[], float]:
    """Joules of one CPU package since now. Its counter starts again at 0 within the hour; once is seen."""
    counter = package / "energy_uj"
    limit, last, total = int((package / "max_energy_range_uj").read_text()), int(counter.read_text()), 0

    def read() -> float:
        nonlocal last, total
        now = int(counter.read_text())
        total += now - last + (limit if now < last else 0)
        last = now
        return total / 1e6

    return read


def memory(device: str) -> int:
    """Bytes in use: allocated by torch on a GPU, resident in this process elsewhere."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def reset_peak(device: str) -> None:
    """Let `peak` count from now on, where the system allows it; else it counts from the process's start."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """The most bytes that `memory` would have found since `reset_peak`."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    info = psutil.Process().memory_info()
    return getattr(info, "peak_wset", info.rss)  # Windows knows its peak; macOS tells the present only
