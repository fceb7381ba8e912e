"""A bundle of texts with engines on the stand-in: no decoder, evaluations left out, and texts as ONNX Runtime's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import numpy as np
from play import Machine, each_flavour, same
from standin_device import Status
from tiny_words import tiny_word_model

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.verify import verify

pytest_plugins = ["played"]
ASKED: dict[str, Any] = {"label": [1, 4], "seed": 5, "steps": 12}
WAYS: tuple[dict[str, Any], ...] = (
    {}, {"options": {"blocks": 4, "threshold": 0.1}}, {"steps": 24, "options": {"threshold": 0.02}},
    {"solver": "maskgit", "options": {"blocks": 3}},
)  # fmt: skip


@pytest.fixture(scope="module")
def played(exported_once: Callable[..., Path]) -> Path:
    return exported_once(tiny_word_model)


@each_flavour
@pytest.mark.parametrize("way", WAYS)
def test_texts_are_those_of_onnx_runtime(machine: Machine, generator: Generator, wanted: Generator, way: dict) -> None:
    for seed in (5, 6):
        asked = ASKED | way | {"seed": seed}
        ours, theirs = generator.generate(**asked), wanted.generate(**asked)
        same(ours, theirs)
        assert ours.texts == theirs.texts and ours.evaluations_run == theirs.evaluations_run <= ours.evaluations
    assert "cudaGraphLaunch" not in machine.cuda.calls, "what may end early isn't recorded"


@each_flavour
@pytest.mark.parametrize("way", WAYS)
def test_a_stream_leaves_out_the_same_rows(generator: Generator, wanted: Generator, way: dict) -> None:
    for ours, theirs in zip(generator.stream(**ASKED | way), wanted.stream(**ASKED | way), strict=True):
        assert (ours.evaluation, ours.last) == (theirs.evaluation, theirs.last)
        np.testing.assert_array_equal(ours.latents(), theirs.latents())
        np.testing.assert_array_equal(ours.preview(), theirs.preview())
    same(ours.result(), theirs.result())


@each_flavour
def test_it_is_verified_and_decodes(machine: Machine, built: Callable[[str], Path], wanted: Generator) -> None:
    assert all(receipt.passed for receipt in verify(built(machine.release), machine.flavour))
    with load(built(machine.release), machine.flavour) as opened:
        codes = np.array([[4, 2, *[5] * 22]])
        np.testing.assert_array_equal(opened.decode(codes)[0], wanted.decode(codes)[0])


@each_flavour
def test_after_any_call_fails_once_the_same_generator_works(
    machine: Machine, generator: Generator, wanted: Generator
) -> None:
    asked = ASKED | WAYS[1]
    expected = wanted.generate(**asked)
    generator.generate(**asked)  # lays out memory
    machine.cuda.calls.clear()
    generator.generate(**asked)
    for call in range(1, len(machine.cuda.calls) + 1):
        machine.cuda.fail("", Status.cudaErrorUnknown, call)
        try:
            same(generator.generate(**asked), expected)  # it may go on without what failed
        except MmgenError as error:
            assert "cudaErrorUnknown" in str(error), f"call {call}: {error}"
        machine.cuda.heal()
        same(generator.generate(**asked), expected)
