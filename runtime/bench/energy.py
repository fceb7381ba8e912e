"""Electric power while something runs, where the device measures it: Jetson's INA sensors, or ``nvidia-smi``.

It is that of a whole rail or card, what it takes when idle included.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

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
        gpu: ask ``nvidia-smi`` too, if there is no sensor; only where the GPU does the work.
    """
    power, began = Power(), time.perf_counter()
    sensors, smi = rails(root), shutil.which("nvidia-smi") if gpu else None
    readings: dict[str, list[float]] = {}
    try:
        if sensors:
            with _reading(sensors, readings):
                yield power
        elif smi:
            with _asking(smi, readings):
                yield power
        else:
            yield power
    finally:
        power.seconds = time.perf_counter() - began
        power.watts = {name: fmean(values) for name, values in readings.items() if values}


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
