"""Checks that the parts of a bundle fit together: graphs' outputs match the next one's inputs, and sizes are sizes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import PurePosixPath

from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.media_layouts import layouts, misnamed_channels
from mmgen.runtime.storage.process import EDM, Masked
from mmgen.runtime.storage.schema import (
    CODES,
    EMBED,
    INPUT,
    MEDIA_KINDS,
    ROLES,
    TOKENIZER,
    Bundle,
    Condition,
    Graph,
    Role,
    TensorSpec,
)
from mmgen.runtime.storage.tensors import K

Shape = tuple[int | str, ...]
Tensor = tuple[str, Shape]  # dtype and shape

MOST = 2**31 - 1  # of a count or a size, which have 32 bits in graphs and TensorRT
NUMBERS = 2**36  # in a tensor of one sample
DTYPES = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {
    "float16", "float32", "bool"
}  # fmt: skip
TIMES = {  # inputs from a row of the table, float32
    names.TRANSITION: (K, K + 3), names.PREDICTION: (2,), names.X0_LIMIT: (1,), names.INPUT_SCALE: (1,),
    names.TIMESTEP: (1,), names.NEXT_LEVEL: (2,), names.RESCALE: (1,), names.SHARPNESS: (1,), names.TOP_K: (1,),
    names.CONFIDENCE: (2,), names.MASKED: (1,), names.STAY: (1,), names.WINDOW: (1,), names.REDRAW: (1,),
    names.THRESHOLD: (1,),
}  # fmt: skip
AXES: Mapping[str, str] = {"condition": "R", "timestep": "NR", "step": "GB", "decode": "B", "encode": "B"}
TRIES = ({"B": 3, "G": 2, "R": 6, "N": 5}, {"B": 7, "G": 11, "R": 77, "N": 13})  # sizes that tell axes apart


def check_parts(bundle: Bundle, where: str) -> None:
    """Check that a manifest, whose fields have the right types, describes a bundle that can be played.

    Args:
        bundle: as read.
        where: begins each error.

    Raises:
        MmgenError: it doesn't; names the first thing that is wrong.
    """

    def wrong(what: str, got: object, wanted: object) -> MmgenError:
        remedy = "export the bundle again, or copy it again"
        return MmgenError(f"{where}: {what}", got=_text(got), wanted=_text(wanted), remedy=remedy)

    for what, value in _numbers(bundle):
        if not (math.isfinite(value) and abs(value) <= MOST):
            raise wrong(what, value, f"a number from -{MOST} to {MOST}")
    for what, value, least in _counts(bundle):
        if value < least:
            raise wrong(what, value, f"at least {least}")
    for what, shape in _shapes(bundle):
        if any(size < 1 for size in shape) or math.prod(shape) > NUMBERS:
            raise wrong(what, shape, f"sizes from 1, and not more than {NUMBERS} numbers")
    for what, found in _names(bundle):
        if twice := [name for name, count in Counter(found).items() if count > 1 or not name]:
            raise wrong(what, twice[0], "names, each once")
    # One after the other: each relies on what those before it have checked.
    for what, got, wanted in chain(_choices(bundle), _axes(bundle), _conditions(bundle), _graphs(bundle)):
        if got != wanted:
            raise wrong(what, got, wanted)


def _text(value: object) -> str:
    """Write a value for an error; words as they are, and of a tensor its dtype and shape."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = f"{value[0]} {value[1]}"
    return shown(value)[1:-1] if isinstance(value, str) else shown(value)


def _numbers(bundle: Bundle) -> Iterable[tuple[str, int | float]]:
    """Yield all numbers that affect results, by their place in the manifest."""
    parts = {"process": bundle.process, "defaults": bundle.defaults, "media": bundle.media, "axes": bundle.axes}
    for name, part in parts.items():
        yield from _inside(name, part)
    for i, condition in enumerate(bundle.conditions):
        yield from _inside(f"conditions[{i}]", condition)


