"""Energy while something runs: a Jetson's rails, a GPU's own counter, or what NVIDIA's program says."""

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmgen.runtime.bench import energy
from mmgen.runtime.bench.energy import metered, rails


def sensor(root: Path, **files: str) -> None:
    folder = root / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")


def test_a_jetson_s_rails_are_read_while_something_runs(tmp_path: Path) -> None:
    sensor(
        tmp_path, name="ina3221", in1_label="VDD_IN", in1_input="5000", curr1_input="2000",
        in2_label="VDD_SOC", in2_input="5000", curr2_input="300", in7_label="sum of shunt voltages", in7_input="9",
    )  # fmt: skip
    assert [rail.name for rail in rails(tmp_path)] == ["VDD_IN", "VDD_SOC"]
    with metered(tmp_path, gpu=True) as power:
        time.sleep(0.01)
    assert power.watts == {"VDD_IN": 10.0, "VDD_SOC": 1.5}
    assert power.total == ("VDD_IN", 10.0)
    assert power.seconds >= 0.01


def test_a_gpu_is_asked_by_nvidia_s_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho 100.5; echo "[N/A]"; echo 120.5; exec sleep 60\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # it is not installed
    with metered(tmp_path, gpu=True) as power:
        time.sleep(0.5)
    assert power.watts == {"GPU": 110.5}
    with metered(tmp_path, gpu=False) as power:
        pass
    assert power.watts == {} and power.total is None


class Nvml(ModuleType):
    """What NVIDIA's package does here: a GPU that takes 250 W by a clock that the test moves."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.now, self.open = 1000.0, 0
        self.failing: set[str] = set()

    def perf_counter(self) -> float:
        return self.now

    def nvmlInit(self) -> None:
        self._may_fail("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        assert self.open > 0
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._may_fail("nvmlDeviceGetHandleByIndex")
        assert self.open and index == 0
        return "the first GPU"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._may_fail("nvmlDeviceGetTotalEnergyConsumption")
        assert self.open and handle == "the first GPU"
        return int(250 * 1000 * self.now)  # millijoules

    def _may_fail(self, name: str) -> None:
        if name in self.failing:
            raise self.NVMLError("Not Supported")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nvml:
    """The package, and a program that answers where it isn't asked."""
    made: Any = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(energy, "time", made)
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 111; exec sleep 60\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=os.pathsep)
    return made  # type: ignore[no-any-return]


def test_the_gpu_s_own_counter_is_asked_before_and_after(nvml: Nvml, tmp_path: Path) -> None:
    with metered(tmp_path, gpu=True) as power:
        assert nvml.open == 1
        nvml.now += 2.0
    assert power.watts == {"GPU": 250.0} and power.total == ("GPU", 250.0)
    assert power.seconds == 2.0
    assert nvml.open == 0, "what was opened is closed"


@pytest.mark.parametrize(
    "failing", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetTotalEnergyConsumption"]
)
def test_where_nothing_is_counted_nvidia_s_program_is_asked(nvml: Nvml, tmp_path: Path, failing: str) -> None:
    """No driver; no GPU; one before Volta, or a part of one."""
    nvml.failing = {failing}
    with metered(tmp_path, gpu=True) as power:
        time.sleep(0.5)
    assert power.watts == {"GPU": 111.0}
    assert nvml.open == 0


def test_a_counter_that_fails_or_stands_still_tells_nothing(nvml: Nvml, tmp_path: Path) -> None:
    with metered(tmp_path, gpu=True) as power:
        nvml.failing = {"nvmlDeviceGetTotalEnergyConsumption"}
        nvml.now += 1.0
    assert power.watts == {} and nvml.open == 0
    nvml.failing = set()
    with metered(tmp_path, gpu=True) as power:
        pass
    assert power.watts == {} and nvml.open == 0


def test_the_counter_is_closed_after_a_failure(nvml: Nvml, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), metered(tmp_path, gpu=True):
        raise KeyboardInterrupt
    assert nvml.open == 0


def test_sensors_of_a_whole_board_come_before_the_counter(nvml: Nvml, tmp_path: Path) -> None:
    sensor(tmp_path, name="ina3221", in1_label="VDD_IN", in1_input="5000", curr1_input="2000")
    nvml.failing = {"nvmlInit"}
    with metered(tmp_path, gpu=True) as power:
        time.sleep(0.05)
    assert power.watts == {"VDD_IN": 10.0}


def test_the_package_is_not_imported_where_a_cpu_does_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "open_counter", lambda: pytest.fail("it was asked for"))
    with metered(tmp_path, gpu=False) as power:
        pass
    assert power.watts == {}
