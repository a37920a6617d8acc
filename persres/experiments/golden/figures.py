"""The figures of a golden run: numbers by kind and name, and how images, masks and learned tensors become numbers.

Names are stable: a rename of a module, a setting or a config must not change them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from persres.images import load_photo, unzip_images
from persres.seeding import generator

Figures = dict[str, dict[str, float | str]]  # by kind, then by name
# Score columns with a scale unlike the rest, or that one pixel of the object's mask can change: a kind each.
SEPARATE_SCORES = ("dino_object", "background_change")


class Collector:
    """Collects figures. A name that comes twice in one kind is a mistake and raises ValueError."""

    def __init__(self) -> None:
        self.figures: Figures = {}

    def add(self, kind: str, name: str, value: float | str | None) -> None:
        """Add one figure; None and NaN are left out, so that a number that turns into NaN is reported as missing."""
        if value is None or (not isinstance(value, str) and math.isnan(value)):
            return
        figures = self.figures.setdefault(kind, {})
        if name in figures:
            raise ValueError(f"golden figure {kind} {name} is measured twice")
        figures[name] = value if isinstance(value, str) else float(f"{float(value):.6g}")

    def add_all(self, kind: str, prefix: str, values: dict[str, float | str | None]) -> None:
        """Add several figures under ``<prefix>/<name>``."""
        for name, value in values.items():
            self.add(kind, f"{prefix}/{name}", value)

    def add_scores(self, prefix: str, values: dict[str, float]) -> None:
        """Add score columns under ``<prefix>/<column>``."""
        for column, value in values.items():
            kind = next((c for c in SEPARATE_SCORES if column.startswith(c)), "score")
            self.add(kind, f"{prefix}/{column}", value)

    def add_image(self, name: str, image: Image.Image | np.ndarray) -> None:
        """Add the statistics of one RGB image."""
        self.add_all("image", name, image_statistics(np.asarray(image)))

    def add_mask(self, name: str, mask: np.ndarray) -> None:
        """Add the area of one mask [h, w] in [0, 1] and where it lies."""
        self.add_all("mask", name, mask_statistics(mask))

    def add_archive(self, name: str, archive: Path) -> None:
        """Add every image and mask of an image archive."""
        for file, image in unzip_images(archive).items():
            if file.startswith("masks/"):
                self.add_mask(f"{name}/{Path(file).stem}", np.asarray(image.convert("L")) / 255)
            else:
                self.add_image(f"{name}/{Path(file).stem}", image)

    def add_photos(self, name: str, photos: list[Path]) -> None:
        """Add every photo of a concept."""
        for number, photo in enumerate(photos):
            self.add_image(f"{name}/{number:02d}", load_photo(photo))


def image_statistics(pixels: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and fixed projections of an image uint8 [h, w, 3], with pixels in [0, 1].

    The projections see an image that is flipped, turned, inverted, or has its colours exchanged.
    """
    x = pixels.astype(np.float64) / 255
    across, down = (np.linspace(-1, 1, n) for n in (x.shape[1], x.shape[0]))
    signs = torch.randint(0, 2, x.shape, generator=generator("golden", *x.shape)).numpy() * 2 - 1
    return {
        "mean": x.mean(),
        "std": x.std(),
        "across": (x.mean((0, 2)) * across).mean(),
        "down": (x.mean((1, 2)) * down).mean(),
        "red_minus_blue": (x[..., 0] - x[..., 2]).mean(),
        "signs": (x * signs).sum() / x.size**0.5,
    }


def mask_statistics(mask: np.ndarray) -> dict[str, float]:
    """Area of a mask [h, w], and its first moments across and down."""
    across, down = (np.linspace(-1, 1, n) for n in (mask.shape[1], mask.shape[0]))
    return {
        "area": float(mask.mean()),
        "across": float((mask.mean(0) * across).mean()),
        "down": float((mask.mean(1) * down).mean()),
    }


def weight_changes(file: Path, base: Path) -> dict[str, tuple[float, float]]:
    """For each group of learned tensors: relative norm of the change, and a fixed projection of its direction.

    ``base`` is the folder of the base model. A residual's layers are one group each; full weights are grouped by block.
    """
    learned, frozen = load_file(file), load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    groups: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for key, value in sorted(learned.items()):
        if key.endswith(".lora_B.weight"):
            continue
        path = key.removeprefix("unet.").removesuffix(".lora_A.weight")
        if key.endswith(".lora_A.weight"):
            delta = learned[f"unet.{path}.lora_B.weight"].flatten(1) @ value.flatten(1)
            groups[path] = [(delta.flatten(), frozen[f"{path}.weight"].flatten())]
        else:
            before = frozen.get(path, torch.zeros_like(value))
            block = ".".join(path.split(".")[:2]) if path in frozen else key.split(".")[0]
            groups.setdefault(block, []).append(((value - before).flatten(), before.flatten()))
    return {name: _change(pairs) for name, pairs in groups.items()}


def _change(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    delta, before = (torch.cat(part).double() for part in zip(*pairs, strict=True))
    whole, size = float(before.norm()), float(delta.norm())
    pattern = torch.cos(torch.arange(len(delta), dtype=torch.float64))
    projection = float((delta * pattern).sum()) / size if size else 0.0
    return size / whole if whole else size, projection
