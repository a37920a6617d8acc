"""DINO features by timm: bicubic resize, centre crop, the model's mean and std."""

from __future__ import annotations

from functools import lru_cache

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from persres.config.schema import Dino
from persres.models.loading import pick_device, unavailable
from persres.package_paths import located


def preprocessing(settings: Dino, mean: tuple[float, ...], std: tuple[float, ...]) -> transforms.Compose:
    """RGB image -> float [3, crop, crop]: short side to ``resize`` (bicubic), centre crop, mean and std."""
    return transforms.Compose(
        [
            transforms.Resize(settings.resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(settings.crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


class DinoEncoder:
    """Unit-length features of images."""

    def __init__(self, settings: Dino, device: str) -> None:
        self.device = pick_device(device)
        try:
            # img_size: timm resamples position embeddings of another size (DINOv2 has those of 518 pixels)
            model = timm.create_model(located(settings.model), pretrained=True, num_classes=0, img_size=settings.crop)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise unavailable("DINO", settings.model, error) from error
        self.model = model.float().to(self.device).eval().requires_grad_(False)
        self.preprocess = preprocessing(settings, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])

    @torch.no_grad()
    def images(self, images: list[Image.Image], batch: int = 64) -> torch.Tensor:
        """[n, d] on the CPU, rows of length 1."""
        parts = [torch.stack([self.preprocess(i) for i in images[k : k + batch]]) for k in range(0, len(images), batch)]
        return torch.cat([F.normalize(self.model(p.to(self.device)), dim=1).cpu() for p in parts])


@lru_cache(maxsize=1)
def load_dino(settings: Dino, device: str) -> DinoEncoder:
    """One encoder per process. Raises PersresError where the model cannot be loaded."""
    return DinoEncoder(settings, device)
