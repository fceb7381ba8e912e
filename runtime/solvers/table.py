"""A solver's whole run as numbers: one row for each evaluation of the denoiser."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.storage.tensors import K


@dataclass(frozen=True)
class Table:
    """N rows.  With x = state[0] and D the denoiser, row i computes, in float32,

        out    = sum_g guidance[g] D(input_scale x, timestep, condition_g)
        x0     = clamp(prediction[0] x + prediction[1] out, -x0_limit, x0_limit)
        state' = transition . [state (K slots); x0; out; noise]

    Where data is to be kept, x0 is the data, and state' is next_level[0] data + next_level[1] noise, the noise being
    what the run began with (Lugmayr et al. 2022, eq. 8, as diffusers' pipelines for inpainting do it).

    Before the first row, slot 0 is ``initial_scale`` times unit noise, or data noised to the first row's level, and the
    other slots are zero.  After the last, slot 0 holds the latents.
    """

    timestep: NDArray[np.float32]  # (N,)
    input_scale: NDArray[np.float32]  # (N,)
    prediction: NDArray[np.float32]  # (N, 2)
    x0_limit: NDArray[np.float32]  # (N,) infinity: no clamp
    transition: NDArray[np.float32]  # (N, K, K + 3)
    level: NDArray[np.float32]  # (N, 2): where a row starts, x stands for level[0] data + level[1] noise
    initial_scale: float = 1.0

    @property
    def stochastic(self) -> NDArray[np.bool_]:
        """(N,): whether a row uses its noise."""
        used: NDArray[np.bool_] = np.any(self.transition[:, :, K + 2], axis=1)
        return used

    @property
    def next_level(self) -> NDArray[np.float32]:
        """(N, 2): ``level`` where a row ends: data alone, after the last."""
        last = np.array([[1, 0]], self.level.dtype)
        levels: NDArray[np.float32] = np.concatenate([self.level[1:], last])
        return levels

    @property
    def noise_to_data(self) -> NDArray[np.float64]:
        """(N,): sigma of Karras et al. 2022, the ratio of noise to data where a row starts; infinity at pure noise."""
        data, noise = self.level.astype(np.float64).T
        with np.errstate(divide="ignore"):
            ratio: NDArray[np.float64] = noise / data
        return ratio

    def __len__(self) -> int:
        return len(self.timestep)
