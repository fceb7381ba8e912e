"""Every name of TensorRT and of CUDA that is used exists in all releases that are supported, or is asked for first.

The releases are read from their real bindings (see ``api``).  What can't be told from the source, such as attributes
of objects whose names say nothing, is left to the tests that run on a stand-in with the same names.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping

import pytest
from api import CUDA, RTX, TENSORRT, VERSIONS, bindings, members, signatures, surface
from tree import ROOT

# By file, what TensorRT's objects are called there, in variables and attributes; "" is the library itself.
CALLED = {
    "runtime/backends/tensorrt/library.py": {"library": ""},
    "runtime/backends/tensorrt/backend.py": {"library": ""},
    "runtime/backends/tensorrt/engine.py": {
        "library": "", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
        "config": "IRuntimeConfig",
    },
    "runtime/backends/tensorrt/runtime_cache.py": {"config": "IRuntimeConfig", "cache": "IRuntimeCache"},
    "engines/targets.py": {"library": ""},
    "engines/compile.py": {"library": "", "builder": "Builder", "config": "IBuilderConfig"},
    "engines/network.py": {
        "library": "", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
        "layer": "ILayer", "tensor": "ITensor",
    },
    "engines/turing.py": {
        "library": "", "network": "INetworkDefinition", "layer": "ILayer", "tensor": "ITensor",
        "maker": "IConstantLayer", "product": "IMatrixMultiplyLayer", "convolution": "IConvolutionLayer",
        "before": "IShuffleLayer", "after": "IShuffleLayer",
    },
    "engines/phases.py": {"library": ""},
    "engines/activations.py": {"library": "", "network": "INetworkDefinition", "layer": "IActivationLayer"},
}  # fmt: skip
# Names that a function may use which asked for another: every release has both or neither.
COMES_WITH = {
    "ComputeCapability": "set_compute_capability",
    "num_compute_capabilities": "set_compute_capability",
    "EngineValidity": "get_engine_validity",
    "EngineInvalidityDiagnostics": "get_engine_validity",
    "DynamicShapesKernelSpecializationStrategy": "dynamic_shapes_kernel_specialization_strategy",
    "CudaGraphStrategy": "cuda_graph_strategy",
}
RTX_ONLY = {"capabilities", "RuntimeCache"}  # what is called for TensorRT for RTX alone
CUDA_FILE = ROOT / "runtime" / "backends" / "cuda.py"

Use = tuple[str, str]  # a class, or "" for the library, and a name


def functions(tree: ast.AST, rtx: bool) -> Iterator[ast.AST]:
    """The outermost functions, and what stands outside of any; without what is for TensorRT for RTX, unless asked."""
    for node in ast.iter_child_nodes(tree):
        if not rtx and getattr(node, "name", None) in RTX_ONLY:
            continue
        if isinstance(node, ast.ClassDef):
            yield from functions(node, rtx)
        else:
            yield node


def asked_for(function: ast.AST) -> set[str]:
    """Names in ``hasattr(x, "name")`` and ``getattr(x, "name", other)``, and what comes with them."""
    found = set()
    for node in ast.walk(function):
        match node:
            case ast.Call(ast.Name("hasattr"), [_, ast.Constant(str(name))]):
                found.add(name)
            case ast.Call(ast.Name("getattr"), [_, ast.Constant(str(name)), _]):
                found.add(name)
    return found | {name for name, other in COMES_WITH.items() if other in found}


def last(owner: ast.expr) -> str | None:
    """``engine`` of ``engine`` and of ``self._engine``."""
    match owner:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name.lstrip("_")
    return None


def uses(source: str, called: Mapping[str, str], rtx: bool = True) -> set[Use]:
    """What a file takes from objects that are called so, without asking first."""
    found = set()
    for function in functions(ast.parse(source), rtx):
        asked = asked_for(function)
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or node.attr in asked or node.attr in dir(object):
                continue
            match node.value:
                case ast.Attribute(owner, cls) if last(owner) == "library":
                    found.add((cls, node.attr))  # library.BuilderFlag.TF32
                case owner if last(owner) in called:
                    found.add((called[str(last(owner))], node.attr))
    return found


def missing(used: set[Use], names: Mapping[str, Container[str]]) -> set[Use]:
    """What a release lacks; it can't make objects of classes that it lacks, so nobody asks those for anything."""
    return {(cls, name) for cls, name in used if cls in names and name not in names[cls]}


