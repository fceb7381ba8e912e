"""A solver's table, run by the reference loop, is the diffusers scheduler of that name, step by step.

diffusers computes in float32.  Most tests make it compute in float64, so that no wrong formula hides behind rounding;
``test_float32`` and ``test_diffusers_as_it_is`` then look at the stored tables.
"""

import itertools

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from grid import grid
from schedulers import (
    KINDS,
    PREDICTIONS,
    SCHEDULES,
    SHAPE,
    SPACINGS,
    STEPS,
    denoise,
    far,
    follow,
    in_float64,
    made,
    sigmas_flag,
    some,
)
from scipy.stats import beta
from tolerances import LIMITS

from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import ON_DIFFUSION, exact, table
from mmgen.runtime.solvers.schedules import alphas_cumprod, beta_quantiles
from mmgen.runtime.storage.process import Diffusion

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_process = grid(schedule=SCHEDULES, spacing=SPACINGS, prediction=PREDICTIONS)


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)


OURS_AND_THEIRS = {  # fields of the process and keys of a scheduler's configuration, where it has them
    "beta_schedule": "beta_schedule",
    "spacing": "timestep_spacing",
    "steps_offset": "steps_offset",
    "zero_terminal_snr": "rescale_betas_zero_snr",
    "final_alpha_one": "set_alpha_to_one",
}


