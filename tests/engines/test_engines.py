"""Building engines: in which shapes, out of which networks, and with NVIDIA's own compiler, with no GPU."""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmgen.engines import builder
from mmgen.engines.builder import build
from mmgen.engines.compile import Job
from mmgen.engines.targets import Target, capabilities, parse
from mmgen.engines.worker import COMMAND, compile_apart
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store
from mmgen.runtime.builds.engine_build import SIDECAR, GraphReport, Place
from mmgen.runtime.builds.profiles import profiles, shapes
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Axis, Bundle, Role, TensorSpec

RTX = Target(Place("tensorrt-rtx", "1.7", ("sm86",)))
CUDA = Target(Place("tensorrt", "10.3.0", ("sm87",), "linux aarch64", "12.6", "Orin", 16, 61))


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Copy the test bundle, to be written into."""
    folder = tmp_path_factory.mktemp("engines") / "b.mmgen"
    shutil.copytree(bundle_folder, folder, ignore=shutil.ignore_patterns("engines"))
    return read_bundle(folder)


@pytest.fixture
def rtx() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx", reason="compiling needs TensorRT for RTX")
    return module


@pytest.fixture
def onnx() -> ModuleType:
    module: ModuleType = pytest.importorskip("onnx", reason="odd graphs are made with onnx")
    return module


def job(bundle: Bundle, role: Role, engine: Path, **changes: Any) -> Job:
    """Build what ``build`` asks the worker for, for sm86."""
    graph = bundle.graphs[role]
    made = Job(
        role, "tensorrt-rtx", ("sm86",), str(bundle.path(graph.file).absolute()), graph.inputs, graph.outputs,
        profiles(bundle, "tensorrt-rtx"), str(engine),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def compiled(made: Job, command: tuple[str, ...] = COMMAND) -> GraphReport:
    return compile_apart(made, lambda fraction: None, expected=1 << 30, command=command)


# Shapes


def test_rtx_gets_the_whole_range_and_tensorrt_the_usual_request_first(bundle: Bundle) -> None:
    full = {"B": Axis(1, 1, 8), "G": Axis(1, 2, 4), "R": Axis(1, 2, 32), "N": Axis(1, 6, 128)}
    assert profiles(bundle, "tensorrt-rtx") == (full,)
    usual = {"B": Axis(1, 1, 1), "G": Axis(2, 2, 2), "R": Axis(2, 2, 2), "N": Axis(6, 6, 6)}
    assert profiles(bundle, "tensorrt") == (usual, full)


def test_axes_are_overridden_and_r_follows(bundle: Bundle) -> None:
    one = {"B": Axis(2, 3, 4), "G": Axis(2, 2, 2), "N": Axis(1, 4, 10)}
    assert profiles(bundle, "tensorrt-rtx", one) == ({**one, "R": Axis(4, 6, 8)},)


def test_static_axes_are_one_profile_on_either_flavour(bundle: Bundle) -> None:
    static = {"B": Axis(1, 1, 1), "G": Axis(2, 2, 2), "N": Axis(20, 20, 20)}
    assert profiles(bundle, "tensorrt", static) == profiles(bundle, "tensorrt-rtx", static)
    assert len(profiles(bundle, "tensorrt", static)) == 1


@pytest.mark.parametrize(
    ("name", "axis", "words"),
    [
        ("Q", Axis(1, 1, 1), "axis, got 'Q', wanted B or G or N"),
        ("R", Axis(1, 1, 1), "axis R is G times B, wanted ranges of B or G or N"),
        ("B", Axis(1, 9, 8), "axis B, got min 1, opt 9, max 8, wanted 1 <= min <= opt <= max"),
        ("B", Axis(0, 1, 8), "axis B, got min 0, opt 1, max 8, wanted 1 <= min <= opt <= max"),
    ],
)
def test_a_bad_range_is_one_line(bundle: Bundle, name: str, axis: Axis, words: str) -> None:
    with pytest.raises(MmgenError, match=f"^{words}$".replace("(", r"\(")):
        profiles(bundle, "tensorrt", {name: axis})


def test_the_shapes_of_an_input_follow_its_axes() -> None:
    spec = TensorSpec("context", "float32", ("G", "B", 5, 32))
    profile = {"B": Axis(1, 1, 8), "G": Axis(1, 2, 2), "R": Axis(1, 2, 16)}
    assert shapes(spec, profile) == ((1, 1, 5, 32), (2, 1, 5, 32), (2, 8, 5, 32))


def test_several_capabilities_are_one_target(rtx: ModuleType) -> None:
    place = parse(["sm89", "sm86", "sm89"]).place
    assert place == Place("tensorrt-rtx", rtx.__version__, ("sm86", "sm89"))


# The compiler


def test_a_bundle_is_built_once(rtx: ModuleType, bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    target = parse(["sm86"])
    folder, made, reused = build(bundle, target, progress=lambda stage, fraction: told.append((stage, fraction)))
    assert not reused
    assert sorted(os.listdir(folder)) == sorted([SIDECAR, *(f"{role}.engine" for role in bundle.graphs)])
    assert engine_store.read_build(folder) == made
    engine_store.check_engines(folder, made)
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    *stages, last = dict.fromkeys(stage for stage, _ in told)
    assert [stage.split(" (about ")[0] for stage in stages] == [f"compiling {role}" for role in bundle.graphs]
    assert all(re.search(r"about [\d.]+ [MG]iB of memory, [\d.]+ [MG]iB free\)$", stage) for stage in stages)
    assert last == "done"
    again = build(bundle, target, progress=lambda stage, fraction: pytest.fail("nothing is left to do"))
    assert again == (folder, made, True)


def test_the_report_is_of_the_network_that_was_compiled(rtx: ModuleType, bundle: Bundle) -> None:
    _, made, _ = build(bundle, parse(["sm86"]))
    for role, engine in made.engines.items():
        report, half = engine.report, bundle.precision.half_share[role]
        weights = report.half_weight_bytes + report.float_weight_bytes
        assert report.half_weight_bytes / weights == pytest.approx(half.weight_bytes, abs=0.02)
        assert report.half_layers > 0
        assert report.half_layers + report.float_layers <= report.layers
        assert report.islands == tuple(i.tensor for i in bundle.precision.islands if i.graph == role)
        assert report.seconds > 0 and 100 << 20 < report.peak_bytes < 2 << 30


def test_the_reported_memory_is_the_workers_own(rtx: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    """The kernel's usual figure begins with what the parent had."""
    ballast = bytearray(os.urandom(1 << 20) * 600)
    report = compiled(job(bundle, "encode", tmp_path / "encode.engine"))
    assert len(ballast) == 600 << 20 > report.peak_bytes


