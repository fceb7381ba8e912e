"""Run by compare_prepare.py where torch is: a model's weights in a folder, and plain ONNX for loops written by hand.

    python compare_sources.py MODEL FOLDER

The ONNX files are what ``torch.onnx.export`` makes of the modules as they are, at the sizes of a request; nothing of
mmgen's exporter has touched them.
"""

import sys
from pathlib import Path

import torch
from compare_models import MODELS, Model
from compare_torch import DitDecoder, EmojiDecoder, action_head, emoji
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / name) for name in ("models", "oracles")]


def main(name: str, folder: Path) -> None:
    """Write a model's folder."""
    model = MODELS[name]
    match model.kind:
        case "class":
            dit(model, folder)
        case "text":
            modules = emoji()
            (folder / "tokenizer.json").write_bytes(modules.tokenizer)
            tokens = torch.zeros(2, 24, dtype=torch.int64)
            save(modules.text, (tokens,), ["tokens"], folder / "text.onnx")
            context = modules.text(tokens)
            x, t = torch.zeros(2, *model.latents), torch.zeros(2)
            save(modules.denoiser, (x, t, context), ["x", "t", "context"], folder / "denoiser.onnx")
            save(EmojiDecoder(modules), (x[:1],), ["latents"], folder / "decoder.onnx")
        case "action":
            given = torch.zeros(1, *model.latents), torch.zeros(1), torch.zeros(1, 400, 2048), torch.zeros(1, 64)
            save(action_head(), given, ["x", "t", "context", "joints"], folder / "denoiser.onnx")
        case "tokens":
            from amused_models import AMUSED_256, amused_pipeline

            if not (folder / "diffusers").exists():  # 2.4 GB, which may be brought along
                amused_pipeline(folder / "tokenizer", AMUSED_256).save_pretrained(folder / "diffusers")


def dit(model: Model, folder: Path) -> None:
    """A DiT over LDM's vq-f8 with random weights, in diffusers' form and in ONNX."""
    from diffusers_models import VQ_F8, build
    from diffusers_models import dit as sizes

    layers, heads, dim = model.layers
    pipeline = build(folder / "diffusers", sizes(layers, heads, dim, 4, 32), VQ_F8, count=64)
    x = torch.zeros(2, *model.latents)
    given = x, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    save(Denoiser(pipeline.transformer), given, ["x", "t", "class_id"], folder / "denoiser.onnx")
    save(DitDecoder(pipeline.vae), (x[:1],), ["latents"], folder / "decoder.onnx")


class Denoiser(nn.Module):
    """DiTTransformer2DModel with positional arguments and a tensor to return."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, class_id: Tensor) -> Tensor:
        out: Tensor = self.transformer(x, t, class_id).sample
        return out


def save(module: nn.Module, given: tuple[Tensor, ...], names: list[str], path: Path) -> None:
    """Export as torch's own documentation does."""
    torch.onnx.export(module.eval(), given, path, input_names=names, output_names=["out"], dynamo=True, verbose=False)


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1], Path(sys.argv[2]))
