"""The sampling loop in plain numpy: the definition that faster loops are compared with."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.solvers.table import Table
from mmgen.runtime.storage.tensors import K

Array = NDArray[np.floating[Any]]


def run(
    table: Table,
    denoiser: Callable[[Array, float], Array],
    noise: Array,
    *,
    noises: Array | None = None,
    data: Array | None = None,
    keep: NDArray[np.bool_] | None = None,
) -> Iterator[Array]:
    """Yield the state after each row of a table.

    Args:
        table: N rows.
        denoiser: from x (B, *L), already scaled, and a timestep to the model's output (B, *L) after guidance.
        noise: unit noise (B, *L) that the run starts from; all arithmetic is in its dtype.
        noises: unit noise (N, B, *L) of the rows; may be left out where the table isn't stochastic.
        data: latents (B, *L) that the noise is added to; None: the run starts from noise alone.
        keep: (B, *L) where the data is kept; None: nowhere.

    Yields:
        The state (K, B, *L); slot 0 of the last one holds the latents.
    """
    dtype = noise.dtype
    state = np.zeros((K, *noise.shape), dtype)
    if data is None:
        state[0] = noise * dtype.type(table.initial_scale)
    else:
        state[0] = dtype.type(table.level[0, 0]) * data + dtype.type(table.level[0, 1]) * noise
    if noises is None:
        if table.stochastic.any():
            raise ValueError("a stochastic table needs noises")
        noises = np.zeros((len(table), *noise.shape), dtype)
    rows = zip(
        table.timestep, table.input_scale, table.prediction, table.x0_limit, table.transition, table.next_level, noises,
        strict=True,
    )  # fmt: skip
    for timestep, scale, prediction, limit, transition, level, fresh in rows:
        x = state[0]
        out = denoiser(x * dtype.type(scale), float(timestep))
        x0 = dtype.type(prediction[0]) * x + dtype.type(prediction[1]) * out
        x0 = x0.clip(-limit, limit)
        columns = np.concatenate([state, x0[None], out[None], fresh[None]])  # (K + 3, B, *L)
        state = np.tensordot(transition.astype(dtype), columns, 1)
        if data is not None and keep is not None:
            state = np.where(keep, dtype.type(level[0]) * data + dtype.type(level[1]) * noise, state)
        yield state
