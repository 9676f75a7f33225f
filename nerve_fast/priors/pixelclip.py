"""PixelCLIP (Shin et al.: Segmentation without Semantic Labels, NeurIPS 2024)."""

import math
import os
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from nerve_fast.backbones.clip import CLIPBackbone, ReadOut
from nerve_fast.backbones.loading import guarded
from nerve_fast.backbones.openai_clip import load_image_encoder
from nerve_fast.errors import InputError
from nerve_fast.priors.config import PriorConfig
from nerve_fast.priors.layers import on_grid, run
from nerve_fast.priors.patchwise import CLIPPrior
from nerve_fast.priors.registry import ENTRIES, Method, Needed, Windows, system
from nerve_fast.priors.views import View

RESOLUTION, LONGEST = 640, 2560
"""Short side of the image, and the most that the long one may have, before it is squashed."""

SEEN = 320
"""Side of the square that the network sees, in pixels."""

GRID = 64
"""Side of the square that its features are brought to, in places."""

PREFIX = "sem_seg_head.predictor.clip_model.visual."
"""Of the image encoder's weights in the checkpoint."""


def read_out(
    layers: Sequence[CLIPEncoderLayer], x: Tensor, grid: tuple[int, int], pixels: Tensor
) -> Tensor:
    """The last layer's values, with the class token as the residual of every token, and its MLP.

    Arguments and result are those of :data:`~nerve_fast.backbones.clip.ReadOut`.
    """
    *early, last = layers
    x = run(early, x)
    attention = last.self_attn
    x = x[:, :1] + attention.out_proj(attention.v_proj(last.layer_norm1(x)))
    return on_grid(x + last.mlp(last.layer_norm2(x)), grid)


def _cells(windows: Windows) -> int:
    return GRID**2


class PixelCLIPBackbone(CLIPBackbone):
    """A CLIP that sees every image in one square, and gives its features on a larger grid."""

    def resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The image at ``size = (W, H)``, by Pillow's bilinear filter, as detectron2 has it."""
        return image.resize(size, Image.Resampling.BILINEAR)

    def pixels(self, image: Image.Image) -> Tensor:
        """The image normalised, and then squashed: ``(3, SEEN, SEEN)``."""
        pixels = super().pixels(image)
        return interpolate(pixels[None], (SEEN, SEEN), mode="bilinear", align_corners=False)[0]

    def patch_features(
        self,
        pixels: Tensor,
        read_out: ReadOut,
        position_offset: float = 0.0,
        position_filter: str = "bicubic",
    ) -> Tensor:
        """Features brought to ``(B, GRID, GRID, E)`` before they are made unit length."""
        features = self.projected(pixels, read_out, position_offset, position_filter)
        features = features.permute(0, 3, 1, 2)
        features = interpolate(features, (GRID, GRID), mode="bilinear", align_corners=False)
        return normalize(features, dim=1).permute(0, 2, 3, 1)


@system(
    "pixelclip",
    clip="openai/clip-vit-base-patch16",
    templates="pixelclip",
    reads=("logit_scale",),
    networks={
        "weights": Needed(
            "PixelCLIP's checkpoint, the file weights/pixelclip_vit_base.pth of "
            "https://huggingface.co/hsshin98/PixelCLIP"
        )
    },
)
class PixelCLIP(CLIPPrior):
    """CLIP with an image encoder that was fine-tuned on the masks of SA-1B, so not training-free.

    The image is brought to a short side of :data:`RESOLUTION` pixels and squashed to :data:`SEEN`²;
    features are brought to :data:`GRID`² and compared with words there. The authors label a pixel
    by its largest cosine, whatever the scale. Their words have their names averaged where a class
    has several; here a class is its best word, and their lists have one each.

    Args:
        clip: with the checkpoint's image encoder; the text encoder is OpenAI's, which was frozen.
        config: the prompts, and what cosines are multiplied by.
    """

    def __init__(self, clip: PixelCLIPBackbone, config: PriorConfig | None = None):
        config = PriorConfig("pixelclip") if config is None else config
        entry = ENTRIES["pixelclip"]
        method = Method(
            "pixelclip", {}, entry.reads, entry.templates, entry.clip, read_out, cells=_cells
        )
        super().__init__(clip, config, method)

    @classmethod
    def load(
        cls, config: PriorConfig, clip: str, *, device: torch.device, dtype: torch.dtype
    ) -> "PixelCLIP":
        """See :class:`~nerve_fast.priors.registry.System`."""
        path = config.network("weights")
        if not os.path.isfile(path):
            raise InputError(f"prior network weights is {path!r}: no such file")
        network = PixelCLIPBackbone.from_pretrained(clip, device=device, dtype=dtype)
        with guarded("PixelCLIP", path):
            found = torch.load(path, map_location="cpu", weights_only=True)
            found = found.get("model", found)
            encoder = {
                name.removeprefix(PREFIX): weight
                for name, weight in found.items()
                if name.startswith(PREFIX)
            }
            if any(name.startswith("trunk.") for name in encoder):
                raise InputError(
                    f"{path}: holds a ConvNeXt, and PixelCLIP's ViT-B/16 is what is read; take "
                    "weights/pixelclip_vit_base.pth"
                )
            load_image_encoder(network.model, encoder)
        return cls(network, config)

    def view(
        self,
        image_size: tuple[int, int],
        seen: tuple[int, int] | None = None,
        native_size: int | None = None,
    ) -> View:
        """See :meth:`Prior.view`; the graph's tiles make no difference."""
        factor = min(RESOLUTION / min(image_size), LONGEST / max(image_size))
        width, height = (max(int(side * factor + 0.5), 1) for side in image_size)
        return View((width, height), (0,), (0,), (height, width), self.clip.patch)

    def memory(self, view: View, images: int, words: int) -> int:
        """See :meth:`Prior.memory`: of the square that the network sees, and the image before."""
        square = View((SEEN, SEEN), (0,), (0,), (SEEN, SEEN), view.unit)
        normalised = 2 * 4 * 3 * math.prod(view.size)
        return super().memory(square, images, words) + normalised
