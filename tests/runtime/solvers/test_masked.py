"""Samplers for tokens: their tables, and the numpy definition of a step, against diffusers and against the papers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from amused_pipeline import InjectedNoise
from diffusers import VQDiffusionScheduler
from diffusers.schedulers.scheduling_amused import AmusedScheduler

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.masked import SAMPLERS, exact, table
from mmgen.runtime.solvers.masked_reference import run, running_sum, step
from mmgen.runtime.solvers.registry import SOLVERS, solvers_for
from mmgen.runtime.storage.process import Masked

PROCESS = Masked(codes=64, mask_id=70)
TIMED = dataclasses.replace(PROCESS, train_timesteps=100, hidden=(0.000009, 0.99999))  # VQDiffusionScheduler's
POSITIONS = 36


def draws(rows: int, batch: int = 3, positions: int = POSITIONS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, 2, batch, positions), np.float32)


def random_logits(seed: int, spread: float = 4.0):
    """A denoiser whose answer depends on the tokens."""
    mix = np.random.default_rng(seed).normal(0, spread, (PROCESS.mask_id + 1, POSITIONS, PROCESS.codes))

    def denoiser(tokens: np.ndarray) -> np.ndarray:
        seen = mix[tokens, np.arange(POSITIONS)].mean(1, keepdims=True)  # (B, 1, codes)
        return (seen + mix[0]).astype(np.float32)

    return denoiser


def masks(batch: int = 3) -> np.ndarray:
    return np.full((batch, POSITIONS), PROCESS.mask_id)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 7, 12, 20])
@pytest.mark.parametrize(("temperature", "options"), [
    ((2, 0), {}),
    ((0, 0), {"temperature": 0.0}),
    (5, {"temperature": 5.0, "last_temperature": 0.01}),
])  # fmt: skip
def test_amused_is_diffusers_token_for_token(monkeypatch, schedule, steps, temperature, options):
    process = dataclasses.replace(PROCESS, schedule=schedule)
    rows = table("amused", process, POSITIONS, steps, options=options)
    uniforms, denoiser = draws(steps), random_logits(1)
    noise = InjectedNoise(monkeypatch)
    scheduler = AmusedScheduler(mask_token_id=process.mask_id, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature)
    sample = torch.from_numpy(masks())
    ours = run(process, rows, denoiser, masks(), uniforms)
    for timestep, (noise.choice, noise.order), (tokens, codes) in zip(
        scheduler.timesteps, uniforms, ours, strict=True
    ):
        logits = torch.from_numpy(denoiser(sample.numpy())).transpose(1, 2).reshape(3, -1, 6, 6)
        out = scheduler.step(logits, timestep, sample.reshape(3, 6, 6))
        sample = out.prev_sample.reshape(3, POSITIONS)
        np.testing.assert_array_equal(tokens, sample.numpy())
        np.testing.assert_array_equal(codes, out.pred_original_sample.reshape(3, POSITIONS).numpy())
    assert (tokens != process.mask_id).all()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("known", "steps", "begin"), [(0, 12, 5), (10, 12, 0), (25, 7, 3), (35, 4, 0), (30, 12, 0)])
def test_amused_from_the_middle_and_around_known_tokens_is_diffusers(monkeypatch, schedule, known, steps, begin):
    """As its pipelines for image to image and for inpainting call the scheduler."""
    process = dataclasses.replace(PROCESS, schedule=schedule)
    rng, denoiser, uniforms = np.random.default_rng(known), random_logits(2), draws(steps - begin)
    new = rng.permutation(POSITIONS) >= known
    start = np.where(new, process.mask_id, rng.integers(0, process.codes, (3, POSITIONS)))
    rows = table("amused", process, POSITIONS, steps, begin=begin, new=new)
    noise = InjectedNoise(monkeypatch)
    scheduler = AmusedScheduler(mask_token_id=process.mask_id, masking_schedule=schedule)
    scheduler.set_timesteps(steps)
    sample, ratio = torch.from_numpy(start), torch.from_numpy(new).sum() / POSITIONS
    ours = run(process, rows, denoiser, start, uniforms)
    for timestep, (noise.choice, noise.order), (tokens, _) in zip(
        scheduler.timesteps[begin:], uniforms, ours, strict=True
    ):
        logits = torch.from_numpy(denoiser(sample.numpy())).transpose(1, 2).reshape(3, -1, 6, 6)
        out = scheduler.step(logits, timestep, sample.reshape(3, 6, 6), starting_mask_ratio=ratio)
        sample = out.prev_sample.reshape(3, POSITIONS)
        np.testing.assert_array_equal(tokens, sample.numpy())
    np.testing.assert_array_equal(tokens[:, ~new], start[:, ~new])
    assert (tokens != process.mask_id).all()


@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize("sampler", solvers_for(PROCESS))
def test_the_share_that_is_masked_before_a_row(sampler, steps):
    """What a run from the middle masks of what it starts from."""
    rows = exact(sampler, PROCESS, POSITIONS, steps)
    assert rows.masked_before[0] == 1 and (np.diff(rows.masked_before) < 0).all()
    if sampler != "mdlm":  # that one flips a coin for each position
        np.testing.assert_allclose(POSITIONS * rows.masked_before[1:], rows.masked[:-1], atol=1)
    begun = exact(sampler, PROCESS, POSITIONS, steps, begin=steps - 1)
    assert len(begun) == (2 if sampler == "mdlm" else 1) and begun.masked_before[0] == rows.masked_before[steps - 1]


@pytest.mark.parametrize(("known", "blocks", "rows"), [(0, 1, 6), (34, 1, 2), (18, 3, 4), (6, 2, 6), (0, 4, 6)])
def test_llada_unmasks_what_each_block_has_left_evenly(known, blocks, rows):
    """``get_num_transfer_tokens`` of its authors: counts of each block, the first steps one more; none is empty."""
    new = np.arange(POSITIONS) >= known
    found = exact("llada", PROCESS, POSITIONS, 6, options={"blocks": blocks}, new=new)
    assert len(found) == rows
    unmasked = -np.diff(np.append(POSITIONS - known, found.masked))
    assert unmasked.min() >= 1 and unmasked.sum() == POSITIONS - known
    for end in np.unique(found.window):
        of_block = unmasked[found.window == end]
        assert of_block.sum() == new[int(end) - POSITIONS // blocks : int(end)].sum()
        assert of_block.max() - of_block.min() <= 1 and (np.diff(of_block) <= 0).all()


@pytest.mark.parametrize("positions", [16, 36, 256, 1024, 4096])
def test_amused_masks_as_many_as_diffusers_counts_in_float32(positions):
    for steps in range(2, min(positions, 64) + 1):
        ratio = (torch.arange(steps) + 1) / steps
        wanted = (positions * torch.cos(ratio * math.pi / 2)).floor().clamp_min(1)
        np.testing.assert_array_equal(exact("amused", PROCESS, positions, steps).masked[:-1], wanted[:-1].numpy())


def test_amused_256_in_12_steps_is_what_the_released_model_saw():
    rows = exact("amused", PROCESS, 256, 12)
    assert rows.masked.tolist() == [253, 247, 236, 221, 203, 181, 155, 127, 97, 66, 33, 0]
    np.testing.assert_allclose(rows.confidence[:, 1], np.linspace(2, 0, 12))


def test_maskgit_is_the_papers_schedule():
    rows = exact("maskgit", PROCESS, 256, 12)
    done = np.arange(1, 13) / 12
    np.testing.assert_array_equal(rows.masked, [*np.floor(256 * np.cos(np.pi / 2 * done))[:-1], 0])
    assert rows.masked[7] == 128
    np.testing.assert_allclose(rows.confidence[:, 1], 4.5 * (1 - done))


def test_compounding_temperature_is_multiplied_row_by_row():
    rows, temperature = exact("maskgit", PROCESS, 256, 6, options={"compounding": True, "temperature": 1.0}), 1.0
    for row in range(6):
        temperature *= 1 - (row + 1) / 6
        assert rows.confidence[row, 1] == pytest.approx(temperature)


def test_mdlm_draws_from_the_papers_posterior():
    """Sahoo et al. 2024, eq. 7: from t to s, the mask with s / t, and a code with (1 - s / t) p(code)."""
    process = Masked(codes=5, mask_id=5)
    rows = exact("mdlm", process, 1, 4)
    times = np.linspace(1, 1e-5, 5)
    grid = (np.arange(256) + 0.5) / 256
    choice, order = (g.reshape(-1, 1) for g in np.meshgrid(grid, grid))  # every pair of uniform numbers
    logits = np.array([0.3, 2.0, -1.0, 0.0, 1.1])
    p = np.exp(logits) / np.exp(logits).sum()
    for row in range(4):
        t, s = times[row], times[row + 1]
        masked, many = np.full(choice.shape, 5), np.tile(logits, (len(choice), 1, 1))
        tokens, _ = step(process, rows, row, masked, many, choice, order)
        share = np.bincount(tokens[:, 0], minlength=6) / len(tokens)
        np.testing.assert_allclose(share, [*(p * (t - s) / t), s / t], atol=1 / 256)
    known, _ = step(process, rows, 0, np.array([[3]]), logits[None, None], choice[:1], order[:1])
    assert known == 3  # carried over
    last, _ = step(process, rows, 4, np.array([[5]]), logits[None, None], choice[-1:], order[:1])
    assert last == 1  # the most likely


@pytest.mark.parametrize(("blocks", "steps"), [(1, 8), (1, 5), (3, 6), (4, 36)])
def test_llada_is_the_papers_loop(blocks, steps):
    """Nie et al. 2025, algorithm 5, block by block, greedy: commit its k most probable masked positions."""
    denoiser = random_logits(2)
    rows = table("llada", PROCESS, POSITIONS, steps, options={"blocks": blocks})
    length, per_block = POSITIONS // blocks, steps // blocks
    wanted, wanted_rows = masks(1), []
    for block in range(blocks):
        base, more = divmod(length, per_block)
        for i in range(per_block):
            logits = denoiser(wanted)[0].astype(np.float64)
            p = np.exp(logits - logits.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            confidence = np.where(wanted[0] == PROCESS.mask_id, p.max(-1), -np.inf)
            confidence[(block + 1) * length :] = -np.inf
            chosen = np.argsort(-confidence)[: base + (i < more)]
            wanted[0, chosen] = p.argmax(-1)[chosen]
            wanted_rows.append(wanted.copy())
    got = [tokens for tokens, _ in run(PROCESS, rows, denoiser, masks(1), draws(steps, batch=1))]
    np.testing.assert_array_equal(got, wanted_rows)


def test_llada_in_random_order_doesnt_look_at_the_probabilities():
    rows = table("llada", PROCESS, POSITIONS, 6, options={"order": "random"})
    uniforms = draws(6)
    a, b = ([t == PROCESS.mask_id for t, _ in run(PROCESS, rows, random_logits(s), masks(), uniforms)] for s in (1, 2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampler", solvers_for(PROCESS))
@pytest.mark.parametrize("steps", [1, 3, 12, POSITIONS])
def test_every_sampler_unmasks_all_positions_and_changes_none_that_is_unmasked(sampler, steps):
    rows = table(sampler, PROCESS, POSITIONS, steps)
    before = masks()
    for row, (tokens, codes) in enumerate(run(PROCESS, rows, random_logits(3), masks(), draws(len(rows)))):
        unmasked = before != PROCESS.mask_id
        assert (tokens[unmasked] == before[unmasked]).all()
        assert ((codes >= 0) & (codes < PROCESS.codes)).all()
        if rows.stay[row] == 0:
            masked = np.minimum(rows.masked[row], max((~unmasked[0]).sum() - 1, 1))
            assert ((tokens == PROCESS.mask_id).sum(1) == masked).all()
        before = tokens
    assert (before < PROCESS.codes).all()


def test_a_start_that_is_partly_known_is_kept_and_finished():
    start = masks(2)
    start[:, 10:] = np.arange(POSITIONS - 10)
    rows = table("maskgit", PROCESS, POSITIONS, 8)
    done = [tokens for tokens, _ in run(PROCESS, rows, random_logits(4), start, draws(8, batch=2))]
    masked = [(tokens == PROCESS.mask_id).sum() for tokens in done]
    assert masked[0] == 18 and masked == sorted(masked, reverse=True) and masked[-1] == 0
    assert all((tokens[:, 10:] == start[:, 10:]).all() for tokens in done)


def posterior(timestep: int, log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """VQDiffusionScheduler's probabilities (positions, codes + 1) of what is there one timestep earlier."""
    scheduler = VQDiffusionScheduler(num_vec_classes=PROCESS.codes + 1)
    tokens = torch.from_numpy(np.where(tokens == PROCESS.mask_id, PROCESS.codes, tokens))
    found = scheduler.q_posterior(torch.from_numpy(log_p.T)[None], tokens[None], torch.tensor(timestep))
    return found[0].T.double().exp().numpy()