def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def test_names_are_found_and_questions_are_seen() -> None:
    source = """
def f(library, x):
    builder = library.Builder(x)
    self._engine.create_runtime_config()
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = 1
    return library.BuilderFlag.TF32, x.anything
class C:
    def g(self, config):
        config.progress_monitor = 2
"""
    assert uses(source, {"library": "", "builder": "Builder", "engine": "ICudaEngine", "config": "IBuilderConfig"}) == {
        ("", "Builder"), ("", "BuilderFlag"), ("BuilderFlag", "TF32"), ("ICudaEngine", "create_runtime_config"),
        ("IBuilderConfig", "progress_monitor"),
    }  # fmt: skip


def test_a_name_that_one_release_lacks_is_noticed() -> None:
    used = {("BuilderFlag", "FP16"), ("BuilderFlag", "TF32"), ("IExecutionContext", "execute_async_v3")}
    assert missing(used, surface("10.3.0")) == set()
    assert missing(used, surface("11.4.0.106")) == {("BuilderFlag", "FP16")}


def test_no_file_that_touches_tensorrt_is_forgotten() -> None:
    files = [file for folder in ("runtime", "engines", "export") for file in (ROOT / folder).rglob("*.py")]
    names = [str(file.relative_to(ROOT)) for file in files]
    assert {name for name in names if uses(read(name), {"library": ""})} <= set(CALLED)


@pytest.mark.parametrize("file", CALLED)
def test_objects_are_called_by_their_names(file: str) -> None:
    used = uses(read(file), CALLED[file])
    assert set(CALLED[file].values()) <= {cls for cls, _ in used}, "a name that finds nothing proves nothing"
    assert {cls for cls, _ in used} <= set().union(*(surface(version) for version in VERSIONS))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", CALLED)
def test_tensorrt_has_every_name_that_is_used_without_asking(file: str, version: str) -> None:
    assert missing(uses(read(file), CALLED[file], version == RTX), surface(version)) == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_what_comes_with_a_name_does(version: str) -> None:
    names = set().union(*surface(version).values())
    for name, other in COMES_WITH.items():
        assert (name in names) == (other in names), name


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_handed_over_has_the_form_that_tensorrt_takes(version: str) -> None:
    """The calls whose arguments are easily mistaken, as the real bindings describe them."""
    calls = signatures(version)
    assert "stream_handle: " in calls["IExecutionContext.execute_async_v3"][0]
    assert any("shape: tuple" in call for call in calls["IExecutionContext.set_input_shape"])
    assert ", path: str = None)" in calls["OnnxParser.parse"][0]
    assert "STRONGLY_TYPED" in members(version)["NetworkDefinitionCreationFlag"]


def test_strong_types_have_another_number_in_another_release() -> None:
    numbers = {version: members(version)["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"] for version in TENSORRT}
    assert len(set(numbers.values())) == 2, "why the flag is always asked for by its name"


CUDA_NAMES = """
import inspect, json
from cuda.bindings import runtime
classes = {name: dir(value) for name, value in vars(runtime).items() if inspect.isclass(value)}
print(json.dumps({"": dir(runtime), **classes}))
"""


def cuda_uses(source: str) -> set[Use]:
    """Functions, by attribute or by name in a string; members of CUDA's enumerations; fields of a device's facts."""
    found = uses(source, {"facts": "cudaDeviceProp"})
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(ast.Attribute(attr=cls), name) if cls.startswith("cuda"):
                found.add((cls, name))
            case ast.Attribute(attr=name) | ast.Constant(str(name)) if re.fullmatch(r"cuda[A-Z]\w+", name):
                found.add(("", name))
    return found


@pytest.mark.parametrize("release", [None, *CUDA], ids=lambda release: release or "as installed")
def test_cuda_has_every_name_that_is_used(release: str | None) -> None:
    if release is None:
        pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    environment = os.environ | {"PYTHONPATH": str(bindings(release)) if release else ""}
    command = [sys.executable, "-c", CUDA_NAMES]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    used = cuda_uses(CUDA_FILE.read_text(encoding="utf-8"))
    assert {("", "cudaMemcpyAsync"), ("cudaDeviceProp", "major"), ("cudaError_t", "cudaErrorNoDevice")} <= used
    assert missing(used, json.loads(ran.stdout)) == set()
