"""Names of a model's tensors in its graphs: those that the user gave, wherever they are free."""

import dataclasses
import re
from collections.abc import Container, Iterable

from mmgen.export.base.model import Model
from mmgen.runtime.storage.schema import Condition
from mmgen.runtime.storage.tensors import TENSORS

TYPES = ("_fp16", "_fp32")  # how tensors end that are made when types change


def named(model: Model) -> Model:
    """Return the model with a name for each conditioning tensor, and a ``graph_name`` for conditions that need one.

    All graphs of a bundle share one namespace: what the condition graph returns is what the step graph takes.
    """
    taken = set(TENSORS)
    conditions = _named(model.conditions, taken)
    conditioning = []
    for given in model.conditioning:
        conditioning.append(free(_plain(given), taken))
        taken.add(conditioning[-1])
    return dataclasses.replace(model, conditions=conditions, conditioning=tuple(conditioning))


def inputs_named(model: Model) -> tuple[Condition, ...]:
    """Return the inputs of a model with several outputs, each with the name that its tensor has in all of them."""
    return _named(model.inputs, set(TENSORS))


def _named(conditions: Iterable[Condition], taken: set[str]) -> tuple[Condition, ...]:
    """Name the tensors of conditions that have no name yet, and add all names to those taken."""
    made = []
    for condition in conditions:
        name = condition.graph_name or free(_plain(condition.name), taken)
        taken.add(name)
        made.append(dataclasses.replace(condition, graph_name=None if name == condition.name else name))
    return tuple(made)


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
