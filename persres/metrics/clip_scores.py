"""CLIP features by open_clip, and the two CLIP scores."""

from __future__ import annotations

from functools import lru_cache

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image

from persres.config.schema import Clip
from persres.metrics.short_texts import context_of, lengths
from persres.models.loading import pick_device, unavailable
from persres.package_paths import located


class ClipEncoder:
    """Unit-length features of images and texts, with the model's preprocessing (bicubic, centre crop)."""

    def __init__(self, settings: Clip, device: str) -> None:
        self.device = pick_device(device)
        try:
            name = located(settings.model)
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=settings.pretrained)
            self.tokenize = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise unavailable("CLIP", f"{settings.model} {settings.pretrained or ''}".strip(), error) from error
        self.model = self.model.float().to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def images(self, images: list[Image.Image], batch: int = 64) -> torch.Tensor:
        """[n, d] on the CPU, rows of length 1."""
        parts = [torch.stack([self.preprocess(i) for i in images[k : k + batch]]) for k in range(0, len(images), batch)]
        return torch.cat([F.normalize(self.model.encode_image(p.to(self.device)), dim=1).cpu() for p in parts])

    @torch.no_grad()
    def texts(self, texts: list[str], batch: int = 512) -> torch.Tensor:
        """[n, d] on the CPU, rows of length 1."""
        parts = [self.tokenize(texts[k : k + batch]) for k in range(0, len(texts), batch)]
        return torch.cat([F.normalize(self.model.encode_text(p.to(self.device)), dim=1).cpu() for p in parts])

    @torch.no_grad()
    def tokens(self, tokens: torch.Tensor, batch: int = 512) -> torch.Tensor:
        """As :meth:`texts`, of tokens [n, context], each batch cut to its longest text. Sort texts by length first."""
        parts = []
        for rows in tokens.split(batch):
            length = int(lengths(self.model, rows).max())
            with context_of(self.model, length):
                features = self.model.encode_text(rows[:, :length].to(self.device))
            parts.append(F.normalize(features, dim=1).cpu())
        return torch.cat(parts)


@lru_cache(maxsize=1)
def load_clip(settings: Clip, device: str) -> ClipEncoder:
    """One encoder per process. Raises PersresError where the model cannot be loaded."""
    return ClipEncoder(settings, device)


def clip_text_score(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """CLIPScore, 2.5·max(cos, 0), of each image with its prompt. Both [n, d] with unit rows."""
    return 2.5 * (images * texts).sum(1).clamp(min=0)


def alignment(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each image with all references: [n, d], [k, d] -> [n]. Its mean over n is the mean over all pairs."""
    return (images @ references.T).mean(1)
