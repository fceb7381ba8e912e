"""A memory of things, found by what is compared with it: what a small network would take days to learn by heart."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 0.07  # of likenesses, which are cosines
SHARPNESS = 2  # of recalling: a mixture of two things helps nobody


class Memory(nn.Module):
    """Values of things, each found by its key (key-value memories, Miller et al. 2016, sec. 3.1).

    A thing's key is near the embedding of whatever is of it: its name, a picture of it, somebody who says it.  So what
    is known of it is known whichever of them is given.

    Args:
        things: how many are known.
        key_width: numbers of an embedding.
        values: numbers that are known of each, by what they are about.
    """

    def __init__(self, things: int, key_width: int, values: Mapping[str, int]) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(things, key_width))
        self.values = nn.ParameterDict({name: nn.Parameter(torch.zeros(things, n)) for name, n in values.items()})

    def likeness(self, embedding: Tensor) -> Tensor:
        """Compare unit vectors (B, E) with all things, to logits (B, things) of which one is meant."""
        return embedding @ F.normalize(self.keys, dim=-1).t() / TEMPERATURE

    def recall(self, name: str, embedding: Tensor) -> Tensor:
        """Recall a value (B, V): the mean of all things' by how likely each is meant, sharpened."""
        return (SHARPNESS * self.likeness(embedding)).softmax(-1) @ self.values[name]
