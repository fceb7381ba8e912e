"""Runs that begin in the middle, from noised data, against diffusers' image to image: add_noise and the steps left.

As its pipelines do it: the timesteps of N steps, of which the last min(int(N strength), N) are made.
"""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from schedulers import PREDICTIONS, SHAPE, denoise, far, in_float64, module_of, sigmas_flag
from tolerances import LIMITS

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import ALONG_FLOW, ON_DIFFUSION, ON_EDM, exact, table
from mmgen.runtime.storage.process import EDM, Diffusion, Flow

DIFFUSION = {
    "ddim": (DDIMScheduler, {"clip_sample": False}, {}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}, {}),
    "euler": (EulerDiscreteScheduler, {}, {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, {}, {}),
    "heun": (HeunDiscreteScheduler, {"beta_start": 1e-4, "beta_end": 0.02}, {}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, {}, {}),
    "dpmpp-3m": (DPMSolverMultistepScheduler, {"solver_order": 3}, {}),
    "dpmpp-sde-2m": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 3, "disable_corrector": [7]},
              {"solver_order": 3, "disable_corrector": "7"}),
}  # fmt: skip  # not lms, plms: theirs take the weights of a run from the start to what little is remembered
FLOW = {
    "flow-euler": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, {}),
    "flow-heun": (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}, {}),
    "dpmpp-2m": (DPMSolverMultistepScheduler, {"use_flow_sigmas": True, "flow_shift": 3.0,
                                               "prediction_type": "flow_prediction"}, {}),
    "unipc": (UniPCMultistepScheduler, {"use_flow_sigmas": True, "flow_shift": 3.0,
                                        "prediction_type": "flow_prediction"}, {}),
}  # fmt: skip
SCHEDULES = {"dpmpp-2m": "dpm", "unipc": "unipc"}


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def states_from(scheduler, rows, data, noise, noises, first, keep=False):
    """Yield the sample after each step of a scheduler whose timesteps are set, from step ``first`` of its own.

    As diffusers' pipelines for inpainting, what is kept gets the noise of the next timestep after each step.
    """
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    data, noise = torch.from_numpy(data), torch.from_numpy(noise)

    def noised(timestep):
        if hasattr(scheduler, "scale_noise"):
            return scheduler.scale_noise(data, timestep, noise)
        return scheduler.add_noise(data, noise, timestep)

    x = noised(timesteps[:1])
    for i, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = torch.from_numpy(denoise(scaled.numpy(), float(rows.timestep[i])))
        drawn = torch.from_numpy(noises[i])
        with patch.object(module_of(type(scheduler)), "randn_tensor", lambda *_, d=drawn, **__: d, create=True):
            x = scheduler.step(out, t, x).prev_sample
        x = torch.where(torch.as_tensor(keep), noised(timesteps[i + 1 : i + 2]) if i + 1 < len(timesteps) else data, x)
        yield x.numpy()


