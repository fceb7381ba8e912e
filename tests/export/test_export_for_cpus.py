"""Models with operators that TensorRT doesn't have: refused, or exported for CPUs alone and validated there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from traced_once import traced_once

from mmgen.export.base.answer import answers
from mmgen.export.base.lint import lint_for_cpu
from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.export.half.precision import to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.runtime import Generator, load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.process import Flow
from mmgen.runtime.storage.schema import Bundle, Condition, Defaults, Media
from mmgen.runtime.verify import verify

WIDTH = 48


class Spectral(nn.Module):
    """A denoiser with a Fourier transform and a sum of what is scattered."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("weight", torch.linspace(1, 0, WIDTH // 2 + 1))
        self.register_buffer("place", torch.arange(WIDTH).flip(0) // 2)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        h = self.first(x.flatten(1) + timestep[:, None] + label[:, None] / 4).relu()
        h = torch.fft.irfft(torch.fft.rfft(h) * self.weight, n=WIDTH)
        h = torch.zeros_like(h).scatter_add(1, self.place.expand_as(h), h)
        return self.last(h).reshape(x.shape)


def spectral() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(
            name="spectral",
            process=Flow(timestep_scale=1.0),
            latent_shape=(3, 4, 4),
            denoiser=Spectral(),
            conditions=(Condition("label", "class", null=4, count=4),),
            media=Media("image", (4, 4, 3), "uint8"),
            defaults=Defaults("flow-euler", steps=3, guidance=2.0),
            decoder=nn.Identity(),
        )


def test_for_every_device_it_is_refused_with_the_reasons_and_the_way_out(model: Model, tmp_path: Path) -> None:
    with pytest.raises(MmgenError) as caught:
        export(model, tmp_path / "s.mmgen", policy="fp32")
    line = str(caught.value)
    assert "graph step can't be built for every device: DFT " in line and " and 1 more: TensorRT has no such" in line
    assert "TensorRT scatters without a reduction only" in line
    assert f"{Path(__file__).name}:" in line and line.endswith("or export for CPUs alone: --target cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with traced_once(tmp_path_factory.mktemp("traces")):
        yield spectral()


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def made(request: pytest.FixtureRequest, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("spectral")
    return export(model, folder / "s.mmgen", policy=request.param, cpu_only=True)


def test_for_cpus_alone_it_says_why_without_anybodys_files(made: Bundle) -> None:
    assert set(made.cpu_only) == {"step"}
    said = "; ".join(made.cpu_only["step"])
    assert "DFT " in said and "ScatterElements " in said and "(denoiser)" in said
    assert ".py" not in said
    assert (made.precision.policy == "fp16") == bool(made.precision.half_share)


def test_it_runs_where_it_was_validated(made: Bundle, model: Model) -> None:
    with load(made.folder) as generator:
        assert generator.backend == "ort-cpu"
        assert follows(generator, model)
    assert all(receipt.passed for receipt in verify(made.folder))


@torch.no_grad()
def follows(generator: Generator, model: Model) -> bool:
    """Whether a request's latents are those of Euler's method by hand in torch."""
    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = generator.generate(label=1, noise=noise.numpy())
    x = noise
    for i in range(3):
        t = torch.full((1,), 1 - i / 3)
        asked, null = (model.denoiser(x, t, torch.tensor([label])) for label in (1, 4))
        x = x - (null + 2 * (asked - null)) / 3
    return bool((x - torch.from_numpy(made.latents)).norm() < 1e-3 * x.norm())


def test_what_onnx_runtime_has_no_half_form_of_stays_float32(tmp_path: Path, made: Bundle) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(made.path(made.graphs["step"].file), load_external_data=False))
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    (scatter,) = [node for node in graph.graph.node if node.op_type == "ScatterElements"]
    assert types[scatter.output[0]] == onnx.TensorProto.FLOAT


HOLDERS = {
    "sequence": "{ a = MatMul(x, w) s = SplitToSequence <axis = 1> (a, k) t = Identity(s) b = SequenceAt(t, i) "
    "y = MatMul(b, v) }",
    "optional": "{ a = MatMul(x, w) o = Optional(a) p = OptionalGetElement(o) b, c = Split <axis = 1> (p, h) "
    "y = MatMul(b, v) }",
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_holds_tensors_holds_them_in_float32(kind: str, tmp_path: Path) -> None:
    """So that what goes in and what comes out have one type; the layers around it are half."""
    numbers = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g (float[N,64] x) => (float[N,32] y) {HOLDERS[kind]}'
    )
    given = {"w": numbers.normal(size=(64, 64)), "v": numbers.normal(size=(16, 32))}
    weights = {name: array.astype(np.float32) for name, array in given.items()}
    sizes = {"k": np.array(16), "i": np.array(1)} if kind == "sequence" else {"h": np.array([16, 48])}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in (weights | sizes).items())
    onnx.save(model, source := tmp_path / "decode.onnx")
    assert lint_for_cpu(source)
    x = numbers.normal(size=(2, 64)).astype(np.float32)
    halved = to_half(source, tmp_path / "half.onnx", measure_ranges(source, [{"x": x}]), role="decode")
    assert halved.share.weight_bytes == 1.0
    exact, half = (answers("decode", path)({"x": x})["y"] for path in (source, tmp_path / "half.onnx"))
    assert 0 < np.abs(half - exact).max() < 2e-3 * np.abs(exact).max()  # 5e-4
