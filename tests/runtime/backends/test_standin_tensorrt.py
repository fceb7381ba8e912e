"""The stand-in for TensorRT: what it has is what each release has, and it refuses what the real one refuses.

Where TensorRT for RTX is installed, the same programs run on its real parser and compiler and must answer alike.
"""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import api
import numpy as np
import onnx
from onnx import TensorProto, helper
from small_engine import Built, model
from standin_cuda import Cuda
from standin_device import Gpu
from standin_memory import Misuse
from standin_objects import Library, Unknown
from standin_tensorrt import EMULATED, tensorrt

from mmgen.runtime.backends.tensorrt.library import make_logger

RELEASES = api.VERSIONS
METHODS = sorted(
    f"{kind}.{name}"
    for kind, base in EMULATED.items()
    for name in dir(base)
    if not name.startswith("_") and inspect.isfunction(inspect.getattr_static(base, name))
)


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    """A GPU; a test that misuses it on purpose clears the list."""
    made = Cuda(Gpu("RTX 3090", (8, 6)))
    yield made
    assert not made.memory.misuses


@pytest.fixture(params=["10.3.0", "11.4.0.106", api.RTX])
def library(request: pytest.FixtureRequest, cuda: Cuda) -> Library:
    return tensorrt(request.param, cuda)


# What there is.


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_of_a_release_is_there_or_says_that_it_is_not_emulated_and_no_other_is(
    release: str,
) -> None:
    library = tensorrt(release, Cuda())
    names = api.surface(release)
    others = {n for other in RELEASES for n in api.surface(other)[""]} - names[""]
    assert not [name for name in others if not name.startswith("_") and hasattr(library.module, name)]
    for kind in EMULATED:
        if kind not in names:
            assert not hasattr(library.module, kind)
            continue
        owner = getattr(library.module, kind)
        for name in {n for r in RELEASES for n in api.surface(r).get(kind, ())}:
            if name.startswith("_"):
                continue
            if name not in names[kind]:
                assert not hasattr(owner, name), f"{kind}.{name}"
            elif isinstance(inspect.getattr_static(owner, name), Unknown):
                with pytest.raises(Misuse, match=rf"the stand-in has no {kind}\.{name}"):
                    getattr(owner, name)


@pytest.mark.parametrize("release", RELEASES)
def test_enumerations_have_the_release_s_numbers_and_members_are_no_numbers(release: str) -> None:
    module = tensorrt(release, Cuda()).module
    for kind, members in api.members(release).items():
        assert {m: int(v) for m, v in getattr(module, kind).__members__.items()} == members
    flag = module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert flag != int(flag)
    assert (1 << int(flag)) == (1 if release in ("11.4.0.106", api.RTX) else 2)


@pytest.mark.parametrize("release", RELEASES)
def test_methods_take_what_the_real_ones_take(release: str) -> None:
    known = api.signatures(release)
    module = tensorrt(release, Cuda()).module
    for method in METHODS:
        kind, _, name = method.partition(".")
        if method not in known or not hasattr(module, kind):
            continue
        ours = set(inspect.signature(getattr(EMULATED[kind], name)).parameters)
        theirs = [set(re.findall(r"(\w+): ", re.sub(r"<.*?>", "", line))) for line in known[method]]
        assert any(overload <= ours for overload in theirs), method
        later = {"runtime_config"} if kind == "ICudaEngine" and not hasattr(module, "IRuntimeConfig") else set()
        assert ours <= set().union(*theirs) | later, method


def test_an_attribute_that_a_release_lacks_can_neither_be_read_nor_set(library: Library) -> None:
    config = Built(library.module).config()
    with pytest.raises(AttributeError):
        config.fp16_mode = True
    assert not hasattr(config, "max_workspace_size")
    assert hasattr(config, "set_compute_capability") == library.rtx
    with pytest.raises(TypeError, match="No constructor"):
        library.module.ICudaEngine()


# What the real compiler does too.


