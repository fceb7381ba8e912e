"""Electric power while something runs, where the device measures it: that of a whole rail or card, idle power included.

Of a Jetson's INA sensors Linux makes files, read here as they are: their library wants a service that runs as root.
A GPU's own energy counter is read with NVIDIA's ``nvidia-ml-py`` where that is installed and the GPU counts (from Volta
on); else ``nvidia-smi`` is asked.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

PERIOD = 0.1  # seconds between readings; a reading of an INA3221 takes a millisecond of one core
TOTALS = ("VDD_IN", "VIN_SYS_5V0")  # rails that are the whole board's, where a board has such a one
SMI = ("--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0", f"--loop-ms={int(PERIOD * 1000)}")


@dataclass(frozen=True)
class Rail:
    """A sensor's channel: millivolts and milliamperes are in its files."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float | None:
        """Now; None where it can't be read."""
        try:
            return int(self.volts.read_text()) * int(self.amperes.read_text()) / 1e6
        except (OSError, ValueError):
            return None


@dataclass
class Power:
    """Mean watts of each rail, or of the GPU; empty: nothing here measures it."""

    watts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> tuple[str, float] | None:
        """The rail of the whole board, or the GPU."""
        return next(((name, self.watts[name]) for name in (*TOTALS, "GPU") if name in self.watts), None)


def rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """Channels of all INA3221: JetPack 5 to 7 have them among the hwmon devices."""
    found = []
    for device in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _read(device / "name") == "ina3221":
            for label in sorted(device.glob("in*_label")):
                number = label.name.removeprefix("in").removesuffix("_label")
                volts, amperes = device / f"in{number}_input", device / f"curr{number}_input"
                if volts.exists() and amperes.exists():  # in7 is the sum of the shunts, which has no current
                    found.append(Rail(_read(label), volts, amperes))
    return tuple(found)


@contextmanager
def metered(root: Path = Path("/"), *, gpu: bool) -> Iterator[Power]:
    """Power during the block, known when it ends.

    Args:
        root: holds sys/.
        gpu: ask for the GPU's too, if there is no sensor; only where the GPU does the work.
    """
    power, began = Power(), time.perf_counter()
    readings: dict[str, list[float]] = {}
    try:
        with _meter(root, gpu, readings):
            yield power
    finally:
        power.seconds = time.perf_counter() - began
        power.watts = {name: fmean(values) for name, values in readings.items() if values}


def _meter(root: Path, gpu: bool, readings: dict[str, list[float]]) -> AbstractContextManager[None]:
    """Choose the best meter of this machine; it adds watts to ``readings``, by rail."""
    if sensors := rails(root):
        return _reading(sensors, readings)
    if gpu and (counter := open_counter()):
        return _counting(counter, readings)
    if gpu and (smi := shutil.which("nvidia-smi")):
        return _asking(smi, readings)
    return nullcontext()


@dataclass(frozen=True)
class Counter:
    """The energy counter of the first GPU."""

    nvml: Any  # NVIDIA's module, ready to be asked
    gpu: Any

    def joules(self) -> float | None:
        """Since the driver was loaded; None where it isn't counted."""
        try:
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu)) / 1000
        except self.nvml.NVMLError:
            return None


def open_counter() -> Counter | None:
    """Find the GPU's energy counter; None: no package, no driver that it knows, or a GPU that doesn't count."""
    try:
        import pynvml
    except (ImportError, OSError):
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        counter = Counter(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        pynvml.nvmlShutdown()
        return None
    if counter.joules() is None:
        pynvml.nvmlShutdown()
        return None
    return counter


@contextmanager
def _counting(counter: Counter, readings: dict[str, list[float]]) -> Iterator[None]:
    before, began = counter.joules(), time.perf_counter()
    try:
        yield
    finally:
        after, seconds = counter.joules(), time.perf_counter() - began
        counter.nvml.nvmlShutdown()
        if before is not None and after is not None and after > before:  # it moves a few times a second
            readings["GPU"] = [(after - before) / seconds]


@contextmanager
def _reading(sensors: tuple[Rail, ...], readings: dict[str, list[float]]) -> Iterator[None]:
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for rail in sensors:
                if (watts := rail.watts()) is not None:
                    readings.setdefault(rail.name, []).append(watts)
            stop.wait(PERIOD)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _asking(smi: str, readings: dict[str, list[float]]) -> Iterator[None]:
    program = subprocess.Popen(
        [smi, *SMI], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        errors="replace",
    )  # fmt: skip
    lines: list[str] = []  # taken as they come, or a long benchmark fills the pipe
    reader = threading.Thread(target=lambda: lines.extend(program.stdout or ()), daemon=True)
    reader.start()
    try:
        yield
    finally:
        program.terminate()
        reader.join()
        program.wait()
        readings["GPU"] = [float(line) for line in lines if line.strip().replace(".", "", 1).isdigit()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
