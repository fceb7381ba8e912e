"""The loop: deterministic, indifferent to batches, cancellable, and clear about what it can't do."""

import copy
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import LIMITS

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.request.conditions import open_inputs
from mmgen.runtime.request.noise import noise
from mmgen.runtime.storage.schema import Condition


@pytest.fixture(scope="module")
def generator(bundle_folder: Path, cpu: str) -> Iterator[Generator]:
    with load(bundle_folder, cpu) as opened:
        yield opened


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, of 8-bit pictures."""
    error = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def test_a_picture_is_uint8_and_has_its_latents_codes_and_timings(generator: Generator) -> None:
    result = generator.generate(prompt="red apple", steps=3)
    bundle = generator.bundle
    assert result.media.shape == (1, *bundle.media.shape)
    assert result.media.dtype == np.uint8
    assert result.media.std() > 1, "a constant picture would make every comparison here true"
    assert result.latents.shape == (1, *bundle.latent_shape)
    assert result.codes is not None
    assert len(result.timings.steps) == 3
    assert result.timings.total >= sum(result.timings.steps) + result.timings.decode > 0


def test_a_seed_gives_the_same_bits_again_also_from_a_new_generator(generator: Generator, bundle_folder: Path) -> None:
    first = generator.generate(prompt="red apple", seed=7)
    again = generator.generate(prompt="red apple", seed=7)
    with load(bundle_folder, generator.backend) as other:
        fresh = other.generate(prompt="red apple", seed=7)
    for result in (again, fresh):
        assert np.array_equal(first.latents, result.latents)
        assert np.array_equal(first.media, result.media)
    assert not np.array_equal(first.latents, generator.generate(prompt="red apple", seed=8).latents)


def test_sample_i_of_a_seed_does_not_depend_on_how_many_are_asked_for(generator: Generator) -> None:
    alone = generator.generate(prompt="red apple", seed=7)
    for count in (3, 4):
        many = generator.generate(prompt="red apple", seed=7, count=count)
        assert psnr(many.media[0], alone.media[0]) >= LIMITS["batch PSNR"]
        assert np.array_equal(noise(7, count, (4, 8, 8))[0], noise(7, 1, (4, 8, 8))[0])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_same_noise_gives_the_same_pictures_in_any_batch(generator: Generator, batch: int) -> None:
    given = noise(5, 4, generator.bundle.latent_shape)
    prompts = ["red apple", "green cat", "blue rocket", ""]
    whole = generator.generate(prompt=prompts, noise=given)
    part = generator.generate(prompt=prompts[:batch], noise=given[:batch])
    for one, other in zip(part.media, whole.media, strict=False):
        assert psnr(one, other) >= LIMITS["batch PSNR"]


@pytest.mark.parametrize("prompt", ["", "zebra", "\u6f22\u5b57 \U0001f642", " "])
def test_a_prompt_without_a_known_word_gives_a_picture(generator: Generator, prompt: str) -> None:
    result = generator.generate(prompt=prompt, steps=2)
    assert np.isfinite(result.latents).all()


def test_no_guidance_is_the_asked_branch_alone_and_a_null_condition_is_indifferent_to_it(generator: Generator) -> None:
    plain = generator.generate(prompt="red apple", guidance=1.0)
    nearly = generator.generate(prompt="red apple", guidance=1.0 + 1e-6)  # two branches, one of no weight
    assert np.allclose(plain.latents, nearly.latents, atol=1e-3)
    strong = generator.generate(prompt="red apple", guidance=8.0)
    assert not np.allclose(plain.latents, strong.latents, atol=1e-2)
    nothing = [generator.generate(guidance=w).latents for w in (1.0, 8.0)]
    assert np.allclose(*nothing, atol=1e-3)


def test_a_long_prompt_is_cut_with_a_warning(generator: Generator) -> None:
    with pytest.warns(UserWarning, match="cut to 4 tokens") as warned:
        long = generator.generate(prompt="red green blue apple cat rocket", steps=1)
    assert warned[0].filename == __file__  # the line that asked
    short = generator.generate(prompt="red green blue apple", steps=1)
    assert np.array_equal(long.latents, short.latents)


def test_a_stream_shows_every_row_and_ends_where_generate_does(generator: Generator) -> None:
    evaluations, previews = [], []
    for progress in generator.stream(prompt="red apple", steps=4, seed=3):
        evaluations.append(progress.evaluation)
        previews.append(progress.preview())
        if progress.last:
            result = progress.result()
    assert evaluations == [1, 2, 3, 4]
    assert np.array_equal(result.media, generator.generate(prompt="red apple", steps=4, seed=3).media)
    # The last evaluation of DDIM ends at x0 itself.
    assert psnr(previews[-1][0], result.media[0]) >= LIMITS["batch PSNR"]
    assert not np.array_equal(previews[0], previews[-1])


def test_leaving_a_stream_cancels_it_and_frees_the_generator(generator: Generator) -> None:
    for progress in generator.stream(prompt="red apple", steps=50):
        if progress.evaluation == 2:
            break
    assert len(progress.timings.steps) == 2
    generator.generate(prompt="red apple", steps=1)


def test_calls_from_several_threads_queue(generator: Generator) -> None:
    wanted = [generator.generate(prompt="red apple", seed=s, steps=2).latents for s in range(4)]
    got: dict[int, Any] = {}

    def work(seed: int) -> None:
        got[seed] = generator.generate(prompt="red apple", seed=seed, steps=2).latents

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[s], wanted[s]) for s in range(4))


def test_close_may_be_called_twice_and_ends_the_use(bundle_folder: Path) -> None:
    generator = load(bundle_folder)
    generator.close()
    generator.close()
    with pytest.raises(MmgenError, match="closed"):
        generator.generate(prompt="red apple")


def test_an_error_inside_a_stream_closes_the_generator_and_the_stream(bundle_folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), load(bundle_folder) as generator:
        stream = generator.stream(steps=3)  # a name that outlives the block
        next(stream)
        raise ZeroDivisionError
    with pytest.raises(MmgenError, match="this generator is closed"):
        next(stream)


def test_decode_gives_the_media_of_a_result_again(generator: Generator) -> None:
    result = generator.generate(prompt="red apple", steps=2, count=2)
    media, codes = generator.decode(result.latents)
    assert np.array_equal(media, result.media)
    assert result.codes is not None and np.array_equal(codes, result.codes)


def test_another_solver_runs_on_the_same_graphs(generator: Generator) -> None:
    pictures = {s: generator.generate(prompt="red apple", steps=30, solver=s).latents for s in ("ddim", "dpmpp-2m")}
    difference = np.linalg.norm(pictures["ddim"] - pictures["dpmpp-2m"]) / np.linalg.norm(pictures["ddim"])
    assert 0 < difference < 0.2, "both solve the same equation"


def test_another_solver_takes_nothing_from_the_defaults_of_the_bundle_s_own(generator: Generator) -> None:
    defaults = dataclasses.replace(
        generator.bundle.defaults, solver="dpmpp-2m", sigmas="karras", solver_options={"solver_order": 1}
    )
    opened = copy.copy(generator._opened["image"])
    opened.bundle = dataclasses.replace(generator.bundle, defaults=defaults)
    other = copy.copy(generator)
    other._opened = {"image": opened}
    plain = generator.generate(prompt="red apple", solver="ddim")
    assert np.array_equal(other.generate(prompt="red apple", solver="ddim").latents, plain.latents)
    own = other.generate(prompt="red apple").latents
    assert np.array_equal(own, other.generate(prompt="red apple", solver="dpmpp-2m", sigmas="karras").latents)
    second = other.generate(prompt="red apple", options={"solver_order": 2}).latents
    assert not np.array_equal(own, second), "what is asked for goes over the bundle's own"
    both = other.generate(prompt="red apple", options={"lower_order_final": False}).latents
    assert np.array_equal(own, both), "the bundle's order 1 is still there, which has no lower one"


def test_options_are_the_solvers(generator: Generator) -> None:
    """DDIM with all of the noise is DDPM, on every timestep that it visits."""
    asked: dict[str, Any] = {"prompt": "red apple", "steps": 4, "seed": 3}
    noisy = generator.generate(**asked, options={"eta": 1.0}).latents
    ancestral = generator.generate(**asked, solver="ddpm", options={"variance_type": "fixed_small"}).latents
    assert np.linalg.norm(noisy - ancestral) <= LIMITS["solver, played"] * np.linalg.norm(ancestral)
    (*_, last) = generator.stream(**asked, options={"eta": 1.0})
    assert np.array_equal(last.latents(), noisy)
    assert not np.allclose(noisy, generator.generate(**asked).latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prmpt": "x"}, "unknown condition 'prmpt'; did you mean 'prompt'"),
        ({"prompt": 3}, "condition 'prompt', got 3, wanted a string"),
        ({"label": 11}, "condition 'label', got 11, wanted a whole number from 0 to 9"),
        ({"label": 1.5}, "condition 'label', got 1.5"),
        ({"label": True}, "condition 'label', got True"),
        ({"prompt": []}, "condition 'prompt' is an empty list"),
        ({"prompt": ["a", "b"], "label": [1, 2, 3]}, "conditions of different lengths"),
        ({"steps": 0}, "steps"),
        ({"steps": -4}, "steps"),
        ({"solver": "magic"}, "solver.*'magic'.*ddim"),
        ({"sigmas": "magic"}, "sigmas.*magic"),
        ({"options": {"order": 2}}, "option 'order' of solver 'ddim', wanted 'eta'"),
        ({"options": "eta"}, "options, got 'eta', wanted values by the name of the solver's option"),
        ({"seed": -1}, "seed, got -1, wanted a whole number from 0"),
        ({"count": 0}, "count, got 0, wanted a whole number, at least 1"),
        ({"guidance": float("nan")}, "guidance, got nan, wanted a finite number"),
        ({"guidance": "4"}, "guidance, got '4'"),
        ({"noise": np.zeros((1, 4, 8, 8))}, r"noise, got float64 \(1, 4, 8, 8\), wanted float32 \(1, 4, 8, 8\)"),
        ({"noise": np.zeros((2, 4, 8, 8), np.float32)}, r"noise, got float32 \(2, .*wanted float32 \(1, 4, 8, 8\)"),
        ({"noise": np.full((1, 4, 8, 8), np.nan, np.float32)}, "noise, got NaN"),
    ],
)
def test_a_bad_argument_is_one_clear_line(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_arguments_of_a_stream_show_before_its_first_row(generator: Generator) -> None:
    with pytest.raises(MmgenError, match="steps"):
        generator.stream(steps=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"backend": "magic"}, "backend, got 'magic', wanted 'auto'"), ({"threads": 0}, "threads, got 0, wanted a whole")],
)
def test_a_backend_that_is_not_there_is_an_error(bundle_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError, match=message):
        load(bundle_folder, **arguments)


def test_a_bundle_without_a_null_condition_refuses_guidance(generator: Generator) -> None:
    from mmgen.runtime.request.branches import branches

    bundle = dataclasses.replace(generator.bundle, conditions=(Condition("size", "class", count=3),))
    remedy = "no null condition to guide away from: say what isn't wanted with negative, or ask for guidance=1"
    with pytest.raises(MmgenError, match=f"guidance, got 2, wanted 1; .*{remedy}"):
        branches(open_inputs(bundle), {"size": 1}, 2.0)
    with pytest.raises(MmgenError, match="guidance, got 2, wanted 1; this bundle has no conditions"):
        branches({}, {}, 2.0)
