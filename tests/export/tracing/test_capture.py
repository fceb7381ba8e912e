"""What torch.export makes of modules that other people wrote."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import LIMITS
from torch import Tensor, nn
from traced import call, play

from mmgen.export.base.lint import lint
from mmgen.export.graphs.latent import Source
from mmgen.export.tracing.trace import trace
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.verify import relative_rms


def traced(folder: Path, module: nn.Module, axes: tuple[str, ...] = ("B",), **inputs: Tensor) -> tuple[Source, Path]:
    source = Source("decode", module.eval(), inputs, dict.fromkeys(inputs, axes), ("out",))
    path = folder / "decode.onnx"
    trace(source, path)
    lint(path)
    return source, path


def error(source: Source, path: Path) -> float:
    given = {name: x[:1] for name, x in source.inputs.items()}
    return max(relative_rms(play(path, x)[0], call(source, x)[0]) for x in (source.inputs, given))


def test_axes_of_one_name_are_one_size(tmp_path: Path) -> None:
    """As diffusers shapes an attention's mask: by the batch of the context."""

    class Masked(nn.Module):
        def forward(self, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
            mask = seen.repeat_interleave(2, 0).view(context.shape[0], 2, -1, seen.shape[-1])
            scores = x.unflatten(2, (2, -1)).transpose(1, 2) @ context.unflatten(2, (2, -1)).transpose(1, 2).mT
            return (scores + mask).flatten(1)

    inputs = {"x": torch.randn(3, 5, 8), "context": torch.randn(3, 4, 8), "seen": torch.randn(3, 1, 4)}
    assert error(*traced(tmp_path, Masked(), **inputs)) < LIMITS["traced graph"]


class Reads(nn.Module):
    """Takes Python values of its own tensors."""

    def __init__(self, way: Callable[["Reads", Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.linear = way, nn.Linear(4, 4)
        self.register_buffer("ready", torch.tensor(True))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("scale", torch.tensor([2.5]), persistent=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, self.linear(x))


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x: x * 2 if m.ready else x,
        lambda m, x: x * 2 if not m.ready.logical_not() else x,
        lambda m, x: nn.functional.pad(x, (0, int(m.count))),
        lambda m, x: x * m.scale.item() + float(m.count),
        lambda m, x: nn.functional.pad(x, (m.count - 1, m.count))[..., m.count - 2 : -m.count],
        lambda m, x: x[..., : m.count] + x[:, m.count, None] + torch.arange(m.count),
        lambda m, x: x.repeat(*[1] * (x.ndim - 1), m.count),
        lambda m, x: x if torch.equal(m.mask, nn.Transformer.generate_square_subsequent_mask(4)) else -x,
        lambda m, x: sum((x * i for i in range(m.count.tolist())), start=x),
        lambda m, x: x * m.mask.isfinite().sum(1).tolist()[1],
        lambda m, x: x + m.linear.weight.detach().abs().max().item(),
        lambda m, x: x if bool((m.mask <= 0).all()) and m.count > 2 else -x,
    ],
)
def test_a_buffer_is_read_as_a_python_value(way: Callable[[Reads, Tensor], Tensor], tmp_path: Path) -> None:
    """EnCodec's padding, vector-quantize-pytorch's ``initted``, nn.TransformerDecoder's look at its mask."""
    torch.manual_seed(0)
    assert error(*traced(tmp_path, Reads(way), x=torch.randn(3, 4))) < LIMITS["traced graph"]


def test_a_transformer_decoder_with_a_causal_mask(tmp_path: Path) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.layers(x, memory, tgt_mask=self.mask)

    torch.manual_seed(0)
    inputs = {"x": torch.randn(3, 5, 8), "memory": torch.randn(3, 2, 8)}
    assert error(*traced(tmp_path, Decoder(), **inputs)) < LIMITS["traced graph"]


def test_what_depends_on_an_input_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    module = Reads(lambda m, x: x if m.ready and x.sum() > 0 else -x)
    with pytest.raises(MmgenError, match=r"at \S*test_capture\.py:\d+: module = Reads\(lambda m, x: x if m\.ready and"):
        traced(tmp_path, module, x=torch.randn(3, 4))


@pytest.mark.parametrize(
    "way",
    [
        lambda m, x: x.reshape(int(x.shape[0]) * 2, 2),
        lambda m, x: torch.stack(list(x.unbind(0))),
        lambda m, x: x[: len(x)],
    ],
)
def test_a_batch_that_becomes_a_plain_number_is_an_error_that_names_the_line(
    way: Callable[[Reads, Tensor], Tensor], tmp_path: Path
) -> None:
    with pytest.raises(MmgenError, match=r"graph decode.* at \S*test_capture\.py:\d+: "):
        traced(tmp_path, Reads(way), x=torch.randn(3, 4))


def test_a_number_that_depends_on_values_is_no_size_of_the_batch(tmp_path: Path) -> None:
    module = Reads(lambda m, x: x[:, : int(x.argmax())] if int(x.argmax()) < 4 else x)
    line = r"\S*test_capture\.py:\d+: module = Reads\(lambda m, x: x\[:"
    with pytest.raises(MmgenError, match=rf"can't be traced .* at {line}"):
        traced(tmp_path, module, x=torch.randn(3, 4))


def test_an_operator_that_onnx_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=r"at \S*test_capture\.py:\d+: return self\.way.*: .*lgamma"):
        traced(tmp_path, Reads(lambda m, x: torch.lgamma(x)), x=torch.rand(3, 4))


class Snake(torch.jit.ScriptModule):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(4) + 0.2)

    @torch.jit.script_method
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + (1 / self.a) * torch.sin(self.a * x) ** 2


class TestTorchScript:
    def test_of_a_class_is_played_as_python(self, tmp_path: Path) -> None:
        module = nn.Sequential(nn.Linear(4, 4), Snake())
        assert error(*traced(tmp_path, module, x=torch.randn(3, 4))) < LIMITS["traced graph"]
        assert isinstance(module[1], Snake)

    def test_whose_python_is_unknown_is_an_error(self, tmp_path: Path) -> None:
        module = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
        with pytest.raises(MmgenError, match=r"submodule 1 is TorchScript.*give the Python module"):
            traced(tmp_path, module, x=torch.randn(3, 4))


def test_float64_inside_becomes_float32(tmp_path: Path) -> None:
    """As openpi and lerobot embed the time."""

    class Angles(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            period = 4e-3 * 1000.0 ** torch.linspace(0.0, 1.0, 8, dtype=torch.float64)
            return torch.sin((2 * np.pi / period)[None] * t[:, None]).type(t.dtype)

    assert error(*traced(tmp_path, Angles(), t=torch.rand(3) * 0.1)) < LIMITS["angles in float32"]
