"""Receipts of single graphs: what an error is measured against."""

import numpy as np
import pytest

from mmgen.export.receipts import _compare
from mmgen.export.torch_run import Sample
from mmgen.runtime import bundle as names
from mmgen.runtime.bundle import K
from mmgen.runtime.process import Flow


def test_x0_is_measured_against_the_terms_it_is_the_difference_of() -> None:
    """At timestep 875 of a linear schedule x0 = 44 (x - out), and so is its error 44 times that of out."""
    random = np.random.default_rng(0)
    x, x0 = random.standard_normal((2, 1, 4, 8, 8))
    out = x - x0 / 44
    wrong = out * (1 + 1e-3 * random.standard_normal(out.shape))
    inputs = {names.PREDICTION: np.array([44.0, -44.0]), names.STATE: np.stack([x] * K)}
    truth, got = ({names.X0: 44 * (x - o), names.NEXT_STATE: np.stack([o] * K)} for o in (out, wrong))
    *_, state, found = sorted(_compare(2, "step", "fp16", got, Sample(inputs, truth), Flow()), key=lambda r: r.tensor)
    assert found.tensor == names.X0 and found.measured == pytest.approx(state.measured, rel=0.1)
    flow = inputs | {names.PREDICTION: np.array([1.0, -44.0])}  # a first term smaller than x0: x0 itself
    *_, alone = sorted(_compare(2, "step", "fp16", got, Sample(flow, truth), Flow()), key=lambda r: r.tensor)
    assert alone.measured == pytest.approx(44 * state.measured, rel=0.1)
