"""Names of a model's tensors in its graphs: those that the user gave, wherever they are free."""

import dataclasses
import re
from collections.abc import Container

from mmgen.export.base.model import Model
from mmgen.runtime.storage.tensors import TENSORS

TYPES = ("_fp16", "_fp32")  # how tensors end that are made when types change


def named(model: Model) -> Model:
    """Return the model with a name for each conditioning tensor, and a ``graph_name`` for conditions that need one.

    All graphs of a bundle share one namespace: what the condition graph returns is what the step graph takes.
    """
    taken = set(TENSORS)
    conditions = []
    for condition in model.conditions:
        name = free(_plain(condition.name), taken)
        taken.add(name)
        conditions.append(dataclasses.replace(condition, graph_name=None if name == condition.name else name))
    conditioning = []
    for given in model.conditioning:
        conditioning.append(free(_plain(given), taken))
        taken.add(conditioning[-1])
    return dataclasses.replace(model, conditions=tuple(conditions), conditioning=tuple(conditioning))


def free(name: str, taken: Container[str]) -> str:
    """Return a name that no other tensor has: the given one, or the given one with a suffix."""
    candidate, number = name, 1
    while candidate in taken or candidate.endswith(TYPES):
        candidate = f"{name}_given" if number == 1 else f"{name}_given_{number}"
        number += 1
    return candidate


def _plain(name: str) -> str:
    """Reduce a name to letters, digits and underscores, which every compiler takes."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)