@pytest.mark.parametrize("timestep", [1, 5, 50, 98, 99])
def test_vq_diffusion_is_the_schedulers_posterior(timestep):
    rng = np.random.default_rng(timestep)
    tokens = np.where(np.arange(POSITIONS) % 2, PROCESS.mask_id, rng.integers(0, PROCESS.codes, POSITIONS))
    logits = 3 * rng.normal(size=(POSITIONS, PROCESS.codes))
    log_p = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    rows = exact("vq-diffusion", TIMED, POSITIONS, 100)
    row = 99 - timestep
    assert rows.timestep[row] == timestep
    p, masked = np.exp(log_p.astype(np.float64)), (tokens == PROCESS.mask_id)[:, None]
    drawn = np.where(masked, 1 - rows.stay[row], rows.redraw[row])
    ours = np.concatenate([drawn * p, np.where(masked, rows.stay[row], 0)], 1)
    unmasked = np.flatnonzero(~masked)
    ours[unmasked, tokens[unmasked]] += 1 - rows.redraw[row]
    # The chance that a code was replaced: 1e-6 of all codes, as a share of the 1 % that are unmasked at timestep 98.
    # 9.7e-5 at 99, 2.5e-5 at 98, below 3e-6 at the others.
    assert np.abs(ours - posterior(timestep, log_p, tokens)).max() < 1e-4


