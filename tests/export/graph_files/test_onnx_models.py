"""Models that exist only as ONNX files: in a ``Model``, and with a description on the command line."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from tolerances import LIMITS
from torch import Tensor, nn

from mmgen.export import Condition, Defaults, Flow, Media, MmgenError, Model, OnnxModule, export, resolve
from mmgen.export.cli import main
from mmgen.runtime import load
from mmgen.runtime.verify import relative_rms

DESCRIPTION = """
name = "file"
x = "sample"
timestep = "time"
latent_shape = [2, 6]
conditions = [{name = "hint", kind = "array", shape = [3], null = 0.0}]
process = {kind = "flow", timestep_scale = 1.0}
media = {kind = "array", shape = [2, 6], dtype = "float32"}
defaults = {solver = "flow-euler", steps = 4, guidance = 2.0}
licence = "MIT"
"""
HINT = np.array([0.5, -1, 2], np.float32)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2 * 6 + 1 + 3, 64), nn.Linear(64, 2 * 6)

    def forward(self, sample: Tensor, time: Tensor, hint: Tensor) -> Tensor:
        h = torch.cat([sample.flatten(1), time[:, None], hint], 1)
        return self.last(nn.functional.silu(self.first(h))).reshape(sample.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.onnx, as another program exported it, and a description."""
    made = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        Network(), (torch.zeros(2, 2, 6), torch.zeros(2), torch.zeros(2, 3)), made / "net.onnx", dynamo=True,
        input_names=["sample", "time", "hint"], output_names=["velocity"], external_data=False,
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}), verbose=False,
    )  # fmt: skip
    (made / "model.toml").write_text(DESCRIPTION)
    return made


def euler(file: Path, noise: np.ndarray, guidance: float) -> np.ndarray:
    """Four Euler steps with the file itself, from noise at time 1 to data at time 0."""
    session = onnxruntime.InferenceSession(file)

    def velocity(x: np.ndarray, time: float, hint: np.ndarray) -> np.ndarray:
        return session.run(None, {"sample": x, "time": np.full(1, time, np.float32), "hint": hint[None]})[0]

    x = noise
    for step in range(4):
        given, null = (velocity(x, 1 - step / 4, hint) for hint in (HINT, 0 * HINT))
        x = x - (null + guidance * (given - null)) / 4
    return x


