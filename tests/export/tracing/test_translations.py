"""Torch operators that are translated here: each gives in ONNX what it gives in torch."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from tolerances import LIMITS
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from traced import call, play

from mmgen.export.base.lint import lint
from mmgen.export.graphs.latent import Source
from mmgen.export.tracing.trace import trace
from mmgen.runtime.verify import relative_rms


class Several(nn.Module):
    """Functions of the same tensors, in one graph."""

    def __init__(self, functions: dict[str, Callable[..., Tensor]], **buffers: Tensor) -> None:
        super().__init__()
        self.functions = functions
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*inputs, *self.buffers()) for function in self.functions.values())


def errors(folder: Path, module: nn.Module, outputs: list[str], *inputs: Tensor) -> dict[str, float]:
    """Relative RMS of each output in ONNX, the worse of a batch of 3 and a batch of 1; TensorRT takes the graph."""
    named = {f"input{i}": x for i, x in enumerate(inputs)}
    source = Source("condition", module.eval(), named, dict.fromkeys(named, ("R",)), tuple(outputs))
    path = folder / "condition.onnx"
    trace(source, path)
    lint(path)
    found = dict.fromkeys(outputs, 0.0)
    for given in (named, {name: x[:1] for name, x in named.items()}):
        for name, got, want in zip(outputs, play(path, given), call(source, given), strict=True):
            assert got.shape == want.shape, name
            found[name] = max(found[name], relative_rms(got, want))
    return found


def test_squeeze_leaves_axes_alone_that_are_not_1(tmp_path: Path) -> None:
    functions: dict[str, Callable[..., Tensor]] = {
        "an axis of 1": lambda x: x.squeeze(2),
        "another axis": lambda x: x.squeeze(1) + 0,
        "one after another": lambda x: x[:, None].squeeze(1).squeeze(1) + 0,
        "several": lambda x: x.squeeze((1, 2, -1)),
        "counted from the end": lambda x: x.squeeze(-2).squeeze(-1) + 0,
    }
    x = torch.randn(3, 4, 1, 5)
    assert max(errors(tmp_path, Several(functions), list(functions), x).values()) < LIMITS["traced graph"]


def test_squeeze_of_everything_keeps_a_batch_of_1(tmp_path: Path) -> None:
    source = Source("condition", Several({"all": lambda x: x.squeeze() * 2}), {"x": torch.randn(3, 1, 5)},
                    {"x": ("R",)}, ("out",))  # fmt: skip
    trace(source, tmp_path / "condition.onnx")
    assert play(tmp_path / "condition.onnx", {"x": torch.ones(1, 1, 5)})[0].shape == (1, 5)


@pytest.mark.parametrize(
    "equation",
    [
        "... i d, ... j d -> ... i j",
        "b...d,b...d->b...",
        "Bhid, Bhjd -> Bhij",
        "...ij,jk",
        "bhid,bhjd,bhjk->bhik",
        "b...,d->b...d",
        "bhid->bdi",
    ],
)
def test_einsum(equation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    operands = {
        "...ij,jk": lambda a, b: (a, b[0, 0].mT),
        "bhid,bhjd,bhjk->bhik": lambda a, b: (a, b, b),
        "b...,d->b...d": lambda a, b: (a[..., 0], b[0, 0, 0]),
        "bhid->bdi": lambda a, b: (a,),
    }.get(equation, lambda a, b: (a, b))
    constant = torch.randn(1, 2, 4, 5)  # what doesn't vary with the batch

    def function(a: Tensor, constant: Tensor) -> Tensor:
        return torch.einsum(equation, *operands(a, constant.expand(a.shape[0], -1, -1, -1)))

    found = errors(tmp_path, Several({"out": function}, constant=b[:1] + constant), ["out"], a)
    assert found["out"] < LIMITS["traced graph"]


def test_einsum_repeats_an_axis_of_1_behind_an_ellipsis(tmp_path: Path) -> None:
    found = errors(tmp_path, Several({"out": lambda a, b: torch.einsum("...d,...d->...", a, b)}), ["out"],
                   torch.randn(3, 4, 5), torch.randn(3, 1, 5))  # fmt: skip
    assert found["out"] < LIMITS["traced graph"]


@pytest.mark.parametrize("bits", ["one bit each", "several", "a number"])
def test_bits_of_whole_numbers_are_exact(bits: str, tmp_path: Path) -> None:
    mask = {"one bit each": 2 ** torch.arange(5), "several": torch.tensor([3, 6, 0, 255, 17]),
            "a number": torch.tensor(13)}[bits]  # fmt: skip
    functions: dict[str, Callable[..., Tensor]] = {
        "and": lambda x, m: x & m,
        "bits": lambda x, m: ((x & m) != 0).float(),
        "or": lambda x, m: x | m,
        "xor": lambda x, m: m ^ x,
        "not": lambda x, m: ~x,
        "right": lambda x, m: (x >> 2) + (x >> (m & 3)),
        "left": lambda x, m: (x << 3) + (x << (m & 3)),
    }
    x = torch.cat([torch.arange(20), torch.tensor([-1, -7, -256, 1 << 30, 12345])]).reshape(5, 5)
    assert set(errors(tmp_path, Several(functions, mask=mask), list(functions), x).values()) == {0.0}


class TestWeightNorm:
    @pytest.mark.parametrize("module", ["layer norm", "convolution", "transposed", "parametrised", "spectral", "whole"])
    def test_is_what_it_is_in_torch_and_gives_stored_weights(self, module: str, tmp_path: Path) -> None:
        """TimeVQVAE's feed-forward has it on a LayerNorm, codecs on every convolution."""
        torch.manual_seed(0)
        net: nn.Module = {
            "layer norm": lambda: weight_norm(nn.LayerNorm(8)),
            "convolution": lambda: weight_norm(nn.Conv1d(4, 6, 3, padding=1)),
            "transposed": lambda: weight_norm(nn.ConvTranspose1d(4, 6, 3), dim=1),
            "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)),
            "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)),
            "whole": lambda: weight_norm(nn.Linear(8, 6), dim=None),
        }[module]()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        found = errors(tmp_path, nn.Sequential(net), ["out"], torch.randn(3, 4, 8))
        assert found["out"] < LIMITS["traced graph"]
        operators = [node.op_type for node in onnx.load(tmp_path / "condition.onnx").graph.node]
        assert len(operators) <= 2, f"weights are computed in {operators}"


