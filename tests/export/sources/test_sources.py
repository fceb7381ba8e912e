"""Sources: what may be exported, users' own code among it, and what anything else is told."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tree import ROOT

from mmgen.export.base import embedded
from mmgen.export.sources import resolve
from mmgen.runtime.base.errors import MmgenError

# What a source may be


def test_two_models_are_embedded() -> None:
    assert embedded.names() == ("emoji", "emoji-tokens")


@pytest.mark.parametrize("name", embedded.names())
def test_embedded_models_are_checkpoints_named_after_their_folders(name: str) -> None:
    model = resolve(str(embedded.folder(name)))
    assert model.name == name
    assert [c.kind for c in model.conditions] == ["text"]
    assert model.tokenizer and model.media.kind == "image"


def test_without_a_source_it_is_the_default() -> None:
    assert resolve(None).name == embedded.DEFAULT


def test_embedded_models_are_small() -> None:
    files = [file for file in (ROOT / "checkpoints").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 45_000_000


@pytest.mark.parametrize(
    "source", ["no/such/folder", "facebook/DiT-XL-2-256", "weights.safetensors", "file.py:", "a b:c d"]
)
def test_anything_else_is_refused_with_the_list_of_what_is_accepted(source: str) -> None:
    with pytest.raises(MmgenError, match=r"model_index\.json.*package\.module:function"):
        resolve(source)


def test_a_folder_of_something_else_is_refused_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MmgenError, match=r"holds no model.*model_index\.json"):
        resolve(str(tmp_path))


def test_a_bundle_is_told_from_a_source(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(MmgenError, match="is a bundle already"):
        resolve(str(tmp_path))


# Users' own code

CODE = """
import dataclasses
from tiny import tiny_model
from mmgen.runtime.base.errors import MmgenError

def good():
    return tiny_model(name="mine", source="")

def wrong():
    return {"denoiser": None}

def breaks():
    return 1 / 0

def leaves():
    raise SystemExit("bye")

def refuses():
    raise MmgenError("no weights here", remedy="train first")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mine.py in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(CODE)
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("form", ["mine:good", "mine.py:good", "{path}:good"])
def test_users_code_is_found_from_the_current_folder_and_by_its_file(code: Path, form: str) -> None:
    source = form.format(path=code)
    model = resolve(source)
    assert (model.name, model.source) == ("mine", source) and len(model.source_sha256) == 64


def test_a_file_imports_its_neighbours(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "other.py").write_text("from mine import good")
    assert resolve(str(tmp_path / "other.py") + ":good").name == "mine"


def test_the_hash_of_users_weights_changes_with_them(code: Path) -> None:
    one = resolve("mine:good")
    code.write_text(CODE.replace("return tiny_model", "import torch; torch.manual_seed(1); return tiny_model"))
    code.write_text(
        code.read_text() + "\ndef other():\n    m = good()\n    m.denoiser.head.bias.data[0] = 1\n    return m\n"
    )
    sys.modules.pop("mine")
    assert resolve("mine:good").source_sha256 == one.source_sha256
    assert resolve("mine:other").source_sha256 != one.source_sha256


@pytest.mark.parametrize(
    ("source", "message", "cause"),
    [
        ("mine:missing", "mine has no function 'missing', wanted one of .*breaks.*good", None),
        ("mine:wrong", r"mine:wrong returned, got builtins\.dict, wanted mmgen\.export\.Model", None),
        (
            "mine:breaks",
            r"mine:breaks failed \(ZeroDivisionError: division by zero\); run with --debug",
            ZeroDivisionError,
        ),
        ("mine:leaves", r"mine:leaves failed \(SystemExit: bye\)", SystemExit),
        ("mine:refuses", "no weights here; train first", None),
        ("nowhere.at_all:make", r"nowhere\.at_all can't be imported \(ModuleNotFoundError", ModuleNotFoundError),
        ("nowhere.py:make", r"nowhere\.py can't be imported \(FileNotFoundError", FileNotFoundError),
    ],
)
def test_what_is_wrong_with_users_code_is_said_and_its_traceback_kept(
    code: Path, source: str, message: str, cause: Any
) -> None:
    with pytest.raises(MmgenError, match=message) as caught:
        resolve(source)
    assert cause is None or isinstance(caught.value.__cause__, cause)


def test_a_file_that_does_not_import_leaves_no_module_behind(code: Path) -> None:
    code.write_text("import nothing_of_that_name")
    with pytest.raises(MmgenError, match=r"mine\.py can't be imported"):
        resolve("mine.py:good")
    assert "mine" not in sys.modules


def test_the_planner_example_goes_round_the_obstacle() -> None:
    """Euler's method by hand on the example's model: paths join start and goal, on either side of the disc."""
    model = resolve(str(ROOT / "examples" / "planner.py") + ":model")
    asked = torch.tensor([[-1.0, 0.1, 1.0, -0.2]]).repeat(64, 1)
    x = torch.randn(64, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    for i in range(10):
        x = x - model.denoiser(x, torch.full((64,), 1 - i / 10), asked) / 10
    assert (x[:, 0] - asked[:, :2]).abs().max() < 0.1 and (x[:, -1] - asked[:, 2:]).abs().max() < 0.1
    assert (x.norm(dim=2).amin(1) > 0.4).float().mean() > 0.9
    assert 0.2 < (x[:, 8, 1] > 0).float().mean() < 0.8