def exported(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    arguments = [str(folder / "net.onnx"), "--describe", str(folder / "model.toml"), "-o", str(out), "--no-engines"]
    result = CliRunner().invoke(main, [*arguments, "--json", *options])
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.mark.parametrize(("policy", "limit"), [("--fp32", "ONNX file"), ("--fp16", "ONNX file, half")])
def test_a_bundle_plays_what_the_file_says(folder: Path, tmp_path: Path, policy: str, limit: str) -> None:
    record = exported(folder, tmp_path / "a.mmgen", policy)
    assert record["licence"] == "MIT" and {receipt["level"] for receipt in record["receipts"]} >= {1, 3, 4}
    noise = np.random.default_rng(0).standard_normal((1, 2, 6), np.float32)
    with load(tmp_path / "a.mmgen", "ort-cpu") as generator:
        made = generator.generate(hint=HINT, noise=noise)
    assert relative_rms(made.media, euler(folder / "net.onnx", noise, 2.0)) < LIMITS[limit]


def test_a_file_is_a_module_of_any_model(folder: Path, tmp_path: Path) -> None:
    model = Model(
        name="mine", process=Flow(timestep_scale=1.0), latent_shape=(2, 6), denoiser=OnnxModule(folder / "net.onnx"),
        conditions=(Condition("hint", "array", shape=(3,), null=0.0),), media=Media("array", (2, 6), "float32"),
        defaults=Defaults("flow-euler", 4, guidance=2.0), decoder=nn.Identity(),
    )  # fmt: skip
    noise = np.random.default_rng(1).standard_normal((1, 2, 6), np.float32)
    with load(export(model, tmp_path / "a.mmgen", policy="fp32").folder, "ort-cpu") as generator:
        made = generator.generate(hint=HINT, noise=noise)
    assert relative_rms(made.media, euler(folder / "net.onnx", noise, 2.0)) < LIMITS["ONNX file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('x = "sample"', 'x = "sampel"'), "no input 'sampel', .*did you mean 'sample'"),
        (lambda text: text.replace('x = "sample"\n', ""), "field 'x' is missing"),
        (lambda text: text.replace('timestep = "time"\n', ""), "field 'timestep' is missing"),
        (lambda text: text + "colour = 3\n", "unknown field 'colour'"),
        (lambda text: text.replace("steps = 4", 'steps = "4"'), "defaults: steps, got '4'"),
        (lambda text: text.replace('"flow",', '"flaw",'), "process: kind, got 'flaw'"),
        (lambda text: text.replace('name = "hint"', 'name = "help"'), "no input 'help'"),
        (lambda text: text.replace("latent_shape = [2, 6]", "latent_shape = [2, 7]"), "sample"),
        (lambda text: text + 'decoder = "nowhere.onnx"\n', r"nowhere\.onnx"),
        (lambda text: text + 'output = "speed"\n', "no output 'speed'"),
        (lambda text: text + 'tokenizer = "nowhere.json"\n', r"nowhere\.json can't be read"),
        (lambda text: text + "name =\n", "is not TOML"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_description_that_does_not_fit_is_one_error(
    folder: Path, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    (tmp_path / "model.toml").write_text(change(DESCRIPTION))
    with pytest.raises(MmgenError, match=message) as caught:
        model = resolve(str(folder / "net.onnx"), description=tmp_path / "model.toml")
        export(model, tmp_path / "a.mmgen", policy="fp32")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.mmgen").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.onnx", b"", "empty|not|no "),
        ("text.onnx", b"this is no graph at all, but text", "ONNX"),
        ("nowhere.onnx", None, "nowhere"),
    ],
)
def test_a_file_that_is_none_is_one_error(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MmgenError, match=message):
        OnnxModule(tmp_path / name)


def test_without_a_description_it_says_what_is_needed(folder: Path) -> None:
    result = CliRunner().invoke(main, [str(folder / "net.onnx")])
    assert result.exit_code == 1 and "--describe" in str(result.output)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("terrain_diffusion"), reason="adaptive-terrain-diffusion is not here")
@pytest.mark.parametrize("policy", ["fp32", "fp16"])
def test_a_trained_model_of_somebody_else_makes_its_own_heights(tmp_path: Path, policy: str) -> None:
    """One step of a consistency model: x0 = D(sigma_max noise, sigma_max), as Song et al. 2023 sample."""
    spec = importlib.util.find_spec("terrain_diffusion")
    assert spec is not None and spec.submodule_search_locations
    (file,) = Path(spec.submodule_search_locations[0], "weights").glob("*unet*.onnx")
    (tmp_path / "terrain.toml").write_text("""
name = "terrain"
x = "noisy"
timestep = "sigma"
latent_shape = [1, 128, 128]
conditions = [{name = "difficulty", kind = "array", shape = []}]
process = {kind = "edm"}
media = {kind = "array", shape = [1, 128, 128], dtype = "float32"}
defaults = {solver = "consistency", steps = 1}
""")
    arguments = [str(file), "--describe", str(tmp_path / "terrain.toml"), "-o", str(tmp_path / "a.mmgen")]
    result = CliRunner().invoke(main, [*arguments, "--no-engines", f"--{policy}"])
    assert result.exit_code == 0, result.output
    noise = np.random.default_rng(0).standard_normal((1, 1, 128, 128), np.float32)
    given = {"noisy": 80 * noise, "sigma": np.full(1, 80, np.float32), "difficulty": np.full(1, 0.4, np.float32)}
    (wanted,) = onnxruntime.InferenceSession(file).run(None, given)
    with load(tmp_path / "a.mmgen", "ort-cpu") as generator:
        made = generator.generate(difficulty=np.float32(0.4), noise=noise)
    assert relative_rms(made.media, wanted) < LIMITS[f"terrain, {policy}"]
