"""A ``Request`` is what a call's arguments are: the same media, the same errors, and a result that keeps it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmgen.runtime import Generator, MmgenError, Request, load

RED = Request(conditions={"prompt": "red"}, steps=3, guidance=2.0, seed=5)


@pytest.fixture(scope="module")
def generator(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu", threads=1) as opened:
        yield opened


def test_it_makes_what_its_attributes_make_as_arguments(generator: Generator) -> None:
    wanted = generator.generate(prompt="red", steps=3, guidance=2.0, seed=5)
    assert np.array_equal(generator.generate(RED).media, wanted.media)
    *_, last = generator.stream(RED)
    assert np.array_equal(last.result().media, wanted.media)


def test_arguments_go_over_its_attributes_and_its_conditions(generator: Generator) -> None:
    blue = generator.generate(replace(RED, conditions={"prompt": "blue"}, seed=6))
    assert np.array_equal(generator.generate(RED, prompt="blue", seed=6).media, blue.media)
    assert np.array_equal(generator.generate(RED, conditions={"prompt": "blue"}, seed=6).media, blue.media)
    assert RED.seed == 5 and RED.conditions == {"prompt": "red"}


def test_a_result_keeps_its_request_and_so_can_be_made_again(generator: Generator) -> None:
    made = generator.generate(RED, prompt="blue", count=2)
    assert (made.request.conditions, made.request.count, made.request.steps) == ({"prompt": "blue"}, 2, 3)
    assert np.array_equal(generator.generate(made.request).media, made.media)


@pytest.mark.parametrize("request_", [{"prompt": "red"}, 3], ids=str)
def test_anything_else_in_its_place_is_one_clear_line(generator: Generator, request_: object) -> None:
    with pytest.raises(MmgenError, match=r"request, got .*, wanted the name of an output, or a Request"):
        generator.generate(request_)  # type: ignore[arg-type]


def test_an_output_that_is_not_there_is_refused(generator: Generator) -> None:
    with pytest.raises(MmgenError, match=r"output, got 'imagine', wanted 'image'; did you mean 'image'\?"):
        generator.generate("imagine", prompt="red")
    with pytest.raises(MmgenError, match="output, got 3, wanted 'image'"):
        generator.generate(output=3, prompt="red")


def test_a_condition_that_a_call_names_twice_is_refused(generator: Generator) -> None:
    with pytest.raises(MmgenError, match="condition 'prompt' is given twice"):
        generator.generate(conditions={"prompt": "red"}, prompt="blue")


def test_conditions_that_are_no_dictionary_are_one_clear_line(generator: Generator) -> None:
    with pytest.raises(MmgenError, match="conditions, got 'red', wanted a dictionary"):
        generator.generate(Request(conditions="red"))  # type: ignore[arg-type]
