"""TensorRT and TensorRT for RTX as they are found, heard and placed."""

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmgen.runtime.backends.tensorrt.library import find_library, make_logger, place, version
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Flavour, Place

ORIN: Any = SimpleNamespace(
    name="Orin", compute_capability="sm87", multiprocessors=8, memory_bytes=7990000000, driver_cuda="12.6"
)


@pytest.mark.parametrize(
    ("flavour", "module", "remedy"),
    [("tensorrt", "tensorrt", "--system-site-packages"), ("tensorrt-rtx", "tensorrt_rtx", re.escape(extra("rtx")))],
)
def test_a_library_that_is_not_installed(
    flavour: Flavour, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MmgenError, match=f"is not installed; .*{remedy}"):
        find_library(flavour)


@pytest.mark.parametrize("failure", ["OSError", "ImportError"])
def test_a_library_whose_own_libraries_are_missing(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the packages' own ``ctypes.CDLL`` and the loader say it."""
    (tmp_path / "tensorrt.py").write_text(f"raise {failure}('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MmgenError, match=r"TensorRT can't be loaded \(libnvinfer\.so\.10: cannot open"):
        find_library("tensorrt")


def test_the_real_library_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    """TensorRT for RTX says why it can't read an engine, GPU or not."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    caplog.set_level(logging.DEBUG, "mmgen.tensorrt")
    library = find_library("tensorrt-rtx")
    logger = make_logger(library)
    assert make_logger(library) is logger, "TensorRT keeps the first it is given"
    logger.errors.clear()
    assert library.Runtime(logger).deserialize_cuda_engine(b"no engine" * 50) is None
    assert "incompatible serialization version" in logger.errors[0]
    assert {record.name for record in caplog.records} == {"mmgen.tensorrt"}
    for number in range(100):
        logger.log(library.ILogger.Severity.ERROR, f"error {number}")
    assert logger.errors[-1] == "error 99" and len(logger.errors) == 20
    logger.errors.clear()


def test_tensorrt_is_tied_to_its_device() -> None:
    library = SimpleNamespace(__version__="10.3.0")
    found = place("tensorrt", library, ORIN)
    assert found.system is not None and found.system.split()[0] == sys.platform
    assert found == Place("tensorrt", "10.3.0", ("sm87",), found.system, "12.6", "Orin", 8, 7)
    with pytest.raises(MmgenError, match="no CUDA device"):
        place("tensorrt", library)


def test_tensorrt_for_rtx_is_tied_to_compute_capabilities() -> None:
    library = SimpleNamespace(__version__="1.7.1.116")
    assert version(library) == "1.7.1.116"
    asked = place("tensorrt-rtx", library, None, ("sm89", "sm86"))
    assert asked == Place("tensorrt-rtx", "1.7.1.116", ("sm86", "sm89"))
    assert place("tensorrt-rtx", library, ORIN) == Place("tensorrt-rtx", "1.7.1.116", ("sm87",))
    with pytest.raises(MmgenError, match="no CUDA device"):
        place("tensorrt-rtx", library)
