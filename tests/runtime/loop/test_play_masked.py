"""A bundle of tokens with engines on the stand-in: recorded, streamed or failing, its tokens are ONNX Runtime's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

from play import Machine, each_flavour, same
from standin_device import Status
from tiny_tokens import tiny_token_model

from mmgen.runtime import Generator, MmgenError

pytest_plugins = ["played"]
ASKED: dict[str, Any] = {"label": [3, 7], "seed": 5, "steps": 3}


@pytest.fixture(scope="module")
def played(exported_once: Callable[..., Path]) -> Path:
    return exported_once(tiny_token_model)


@each_flavour
@pytest.mark.parametrize("solver", ["maskgit", "amused", "mdlm", "llada"])
def test_tokens_of_a_recorded_loop_are_those_of_onnx_runtime(
    machine: Machine, generator: Generator, wanted: Generator, solver: str
) -> None:
    for seed in (5, 6):  # the second request finds the memory and the graph of the first
        asked = ASKED | {"solver": solver, "seed": seed}
        same(generator.generate(**asked), wanted.generate(**asked))
    assert machine.cuda.calls.count("cudaGraphLaunch") == 2, "a request is one graph"
    assert machine.cuda.calls.count("cudaGraphInstantiate") == 1


@each_flavour
def test_a_stream_is_the_same_row_by_row(machine: Machine, generator: Generator, wanted: Generator) -> None:
    for ours, theirs in zip(generator.stream(**ASKED), wanted.stream(**ASKED), strict=True):
        np.testing.assert_array_equal(ours.latents(), theirs.latents())
        np.testing.assert_array_equal(ours.preview(), theirs.preview())
    assert "cudaGraphLaunch" not in machine.cuda.calls
    same(generator.generate(**ASKED), wanted.generate(**ASKED))


@each_flavour
def test_requests_of_other_sizes_alternate_and_codes_are_decoded(generator: Generator, wanted: Generator) -> None:
    for size in ({"count": 1}, {"count": 3}, {"guidance": 1.0}, {"steps": 5}, {"count": 1}):
        expected = wanted.generate(**ASKED | size)
        same(generator.generate(**ASKED | size), expected)
        np.testing.assert_array_equal(generator.decode(expected.codes)[0], expected.media)


@each_flavour
def test_after_any_call_fails_once_the_same_generator_works(
    machine: Machine, generator: Generator, wanted: Generator
) -> None:
    expected = wanted.generate(**ASKED)
    generator.generate(**ASKED)  # lays out memory and records
    machine.cuda.calls.clear()
    generator.generate(**ASKED)
    for call in range(1, len(machine.cuda.calls) + 1):
        machine.cuda.fail("", Status.cudaErrorUnknown, call)
        try:
            same(generator.generate(**ASKED), expected)  # it may go on without what failed
        except MmgenError as error:
            assert "cudaErrorUnknown" in str(error), f"call {call}: {error}"
        machine.cuda.heal()
        same(generator.generate(**ASKED), expected)