def pair(kind, steps, *, prediction="epsilon", clip=None, sigmas="schedule", config=(), **process):
    """Our process and their scheduler, its timesteps set."""
    keys = {OURS_AND_THEIRS[field]: value for field, value in process.items()}
    if kind is HeunDiscreteScheduler:
        keys |= {"beta_start": 1e-4, "beta_end": 0.02}
    if kind in (DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler):
        keys |= {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    keys |= {"prediction_type": PREDICTIONS[prediction], **sigmas_flag(sigmas), **dict(config)}
    scheduler = made(kind, **keys)
    scheduler.set_timesteps(steps)
    return Diffusion(prediction=prediction, clip=clip, **process), scheduler


def compare(solver, kind, steps, *, sigmas="schedule", options=None, config=None, step=None, told=False, **process):
    """Relative RMS between both; ``config`` is what the options are in diffusers, where it isn't the same."""
    options = options or {}
    ours, scheduler = pair(kind, steps, sigmas=sigmas, config=options if config is None else config, **process)
    rows = exact(solver, ours, steps, sigmas=sigmas, options=options)
    return follow(scheduler, rows, np.float64, told=rows.timestep if told else None, **(step or {}))


@every_process
def test_ddim(double, schedule, spacing, prediction):
    for c in some(
        36,
        clip=(None, 0.7),
        final_alpha_one=(True, False),
        steps_offset=(0, 1),
        zero_terminal_snr=(True, False),
        eta=(0.0, 0.6, 1.0),
    ):
        eta = {"eta": c.pop("eta")}
        if prediction == "epsilon" or eta["eta"] == 1:  # theirs divides by 0, or takes the root of -1e-17
            c["zero_terminal_snr"] = False
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        error = compare("ddim", DDIMScheduler, options=eta, config={}, step=eta, **process)
        assert error < LIMITS["solver, float64"], c


@every_process
def test_ddpm(double, schedule, spacing, prediction):
    for c in some(
        24,
        clip=(None, 0.7),
        steps_offset=(0, 1),
        zero_terminal_snr=(True, False),
        variance_type=("fixed_small", "fixed_small_log", "fixed_large"),
    ):
        options = {"variance_type": c.pop("variance_type")}
        if prediction == "epsilon":  # theirs divides by 0
            c["zero_terminal_snr"] = False
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        assert compare("ddpm", DDPMScheduler, options=options, **process) < LIMITS["solver, float64, DDPM"], c


@every_process
def test_euler(double, schedule, spacing, prediction):
    for c in some(
        27,
        sigmas=KINDS,
        steps_offset=(0, 1),
        zero_terminal_snr=(True, False),
        final_sigmas_type=("zero", "sigma_min"),
    ):
        options = {"final_sigmas_type": c.pop("final_sigmas_type")}
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        assert compare("euler", EulerDiscreteScheduler, options=options, **process) < LIMITS["solver, float64"], c


@every_schedule
@every_spacing
@pytest.mark.parametrize("prediction", ["epsilon", "v"])  # theirs has no other
def test_euler_ancestral(double, schedule, spacing, prediction):
    for c in some(18, steps_offset=(0, 1), zero_terminal_snr=(True, False)):
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        assert compare("euler-ancestral", EulerAncestralDiscreteScheduler, **process) < LIMITS["solver, float64"], c


@every_process
def test_heun(double, schedule, spacing, prediction):
    for c in some(18, clip=(None, 0.7), sigmas=KINDS, steps_offset=(0, 1)):
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        cosine = schedule == "squaredcos_cap_v2"
        limit = LIMITS["solver, float64, noisiest" if cosine else "solver, float64"]
        assert compare("heun", HeunDiscreteScheduler, **process) < limit, c


@every_process
def test_lms(double, schedule, spacing, prediction):
    for c in some(12, sigmas=KINDS, steps_offset=(0, 1), order=(1, 2, 3, 4)):
        order = {"order": c.pop("order")}
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        error = compare("lms", LMSDiscreteScheduler, options=order, config={}, step=order, **process)
        assert error < LIMITS["solver, float64"], c


@every_schedule
@every_spacing
@pytest.mark.parametrize("prediction", ["epsilon", "v"])  # theirs has no other
def test_plms(double, schedule, spacing, prediction):
    for c in some(18, final_alpha_one=(True, False), steps_offset=(0, 1)):
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        config = {"skip_prk_steps": True}
        assert compare("plms", PNDMScheduler, config=config, **process) < LIMITS["solver, float64"], c


DPM_OPTIONS = {
    "solver_type": ("midpoint", "heun"),
    "lower_order_final": (True, False),
    "euler_at_final": (True, False),
    "final_sigmas_type": ("zero", "sigma_min"),
    "lambda_min_clipped": (-np.inf, -5.1),
}


@grid(solver=["dpmpp-2m", "dpmpp-3m", "dpmpp-sde-2m"], schedule=SCHEDULES, spacing=SPACINGS, prediction=PREDICTIONS)
def test_dpm(double, solver, schedule, spacing, prediction):
    orders = (3,) if solver == "dpmpp-3m" else (1, 2)
    algorithm = "sde-dpmsolver++" if solver == "dpmpp-sde-2m" else "dpmsolver++"
    for c in some(
        12, solver_order=orders, **DPM_OPTIONS, sigmas=KINDS, steps_offset=(0, 1), zero_terminal_snr=(True, False)
    ):
        options = {name: c.pop(name) for name in ("solver_order", *DPM_OPTIONS)}
        no_last_step = options["final_sigmas_type"] == "sigma_min" and c["sigmas"] != "schedule"
        if no_last_step and (options["solver_type"] == "heun" or solver != "dpmpp-2m"):
            continue  # theirs divides by its length, or takes the root of what rounding leaves of it
        config = {"algorithm_type": algorithm, **options}
        if solver == "dpmpp-3m":
            del options["solver_order"]
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        error = compare(solver, DPMSolverMultistepScheduler, options=options, config=config, **process)
        assert error < LIMITS["solver, float64"], (c, options)


@pytest.mark.parametrize(("solver", "order"), [("dpmpp-2m", 2), ("dpmpp-3m", 3)])
def test_dpm_ends_in_lower_orders_below_15_steps(double, solver, order):
    for steps in (14, 15):
        process, scheduler = pair(
            DPMSolverMultistepScheduler,
            steps,
            spacing="linspace",
            config={"final_sigmas_type": "sigma_min", "solver_order": order},
        )
        rows = exact(solver, process, steps, options={"final_sigmas_type": "sigma_min"})
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"]
        used = (rows.transition[-2:, 0, 1:3] != 0).sum(1) + 1  # outputs in each of the last two steps
        assert used.tolist() == ([2, 1] if steps < 15 else [order, order])


UNIPC_OPTIONS = {
    "solver_order": (1, 2, 3),
    "solver_type": ("bh1", "bh2"),
    "lower_order_final": (True, False),
    "final_sigmas_type": ("zero", "sigma_min"),
    "predict_x0": (True, False),
    "disable_corrector": ("", "0", "0,1,4"),
}


@every_process
def test_unipc(double, schedule, spacing, prediction):
    for c in some(27, **UNIPC_OPTIONS, sigmas=KINDS, steps_offset=(0, 1), zero_terminal_snr=(True, False)):
        options = {name: c.pop(name) for name in UNIPC_OPTIONS}
        if options["final_sigmas_type"] == "zero":  # theirs multiplies infinity by 0 with others
            options |= {"lower_order_final": True, "predict_x0": True, "solver_type": "bh2"}
        elif c["sigmas"] != "schedule":  # the last step has no length, and theirs divides by it
            options["lower_order_final"] = True
            if c["steps"] == 1:  # theirs goes nowhere
                continue
        config = {**options, "disable_corrector": list(map(int, filter(None, options["disable_corrector"].split(","))))}
        process = {"beta_schedule": schedule, "spacing": spacing, "prediction": prediction, **c}
        error = compare("unipc", UniPCMultistepScheduler, options=options, config=config, **process)
        noisiest = not options["predict_x0"] and (c["zero_terminal_snr"] or schedule == "squaredcos_cap_v2")
        assert error < LIMITS["solver, float64, noisiest" if noisiest else "solver, float64"], (c, options)


OF_CLASS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "dpmpp-3m": DPMSolverMultistepScheduler,
    "dpmpp-sde-2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lms": LMSDiscreteScheduler,
    "plms": PNDMScheduler,
}
CONFIG = {
    "dpmpp-3m": {"solver_order": 3},
    "dpmpp-sde-2m": {"algorithm_type": "sde-dpmsolver++"},
    "plms": {"skip_prk_steps": True, "set_alpha_to_one": True},
}
IN_FLOAT32 = {
    "heun": "solver, float32, Heun",
    "lms": "solver, float32, extrapolating",
    "plms": "solver, float32, extrapolating",
    "dpmpp-3m": "solver, float32, extrapolating",
}
OWN_SIGMAS = ("ddpm", "ddim", "plms")  # and no others


