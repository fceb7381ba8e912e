"""What is installed is what lies in the folders, no more and no less."""

import email
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from tree import ROOT

from mmgen.export.base import embedded
from mmgen.runtime.base.distribution import NAME

pytest.importorskip("setuptools", minversion="77", reason="wheels are built by setuptools 77 or newer")
CHECKPOINTS = ROOT / "checkpoints"
PACKAGES = ("export", "engines", "runtime")
HOUSE = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree without what earlier builds left in it."""
    folder = tmp_path_factory.mktemp("tree")
    for name in HOUSE:
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def build(kind: str, tree: Path, out: Path) -> Path:
    """Run setuptools' own build hook; ``kind`` is wheel or sdist."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    out.mkdir()
    ran = subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return out / ran.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", copy, tmp_path_factory.mktemp("built") / "wheel"))


def install(wheel: zipfile.ZipFile, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", folder, wheel.filename], check=True)


def belongs_in_wheel() -> set[str]:
    patterns = ("*.py", "py.typed")
    code = [file for package in PACKAGES for pattern in patterns for file in (ROOT / package).rglob(pattern)]
    return {in_wheel(file) for file in code}


def in_wheel(file: Path) -> str:
    return str(PurePosixPath("mmgen", *file.relative_to(ROOT).parts))


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == belongs_in_wheel()
    assert "mmgen/__init__.py" not in installed


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_typed_and_linked_for_type_checkers(package: str, wheel: zipfile.ZipFile) -> None:
    assert f"mmgen/{package}/py.typed" in wheel.namelist()
    assert (ROOT / ".typing" / "mmgen" / package).resolve() == ROOT / package


def test_metadata(wheel: zipfile.ZipFile) -> None:
    folder = next(name for name in wheel.namelist() if name.endswith("/METADATA")).removesuffix("METADATA")
    metadata = email.message_from_bytes(wheel.read(f"{folder}METADATA"))
    needed = {line.split(">")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert needed == {"numpy", "click"}
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {f"{folder}licenses/LICENSE", f"{folder}licenses/NOTICE"} <= set(wheel.namelist())
    entry_points = wheel.read(f"{folder}entry_points.txt").decode()
    for line in ("mmgen = mmgen.runtime.cli.main:main", "mmgen-export = mmgen.export.cli:main", "[mmgen.commands]",
                 "build = mmgen.engines.cli:main", "export = mmgen.export.cli:main"):  # fmt: skip
        assert line in entry_points


def test_an_installed_wheel_says_how_to_add_an_extra_to_it(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    install(wheel, tmp_path)
    script = "from mmgen.runtime.base.distribution import extra; print(extra('ort'))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"pip install '{wheel.filename}[ort]'\n"
    assert Path(str(wheel.filename)).name.startswith(f"{NAME.replace('-', '_')}-")


def test_the_runtime_needs_no_torch_to_be_installed(wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))))
    for line in metadata.get_all("Requires-Dist", []):
        if "torch" in line or "onnx>" in line or "diffusers" in line:
            assert 'extra == "export"' in line


def test_checkpoints_are_a_distribution_of_their_own_found_beside_the_other(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    tree = tmp_path / "checkpoints"
    shutil.copytree(CHECKPOINTS, tree, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    weights = zipfile.ZipFile(build("wheel", tree, tmp_path / "weights"))
    files = {file for name in embedded.names() for file in (CHECKPOINTS / name).iterdir()}
    models = {in_wheel(file) for file in (*files, CHECKPOINTS / "__init__.py")}
    assert {name for name in weights.namelist() if ".dist-info/" not in name} == models
    told = "from mmgen.export.base import embedded; print(embedded.names()); print(embedded.folder('emoji'))"

    def ask() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'one'}:{tmp_path / 'two'}"}
        run = [sys.executable, "-S", "-c", f"import sys; sys.path.append({site.getsitepackages()[0]!r}); {told}"]
        return subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    install(wheel, tmp_path / "one")
    alone = ask()
    assert "pip install ./checkpoints" in alone.stderr and alone.stdout == "()\n"
    install(weights, tmp_path / "two")
    assert ask().stdout == f"('emoji', 'emoji-tokens')\n{tmp_path / 'two' / 'mmgen' / 'checkpoints' / 'emoji'}\n"


def test_wheel_from_sdist_is_the_same(copy: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", copy, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    again = zipfile.ZipFile(build("wheel", tree, tmp_path / "wheel"))
    assert sorted(again.namelist()) == sorted(wheel.namelist())
    for name in belongs_in_wheel():
        assert again.read(name) == wheel.read(name)
