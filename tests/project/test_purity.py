"""The runtime runs where torch is not installed, and each vendor's library stays in the one file that needs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT, imports, top_level

RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))
NAMES = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in RUNTIME]
MODULES = [f"mmgen.{name.removesuffix('.__init__')}" for name in NAMES]
COMMAND_LINE = "mmgen.runtime.cli."
NEVER = {"torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors", "scipy"}
VENDORS = {  # by the files that may import them, when asked to; library.py finds TensorRT by its name
    "onnxruntime": {"backends/ort/importing.py"},
    "openvino": {"backends/openvino/backend.py"},
    "tokenizers": {"request/tokenizer.py"},
    "PIL": {"media/importing.py"},
    "av": {"media/importing.py"},
    "nvtx": {"bench/watch.py"},
    "pynvml": {"bench/energy.py"},
    "cuda": {"backends/cuda.py"},
    "tensorrt": set(),
    "tensorrt_rtx": set(),
}
FOLDERS = {"runtime": ("export", "engines"), "export": ("engines",), "engines": ("export",)}


def test_the_runtime_is_found() -> None:
    assert {"mmgen.runtime", "mmgen.runtime.solvers.registry", "mmgen.runtime.cli.main"} <= set(MODULES)


@pytest.fixture(scope="module")
def brought_in() -> dict[str, list[str]]:
    """Import each module in one interpreter as if it were the first; return what it brought in beside Python's own."""
    script = f"""
import importlib, json, sys, numpy.random
sys.modules.update(dict.fromkeys({[*NEVER, *VENDORS]}))  # None: importing it fails
before, found = set(sys.modules), {{}}
for module in {MODULES}:
    importlib.import_module(module)
    new = {{name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names}}
    found[module] = sorted({{name.partition(".")[0] for name in new}})
    for name in new:
        del sys.modules[name]
print(json.dumps(found))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_numpy_alone_and_click_where_it_speaks_to_people(
    module: str, brought_in: dict[str, list[str]]
) -> None:
    assert set(brought_in[module]) <= {"mmgen", "numpy"} | ({"click"} if module.startswith(COMMAND_LINE) else set())


@pytest.mark.parametrize("file", RUNTIME, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_runtime_file_imports_torch_or_its_company_not_even_later(file: Path) -> None:
    assert not top_level(file) & NEVER
    for vendor, homes in VENDORS.items():
        assert vendor not in top_level(file) or str(file.relative_to(ROOT / "runtime")) in homes


@pytest.mark.parametrize("file", sorted((ROOT / "engines").glob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_engines_are_built_with_what_the_runtime_hands_over(file: Path) -> None:
    assert not top_level(file) & (NEVER | set(VENDORS))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_depend_on_each_other_in_one_direction(folder: str) -> None:
    wrong = [f"mmgen.{other}" for other in FOLDERS[folder]]
    for file in (ROOT / folder).rglob("*.py"):
        assert not [name for name in imports(file) if name.startswith(tuple(wrong))], file
        assert not top_level(file) & {"export", "engines", "runtime"}, f"{file}: a second copy; import mmgen.*"
