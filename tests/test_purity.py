"""The runtime runs where torch is not installed, and each vendor's library stays in the one file that needs it."""

import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT, imports, top_level

RUNTIME = sorted((ROOT / "runtime").glob("*.py"))
MODULES = [f"mmgen.runtime.{file.stem}" for file in RUNTIME if file.stem != "__init__"]
SPEAKING = ("cli", "terminal", "describe", "doctor", "bench_command", "bench_text", "report")
COMMAND_LINE = {f"mmgen.runtime.{name}" for name in SPEAKING}
NEVER = {"torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors", "scipy"}
VENDORS = {  # by the files that may import them, when asked to; library.py finds TensorRT by its name
    "onnxruntime": {"ort_import.py"},
    "openvino": {"openvino.py"},
    "tokenizers": {"text.py"},
    "PIL": {"reading.py"},
    "cuda": {"cuda.py"},
    "tensorrt": set(),
    "tensorrt_rtx": set(),
}
FOLDERS = {"runtime": ("export", "engines"), "export": ("engines",), "engines": ("export",)}


def test_the_runtime_is_found() -> None:
    assert {"mmgen.runtime.generator", "mmgen.runtime.solvers", *COMMAND_LINE} <= set(MODULES)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mmgen.runtime", *MODULES])
def test_a_module_imports_numpy_alone_and_click_where_it_speaks_to_people(module: str) -> None:
    script = f"""
import sys, numpy.random
sys.modules.update(dict.fromkeys({[*NEVER, *VENDORS]}))  # None: importing it fails
before = set(sys.modules)
import {module}
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) <= {"mmgen", "numpy"} | ({"click"} if module in COMMAND_LINE else set())


@pytest.mark.parametrize("file", RUNTIME, ids=lambda file: file.name)
def test_no_runtime_file_imports_torch_or_its_company_not_even_later(file: Path) -> None:
    assert not top_level(file) & NEVER
    for vendor, homes in VENDORS.items():
        assert vendor not in top_level(file) or file.name in homes


@pytest.mark.parametrize("file", sorted((ROOT / "engines").glob("*.py")), ids=lambda file: file.name)
def test_engines_are_built_with_what_the_runtime_hands_over(file: Path) -> None:
    assert not top_level(file) & (NEVER | set(VENDORS))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_depend_on_each_other_in_one_direction(folder: str) -> None:
    wrong = [f"mmgen.{other}" for other in FOLDERS[folder]]
    for file in (ROOT / folder).glob("*.py"):
        assert not [name for name in imports(file) if name.startswith(tuple(wrong))], file
        assert not top_level(file) & {"export", "engines", "runtime"}, f"{file}: a second copy; import mmgen.*"
