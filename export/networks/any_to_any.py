"""The any-to-any network: text, pictures, sound, films and series are given, any of them is made as masked codes.

One ``PrefixTransformer`` does all.  What is given is a vector that is always there, text and the vectors of ``senses``;
what is made are places that hold codes or masks, as MaskGIT's (Chang et al. 2022).  Which medium is to be made is said
by its places alone, so what is given is the same for every output.  What is made begins from what a ``Memory`` knows of
the thing that is meant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.networks.memory import Memory
from mmgen.export.networks.prefix import HIDDEN, PrefixTransformer
from mmgen.export.networks.senses import FilmSense, PictureSense, SeriesSense, SoundSense

GIVEN = {"text": 32, "picture": 16, "sound": 64, "film": 16, "series": 16}  # vectors of each, in this order
CODE_WIDTH = 96  # of a code's vector


@dataclass(frozen=True)
class CodesConfig:
    """The codes of one medium: (rows, columns), of which a place of the transformer has a patch."""

    shape: tuple[int, int]
    patch: tuple[int, int]
    codes: int  # the mask is one past the last
    recalls: str = ""  # what of the memory; nothing: ""
    parts: int = 1  # that it is divided into: one, which every place gets, or one for each place


def _outputs() -> dict[str, CodesConfig]:
    return {
        "text": CodesConfig((16, 1), (1, 1), 2048, recalls="name", parts=16),
        "picture": CodesConfig((16, 16), (2, 2), 1024, recalls="look", parts=64),
        "sound": CodesConfig((64, 4), (1, 4), 1024, recalls="voice", parts=64),
        "film": CodesConfig((64, 4), (1, 4), 1024, recalls="look"),
        "series": CodesConfig((16, 2), (1, 2), 256),
    }


def _memory() -> dict[str, int]:
    """Numbers that are known of each thing."""
    return {"name": 512, "look": 2048, "voice": 1024}


@dataclass(frozen=True)
class AnyToAnyConfig:
    """Shape of the network."""

    width: int = 320
    layers: int = 6
    heads: int = 5
    mlp_ratio: int = 4
    vocabulary: int = 2048
    pad_id: int = 0  # of text that is given; nobody sees it
    series_channels: int = 2
    embed_width: int = 128  # of what is given as one vector: it modulates what is made, and is compared in retrieval
    things: int = 1906  # that the memory knows
    memory: dict[str, int] = field(default_factory=_memory)
    outputs: dict[str, CodesConfig] = field(default_factory=_outputs)


class CodesOutput(nn.Module):
    """Codes int64 (B, rows, columns) to places (B, N, D), and places to logits (B, codes, rows, columns).

    A code's vector is the same on the way in and on the way out (Press & Wolf 2017).

    Where the memory knows something for each place, codes are what it says, changed by the transformer; before training
    by nothing, as else its noise would unlearn at once what the memory has learnt.

    Args:
        config: which codes.
        width: D.
        known: numbers that the memory has for it; 0: it has none.
    """

    def __init__(self, config: CodesConfig, width: int, known: int) -> None:
        super().__init__()
        (rows, columns), (tall, wide) = config.shape, config.patch
        self.grid, self.patch, self.codes = (rows // tall, columns // wide), config.patch, config.codes
        self.embedding = nn.Embedding(config.codes + 1, CODE_WIDTH)
        self.enter = nn.Linear(CODE_WIDTH * tall * wide, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        if config.parts not in (1, len(self.position)) or known % config.parts:
            raise ValueError(f"{config.parts} parts of {known} numbers for {len(self.position)} places")
        self.parts = config.parts
        self.recall = nn.Linear(known // config.parts, width, bias=False) if known else None
        self.norm = nn.LayerNorm(width)
        self.change = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) if config.parts > 1 else None
        if self.change:
            for parameter in self.change[1].parameters():
                nn.init.zeros_(parameter)
        self.leave = nn.Linear(width, CODE_WIDTH * tall * wide)
        self.bias = nn.Parameter(torch.zeros(config.codes))
        nn.init.normal_(self.embedding.weight, std=0.3)

    def places(self, codes: Tensor) -> Tensor:
        """Turn codes into places (B, N, D)."""
        (rows, columns), (tall, wide) = self.grid, self.patch
        h = self.embedding(codes).unflatten(2, (columns, wide)).unflatten(1, (rows, tall))
        return self.enter(h.transpose(2, 3).flatten(3).flatten(1, 2)) + self.position

    def recalled(self, value: Tensor) -> Tensor:
        """Turn what is known of a thing (B, V) into what is added to places, (B, N or 1, D)."""
        assert self.recall is not None
        out: Tensor = self.recall(value.unflatten(1, (self.parts, -1)))
        return out

    def changed(self, places: Tensor, by: Tensor) -> Tensor:
        """Turn places (B, N, D), and what the transformer makes of them, into logits."""
        return self.logits(by) if self.change is None else self._logits(self.norm(places) + self.change(by))

    def logits(self, places: Tensor) -> Tensor:
        """Turn places (B, N, D) into logits."""
        return self._logits(self.norm(places))

    def _logits(self, normed: Tensor) -> Tensor:
        (rows, columns), (tall, wide) = self.grid, self.patch
        h = self.leave(normed).unflatten(2, (tall, wide, CODE_WIDTH)).unflatten(1, (rows, columns))
        h = h.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, rows, columns, E) of codes
        return (h @ self.embedding.weight[: self.codes].t() + self.bias).permute(0, 3, 1, 2)


class AnyToAny(nn.Module):
    """The whole network; its parts as graphs are ``Sense``, ``Given``, ``Made`` and ``Embed``."""

    def __init__(self, config: AnyToAnyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.picture, self.film = PictureSense(width), FilmSense(width)
        self.sound, self.series = SoundSense(width), SeriesSense(config.series_channels, width)
        self.words = nn.Embedding(config.vocabulary, width)
        self.start = nn.Parameter(torch.randn(1, width))
        self.pooled = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.pooled.weight)
        self.positions = nn.ParameterDict({n: nn.Parameter(0.02 * torch.randn(k, width)) for n, k in GIVEN.items()})
        self.trunk = PrefixTransformer(width, config.layers, config.heads, config.mlp_ratio, config.embed_width)
        self.memory = Memory(config.things, config.embed_width, config.memory)
        self.norm = nn.LayerNorm(width)
        self.embeds = nn.Linear(width, config.embed_width)
        known = {n: config.memory[c.recalls] if c.recalls else 0 for n, c in config.outputs.items()}
        self.outputs = nn.ModuleDict({n: CodesOutput(c, width, known[n]) for n, c in config.outputs.items()})
        nn.init.normal_(self.words.weight, std=0.5)

    def sense(self, name: str, medium: Tensor) -> Tensor:
        """Turn a picture, a film, a sound or a series into vectors (B, n, D)."""
        match name:
            case "picture":
                return self.picture(medium)
            case "film":
                return self.film(medium, self.picture)
            case "sound":
                return self.sound(medium)
            case "series":
                return self.series(medium)
            case other:
                raise ValueError(other)

    def prefix(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Lay out what is given.

        Args:
            given: ``text`` int64 (B, T), T at most 32, and features (B, n, D) by the names of their senses; what is
                left out is absent, as is what is all padding or all zero.

        Returns:
            Vectors (B, P, D), of which the first has the mean of the others, and the bias (B, P) of their keys.
        """
        parts, biases = [], []
        for name in GIVEN:
            if name not in given:
                continue
            x = given[name]
            if name == "text":
                hidden = x == self.config.pad_id
                x = self.words(x)
            else:
                hidden = (x.abs().amax((1, 2)) == 0)[:, None].expand(-1, x.shape[1])
            parts.append(x + self.positions[name][: x.shape[1]])
            biases.append(hidden.to(self.start.dtype) * HIDDEN)
        vectors, bias = torch.cat(parts, 1), torch.cat(biases, 1)  # (B, P - 1, D), (B, P - 1)
        seen = (bias == 0).to(vectors.dtype)
        mean = (seen[:, None] @ vectors) / seen.sum(1).clamp(min=1)[:, None, None]  # (B, 1, D)
        return torch.cat([self.start + self.pooled(mean), vectors], 1), F.pad(bias, (1, 0))

    def given(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Run over what is given, as ``prefix`` takes it.

        Returns:
            Keys and values (B, L, 2, P, D), their bias (B, P), and what is given as unit vectors (B, embed_width).
        """
        x, bias = self.prefix(given)
        last, keys_values = self.trunk.given(x, bias)
        return keys_values, bias, F.normalize(self.embeds(self.norm(last[:, 0])), dim=-1)

    def made(self, output: str, codes: Tensor, keys_values: Tensor, bias: Tensor, embedding: Tensor) -> Tensor:
        """Predict logits (B, C, rows, columns) of codes, some of them masked, after what ``given`` returns."""
        part = self.output(output)
        places = part.places(codes)
        if recalls := self.config.outputs[output].recalls:
            value = self.memory.recall(recalls, embedding)
            # Learnt alone: here Adam would move the values of all that is hardly meant as far as those of what is.
            places = places + part.recalled(value.detach())
        vector = embedding * self.config.embed_width**0.5  # whose numbers are about 1
        return part.changed(places, self.trunk.made(places, keys_values, bias, vector))

    def output(self, name: str) -> CodesOutput:
        """Return what turns the codes of an output into places and back."""
        part = self.outputs[name]
        assert isinstance(part, CodesOutput)
        return part

    def embed(self, given: Mapping[str, Tensor]) -> Tensor:
        """Embed what is given as unit vectors (B, embed_width)."""
        return self.given(given)[2]


class Sense(nn.Module):
    """A medium (B, ...) to its vectors (B, n, D)."""

    def __init__(self, network: AnyToAny, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, medium: Tensor) -> Tensor:
        return self.network.sense(self.name, medium)


class Given(nn.Module):
    """Tokens and features, in the order of ``names``, to what ``given`` returns."""

    def __init__(self, network: AnyToAny, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.network.given(dict(zip(self.names, inputs, strict=True)))


class Made(nn.Module):
    """The denoiser of one output: codes (R, rows, columns), and what ``Given`` returns, to logits."""

    def __init__(self, network: AnyToAny, output: str) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, codes: Tensor, keys_values: Tensor, bias: Tensor, embedding: Tensor) -> Tensor:
        return self.network.made(self.output, codes, keys_values, bias, embedding)


class Embed(nn.Module):
    """One input, tokens or features, to unit vectors (B, embed_width)."""

    def __init__(self, network: AnyToAny, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.network.embed({self.name: x})