@every_schedule
@every_prediction
@pytest.mark.parametrize("solver", ON_DIFFUSION)
def test_float32(solver, schedule, prediction):
    """Stored tables, run in float32, against exact ones."""
    rng = np.random.default_rng(0)
    sigmas = ("schedule",) if solver in OWN_SIGMAS else KINDS
    for c in some(9, spacing=SPACINGS, zero_terminal_snr=(True, False), sigmas=sigmas):
        steps, kind = c.pop("steps"), c.pop("sigmas")
        if solver in ("heun", "lms") or (solver in OWN_SIGMAS and prediction == "epsilon"):
            c["zero_terminal_snr"] = False  # as in diffusers
        if solver in ("heun", "lms") and schedule == "squaredcos_cap_v2":
            c["spacing"] = "leading"  # a step from noise 20,000 times the signal leaves little of float32
        process = Diffusion(beta_schedule=schedule, prediction=prediction, **c)
        stored, unrounded = table(solver, process, steps, sigmas=kind), exact(solver, process, steps, sigmas=kind)
        start = rng.standard_normal(SHAPE).astype(np.float32)
        noises = rng.standard_normal((len(stored), *SHAPE)).astype(np.float32)
        a = list(run(stored, denoise, start, noises=noises))
        b = list(run(unrounded, denoise, start.astype(np.float64), noises=noises.astype(np.float64)))
        assert a[-1].dtype == np.float32
        assert far(a[-1][0], b[-1][0]) < LIMITS[IN_FLOAT32.get(solver, "solver, float32")], (steps, kind, c)


@every_schedule
@every_spacing
@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.parametrize("solver", ON_DIFFUSION)
def test_diffusers_as_it_is(solver, schedule, spacing, steps):
    """Both in float32, as users see them; nearly all of the difference is the rounding of diffusers' betas."""
    if solver in ("heun", "plms") and schedule == "squaredcos_cap_v2" and spacing != "leading":
        pytest.skip("two evaluations, one at a ratio of noise to signal of 20,000: theirs is 8% off in float32")
    config = CONFIG.get(solver, {})
    process, scheduler = pair(OF_CLASS[solver], steps, beta_schedule=schedule, spacing=spacing, config=config)
    limit = LIMITS["solver, float32, Heun" if solver == "heun" else "solver, diffusers in float32"]
    assert follow(scheduler, table(solver, process, steps), np.float32) < limit


@every_schedule
@pytest.mark.parametrize("sigmas", KINDS)
def test_timesteps_of_diffusers_as_it_is(schedule, sigmas):
    """Where diffusers makes a float32 timestep whole, rounding may move it across; elsewhere it may hardly differ."""
    for steps, solver in itertools.product(STEPS, set(ON_DIFFUSION) - set(OWN_SIGMAS)):
        if solver == "euler-ancestral" and sigmas != "schedule":
            continue  # theirs has its own alone
        process, scheduler = pair(
            OF_CLASS[solver], steps, beta_schedule=schedule, spacing="linspace", prediction="v", sigmas=sigmas
        )
        error = np.abs(table(solver, process, steps, sigmas=sigmas).timestep - scheduler.timesteps.numpy()).max()
        whole = OF_CLASS[solver] in (DPMSolverMultistepScheduler, UniPCMultistepScheduler) and sigmas != "schedule"
        assert error <= (1 if whole else LIMITS["timestep, diffusers in float32"])


def test_explicit_betas_and_short_training(double):
    betas = np.linspace(0.001, 0.3, 20)
    process = Diffusion(train_timesteps=20, betas=tuple(betas), spacing="trailing")
    assert np.allclose(alphas_cumprod(process), np.cumprod(1 - betas), rtol=1e-14, atol=0)
    for steps, solver in itertools.product((1, 3, 7, 20), ON_DIFFUSION):
        clip = {"clip_sample": False} if solver in ("ddim", "ddpm") else {}
        scheduler = OF_CLASS[solver](
            num_train_timesteps=20,
            trained_betas=list(betas),
            timestep_spacing="trailing",
            **clip,
            **CONFIG.get(solver, {}),
        )
        scheduler.set_timesteps(steps)
        limit = LIMITS["solver, float64, DDPM" if solver == "ddpm" else "solver, float64"]
        assert follow(scheduler, exact(solver, process, steps), np.float64) < limit, (solver, steps)


def test_quantiles_of_the_beta_distribution():
    probability = np.concatenate([[0.0, 1e-12, 0.5, 1.0], np.linspace(0, 1, 41)])
    assert np.allclose(beta_quantiles(probability), beta.ppf(probability, 0.6, 0.6), rtol=0, atol=1e-14)