def test_vq_diffusion_regenerates_everything_at_timestep_0():
    rows = exact("vq-diffusion", TIMED, POSITIONS, 100)
    assert rows.timestep.tolist() == list(range(99, -1, -1))
    assert (rows.stay[-1], rows.redraw[-1]) == (0, 1)


def test_fewer_steps_of_vq_diffusion_end_as_masked_as_all_do():
    few, all_of_them = (exact("vq-diffusion", TIMED, POSITIONS, steps) for steps in (12, 100))
    assert few.timestep.tolist() == [99, 90, 81, 72, 63, 54, 45, 36, 27, 18, 9, 0]
    between = all_of_them.stay[: 99 - 9].prod()  # from 99 to 9
    assert few.stay[:10].prod() == pytest.approx(between, rel=1e-9)


def test_vq_diffusion_leaves_alone_what_is_known():
    known = np.arange(POSITIONS) < 9
    start = masks()
    start[:, known] = 7
    rows = table("vq-diffusion", TIMED, POSITIONS, 12, new=~known)
    *_, (tokens, _) = run(PROCESS, rows, random_logits(5), start, draws(12))
    assert (tokens[:, known] == 7).all() and (tokens < PROCESS.codes).all()


def test_what_is_unmasked_is_regenerated_as_often_as_the_row_says():
    rows = dataclasses.replace(exact("vq-diffusion", TIMED, 1, 100), redraw=np.full(100, 0.25), stay=np.full(100, 0.5))
    logits, tokens = np.log([[[0.1, 0.9]]]), np.repeat([0, 2], 2000)[:, None]  # unmasked, masked
    process = Masked(codes=2, mask_id=2, train_timesteps=100)
    choice, order = np.random.default_rng(0).random((2, 4000, 1))
    made, _ = step(process, rows, 0, tokens, np.tile(logits, (4000, 1, 1)), choice, order)
    found = [np.bincount(part[:, 0], minlength=3) / 2000 for part in (made[:2000], made[2000:])]
    np.testing.assert_allclose(found, [[0.775, 0.225, 0], [0.05, 0.45, 0.5]], atol=0.03)


