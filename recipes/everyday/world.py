"""All data and codecs in one place, read or computed when first asked for; big arrays are mapped from the cache."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import HELD_OUT, LEARNT, load_named, load_pictures, on_ground
from questions import colour_of
from speech import Speech, clip_at
from tokens import load_tokenizer
from torch import Tensor
from train_codec import load_codec

from mmgen.export.base import embedded
from mmgen.export.networks.grouped_vqvae import GroupedVQVAE
from mmgen.export.networks.vqvae import VQVAE
from mmgen.export.sources.checkpoint import text_to_picture


def as_floats(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Undo ``as_floats`` for numbers of any shape; axes stay."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


class World:
    """What tasks draw from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = load_named(folder)
        self.tokenizer = load_tokenizer(folder, self.names)
        self.pictures = {vendor: load_pictures(folder, vendor) for vendor in LEARNT + HELD_OUT}
        self.there = {v: np.flatnonzero(np.load(self._there(v))) for v in self.pictures}

    def _there(self, vendor: str) -> Path:
        return self._kept(f"pictures/{vendor}.there.npy", lambda: self.pictures[vendor][..., 3].any((1, 2)))

    def _kept(self, name: str, make: Callable[[], NDArray]) -> Path:
        """A file of the cache, made where it isn't there."""
        file = self.folder / name
        if not file.is_file():
            np.save(file, make())
        return file

    @cached_property
    def colours(self) -> dict[str, list[str]]:
        """By vendor, the colour that prevails in each picture."""
        files = {v: self._kept(f"pictures/{v}.colours.npy", partial(self._colours, v)) for v in self.pictures}
        return {vendor: np.load(file).tolist() for vendor, file in files.items()}

    def _colours(self, vendor: str) -> NDArray:
        return np.array([colour_of(picture) for picture in self.pictures[vendor]])

    @cached_property
    def speech(self) -> dict[str, Speech]:
        return {half: Speech(self.folder, half) for half in ("train", "heldout", "plain")}

    @cached_property
    def picture_codec(self) -> VQVAE:
        """That of the embedded model ``emoji``."""
        return text_to_picture.read(embedded.folder("emoji"))[1].eval().requires_grad_(False)

    @cached_property
    def codecs(self) -> dict[str, GroupedVQVAE]:
        return {kind: load_codec(self.folder, kind) for kind in ("sound", "film", "series")}

    def _google(self) -> Tensor:
        return as_floats(on_ground(self.pictures["google"]))

    @cached_property
    def picture_latents(self) -> Tensor:
        """Of Google's pictures on white, before quantisation, (N, 8, 16, 16): what judges pictures."""

        def make() -> NDArray:
            return torch.cat([self.picture_codec.encode(b) for b in self._google().split(64)]).numpy()

        return torch.from_numpy(np.load(self._kept("latents.npy", make)))

    @cached_property
    def picture_codes(self) -> Tensor:
        """int64 (N, 16, 16)."""
        return self.picture_codec.nearest_codes(self.picture_latents)

    @cached_property
    def sound_codes(self) -> Tensor:
        """Of the plain voice, int64 (N, 64, 4); not kept, as they change with the codec."""
        plain, codec, codes = self.speech["plain"], self.codecs["sound"], []
        for start in range(0, len(self.names), 32):
            waves = [plain.wave(i) for i in range(start, min(start + 32, len(self.names)))]
            clips = torch.from_numpy(np.stack([clip_at(w, 0.7) for w in waves]))
            codes.append(codec.nearest_codes(codec.encode(codec.prepared(clips))))
        return torch.cat(codes)

    def codes_of(self, kind: str, media: Tensor) -> Tensor:
        """Codes of films or series."""
        codec = self.codecs[kind]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = codec.encode(codec.prepared(media))
        return codec.nearest_codes(latents)