def _inside(where: str, value: object) -> Iterable[tuple[str, int | float]]:
    if isinstance(value, (int, float)):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(f"{where}.{key}", item)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _inside(f"{where}[{i}]", item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _inside(f"{where}.{field.name}", getattr(value, field.name))


def _counts(bundle: Bundle) -> Iterable[tuple[str, int, int]]:
    """Yield numbers that have a lower bound: their place, their value, and the bound."""
    yield "defaults: steps", bundle.defaults.steps, 1
    process = bundle.process
    if isinstance(process, Masked):
        yield from (("process: codes", process.codes, 1), ("process: candidates", process.candidates, 1))
        yield from (("process: mask_id", process.mask_id, 0), ("process: train_timesteps", process.train_timesteps, 0))
    elif not isinstance(process, EDM):
        yield "process: train_timesteps", process.train_timesteps, 1
    for i, condition in enumerate(bundle.conditions):
        if condition.kind == "text":
            yield f"conditions[{i}]: length", condition.length or 0, 1
        if condition.kind == "class":
            yield f"conditions[{i}]: count", condition.count or 0, 1
    for name, axis in bundle.axes.items():
        yield from ((f"axes.{name}: min", axis.min, 1), (f"axes.{name}: opt", axis.opt, axis.min))
        yield f"axes.{name}: max", axis.max, axis.opt


def _shapes(bundle: Bundle) -> Iterable[tuple[str, tuple[int, ...]]]:
    yield "latent_shape", bundle.latent_shape
    yield "media: shape", bundle.media.shape
    for i, condition in enumerate(bundle.conditions):
        yield f"conditions[{i}]: shape", condition.shape
        if condition.media is not None:
            yield f"conditions[{i}]: shape of its media", condition.media.shape
    for role, graph in bundle.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            yield f"graphs.{role}: shape of {spec.name}", tuple(n for n in spec.shape if not isinstance(n, str))


def _names(bundle: Bundle) -> Iterable[tuple[str, list[str]]]:
    yield "conditions", [condition.name for condition in bundle.conditions]
    yield "conditions' tensors", [condition.tensor for condition in bundle.conditions]
    data = {graph.data for graph in bundle.graphs.values() if graph.data}  # which graphs may share
    yield "graphs' files", [*(graph.file for graph in bundle.graphs.values()), *data]
    for role, graph in bundle.graphs.items():
        yield f"graphs.{role}: inputs and outputs", [spec.name for spec in (*graph.inputs, *graph.outputs)]


def _choices(bundle: Bundle) -> Iterable[tuple[str, object, object]]:
    """Yield values that must be one of several: place, value, and the value again or, if it is wrong, the choices."""
    graph_names = {*ROLES, *(prefix + c.name for c in bundle.conditions for prefix in (INPUT, EMBED))}
    for role, graph in bundle.graphs.items():
        yield "graphs", role, _one_of(role, graph_names)
        yield f"graphs.{role}: data_sha256", _presence(graph.data_sha256), _presence(graph.data)
        if graph.data is not None:
            yield f"graphs.{role}: folder of data", PurePosixPath(graph.data).parent, PurePosixPath(graph.file).parent
    for island in bundle.precision.islands:
        yield "precision: graph of an island", island.graph, _one_of(island.graph, graph_names)
    yield "graphs.step", _presence(bundle.graphs.get("step")), "present"
    codes = isinstance(bundle.process, Masked) and bundle.media.kind in CODES
    yield "graphs.decode", _presence(bundle.graphs.get("decode")), "missing" if codes else "present"
    if codes:
        yield "media: shape of codes", bundle.media.shape, bundle.latent_shape
    yield "media: dtype", bundle.media.dtype, _one_of(bundle.media.dtype, DTYPES)
    media = [("media", bundle.media), *((f"media of {c.name!r}", c.media) for c in bundle.conditions)]
    for what, each in media:
        if each is not None:
            yield what, *layouts(each)
            if each.kind == "series":
                yield f"{what}: names that aren't one for each channel", misnamed_channels(each), None
    for i, condition in enumerate(bundle.conditions):
        yield f"conditions[{i}]: dtype", condition.dtype, _one_of(condition.dtype, DTYPES)


def _presence(value: object) -> str:
    return "missing" if value is None else "present"


def _one_of(value: str, choices: Iterable[str]) -> str:
    return value if value in choices else " or ".join(sorted(choices))


def _axes(bundle: Bundle) -> Iterable[tuple[str, object, object]]:
    needed = {"B", "G", "R"} | ({"N"} if "timestep" in bundle.graphs else set())
    known = set(TRIES[0])
    yield "axes", sorted(set(bundle.axes) & needed), sorted(needed)
    yield "axes", sorted(set(bundle.axes) | known), sorted(known)
    for role, graph in bundle.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            for name in spec.shape:
                if isinstance(name, str):
                    yield f"graphs.{role}: axis of {spec.name}", name, _one_of(name, tuple(AXES.get(role, "B")))


def _conditions(bundle: Bundle) -> Iterable[tuple[str, object, object]]:
    """Yield checks of nulls, and of what a kind of condition needs."""
    tokenizers = bundle.tokenizer_files
    if (end := bundle.media.end_id) is not None:
        yield "media: kind, where there is an end_id", bundle.media.kind, "text"
        most = bundle.process.codes if isinstance(bundle.process, Masked) else MOST
        yield "media: end_id", end, end if 0 <= end < most else f"0 to {most - 1}"
    if bundle.media.kind == "text":
        yield _hash_of(bundle.media.tokenizer), _presence(tokenizers.get(bundle.media.tokenizer)), "present"
    for i, condition in enumerate(bundle.conditions):
        null, what = condition.null, f"conditions[{i}]: null"
        match condition.kind:
            case "text":
                yield _hash_of(condition.tokenizer), _presence(tokenizers.get(condition.tokenizer)), "present"
                yield what, null if isinstance(null, str) or null is None else type(null), null
            case "class":
                yield what, null, null if null is None or (type(null) is int and null >= 0) else "a whole number from 0"
            case _ if condition.null_file is not None:
                yield f"conditions[{i}]: null_sha256", _presence(condition.null_sha256), "present"
        given = "present" if condition.kind in MEDIA_KINDS else "missing"
        yield f"conditions[{i}]: media", _presence(condition.media), given
        if condition.media is not None:
            yield f"conditions[{i}]: kind of its media", condition.media.kind, condition.kind
            yield f"conditions[{i}]: dtype of its media", condition.media.dtype, _one_of(condition.media.dtype, DTYPES)
        encoded = INPUT + condition.name in bundle.graphs
        if condition.media is not None and not encoded:
            wanted_ = condition.media.dtype, condition.media.shape
            yield f"conditions[{i}]: what is not encoded", (condition.dtype, condition.shape), wanted_


def _hash_of(tokenizer: str) -> str:
    return "tokenizer_sha256" if tokenizer == TOKENIZER else f"tokenizers: {tokenizer}"


def _graphs(bundle: Bundle) -> Iterable[tuple[str, object, object]]:
    """Yield checks of each graph's inputs and outputs against those of the loop or another graph."""
    latents: Shape = ("B", *bundle.latent_shape)
    conditions = {condition.tensor: _of_condition(condition) for condition in bundle.conditions}
    made, timed = _outputs(bundle, "condition"), _outputs(bundle, "timestep")
    tokens = isinstance(bundle.process, Masked)
    state: Tensor = ("int64", latents) if tokens else ("float32", (K, *latents))
    given: dict[str, Tensor] = {name: ("float32", shape) for name, shape in TIMES.items()}
    given |= dict.fromkeys((names.NOISE, names.KEEP, names.CHOICE, names.ORDER), ("float32", latents))
    given |= {names.GUIDANCE: ("float32", ("G",)), names.KNOWN: ("float32", (2, *latents))}
    given[names.TOKENS if tokens else names.STATE] = state
    x: Tensor = ("int64", latents) if tokens else ("float32", latents)
    result = names.NEXT_TOKENS if tokens else names.NEXT_STATE
    media: Tensor = (bundle.media.dtype, ("B", *bundle.media.shape))
    takes: dict[Role, Mapping[str, Tensor]] = {
        "condition": conditions,
        "timestep": {names.TIMESTEP: ("float32", ("N",)), **conditions, **made},
        "step": given,
        "decode": {names.CODES if tokens else names.LATENTS: x},
        "encode": {names.MEDIA: media},
    }
    makes: dict[Role, Mapping[str, Tensor]] = {
        "step": {result: state, names.CODES if tokens else names.X0: x},
        "decode": {names.MEDIA: media},
        "encode": {names.CODES if tokens else names.LATENTS: x},
    }
    for condition in bundle.conditions:
        dtype, (_, *shape) = _of_condition(condition)
        features: Tensor = (dtype, ("B", *shape))
        if condition.media is not None:
            takes[INPUT + condition.name] = {names.MEDIA: (condition.media.dtype, ("B", *condition.media.shape))}
            makes[INPUT + condition.name] = {names.FEATURES: features}
        takes[EMBED + condition.name] = {names.FEATURES: features}
    for role in bundle.graphs:
        inputs, outputs = (_tensors(specs) for specs in (bundle.graphs[role].inputs, bundle.graphs[role].outputs))
        handed = {**conditions, **made, **timed} if role == "step" else {}
        for name, tensor in inputs.items():
            if name in takes[role]:
                yield f"graphs.{role}: input {name}", tensor, takes[role][name]
            else:
                yield f"graphs.{role}: input {name}, which nothing makes", _one_of(name, handed), name
                yield from _handed(f"graphs.{role}: input {name}", tensor, handed[name], name in timed)
        for name, tensor in makes.get(role, {}).items():
            yield f"graphs.{role}: output {name}", outputs.get(name), tensor
        for name, (dtype, _) in {**inputs, **outputs}.items():
            yield f"graphs.{role}: dtype of {name}", dtype, _one_of(dtype, DTYPES)
        if role.startswith(EMBED):
            found = outputs.get(names.EMBEDDING)
            vectors = found is not None and found[0] == "float32" and found[1][:1] == ("B",) and len(found[1]) == 2
            yield f"graphs.{role}: output {names.EMBEDDING}", found, found if vectors else "float32 (B, D)"
    if "decode" in bundle.graphs:
        yield "graphs.decode: inputs", len(bundle.graphs["decode"].inputs), 1
    yield "graphs.step: inputs", names.TOKENS if tokens else names.STATE, _first_of(bundle.graphs["step"], given)
    yield "tensors of the condition and the timestep graph", sorted(set(made) & set(timed)), []


def _first_of(step: Graph, given: Mapping[str, Tensor]) -> str | None:
    found = [spec.name for spec in step.inputs if spec.name in (names.TOKENS, names.STATE) and spec.name in given]
    return found[0] if found else None


def _handed(what: str, taken: Tensor, made: Tensor, timed: bool) -> Iterable[tuple[str, object, object]]:
    """Yield checks of a tensor from another graph, or one item of it; its axes may have been merged."""
    yield f"{what}: dtype", taken[0], made[0]
    for axes in TRIES:
        of_all = math.prod(axes[n] if isinstance(n, str) else n for n in made[1])
        wanted = of_all // axes["N"] if timed else of_all
        yield f"{what}: size", math.prod(axes[n] if isinstance(n, str) else n for n in taken[1]), wanted


def _of_condition(condition: Condition) -> Tensor:
    match condition.kind:
        case "text":
            return "int64", ("R", condition.length or 0)
        case "class":
            return "int64", ("R",)
        case _:
            return condition.dtype, ("R", *condition.shape)


def _outputs(bundle: Bundle, role: Role) -> dict[str, Tensor]:
    return _tensors(bundle.graphs[role].outputs) if role in bundle.graphs else {}


def _tensors(specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}