@pytest.mark.parametrize("axes", [{"B": Axis(1, 1, 1)}, {"B": Axis(2, 2, 2), "G": Axis(2, 2, 2)}], ids=str)
def test_static_axes_compile(rtx: ModuleType, bundle: Bundle, axes: dict[str, Axis]) -> None:
    _, made, reused = build(bundle, parse(["sm86"]), axes=axes)
    assert not reused
    assert {name: made.identity.options.profiles[0][name] for name in axes} == axes


def test_one_engine_holds_several_targets(rtx: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    for engine, names in ((one, ("sm86",)), (many, ("sm80", "sm86", "sm89", "sm120", "sm121"))):
        compiled(job(bundle, "decode", engine, compute_capabilities=names))
    assert many.stat().st_size < 1.1 * one.stat().st_size


def test_workspace_and_optimization_level_are_taken(rtx: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    for level in (0, 5):
        made = job(bundle, "encode", tmp_path / f"{level}.engine", workspace_mib=64, optimization_level=level)
        assert compiled(made).layers


def test_a_second_build_has_the_same_bytes_where_addresses_are_the_same(
    rtx: ModuleType, bundle: Bundle, tmp_path: Path
) -> None:
    """TensorRT for RTX orders a few items by their addresses; nothing else may get in: no time, path or process."""
    setarch = shutil.which("setarch")
    if setarch is None or subprocess.run([setarch, "-R", "true"]).returncode:
        pytest.skip("addresses can't be fixed here: no setarch, or not allowed")
    engines = [tmp_path / name / "step.engine" for name in ("a", "b")]
    for engine in engines:
        engine.parent.mkdir()
        compiled(job(bundle, "step", engine), (setarch, "-R", "env", "PYTHONHASHSEED=0", *COMMAND))
    assert engines[0].read_bytes() == engines[1].read_bytes()


@pytest.mark.parametrize("role", ["condition", "step", "decode"])
def test_every_graph_compiles_for_all_capabilities_at_once(
    rtx: ModuleType, bundle: Bundle, role: Role, tmp_path: Path
) -> None:
    """Turing too, which has no float32 product for the search of a codebook."""
    compiled(job(bundle, role, tmp_path / "e", compute_capabilities=capabilities(rtx)))
    assert (tmp_path / "e").stat().st_size > 0


def test_what_turing_lacks_is_told_in_one_line(rtx: ModuleType, onnx: ModuleType, tmp_path: Path) -> None:
    """A float32 product that isn't over the channels of a picture."""
    made = dataclasses.replace(odd_graph(onnx, tmp_path, "MatMul", ["x", "square"]), compute_capabilities=("sm75",))
    with pytest.raises(MmgenError, match=r"can't compile it for sm75, got .*FP32 GEMM is not supported"):
        compiled(made)
    assert os.listdir(tmp_path) == ["odd.onnx"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workspace_mib": 0}, "workspace, got 0 MiB, wanted at least 1 MiB"),
        ({"optimization_level": 6}, "optimization level, got 6, wanted 0 to 5"),
        ({"axes": {"Q": Axis(1, 1, 1)}}, "axis, got 'Q'"),
    ],
)
def test_a_bad_option_is_one_line(bundle: Bundle, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MmgenError, match=words):
        build(bundle, RTX, **changes)


def test_a_build_that_fails_leaves_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = bundle.path("engines")
    before = sorted(os.listdir(engines)) if engines.exists() else []

    def fail(made: Job, report: Callable[[float], None], **_: object) -> None:
        Path(made.engine).write_bytes(b"half an engine")
        raise MmgenError("the compiler crashed with SIGSEGV")

    monkeypatch.setattr(builder, "compile_apart", fail)
    with pytest.raises(MmgenError, match="SIGSEGV"):
        build(bundle, CUDA)
    assert sorted(set(os.listdir(engines)) - {"timing"}) == [name for name in before if name != "timing"]


# Graphs that are not what the bundle says


@pytest.mark.parametrize(
    ("kind", "index", "spec", "words"),
    [
        ("inputs", 0, TensorSpec("medium", "uint8", ("B", 16, 16, 3)), "inputs, got media, wanted medium"),
        ("inputs", 0, TensorSpec("media", "float32", ("B", 16, 16, 3)), r"got uint8 \(-1, 16, 16, 3\), wanted float32"),
        ("inputs", 0, TensorSpec("media", "uint8", (1, 16, 16, 3)), r"wanted uint8 \(1, 16, 16, 3\)"),
        ("outputs", 0, TensorSpec("latents", "float32", ("B", 4, 8)), r"wanted float32 \(B, 4, 8\)"),
        ("outputs", 0, TensorSpec("latents", "float32", ("B", "G", 8, 8)), r"wanted float32 \(B, G, 8, 8\)"),
    ],
)
def test_tensors_that_differ_from_the_bundle_are_one_line(
    rtx: ModuleType, bundle: Bundle, tmp_path: Path, kind: str, index: int, spec: TensorSpec, words: str
) -> None:
    specs = list(getattr(bundle.graphs["encode"], kind))
    specs[index] = spec
    with pytest.raises(MmgenError, match=f"graph encode: .*{words}.*export it again$"):
        compiled(job(bundle, "encode", tmp_path / "e", **{kind: tuple(specs)}))


def odd_graph(onnx: ModuleType, folder: Path, operator: str, inputs: list[str], dtype: str = "FLOAT") -> Job:
    """Write a graph of one node on x (B, 4) float32."""
    make, types = onnx.helper, onnx.TensorProto
    graph = make.make_graph(
        [make.make_node(operator, inputs, ["y"], name="odd")],
        "graph",
        [make.make_tensor_value_info("x", types.FLOAT, ["B", 4])],
        [make.make_tensor_value_info("y", getattr(types, dtype), None)],
        [
            make.make_tensor("half", types.FLOAT16, [4], [1.0] * 4),
            make.make_tensor("square", types.FLOAT, [4, 4], [1.0] * 16),
        ],
    )
    file = folder / "odd.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10), file)
    spec = TensorSpec("x", "float32", ("B", 4))
    profile = {"B": Axis(1, 1, 8)}
    return Job(
        "step", "tensorrt-rtx", ("sm86",), str(file), (spec,), (dataclasses.replace(spec, name="y"),), (profile,),
        str(folder / "e"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "inputs", "reason"),
    [("Det", ["x"], "false"), ("NonZero", ["x"], "NonZero"), ("Add", ["x", "half"], "types Float and Half")],
)
def test_an_operator_that_is_not_supported_is_one_line(
    rtx: ModuleType, onnx: ModuleType, tmp_path: Path, operator: str, inputs: list[str], reason: str
) -> None:
    with pytest.raises(MmgenError) as caught:
        compiled(odd_graph(onnx, tmp_path, operator, inputs))
    line = str(caught.value)
    assert line.startswith(f"graph step: TensorRT for RTX {rtx.__version__} can't read odd.onnx, got operator ")
    assert f" {operator} (node odd): " in line and reason in line and "\n" not in line
    assert line.endswith("export the bundle again with this mmgen, which checks operators, or use a newer TensorRT")


def test_a_damaged_file_is_one_line(rtx: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x0a\x12")
    with pytest.raises(MmgenError, match=r"can't read x\.onnx, got .*Failed to parse"):
        compiled(job(bundle, "encode", tmp_path / "e", graph=str(tmp_path / "x.onnx")))


def test_an_fp16_graph_with_nothing_half_in_it_is_refused(rtx: ModuleType, onnx: ModuleType, tmp_path: Path) -> None:
    made = odd_graph(onnx, tmp_path, "Relu", ["x"])
    assert compiled(made).half_layers == 0, "an fp32 bundle may be"
    with pytest.raises(MmgenError, match=r"half layers in TensorRT's network, got none of 1, wanted about 84%"):
        compiled(dataclasses.replace(made, half_operations=0.84))
