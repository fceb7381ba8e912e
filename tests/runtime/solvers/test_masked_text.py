"""Samplers that unmask block by block, by thresholds and by level, and texts that end, against published equations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import masked_samplers as published
import numpy as np
import pytest

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.masked import OFF, MaskedTable, exact, table
from mmgen.runtime.solvers.masked_reference import draw, ended, following, play, run, step, unmask
from mmgen.runtime.solvers.registry import solvers_for
from mmgen.runtime.storage.process import Masked

PROCESS = Masked(codes=30, mask_id=31)
TIMED = dataclasses.replace(PROCESS, train_timesteps=100, hidden=(0.000009, 0.99999))
N, END = 24, 7
Denoiser = Callable[[np.ndarray], np.ndarray]


def denoiser(seed: int, spread: float = 3.0, end: float = 0.0) -> Denoiser:
    """Logits (B, N, codes) that depend on all tokens; ``end``: how much more likely an end becomes with each place."""
    mix = np.random.default_rng(seed).normal(0, spread, (PROCESS.mask_id + 1, N, PROCESS.codes))
    mix[..., END] += end * (np.arange(N) - N / 2)

    def logits(tokens: np.ndarray) -> np.ndarray:
        return mix[tokens, np.arange(N)].mean(1, keepdims=True) + mix[0]

    return logits


def masks(batch: int = 3) -> np.ndarray:
    return np.full((batch, N), PROCESS.mask_id)


def uniforms(rows: int, batch: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, 2, batch, N))


def rows_of(sampler: str, steps: int, **options: Any) -> MaskedTable:
    return table(sampler, PROCESS, N, steps, options=options)


class TestLLaDA:
    @pytest.mark.parametrize(("blocks", "steps"), [(1, 8), (1, 5), (1, 24), (2, 10), (3, 12), (4, 24), (24, 24)])
    @pytest.mark.parametrize("temperature", [0.0, 0.7])
    @pytest.mark.parametrize("order", ["confidence", "random"])
    def test_is_the_papers_loop(self, blocks: int, steps: int, temperature: float, order: str) -> None:
        rows = rows_of("llada", steps, blocks=blocks, sampling_temperature=temperature, order=order)
        numbers, logits = uniforms(steps), denoiser(1)
        wanted = published.llada(
            logits, masks(), PROCESS.mask_id, numbers, blocks=blocks, steps=steps, temperature=temperature,
            random=order == "random",
        )  # fmt: skip
        for (tokens, _), want in zip(run(PROCESS, rows, logits, masks(), numbers), wanted, strict=True):
            np.testing.assert_array_equal(tokens, want)


class TestThreshold:
    @pytest.mark.parametrize("blocks", [1, 2, 4])
    @pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("temperature", [0.0, 0.7])
    def test_in_as_many_steps_as_positions_is_fast_dllms(
        self, blocks: int, threshold: float, temperature: float
    ) -> None:
        """The same evaluations, and after each of them the same tokens; what a block doesn't need isn't run."""
        rows = rows_of("llada", N, blocks=blocks, threshold=threshold, sampling_temperature=temperature)
        numbers, logits = uniforms(N, batch=1), denoiser(1)
        wanted = published.fast_dllm(
            logits, masks(1), PROCESS.mask_id, numbers, blocks=blocks, threshold=threshold, temperature=temperature
        )
        played = play(PROCESS, rows, logits, masks(1), numbers)
        for (row, tokens, _), (want_row, want) in zip(played, wanted, strict=True):
            assert row == want_row
            np.testing.assert_array_equal(tokens, want)

    def test_saves_evaluations(self) -> None:
        counts = [
            len(list(play(PROCESS, rows_of("llada", N, blocks=4, threshold=p), denoiser(1), masks(1), uniforms(N, 1))))
            for p in (1.0, 0.5, 0.05)
        ]
        assert counts[0] == N and counts[0] > counts[1] > counts[2] == 4

    @pytest.mark.parametrize("steps", [4, 6, 9, 13, 24])
    @pytest.mark.parametrize("blocks", [1, 2, 4])
    @pytest.mark.parametrize("threshold", [0.05, 0.4, 1.0])
    def test_what_the_steps_ask_for_is_the_least_that_is_reached(
        self, steps: int, blocks: int, threshold: float
    ) -> None:
        rows, logits, before = rows_of("llada", steps, blocks=blocks, threshold=threshold), denoiser(2), masks()
        numbers = uniforms(len(rows))
        for row, (tokens, codes) in enumerate(run(PROCESS, rows, logits, before, numbers)):
            was, is_, window = before == PROCESS.mask_id, tokens == PROCESS.mask_id, int(rows.window[row])
            assert (is_.sum(1) <= rows.masked[row]).all()
            sure = np.take_along_axis(published.softmax(logits(before)), codes[..., None], -1)[..., 0] >= threshold
            unmasked, inside = was & ~is_, was & (np.arange(N) < window)
            assert not unmasked[:, window:].any() and not (inside & sure & is_).any()
            assert (unmasked.any(1) == inside.any(1)).all(), "at least one, if there is one"
            extra = unmasked.sum(1) - (unmasked & sure).sum(1)
            assert (extra <= np.maximum(was.sum(1) - rows.masked[row], 1)).all(), "others only as the steps ask for"
            before = tokens
        assert (before < PROCESS.codes).all()

    def test_without_is_as_before(self) -> None:
        rows = rows_of("llada", 12, blocks=3)
        assert (rows.threshold == OFF).all() and (rows_of("llada", 12, threshold=0.5).threshold < 0).all()
        numbers, never = uniforms(12), dataclasses.replace(rows, threshold=np.full(12, -1e-30))
        both = (list(run(PROCESS, each, denoiser(3), masks(), numbers)) for each in (rows, never))
        np.testing.assert_array_equal(*([tokens for tokens, _ in made] for made in both))

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
    def test_is_a_probability(self, threshold: float) -> None:
        with pytest.raises(MmgenError, match=r"threshold.*wanted a (probability up to 1, or 0 for none|number)"):
            rows_of("llada", 12, threshold=threshold)


class TestCompounding:
    @pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 16, 23])
    def test_is_show_os_and_mmadas_sampler(self, steps: int) -> None:
        rows = rows_of("maskgit", steps, compounding=True, temperature=1.3)
        numbers, logits = uniforms(steps), denoiser(4)
        wanted = published.show_o(logits, masks(), PROCESS.mask_id, numbers, steps=steps, temperature=1.3)
        for (tokens, _), want in zip(run(PROCESS, rows, logits, masks(), numbers), wanted, strict=True):
            np.testing.assert_array_equal(tokens, want)

    @pytest.mark.parametrize("places", [256, 1024])
    def test_their_code_counts_in_float32_which_differs_where_the_cosine_is_a_half(self, places: int) -> None:
        for steps in range(2, 65):
            done = np.arange(1, steps, dtype=np.float32) / np.float32(steps)
            theirs = np.floor(places * np.cos(done * np.float32(np.pi) / 2))
            ours = exact("maskgit", PROCESS, places, steps, options={"compounding": True}).masked[:-1]
            off = np.flatnonzero(ours != theirs)
            assert all(3 * (row + 1) == 2 * steps for row in off) and (ours - theirs)[off].tolist() in ([], [1])


class TestCodebooks:
    @pytest.mark.parametrize(("levels", "steps", "each"), [
        (1, 6, [6]), (2, 6, [3, 3]), (4, 10, [3, 3, 2, 2]), (4, 24, [6, 6, 6, 6]), (8, 8, [1] * 8),
    ])  # fmt: skip
    def test_are_unmasked_level_by_level(self, levels: int, steps: int, each: list[int]) -> None:
        self.compare(rows_of("maskgit", steps, blocks=levels, temperature=2.0), each)

    @pytest.mark.parametrize(("first", "each"), [(6, [6, 1, 1, 1]), (3, [3, 2, 2, 2]), (1, [1, 3, 3, 2])])
    def test_the_first_may_have_steps_of_its_own(self, first: int, each: list[int]) -> None:
        """As in SoundStorm, 16 and then 1 each, and in MAGNeT, 20 and then 10 each."""
        self.compare(rows_of("maskgit", sum(each), blocks=4, first=first, temperature=2.0), each)

    def compare(self, rows: MaskedTable, each: list[int]) -> None:
        numbers, logits = uniforms(len(rows)), denoiser(5)
        wanted = published.levels(logits, masks(), PROCESS.mask_id, numbers, steps=each, temperature=2.0)
        for (tokens, _), want in zip(run(PROCESS, rows, logits, masks(), numbers), wanted, strict=True):
            np.testing.assert_array_equal(tokens, want)

    def test_where_much_is_known_a_level_has_no_more_rows_than_positions(self) -> None:
        new = np.zeros(N, np.bool_)
        new[[0, 1, 13, 14, 15]] = True  # none of the second and last of four
        rows = exact("maskgit", PROCESS, N, 16, options={"blocks": 4}, new=new)
        assert rows.window.tolist() == [6, 6, 18, 18, 18] and rows.masked.tolist() == [4, 3, 2, 1, 0]
        start = np.where(new, PROCESS.mask_id, np.arange(N))[None]
        *_, (tokens, _) = run(PROCESS, rows, denoiser(5), start, uniforms(5, 1))
        assert (tokens[:, ~new] == start[:, ~new]).all() and (tokens < PROCESS.codes).all()

    @pytest.mark.parametrize(("options", "message"), [
        ({"blocks": 5}, "blocks, got 5, wanted a divisor of 24 positions, and at most the 8 steps"),
        ({"blocks": 12}, "blocks, got 12"),
        ({"blocks": 0}, "blocks, got 0"),
        ({"blocks": 4, "first": 6}, "first, steps of the first block, got 6, wanted 1 to 5 of 8 steps"),
        ({"blocks": 4, "first": -1}, "got -1, wanted 1 to 5"),
        ({"first": 2}, "got 2, wanted 0, where there is one block"),
    ])  # fmt: skip
    def test_what_cannot_be_divided_is_said(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(MmgenError, match=message):
            rows_of("maskgit", 8, **options)

    def test_cannot_begin_in_the_middle(self) -> None:
        with pytest.raises(MmgenError, match="unmasks 4 blocks in order and can't begin in the middle"):
            table("maskgit", PROCESS, N, 8, options={"blocks": 4}, begin=2)


def older(rows: MaskedTable, row: int, tokens: np.ndarray, logits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """What step graphs do that were exported without a threshold: ranks alone, also behind the window."""
    drawn = draw(PROCESS, rows, row, tokens, logits, *numbers)
    masked = tokens == PROCESS.mask_id
    stays = np.minimum(rows.masked[row], np.maximum(masked.sum(-1) - 1, 1))
    behind = np.tri(N, dtype=bool).T
    mine, others = drawn.score[:, :, None], drawn.score[:, None]
    rank = ((others < mine) | ((others == mine) & behind)).sum(-1)
    again = masked & ((rank <= stays[:, None]) | (numbers[1] < rows.stay[row]))
    return np.where(again, PROCESS.mask_id, drawn.codes)


@pytest.mark.parametrize("known", [0, 9, 20])
@pytest.mark.parametrize(("sampler", "options"), [
    *((name, {}) for name in solvers_for(TIMED)), ("maskgit", {"compounding": True}),
    *(("llada", {"blocks": blocks}) for blocks in (2, 3, 4)), *(("maskgit", {"blocks": n}) for n in (2, 4)),
])  # fmt: skip
def test_without_a_threshold_older_graphs_make_the_same_tokens(sampler: str, options: dict, known: int) -> None:
    """Their windows are implied by how many positions a row unmasks."""
    new = np.random.default_rng(known).permutation(N) >= known
    for steps in (4, 6, 11, 24):
        rows = table(sampler, TIMED, N, steps, options=options, new=new)
        numbers, tokens = uniforms(len(rows)), np.where(new, PROCESS.mask_id, np.arange(N))[None].repeat(3, 0)
        for row in range(len(rows)):
            logits = denoiser(6)(tokens)
            made, _ = step(PROCESS, rows, row, tokens, logits, *numbers[row])
            np.testing.assert_array_equal(made, older(rows, row, tokens, logits, numbers[row]))
            tokens = made


class TestEnd:
    """The rows that are left out change nothing before a text's end."""

    SAMPLERS = (
        ("maskgit", {}), ("amused", {}), ("mdlm", {}), ("llada", {}), ("llada", {"blocks": 4}),
        ("llada", {"blocks": 3, "sampling_temperature": 1.0, "threshold": 0.3}), ("llada", {"threshold": 0.5}),
        ("maskgit", {"blocks": 3}), ("vq-diffusion", {}),
    )  # fmt: skip

    @pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
    @pytest.mark.parametrize("end", [END, None])
    @pytest.mark.parametrize("seed", range(4))
    def test_early_or_not_the_text_is_the_same(self, sampler: str, options: dict, end: int | None, seed: int) -> None:
        rows = table(sampler, TIMED, N, 12, options=options)
        numbers, logits = uniforms(len(rows), seed=seed), denoiser(seed, 1.0, end=0.4)
        *_, (whole, _) = run(PROCESS, rows, logits, masks(), numbers)
        played = list(play(PROCESS, rows, logits, masks(), numbers, end))
        np.testing.assert_array_equal(ended(played[-1][1], end), ended(whole, end))
        assert [row for row, *_ in played] == sorted({row for row, *_ in played})
        if end is None and rows.masked[:-1].all() and sampler != "mdlm" and "threshold" not in options:
            assert len(played) == len(rows), "every row unmasks something"

    @pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
    def test_a_sample_is_the_same_alone(self, sampler: str, options: dict) -> None:
        """However long the others of its batch go on."""
        rows = table(sampler, TIMED, N, 12, options=options)
        numbers, logits = uniforms(len(rows)), denoiser(3, 1.0, end=0.4)
        *_, (_, together, _) = play(PROCESS, rows, logits, masks(), numbers, END)
        for i in range(3):
            *_, (_, alone, _) = play(PROCESS, rows, logits, masks(1), numbers[:, :, i : i + 1], END)
            np.testing.assert_array_equal(ended(alone, END)[0], ended(together, END)[i])

    def test_spares_the_blocks_behind_it(self) -> None:
        rows = rows_of("llada", 12, blocks=4)
        ran = [row for row, *_ in play(PROCESS, rows, denoiser(0, 1.0, end=2.0), masks(), uniforms(12), END)]
        assert 3 <= len(ran) < 12 and ran == list(range(len(ran)))

    def test_positions_matter_before_it_alone(self) -> None:
        rows, mask = rows_of("llada", 8, blocks=4), PROCESS.mask_id  # two rows for each six positions

        def after(row: int, *tokens: list[int], end: int | None = END) -> int | None:
            return following(PROCESS, rows, row, np.array([[*t, *[mask] * (N - len(t))] for t in tokens]), end)

        assert after(0, [1, mask, END]) == 1, "a masked position before it"
        assert after(0, [1, 2, END]) is None
        assert after(0, [1, 2, END], [1, 2, 3]) == 1, "another sample goes on"
        assert after(1, [1] * 6) == 2 and after(0, [1] * 6) == 2, "the block is done, and its second row not needed"
        assert after(0, [1] * 13) == 4 and after(0, [1] * 13, [mask]) == 1
        assert after(0, [1] * N) is None and after(7, [1] * N) is None
        assert after(0, [END], end=None) == 1

    def test_tokens_that_may_be_regenerated_end_nothing(self) -> None:
        rows = table("vq-diffusion", TIMED, N, 12)
        assert [following(PROCESS, rows, row, np.full((1, N), END), END) for row in range(12)] == [*range(1, 12), None]

    def test_the_result_repeats_it(self) -> None:
        tokens = np.array([[1, END, 2, END, 3], [1, 2, 3, 4, 5], [END] * 5])
        np.testing.assert_array_equal(ended(tokens, END), [[1, END, END, END, END], [1, 2, 3, 4, 5], [END] * 5])
        assert ended(tokens, None) is tokens


def test_a_window_that_is_done_changes_nothing() -> None:
    """Where a threshold unmasked a block early, also behind the window, and whatever the row asks for."""
    rows = rows_of("llada", N, blocks=4, threshold=0.5)
    tokens = np.where(np.arange(N) < 6, 3, PROCESS.mask_id)[None]
    drawn = draw(PROCESS, rows, 2, tokens, 50 * denoiser(1)(tokens), *uniforms(1, 1)[0])
    assert (drawn.log_p[0, 6:] > rows.threshold[2]).any()
    np.testing.assert_array_equal(unmask(PROCESS, rows, 2, tokens, drawn, uniforms(1, 1)[0, 1]), tokens)