def test_a_query_that_may_attend_to_nothing_gives_zero(tmp_path: Path) -> None:
    attention = nn.functional.scaled_dot_product_attention
    functions: dict[str, Callable[..., Tensor]] = {
        "bool": lambda q, seen: attention(q, q, q, attn_mask=seen > 0),
        "added": lambda q, seen: attention(q, q, q, attn_mask=torch.where(seen > 0, 0.0, -torch.inf)),
    }
    seen = torch.ones(3, 1, 5, 5)
    seen[:, :, 2] = 0
    assert max(errors(tmp_path, Several(functions), list(functions), torch.randn(3, 2, 5, 8), seen).values()) < LIMITS[
        "traced graph"
    ]


@pytest.mark.parametrize("number", [1e-8, 1e-12, 1e-30])
def test_a_small_number_is_not_zero(number: float, tmp_path: Path) -> None:
    functions: dict[str, Callable[..., Tensor]] = {
        "added": lambda x: x / (x.norm(dim=-1, keepdim=True) + number),
        "subtracted": lambda x: x / (x.norm(dim=-1, keepdim=True) - number),
        "the least": lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=number),
    }
    x = torch.randn(3, 4)
    x[0] = 0
    found = errors(tmp_path, Several(functions), list(functions), x)
    assert max(found.values()) < LIMITS["traced graph"], found


def test_a_number_near_one_is_not_one(tmp_path: Path) -> None:
    functions: dict[str, Callable[..., Tensor]] = {
        "times": lambda x: (x * (1 + 1e-5) - x) * 1e5,
        "divided": lambda x: (x / (1 - 1e-5) - x) * 1e5,
    }
    found = errors(tmp_path, Several(functions), list(functions), torch.randn(3, 4))
    assert max(found.values()) < LIMITS["differences of near numbers"], found
