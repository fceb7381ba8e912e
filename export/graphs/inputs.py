"""The inputs of a model, completed: what media are encoded to, found by encoding some."""

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import EncodeGraph, media_examples
from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.storage.schema import Condition


def completed(model: Model) -> Model:
    """Return the model with the shape and dtype of what each medium is encoded to.

    A null of the shape of the media, where they are encoded, is encoded too.

    Raises:
        MmgenError: an encoder fails, or doesn't return one tensor (B, ...).
    """
    return dataclasses.replace(model, conditions=tuple(_completed(model, each) for each in model.conditions))


def _completed(model: Model, condition: Condition) -> Condition:
    media = condition.media
    if media is None:
        return condition
    for request in model.examples:
        given = request.get(condition.name)
        if given is not None and (np.shape(given), getattr(given, "dtype", None)) != (media.shape, media.dtype):
            wanted = f"{media.dtype} {media.shape}"
            raise MmgenError(f"examples: {condition.name!r}", got=said(given), wanted=wanted)
    if condition.name not in model.encoders:
        return dataclasses.replace(condition, shape=media.shape, dtype=media.dtype)
    graph = EncodeGraph(model.encoders[condition.name], media)
    features = _encoded(condition.name, graph, np.stack(media_examples(model, condition, 2)))
    null = condition.null
    if isinstance(null, np.ndarray) and null.shape == media.shape != features.shape[1:]:
        null = _encoded(condition.name, graph, null[None].astype(media.dtype))[0]
    return dataclasses.replace(condition, shape=features.shape[1:], dtype=features.dtype.name, null=null)


def _encoded(name: str, graph: nn.Module, media: np.ndarray) -> np.ndarray:
    what = f"encoder of {name!r}"
    try:
        with torch.no_grad():
            made = graph(torch.from_numpy(media))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        shape = f"{media.dtype} {media.shape}"
        raise MmgenError(f"{what} fails on media {shape}: {reason}", remedy="check the model's shapes") from error
    if not isinstance(made, Tensor) or made.ndim == 0 or len(made) != len(media):
        got = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise MmgenError(f"{what}: what it returns", got=got, wanted=f"one tensor ({len(media)}, ...)")
    array: np.ndarray = made.numpy()
    return array