@pytest.fixture(params=["stand-in", "real"])
def rtx(request: pytest.FixtureRequest, cuda: Cuda) -> Any:
    """TensorRT for RTX: the stand-in, and the real one."""
    if request.param == "stand-in":
        return tensorrt(api.RTX, cuda).module
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")
    import tensorrt_rtx

    return tensorrt_rtx


def test_a_logger_s_base_class_must_be_initialised(rtx: Any) -> None:
    class Forgot(rtx.ILogger):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="__init__"):
        rtx.Builder(Forgot())
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        rtx.Builder(None)


def test_the_bundle_s_graphs_are_parsed_to_networks_that_look_alike(rtx: Any, bundle_folder: Path) -> None:
    for file in sorted((bundle_folder / "graphs").glob("*.onnx")):
        built = Built(rtx, b"")
        network = built.builder.create_network(0)
        parser = rtx.OnnxParser(network, built.log)
        assert parser.parse_from_file(str(file))
        declared = onnx.load(file, load_external_data=False).graph
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        assert [t.name for t in inputs] == [v.name for v in declared.input]
        assert [t.name for t in outputs] == [v.name for v in declared.output]
        for tensor, value in zip(inputs, declared.input, strict=True):
            extents = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert tuple(tensor.shape) == tuple(-1 if isinstance(d, str) else d for d in extents)
            names = [tensor.get_dimension_name(i) for i in range(len(extents))]
            assert names == [d if isinstance(d, str) else None for d in extents]
        half = {n for n, t in weights(rtx, network).items() if t.dtype == np.float16}
        assert half == {w.name for w in declared.initializer if w.data_type == TensorProto.FLOAT16 and w.dims} - inside(
            declared
        )


def inside(graph: onnx.GraphProto) -> set[str]:
    """Weights that layers hold."""
    return {name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]}


def weights(trt: Any, network: Any) -> dict[str, np.ndarray]:
    """Constants by the name of their layer; a layer shows them when it is seen as its own class."""
    found = {}
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        assert not hasattr(layer, "weights")
        if layer.type == trt.LayerType.CONSTANT:
            layer.__class__ = trt.IConstantLayer
            if layer.shape:
                found[layer.name] = layer.weights
    return found


def test_a_layer_holds_its_convolution_s_weights(rtx: Any, bundle_folder: Path) -> None:
    built = Built(rtx, b"")
    network = built.builder.create_network(0)
    parser = rtx.OnnxParser(network, built.log)
    assert parser.parse_from_file(str(bundle_folder / "graphs" / "decode.onnx"))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
    for layer in found:
        layer.__class__ = rtx.IConvolutionLayer
    assert [(la.num_inputs, la.kernel.size, la.kernel.dtype, la.bias.size) for la in found] == [
        (1, 576, np.float16, 16), (1, 1728, np.float16, 12),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "code"), [(b"garbage", "MODEL_DESERIALIZE_FAILED"), ("external", None), ("NonZero", None), ("mixed", None)]
)
def test_what_the_parser_refuses(rtx: Any, tmp_path: Path, data: Any, code: str | None) -> None:
    if data == "external":
        data = model(tmp_path / "graph.onnx")  # and no path is told
    elif isinstance(data, str):
        made = onnx.load_from_string(model())
        if data == "NonZero":
            made.graph.node[1].op_type = "NonZero"
            del made.graph.node[1].input[1:]
            made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [2, "n"]))
        else:
            made.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "b"))
        data = made.SerializeToString()
    built = Built(rtx, data)
    engine = built.engine() if built.parsed else None  # some of it shows only when it is compiled
    assert engine is None
    assert built.log.errors
    if code is not None:
        assert built.parser.get_error(0).code() == getattr(rtx.ErrorCode, code)
        assert built.parser.get_error(0).desc()


