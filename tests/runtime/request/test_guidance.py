"""Guidance is a sum of branches: every kind of it against the same sum made outside, a branch at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from one_row import Denoiser, denoiser
from tolerances import LIMITS

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.backends.openvino.backend import OpenVinoRunner
from mmgen.runtime.backends.ort.cpu import OrtRunner
from mmgen.runtime.cli.arguments import also
from mmgen.runtime.cli.main import main
from mmgen.runtime.request.branches import branches
from mmgen.runtime.request.conditions import open_inputs
from mmgen.runtime.request.noise import noise
from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import table
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.process import Diffusion, Flow
from mmgen.runtime.storage.schema import Bundle, Condition

STEPS, SEED = 6, 3
NULL: dict[str, Any] = {}


@pytest.fixture(scope="module")
def generator(bundle_folder: Path, cpu: str) -> Iterator[Generator]:
    with load(bundle_folder, cpu, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def branch(bundle_folder: Path, cpu: str) -> Iterator[Callable[..., Denoiser]]:
    """The denoiser for one set of conditions, on a generator of its own."""
    with load(bundle_folder, cpu, threads=1) as opened:
        yield partial(denoiser, opened, guidance=1.0)


def close(got: np.ndarray, wanted: np.ndarray) -> bool:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)) < LIMITS["guidance"]


def reference(bundle: Bundle, denoise: Denoiser, batch: int = 1) -> np.ndarray:
    """The latents that a denoiser, guidance included, comes to."""
    rows = table("ddim", bundle.process, STEPS)
    *_, state = run(rows, denoise, noise(SEED, batch, bundle.latent_shape))
    return state[0]


def summed(branch: Callable[..., Denoiser], *terms: tuple[float, dict[str, Any]]) -> Denoiser:
    """A weighted sum of single branches."""
    parts = [(np.float32(weight), branch(**conditions)) for weight, conditions in terms]
    return lambda x, t: np.sum([weight * part(x, t) for weight, part in parts], 0)


def test_the_limit_tells_one_prompt_from_another(generator: Generator) -> None:
    one, other = (generator.generate(prompt=p, steps=STEPS, seed=SEED).latents for p in ("red apple", "red cat"))
    assert np.linalg.norm(one - other) / np.linalg.norm(one) > 30 * LIMITS["guidance"]


def test_plain_guidance(generator: Generator, branch: Callable[..., Denoiser]) -> None:
    wanted = reference(generator.bundle, summed(branch, (3.0, {"prompt": "red apple"}), (-2.0, NULL)))
    assert close(generator.generate(prompt="red apple", guidance=3.0, steps=STEPS, seed=SEED).latents, wanted)


@pytest.mark.parametrize("negative", [{"prompt": "blue cat"}, {"label": 3}, {"prompt": "blue", "label": 3}])
def test_what_is_not_wanted_takes_the_place_of_nothing(
    generator: Generator, branch: Callable[..., Denoiser], negative: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"prompt": "red apple"}
    wanted = reference(generator.bundle, summed(branch, (3.0, asked), (-2.0, negative)))
    made = generator.generate(**asked, negative=negative, guidance=3.0, steps=STEPS, seed=SEED)
    assert close(made.latents, wanted)


def test_several_prompts_at_once(generator: Generator, branch: Callable[..., Denoiser]) -> None:
    """D(null) + w (sum of differences), each with its weight; a weight below 0 keeps it away."""
    asked, more, away = {"prompt": "red apple"}, {"prompt": "cat"}, {"prompt": "blue", "label": 2}
    terms = [(3.0, asked), (1.5, more), (-0.75, away), (1 - 3 * (1 + 0.5 - 0.25), NULL)]
    wanted = reference(generator.bundle, summed(branch, *terms))
    made = generator.generate(**asked, also=[(more, 0.5), (away, -0.25)], guidance=3.0, steps=STEPS, seed=SEED)
    assert close(made.latents, wanted)


def test_what_is_also_asked_keeps_the_other_conditions(generator: Generator, branch: Callable[..., Denoiser]) -> None:
    terms = [(2.0, {"prompt": "red", "label": 4}), (2.0, {"prompt": "cat", "label": 4}), (-3.0, NULL)]
    wanted = reference(generator.bundle, summed(branch, *terms))
    made = generator.generate(
        prompt="red", label=4, also=[({"prompt": "cat"}, 1.0)], guidance=2.0, steps=STEPS, seed=SEED
    )
    assert close(made.latents, wanted)


def test_each_prompt_has_its_own_negative_one(generator: Generator) -> None:
    prompts, negatives = ["red apple", "cat"], ["blue", "green rocket"]
    given = noise(SEED, 2, generator.bundle.latent_shape)
    both = generator.generate(prompt=prompts, negative={"prompt": negatives}, noise=given, steps=STEPS)
    for i in range(2):
        one = generator.generate(
            prompt=prompts[i], negative={"prompt": negatives[i]}, noise=given[i : i + 1], steps=STEPS
        )
        assert close(both.latents[i : i + 1], one.latents)


def test_branches_without_weight_are_not_run(bundle_folder: Path) -> None:
    inputs = open_inputs(read_bundle(bundle_folder))
    asked: dict[str, Any] = {"prompt": "red"}
    for guidance, more, weights in [
        (1.0, [], [1]),
        (2.0, [], [2, -1]),
        (0.0, [], [0, 1]),
        (2.0, [({"prompt": "cat"}, -0.5)], [2, -1]),  # what is asked and what isn't add up to 1
        (2.0, [({"prompt": "cat"}, 0.0)], [2, -1]),
        (1.0, [({"prompt": "cat"}, 1.0)], [1, -1, 1]),
    ]:
        made = branches(inputs, asked, guidance, None, None, more)
        assert made.weights.tolist() == weights
        assert made.weights.sum() == 1


def test_a_condition_without_null_value_can_have_a_negative_one(bundle_folder: Path) -> None:
    hint = Condition("hint", "array", shape=(2,))
    bundle = dataclasses.replace(read_bundle(bundle_folder), conditions=(hint,))
    asked, negative = np.float32([1, 2]), np.float32([0, -1])
    made = branches(open_inputs(bundle), {"hint": asked}, 3.0, 2, {"hint": negative})
    assert made.weights.tolist() == [3, -2] and made.batch == 2
    assert made.inputs["hint"].tolist() == [[1, 2], [1, 2], [0, -1], [0, -1]]


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """For each graph, how large the branches axis or the branch batch of each of its calls was."""
    seen: dict[str, list[int]] = {}

    def watched(bind: Callable[..., Any], runner: Any, block: Any, calls: Any) -> Any:
        for call in calls:
            kinds = {"guidance": "step", "latents": "decode", "timestep": "timestep"}
            role = next((kind for name, kind in kinds.items() if name in call), "condition")
            first = call["guidance"] if role == "step" else next(iter(call.values()))
            seen.setdefault(role, []).append(first.shape[0])
        return bind(runner, block, calls)

    for runner in (OrtRunner, OpenVinoRunner):
        bind = runner.bind
        monkeypatch.setattr(runner, "bind", lambda *given, bind=bind: watched(bind, *given))
    return seen


@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp-2m"])
def test_outside_the_interval_one_branch_runs_and_inside_all(
    generator: Generator, branch: Callable[..., Denoiser], bound: dict[str, list[int]], solver: str, bundle_folder: Path
) -> None:
    rows = table(solver, generator.bundle.process, STEPS)
    low, high = np.sort(rows.noise_to_data)[[1, 4]]  # the second least of noise is outside, the fifth inside
    inside = {float(t) for t, s in zip(rows.timestep, rows.noise_to_data, strict=True) if low < s <= high}
    assert len(inside) == 3
    guided = summed(branch, (3.0, {"prompt": "red apple"}), (-2.0, NULL))
    alone = branch(prompt="red apple")
    *_, state = run(
        rows, lambda x, t: (guided if t in inside else alone)(x, t), noise(SEED, 1, generator.bundle.latent_shape)
    )
    with load(bundle_folder, generator.backend, threads=1) as fresh:
        bound.clear()
        made = fresh.generate(
            prompt="red apple", guidance=3.0, guidance_interval=(low, high), steps=STEPS, seed=SEED, solver=solver
        )
    assert close(made.latents, state[0])
    assert sorted(bound["step"]) == [1, 1, 1, 2, 2, 2], "evaluations outside have one branch"
    assert bound["condition"] == [2], "the conditions are encoded once"


def test_an_interval_that_holds_all_rows_changes_nothing(generator: Generator) -> None:
    asked: dict[str, Any] = {"prompt": "red apple", "guidance": 3.0, "steps": STEPS}
    plain = generator.generate(**asked)
    assert np.array_equal(generator.generate(**asked, guidance_interval=(0, np.inf)).latents, plain.latents)
    outside = generator.generate(**asked, guidance_interval=(1e6, 1e7)).latents
    assert close(outside, generator.generate(**asked | {"guidance": 1.0}).latents)


def test_levels_are_those_of_the_paper() -> None:
    """The ratio sigma of Karras et al. 2022: of a flow's straight path it is s / (1 - s)."""
    diffusion = Diffusion(spacing="trailing")
    ratios = [table(solver, diffusion, 10).noise_to_data for solver in ("ddim", "euler", "ddpm")]
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=1e-5)
    np.testing.assert_allclose(ratios[0], ratios[2], rtol=1e-5)
    flow = table("flow-euler", Flow(), 4).noise_to_data
    np.testing.assert_allclose(flow, [np.inf, 3, 1, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescaling_takes_back_the_spread(generator: Generator, branch: Callable[..., Denoiser], share: float) -> None:
    asked, null = branch(prompt="red apple"), branch()

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        positive = asked(x, t)
        guided = 5 * positive - 4 * null(x, t)
        return (share * positive.std() / guided.std() + 1 - share) * guided

    rows = table("ddim", generator.bundle.process, STEPS)
    *_, state = run(rows, denoise, noise(SEED, 1, generator.bundle.latent_shape))
    made = generator.generate(prompt="red apple", guidance=5.0, guidance_rescale=share, steps=STEPS, seed=SEED)
    assert close(made.latents, state[0])
    plain = generator.generate(prompt="red apple", guidance=5.0, steps=STEPS, seed=SEED)
    assert not close(made.latents, plain.latents)


def test_a_batch_is_rescaled_sample_by_sample(generator: Generator) -> None:
    given = noise(SEED, 2, generator.bundle.latent_shape)
    asked: dict[str, Any] = {"guidance": 5.0, "guidance_rescale": 0.7, "steps": STEPS}
    both = generator.generate(prompt=["red apple", "cat"], noise=given, **asked)
    assert close(both.latents[1:], generator.generate(prompt="cat", noise=given[1:], **asked).latents)


def test_a_stream_is_guided_alike(generator: Generator) -> None:
    asked: dict[str, Any] = {
        "prompt": "red apple", "negative": {"prompt": "cat"}, "also": [({"prompt": "blue"}, 0.5)], "steps": STEPS,
        "guidance_interval": (0.3, 5.0), "guidance_rescale": 0.5, "solver": "dpmpp-sde-2m",
    }  # fmt: skip
    *_, last = generator.stream(**asked)
    assert np.array_equal(last.result().latents, generator.generate(**asked).latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negative": {"prmpt": "x"}}, "unknown condition 'prmpt'"),
        ({"negative": {"prompt": 3}}, "condition 'prompt', got 3"),
        ({"negative": {"prompt": "x"}, "guidance": 1.0}, "negative conditions have no effect without guidance"),
        ({"negative": {"prompt": ["a", "b", "c"]}, "prompt": ["a", "b"]}, "conditions of different lengths"),
        ({"also": [({"prompt": "x"}, float("nan"))]}, r"weight of also\[0\], got nan"),
        ({"also": [({"label": 99}, 1.0)]}, "condition 'label', got 99"),
        ({"guidance_interval": (3.0, 1.0)}, "guidance_interval, got .*low < high"),
        ({"guidance_interval": 3.0}, "guidance_interval"),
        ({"guidance_interval": (-1.0, 1.0)}, "guidance_interval"),
        ({"guidance_rescale": 1.5}, "guidance_rescale, got 1.5, wanted 0"),
        ({"guidance_rescale": "0.5"}, "guidance_rescale, got '0.5'"),
    ],
)
def test_a_bad_argument_is_one_clear_line(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**arguments)
    assert "\n" not in str(caught.value)


def test_a_bundle_from_before_rescaling_says_so(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    step = generator.bundle.graphs["step"]
    old = dataclasses.replace(step, inputs=tuple(s for s in step.inputs if s.name != "guidance_rescale"))
    bundle = dataclasses.replace(generator.bundle, graphs={**generator.bundle.graphs, "step": old})
    monkeypatch.setattr(generator._opened[bundle.output], "bundle", bundle)
    generator.generate(prompt="red", steps=1)
    with pytest.raises(MmgenError, match="can't rescale guidance; export it again"):
        generator.generate(prompt="red", steps=1, guidance_rescale=0.5)


def test_the_command_line_asks_for_the_same(
    generator: Generator, bundle_folder: Path, tmp_path: Path, mmgen: Callable[..., str]
) -> None:
    out = tmp_path / "out.npy"
    mmgen("generate", str(bundle_folder), "--prompt=red apple", "--negative-prompt=blue", "--negative=label=3",
          "--also=cat:0.5", "--also=label=2:-0.25", "--guidance-interval", "0.2", "6", "--guidance-rescale=0.5",
          "--steps=5", f"--backend={generator.backend}", "-o", str(out))  # fmt: skip
    wanted = generator.generate(
        prompt="red apple", negative={"prompt": "blue", "label": 3},
        also=[({"prompt": "cat"}, 0.5), ({"label": 2}, -0.25)],
        guidance_interval=(0.2, 6), guidance_rescale=0.5, steps=5,
    )  # fmt: skip
    assert np.abs(np.load(out).astype(int) - wanted.media).max() <= 1  # another number of threads


@pytest.fixture
def mmgen() -> Callable[..., str]:
    """The command, which must succeed; what it prints."""
    def call(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


@pytest.mark.parametrize(
    ("argument", "conditions", "weight"),
    [
        ("cat", {"prompt": ["cat"]}, 1.0),
        ("cat:-0.5", {"prompt": ["cat"]}, -0.5),
        ("time: noon", {"prompt": ["time: noon"]}, 1.0),
        ("label=3:2", {"label": [3]}, 2.0),
        ("x=y", {"prompt": ["x=y"]}, 1.0),
    ],
)
def test_weights_on_the_command_line(
    generator: Generator, argument: str, conditions: dict[str, Any], weight: float
) -> None:
    assert also(generator.bundle, [argument]) == [(conditions, weight)]