def test_other_samplers_take_the_timestep_from_the_masked_share():
    for sampler in ("maskgit", "amused", "mdlm", "llada"):
        rows = exact(sampler, TIMED, POSITIONS, 6)
        assert rows.timestep[0] == 99 and (rows.timestep == np.rint(rows.timestep)).all()
        assert np.abs(rows.timestep / 99 - rows.masked_before).max() < 0.5 / 99 + 1e-4
    assert not exact("maskgit", PROCESS, POSITIONS, 6).timestep.any()


def test_choices_follow_the_probabilities_of_the_most_likely_codes():
    process, grid = Masked(codes=4, mask_id=4), (np.arange(1000) + 0.5) / 1000
    logits = np.log([[[0.1, 0.4, 0.3, 0.2]]])
    for top_k, temperature, wanted in ((4, 1.0, [0.1, 0.4, 0.3, 0.2]), (2, 1.0, [0, 4 / 7, 3 / 7, 0]),
                                       (4, 0.0, [0, 1, 0, 0]), (4, 0.5, np.array([1, 16, 9, 4]) / 30)):  # fmt: skip
        rows = exact("maskgit", process, 1, 1, options={"top_k": top_k, "sampling_temperature": temperature})
        choice = grid[:, None]
        codes, _ = step(process, rows, 0, np.full((1000, 1), 4), np.tile(logits, (1000, 1, 1)), choice, choice)
        np.testing.assert_allclose(np.bincount(codes[:, 0], minlength=4) / 1000, wanted, atol=1.1e-3)