def compare(scheduler, rows, first, keep=None):
    """The largest relative RMS between our states and theirs."""
    assert len(rows) == len(scheduler.timesteps) - first
    rng = np.random.default_rng(0)
    data, noise = rng.standard_normal((2, *SHAPE))
    noises = rng.standard_normal((len(rows), *SHAPE))
    theirs = states_from(scheduler, rows, data, noise, noises, first, False if keep is None else keep)
    ours = run(rows, denoise, noise, noises=noises, data=data, keep=keep)
    return max(far(state[0], sample) for state, sample in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", DIFFUSION)
def test_on_a_diffusion(double, solver, prediction, spacing):
    kind, config, options = DIFFUSION[solver]
    spaced = {} if solver == "ddpm" and spacing == "leading" else {"timestep_spacing": spacing}
    if (solver, prediction) == ("euler-ancestral", "sample"):
        pytest.skip("diffusers' scheduler doesn't know it")
    for steps, begin in [(10, 3), (10, 9), (20, 12), (4, 1)]:
        scheduler = kind(**config, **spaced, prediction_type=PREDICTIONS[prediction])
        scheduler.set_timesteps(steps)
        process = Diffusion(prediction=prediction, spacing=spacing)
        rows = exact(solver, process, steps, options=options, begin=begin)
        order = 2 if solver == "heun" else 1
        assert compare(scheduler, rows, begin * order) < LIMITS["solver from the middle"], (steps, begin)


@pytest.mark.parametrize("kind", ["karras", "exponential"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp-2m", "unipc"])
def test_with_respaced_sigmas(double, solver, kind):
    scheduler_class, config, options = DIFFUSION[solver]
    scheduler = scheduler_class(**config, **sigmas_flag(kind))
    scheduler.set_timesteps(12)
    spacing = "linspace"
    rows = exact(solver, Diffusion(spacing=spacing), 12, sigmas=kind, options=options, begin=5)
    assert compare(scheduler, rows, 5) < LIMITS["solver from the middle"]


@pytest.mark.parametrize("solver", FLOW)
def test_along_a_flow(double, solver):
    kind, config, options = FLOW[solver]
    for steps, begin in [(10, 3), (10, 9), (20, 12), (4, 1)]:
        scheduler = kind(**config)
        scheduler.set_timesteps(steps)
        process = Flow(shift=3.0, schedule=SCHEDULES.get(solver, "diffusers"))
        rows = exact(solver, process, steps, options=options, begin=begin)
        order = 2 if solver == "flow-heun" else 1
        assert compare(scheduler, rows, begin * order) < LIMITS["solver from the middle"], (steps, begin)


NOISED = EDM(prediction="preconditioned", conditioned_on="log_sigma", timestep_scale=0.25)


ON_THEIRS = {"euler": EDMEulerScheduler, "dpmpp-2m": EDMDPMSolverMultistepScheduler}


@pytest.mark.parametrize("solver", ON_THEIRS)
def test_on_an_edm_process(double, solver):
    for steps, begin in [(10, 3), (10, 9), (20, 12), (4, 1)]:
        rows = exact(solver, NOISED, steps, begin=begin)
        for keep in (None, np.random.default_rng(5).random(SHAPE) < 0.4):
            scheduler = ON_THEIRS[solver]()
            scheduler.set_timesteps(steps)
            assert compare(scheduler, rows, begin, keep) < LIMITS["solver from the middle"], (steps, begin)


INPAINTED = [(solver, Diffusion(spacing="trailing")) for solver in DIFFUSION if solver != "heun"]
INPAINTED += [(s, Flow(shift=3.0, schedule=SCHEDULES.get(s, "diffusers"))) for s in FLOW if s != "flow-heun"]
# diffusers doesn't inpaint with Heun's two evaluations a step


@pytest.mark.parametrize(("solver", "process"), INPAINTED)
def test_data_is_kept_as_in_inpainting(double, solver, process):
    kind, config, options = (FLOW if isinstance(process, Flow) else DIFFUSION)[solver]
    keep = np.random.default_rng(5).random(SHAPE) < 0.4
    for steps, begin in [(10, 0), (10, 4), (2, 1)]:
        scheduler = kind(**config, **({} if isinstance(process, Flow) else {"timestep_spacing": "trailing"}))
        scheduler.set_timesteps(steps)
        rows = exact(solver, process, steps, options=options, begin=begin)
        assert compare(scheduler, rows, begin, keep) < LIMITS["solver from the middle"], (steps, begin)


EVERY = [(solver, Diffusion(spacing="trailing")) for solver in ON_DIFFUSION]
EVERY += [(solver, Flow()) for solver in ALONG_FLOW]
EVERY += [(solver, EDM()) for solver in ON_EDM]


@pytest.mark.parametrize(("solver", "process"), EVERY)
def test_data_comes_back_from_any_step_on(solver, process):
    """Where the denoiser knows the data: every solver, from every level of noise."""
    datum, noise = np.linspace(-1, 1, 7)[None], np.random.default_rng(3).standard_normal((1, 7))
    for begin in range(5):
        rows = exact(solver, process, 5, begin=begin)
        by_timestep = dict(zip(rows.timestep, zip(rows.prediction, rows.input_scale, strict=True), strict=True))

        def knows(x, t, by_timestep=by_timestep):
            (of_x, of_out), scale = by_timestep[t]
            return (datum - of_x * x / scale) / of_out

        *_, state = run(rows, knows, noise, noises=np.zeros((len(rows), 1, 7)), data=datum)
        assert np.abs(state[0] - datum).max() < 1e-9, begin


@pytest.mark.parametrize(("solver", "process"), EVERY)
def test_what_is_kept_is_at_the_level_of_every_row_and_itself_in_the_end(solver, process):
    data, noise = np.random.default_rng(4).standard_normal((2, 1, 8))
    keep = np.arange(8) < 3  # a prefix
    rows = exact(solver, process, 4)
    states = [state[0] for state in run(rows, denoise, noise, noises=np.ones((len(rows), 1, 8)), data=data, keep=keep)]
    for (of_data, of_noise), state in zip(rows.level[1:], states, strict=False):
        np.testing.assert_allclose(state[:, :3], (of_data * data + of_noise * noise)[:, :3], rtol=1e-12)
    np.testing.assert_array_equal(states[-1][:, :3], data[:, :3])
    assert np.abs(states[-1] - data)[:, 3:].min() > 0


@pytest.mark.parametrize(("solver", "process"), EVERY)
def test_a_whole_run_is_what_it_was(solver, process):
    whole, same = table(solver, process, 6), table(solver, process, 6, begin=0)
    assert np.array_equal(whole.transition, same.transition)
    for begin in (6, -1):
        with pytest.raises(MmgenError, match=f"begin, got {begin}, wanted 0 to 5, as there are 6 steps"):
            table(solver, process, 6, begin=begin)