def test_external_weights_are_read_beside_a_file_that_is_named(rtx: Any, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    data = model(path)
    for parse in (lambda p: p.parse(data, str(path)), lambda p: p.parse_from_file(str(path))):
        built = Built(rtx)
        network = built.builder.create_network(0)
        parser = rtx.OnnxParser(network, built.log)
        assert parse(parser)
        assert set(weights(rtx, network)) == {"w", "b"}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((), "no optimization profile has been defined"),
        ((((1, 4), (2, 4), (4, 4)),), "static dimensions that don't match|Dimension mismatch"),
        ((((1,), (2,), (4,)),), "profile"),
        ((((2, 3), (1, 3), (4, 3)),), "isValid"),
    ],
)
def test_profiles_that_do_not_fit_the_network_are_refused(rtx: Any, shapes: Any, message: str) -> None:
    built = Built(rtx)
    assert built.parsed
    assert built.builder.build_serialized_network(built.network, built.config(*shapes)) is None
    assert re.search(message, " ".join(built.log.errors))


def test_negative_extents_are_refused_at_once_and_static_inputs_need_no_profile(rtx: Any) -> None:
    built = Built(rtx)
    profile = built.builder.create_optimization_profile()
    with pytest.raises(RuntimeError, match="inconsistent"):
        profile.set_shape("x", (-1, 3), (1, 3), (1, 3))
    assert profile.get_shape("x") == []
    profile.set_shape("x", [1, 3], [2, 3], [4, 3])
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(1, 3), (2, 3), (4, 3)]


def test_a_builder_configuration_begins_alike(rtx: Any) -> None:
    config = Built(rtx).builder.create_builder_config()
    assert config.get_flag(rtx.BuilderFlag.TF32), "on by default"
    config.clear_flag(rtx.BuilderFlag.TF32)
    assert config.flags == 0
    assert (config.builder_optimization_level, config.num_compute_capabilities, config.max_aux_streams) == (3, 0, -1)
    config.builder_optimization_level = 9
    assert config.builder_optimization_level == 5
    choices = rtx.ComputeCapability
    assert not config.set_compute_capability(choices.SM86, 0), "there is no room for one"
    config.num_compute_capabilities = 2
    assert not config.set_compute_capability(choices.NONE, 0)
    assert not config.set_compute_capability(choices.CURRENT, 0)
    assert config.set_compute_capability(choices.SM86, 0)
    assert [config.get_compute_capability(i) for i in range(2)] == [choices.SM86, choices.NONE]
    config.set_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE, 64 << 20)
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 64 << 20


def test_an_engine_is_a_buffer_and_hardly_more_and_the_same_again(rtx: Any) -> None:
    first, again = Built(rtx).engine(), Built(rtx).engine()
    assert bytes(first) == bytes(again)
    assert memoryview(first).nbytes == first.nbytes == len(bytes(first))
    assert not hasattr(first, "decode")
    with pytest.raises(TypeError):
        len(first)


def test_a_monitor_hears_of_nested_phases_and_can_cancel(rtx: Any) -> None:
    class Monitor(rtx.IProgressMonitor):
        def __init__(self, patience: int) -> None:
            rtx.IProgressMonitor.__init__(self)
            self.patience, self.heard = patience, []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.heard.append(("start", phase_name, parent_phase))

        def phase_finish(self, phase_name: str) -> None:
            self.heard.append(("finish", phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.patience -= 1
            return self.patience > 0

    for patience in (10_000, 2):
        built, monitor = Built(rtx), Monitor(patience)
        config = built.config(((1, 3), (2, 3), (4, 3)))
        config.progress_monitor = monitor
        engine = built.builder.build_serialized_network(built.network, config)
        assert (engine is None) == (patience == 2)
        assert monitor.heard[0] == ("start", "Building engine", None)
        assert ("start", "Cloning network graph", "Building engine") in monitor.heard
        assert monitor.heard[-1] == ("finish", "Building engine")
        started, finished = ([h[1] for h in monitor.heard if h[0] == kind] for kind in ("start", "finish"))
        assert sorted(started) == sorted(finished)


def test_what_is_no_engine_is_not_read(rtx: Any) -> None:
    log = make_logger(rtx)
    runtime = rtx.Runtime(log)
    for data in (b"", b"garbage", bytes(Built(rtx).engine())[:-100]):
        log.errors.clear()
        assert runtime.deserialize_cuda_engine(data) is None
        assert log.errors