def test_the_largest_uniform_number_chooses_a_code_that_can_be():
    rows = table("maskgit", PROCESS, POSITIONS, 1)
    logits = np.full((1, POSITIONS, 64), -200.0, np.float32)
    logits[..., :3] = 0.1, 0.2, 0.3
    top = np.full((1, POSITIONS), np.nextafter(np.float32(1), np.float32(0)))
    tokens, _ = step(PROCESS, rows, 0, masks(1), logits, top, top)
    assert (tokens < 3).all()


def test_running_sum_is_the_sum_up_to_each():
    x = np.random.default_rng(0).integers(0, 9, (2, 37)).astype(np.float64)
    np.testing.assert_array_equal(running_sum(x), x.cumsum(-1))


def test_names_of_the_samplers_are_among_all_solvers():
    assert solvers_for(PROCESS) == ("maskgit", "amused", "mdlm", "llada")
    assert solvers_for(TIMED) == tuple(SAMPLERS)
    assert set(SAMPLERS) < set(SOLVERS)


@pytest.mark.parametrize(("sampler", "steps", "options", "message"), [
    ("ddim", 4, {}, "solver for a masked process, got 'ddim', wanted 'maskgit' or 'amused'"),
    ("maskgit", 0, {}, "steps, got 0"),
    ("maskgit", 37, {}, "at most 36"),
    ("maskgit", 4, {"temprature": 1.0}, "option 'temprature' of solver 'maskgit'"),
    ("maskgit", 4, {"temperature": "hot"}, "got 'hot', wanted a number"),
    ("maskgit", 4, {"top_k": 65}, "top_k, got 65, wanted 1 to 64"),
    ("maskgit", 4, {"sampling_temperature": -1.0}, "sampling_temperature, got -1.0"),
    ("vq-diffusion", 4, {}, "steps of solver 'vq-diffusion', got 4, wanted a denoiser conditioned on the timestep"),
    ("llada", 8, {"blocks": 5}, "blocks, got 5, wanted a divisor of 36 positions, and at most the 8 steps"),
    ("llada", 2, {"blocks": 3}, "blocks, got 3, wanted a divisor of 36 positions, and at most the 2 steps"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_said(sampler, steps, options, message):
    with pytest.raises(MmgenError, match=message):
        table(sampler, PROCESS, POSITIONS, steps, options=options)
