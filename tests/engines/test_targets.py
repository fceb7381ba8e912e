"""What engines are built for: this host, or compute capabilities, and what is said where neither can be."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmgen.engines import targets
from mmgen.engines.targets import parse, possible
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MmgenError("no NVIDIA driver is on this machine", remedy="install one")

    monkeypatch.setattr(targets.cuda, "open_device", refuse)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Make a device that counts how often it was closed."""
    facts = SimpleNamespace(
        name="RTX 3090", compute_capability="sm86", multiprocessors=82, memory_bytes=24 << 30, driver_cuda="12.6",
        closed=0,
    )  # fmt: skip
    facts.close = lambda: setattr(facts, "closed", facts.closed + 1)
    monkeypatch.setattr(targets.cuda, "open_device", lambda: facts)
    return facts


def libraries(monkeypatch: pytest.MonkeyPatch, *installed: str, capabilities: str = "SM75 SM86 SM120") -> None:
    """Pretend that these flavours are installed, and no others."""
    names = dict.fromkeys(("NONE", "CURRENT", *capabilities.split()))

    def find(flavour: str) -> SimpleNamespace:
        if flavour not in installed:
            raise MmgenError(f"{flavour} is not installed", remedy=f"install {flavour}")
        return SimpleNamespace(__version__="1.2.3", ComputeCapability=SimpleNamespace(__members__=names))

    monkeypatch.setattr(targets, "find_library", find)


def test_capabilities_are_read_off_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, "tensorrt-rtx", capabilities="SM86 SM130")
    assert parse(["sm130"]).place.compute_capabilities == ("sm130",)
    with pytest.raises(MmgenError, match=r"^target, got 'sm87', wanted host sm86 sm130; engines for a Jetson"):
        parse(["sm87"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sm86", "host"], "targets, got sm86 host, wanted host alone, or compute capabilities; build twice"),
        (["gpu"], "target, got 'gpu', wanted host or compute capabilities such as sm86"),
        (["host", "8.6"], "target, got '8.6'"),
    ],
)
def test_a_bad_target_is_one_line_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch, names: list[str], words: str
) -> None:
    libraries(monkeypatch)
    with pytest.raises(MmgenError, match=words):
        parse(names)


@pytest.mark.parametrize(
    ("installed", "flavour"),
    [(("tensorrt", "tensorrt-rtx"), "tensorrt"), (("tensorrt",), "tensorrt"), (("tensorrt-rtx",), "tensorrt-rtx")],
)
@pytest.mark.parametrize("names", [[], ["host"]])
def test_host_is_tensorrt_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace, installed: tuple[str, ...], flavour: str, names: list[str]
) -> None:
    libraries(monkeypatch, *installed)
    place = parse(names).place
    assert (place.flavour, place.compute_capabilities) == (flavour, ("sm86",))
    assert place.device == ("RTX 3090" if flavour == "tensorrt" else None)
    assert device.closed == 1


def test_host_without_a_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace) -> None:
    libraries(monkeypatch)
    with pytest.raises(MmgenError, match="tensorrt is not installed; install tensorrt"):
        parse()


def test_host_with_a_device_that_rtx_has_no_engines_for(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    libraries(monkeypatch, "tensorrt-rtx")
    device.compute_capability = "sm90"
    with pytest.raises(MmgenError, match=r"builds no engines, got sm90, wanted sm75 sm86 sm120; install TensorRT$"):
        parse()
    assert device.closed == 1


def test_host_without_a_device_names_the_other_way(no_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, "tensorrt", "tensorrt-rtx")
    with pytest.raises(MmgenError, match=r"no NVIDIA driver .*; install one; or name what to build for: --target sm86"):
        parse()


def test_tensorrt_is_not_even_imported_where_there_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise SystemExit('TensorRT was touched')")
    script = f"""
from mmgen.engines.compile import Job
from mmgen.engines.targets import parse, possible
from mmgen.engines.worker import compile_apart
from mmgen.runtime.base.errors import MmgenError
job = Job("step", "tensorrt", ("sm87",), "step.onnx", (), (), (), "{tmp_path}/step.engine")
for work in (parse, lambda: compile_apart(job, print, expected=0)):
    try:
        work()
    except MmgenError as error:
        print(error)
print(possible().reason)
"""
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert len(ran.stdout.splitlines()) == 3, "each says why not"
    assert "touched" not in ran.stdout + ran.stderr
    stubbed = subprocess.run([sys.executable, "-c", "import tensorrt"], capture_output=True, text=True, env=environment)
    assert "TensorRT was touched" in stubbed.stderr, "the stub is what would be imported"


def test_possible_is_the_host_then_portable_engines_then_how_to_get_there(
    monkeypatch: pytest.MonkeyPatch, device: SimpleNamespace
) -> None:
    libraries(monkeypatch, "tensorrt")
    assert possible() == targets.Possible(("host",), "tensorrt 1.2.3 for RTX 3090")


def test_possible_without_a_device_is_every_capability_that_all_graphs_compile_for(
    monkeypatch: pytest.MonkeyPatch, no_device: None
) -> None:
    libraries(monkeypatch, "tensorrt-rtx")
    assert possible().names == ("sm86", "sm120")
    libraries(monkeypatch)
    assert possible().names == ()
    assert extra("rtx") in possible().reason and "mmgen build BUNDLE" in possible().reason
