"""A request's arguments are taken for what they are, or refused in one line that says what was wanted."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given import NO_NUMBERS, STATE, Odd

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.backends.registry import NAMES
from mmgen.runtime.base.choices import near
from mmgen.runtime.base.errors import shown
from mmgen.runtime.cli.arguments import conditions as read_conditions
from mmgen.runtime.solvers.masked import table as masked_table
from mmgen.runtime.solvers.registry import table
from mmgen.runtime.storage.process import Flow, Masked
from mmgen.runtime.verify import verify

ASKED: dict[str, Any] = {"prompt": "red", "label": 1, "steps": 2}
LATENTS = np.zeros((1, 4, 8, 8), np.float32)


@pytest.fixture(scope="module")
def generator(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu", threads=np.int64(1)) as opened:
        yield opened


# what is near


@pytest.mark.parametrize(
    ("given", "choices", "found"),
    [
        ("promt", ("prompt", "label"), "prompt"),
        ("Prompt", ("prompt", "label"), "prompt"),
        ("dpmpp_2m", ("ddim", "dpmpp-2m"), "dpmpp-2m"),
        ("opnvino", NAMES, "openvino"),
        ("magic", ("ddim", "euler"), None),
        (3, ("ddim", "euler"), None),
    ],
)
def test_a_name_with_a_slip(given: Any, choices: tuple[str, ...], found: str | None) -> None:
    assert near(given, choices) == found


# a request's arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance": np.float32(3)},
        {"guidance": np.int64(3)},
        {"steps": np.int64(2)},
        {"steps": np.array(2)},
        {"label": np.array(3)},
        {"label": np.array([3])},
        {"prompt": np.array("red")},
        {"prompt": np.array(["red"])},
        {"prompt": np.array(["red"], object)},
        {"count": np.uint8(1)},
        {"seed": np.int32(0)},
        {"seed": 10**30},
        {"also": [({"prompt": "blue"}, np.float32(0.5))]},
        {"also": (({"prompt": "blue"}, 1),)},
        {"options": {"eta": np.float32(0.5)}},
        {"options": {"eta": 1}},
        {"options": {"solver_order": np.int64(3), "lower_order_final": np.bool_(False)}, "solver": "unipc", "steps": 4},
        {"solver": np.str_("euler")},
        {"guidance_rescale": np.float32(0.5)},
        {"guidance_rescale": 1},
        {"guidance_interval": np.array([0.2, 5.0])},
        {"guidance_interval": [np.float32(0.2), math.inf]},
        {"deadline": np.float64(60)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_a_number_to_numpy_is_one_here(generator: Generator, arguments: dict[str, Any]) -> None:
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}
    made = generator.generate(**ASKED | arguments)
    assert np.array_equal(made.latents, generator.generate(**ASKED | plain).latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 4}, "unknown argument 'step'; did you mean 'steps'?"),
        ({"cancle": None}, "unknown argument 'cancle'; did you mean 'cancel'?"),
        ({"condition": {}}, "unknown argument 'condition'; did you mean 'conditions'?"),
        ({"num_inference_steps": 4}, "unknown argument 'num_inference_steps'; did you mean 'steps'?"),
        ({"guidance_scale": 4}, "unknown argument 'guidance_scale'; did you mean 'guidance'?"),
        ({"promt": "a"}, "unknown condition 'promt'; did you mean 'prompt'?"),
        ({"colour": 1}, "unknown condition 'colour', wanted 'prompt' or 'label'; mmgen inspect shows"),
        ({"eta": 1.0}, "unknown argument 'eta'; it is an option of solver 'ddim': options={'eta': ...}"),
        ({"conditions": {"prompt": "red"}}, "condition 'prompt' is given twice; leave it out of conditions"),
        ({"conditions": {"lable": 1}}, "unknown condition 'lable'; did you mean 'label'?"),
        ({"conditions": {1: 1}}, "unknown condition 1, wanted 'prompt' or 'label'"),
        ({"conditions": ["a"]}, "conditions, got ['a'], wanted a dictionary of conditions by name"),
        ({"negative": ["a"]}, "negative, got ['a'], wanted a dictionary of conditions by name"),
        ({"negative": {"promt": "a"}}, "unknown condition 'promt'; did you mean 'prompt'?"),
        ({"also": ["a"]}, "also, got ['a'], wanted a list of pairs: conditions by name, and a weight"),
        ({"also": {"prompt": "a"}}, "also, got {'prompt': 'a'}, wanted a list of pairs"),
        ({"also": [(["a"], 1)]}, "also[0], got ['a'], wanted a dictionary of conditions by name"),
        ({"also": [({"label": 2}, True)]}, "weight of also[0], got True, wanted a finite number"),
        ({"solver": ["ddim"]}, "solver, got ['ddim'], wanted a name"),
        ({"solver": "dimm"}, "did you mean 'ddim'?"),
        ({"sigmas": "karas"}, "sigmas, got 'karas', wanted 'schedule' or 'karras' or 'exponential' or 'beta'; did you"),
        ({"sigmas": np.array(["karras"])}, "sigmas, got array(['karras']"),
        ({"options": {"et": 1}}, "option 'et' of solver 'ddim', wanted 'eta'; did you mean 'eta'?"),
        ({"options": {"eta": True}}, "option 'eta' of solver 'ddim', got True, wanted a number"),
        ({"options": {"solver_type": "bh3"}, "solver": "unipc"}, "got 'bh3', wanted 'bh1' or 'bh2'; did you mean"),
        ({"count": 2.0}, "count, got 2.0, wanted a whole number, at least 1"),
        ({"count": "2"}, "count, got '2', wanted a whole number"),
        ({"count": 10**10}, "count, got 10000000000, wanted at most"),
        ({"steps": 2.0}, "steps, got 2.0, wanted a whole number, at least 1"),
        ({"steps": True}, "steps, got True, wanted a whole number, at least 1"),
        ({"steps": 10**400}, "wanted at most"),
        ({"guidance": 10**400}, "guidance, got 100000"),
        ({"guidance": 1e300}, "guidance, got weights [1e+300, -1e+300], wanted weights that float32 has"),
        ({"guidance": True}, "guidance, got True, wanted a finite number"),
        ({"guidance_interval": [[1], [2, 3]]}, "guidance_interval, got [1], wanted (low, high)"),
        ({"deadline": math.inf}, "deadline, got inf, wanted seconds, more than 0"),
        ({"prompt": "a\ud83d"}, "condition 'prompt': letter 2, got '\\ud83d', wanted text that UTF-8 can hold"),
        ({"prompt": b"red"}, "condition 'prompt', got b'red', wanted a string"),
        ({"prompt": ["a", None]}, "condition 'prompt', got None, wanted a string"),
        ({"label": np.array([[1, 2]])}, "condition 'label', got array([1, 2]), wanted a whole number"),
        ({"label": Odd()}, "condition 'label', got Odd, which can't be shown (RuntimeError), wanted a whole number"),
        ({"strength": 1e-320, "latents": LATENTS}, "leaves none of 2 steps; ask for more strength"),
        ({"strength": 1e-3, "latents": LATENTS}, "leaves none of 2 steps; ask for at least 1000 steps, or for more"),
        ({"also": 5}, "also, got 5, wanted a list of pairs: conditions by name, and a weight; such as also=["),
        ({"also": [({}, math.inf)]}, "weight of also[0], got inf, wanted a finite number"),
        ({"deadline": 10**400}, "wanted seconds, more than 0"),
        ({"solver": "x" * 5000}, "xxx..., wanted 'ddpm' or"),
        ({"options": {"x" * 5000: 1}}, "xxx... of solver 'ddim'"),
        ({"x" * 5000: 1}, "unknown condition 'xxx"),
        ({"prompt": [1] * 5000}, "condition 'prompt', got 1, wanted a string"),
        ({"conditions": [1] * 5000}, "conditions, got a list of 5000, wanted a dictionary"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError) as caught:
        generator.generate(**ASKED | arguments)
    assert message in str(caught.value) and len(str(caught.value)) < 400


def test_a_message_is_one_line_that_is_read_and_does_nothing_to_a_terminal() -> None:
    error = MmgenError("a\x1b[31m\n\u202eb é 東", got="x" * 5000, wanted="\x00", remedy="make it shorter")
    assert str(error).startswith("a\\x1b[31m \\u202eb é 東, got xxx") and str(error).isprintable()
    assert "xxx ... xxx" in str(error) and str(error).endswith("wanted \\x00; make it shorter")
    assert len(str(error)) < 1200


def test_what_is_quoted_is_cut() -> None:
    for value in ("a" * 10**6, b"a" * 10**6, ["a"] * 10**6, {"a": "b" * 10**6}, 10**400, 10**9999, "\x1b" * 100):
        assert len(shown(value)) <= 60
    assert shown("short") == "'short'" and shown([1, 2]) == "[1, 2]" and shown(None) == "None"


ARRAYS = [
    np.zeros(shape, dtype) for shape in [(), (0,), (1, 4, 8, 8), (0, 4, 8, 8), (16, 16, 3), (16, 16)]
    for dtype in (np.float32, np.uint8, bool, np.int64)
]  # fmt: skip
JUNK = [
    *NO_NUMBERS, *ARRAYS, 0, -1, 2**63, 10**400, 0.5, -0.5, 1e300, math.nan, math.inf, "", "a", "\0", "\udce9", [],
    {}, [[]], [1, 2], ["a", "b"], [[1], [2, 3]], [None], {"prompt": "a"}, {"eta": "x"}, {1: 2}, {"label": 99},
    [({}, 0.5)], [({"prompt": "a"}, "x")], ({"prompt": "a"}, 1.0), (0.2, 5.0), (5.0, 0.2),
    np.full((1, 4, 8, 8), np.nan, np.float32),
]  # fmt: skip
NAMES_OF_ARGUMENTS = (
    "conditions", "steps", "guidance", "seed", "solver", "sigmas", "options", "count", "noise", "negative", "also",
    "guidance_interval", "guidance_rescale", "image", "latents", "strength", "mask", "deadline", "cancel", "prompt",
    "label", "x",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES_OF_ARGUMENTS)
def test_junk_is_refused_or_made_something_of(generator: Generator, name: str) -> None:
    refused = 0
    for value in JUNK:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                generator.generate(**{"steps": 1, name: value})
        except MmgenError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
            str(error).encode()
    assert refused > len(JUNK) / 2


def test_junk_elsewhere_is_refused(generator: Generator, bundle_folder: Path) -> None:
    for value in JUNK:
        for call in (
            lambda value=value: generator.forget(value),
            lambda value=value: load(value, "ort-cpu"),
            lambda value=value: verify(value),
            lambda value=value: load(bundle_folder, value if value is not None else 0),
            lambda value=value: load(bundle_folder, "ort-cpu", threads="" if value is None else value),
        ):  # fmt: skip
            with pytest.raises(MmgenError):
                call()
        if not (isinstance(value, np.ndarray) and value.shape == (1, 4, 8, 8) and value.dtype == np.float32):
            with pytest.raises(MmgenError):
                generator.decode(value)


def test_threads_and_backend_are_checked_before_the_bundle_is_read(tmp_path: Path) -> None:
    for arguments, message in [
        ({"threads": 1.5}, "threads, got 1.5, wanted a whole number, at least 1"),
        ({"threads": "2"}, "threads, got '2'"),
        ({"threads": 10**6}, "threads, got 1000000, wanted at most 1024"),
        ({"backend": "ort-cup"}, "did you mean 'ort-cpu'?"),
    ]:
        with pytest.raises(MmgenError) as caught:
            load(tmp_path / "nothing", **arguments)
        assert message in str(caught.value)


def test_a_folder_may_be_a_string_a_path_or_bytes(bundle_folder: Path) -> None:
    for folder in (str(bundle_folder), bundle_folder, str(bundle_folder).encode()):
        load(folder, "ort-cpu", threads=1, verify=False).close()
    with pytest.raises(MmgenError, match="bundle, got 3, wanted the path of a folder"):
        load(3)  # type: ignore[arg-type]


# arrays on the command line


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("[1, 2, 3]", [[1, 2, 3]]),
        ("[[1, 2, 3], [4, 5, 6]]", [[1, 2, 3], [4, 5, 6]]),
        ("one.npy", [[0, 1, 2]]),
        ("two.npy", [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_an_array_may_be_typed_or_lie_in_a_file(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, wanted: list[list[float]]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", np.arange(3))
    np.save("two.npy", np.arange(6.0).reshape(2, 3))
    bundle = dataclasses.replace(generator.bundle, conditions=(STATE,))
    asked = read_conditions(bundle, (), (), [f"state={value}"])
    np.testing.assert_array_equal(asked["state"], wanted)
    assert len(read_conditions(bundle, (), (), [f"state={value}", "state=[7, 8, 9]"])["state"]) == len(wanted) + 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("state=[1, 2", "'[1, 2' is not JSON"),
        ("state=red", "'red' is not JSON"),
        ("state=" + "[" * 100_000, "is not JSON"),
        ("state=[1, 2]", "condition 'state', got float32 (2,), wanted float32 (3,)"),
        ("state={}", "condition 'state', got {}, wanted float32 (3,)"),
        ("state=[1, 2, NaN]", "condition 'state', got NaN or infinity"),
        ("state=nothing.npy", "nothing.npy can't be read (No such file or directory), wanted numbers of shape (3,)"),
        ("state=text.npy", "text.npy is no .npy file, wanted numbers of shape (3,) as JSON or in a .npy file"),
        ("stat=1", "'stat=1', wanted NAME=VALUE with state (array); did you mean 'state'?"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_typed_as_an_array_and_is_none(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("1, 2, 3")
    bundle = dataclasses.replace(generator.bundle, conditions=(STATE,))
    with pytest.raises(MmgenError) as caught:
        read_conditions(bundle, (), (), [argument])
    assert message in str(caught.value)


# solvers' own options


def test_options_that_make_no_numbers_are_refused() -> None:
    tokens = Masked(48, 50)
    for solver, options in [
        ("maskgit", {"temperature": 1e300}),
        ("maskgit", {"temperature": math.inf}),
        ("mdlm", {"end": -1.0}),
        ("mdlm", {"end": math.inf}),
        ("llada", {"blocks": 10**9}),
    ]:
        with pytest.raises(MmgenError), warnings.catch_warnings():
            warnings.simplefilter("error")
            masked_table(solver, tokens, 36, 4, options=options)


def test_a_huge_number_of_steps_is_refused(generator: Generator) -> None:
    for steps, process in itertools.product((100_001, 2**40), (Flow(), generator.bundle.process)):
        with pytest.raises(MmgenError, match=r"steps, got .*, wanted at most 100000"):
            table("dpmpp-2m", process, steps)  # type: ignore[arg-type]
