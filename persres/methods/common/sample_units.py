"""A unit of sampling: one concept by one config of any method.

An image archive contains ``<prompt>_<image>.png`` and, under LAG, ``masks/<prompt>_<image>.png``: the masks averaged over blocks and
steps. Noise belongs to (seed, prompt, image), so the same file name is the same noise in every archive.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from PIL import Image

import persres.models.preload  # noqa: F401  (in the process that workers are forked from)
from persres.datasets.registry import renderer_module
from persres.images import png_bytes, square, to_images, to_tensor, unzip_bytes, zip_bytes
from persres.logging import progress
from persres.methods.common.base import LearnedFile, LoadedMethod
from persres.methods.common.registry import method_named
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.loading import pick_device
from persres.sampling.sample import PromptCache, Request, sample_batch
from persres.seeding import seed_from
from persres.units.files import write_atomic
from persres.units.provenance import measured
from persres.units.specs import ImageSpec, SampleSpec
from persres.units.unit import Unit, finish

ARCHIVE = "images.zip"


def load_method(diffusion: Diffusion, spec: SampleSpec) -> LoadedMethod:
    """The trained method of a spec, ready to sample with; an empty one for the base model."""
    if spec.method is None:
        return LoadedMethod(diffusion.parameter_count())
    photo = Path(spec.photos[0].path) if spec.photos else None
    source = LearnedFile(Path(spec.learned.path), spec.concept, spec.base, photo)
    return method_named(spec.method).load(diffusion, source, spec.sampling.strength)


def sample_unit(unit: Unit[SampleSpec], work: Path, device: str, cpu_offload: bool = False, batch: int = 8) -> None:
    """Sample one concept's images by one config, batch by batch; complete batches survive a kill, at any batch size."""
    if unit.spec.renderer is not None:
        render_unit(unit, work, device)
        return
    spec, folder = unit.spec, unit.folder(work)
    diffusion, images, parts = load_diffusion(spec.base, device, cpu_offload), spec.image_specs, folder / "parts"
    done = set(_parts(parts))
    todo = [image for image in images if f"{image.name}.png" not in done]
    with measured(pick_device(device)) as run, ExitStack() as stack:
        loaded = load_method(diffusion, spec)
        stack.enter_context(loaded.patch())
        advance = stack.enter_context(progress(unit.name, len(images), "image", len(images) - len(todo)))
        texts, write = PromptCache(diffusion), stack.enter_context(_background_writer())
        for start in range(0, len(todo), batch):
            some = todo[start : start + batch]
            request = Request(some, spec.sampling, loaded.bank, predictor=loaded.predictor)
            [(pixels, masks)] = sample_batch(diffusion, [request], spec.base.resolution, texts)
            write(parts / f"{some[0].name}.zip", some, pixels.cpu(), None if masks is None else masks.cpu())
            advance(len(some))
    run |= {"sampled": len(todo), "images": len(images), "parameters": loaded.parameters}
    write_atomic(folder / ARCHIVE, zip_bytes(_parts(parts)))
    finish(unit, work, [folder / ARCHIVE], run)
    shutil.rmtree(parts)


def render_unit(unit: Unit[SampleSpec], work: Path, device: str) -> None:
    """The ground truth of one concept: the right answer to every prompt, drawn by the dataset, and encoded and decoded if asked for."""
    spec, folder = unit.spec, unit.folder(work)
    texts = {prompt.number: prompt.text for prompt in spec.prompts}
    with measured(pick_device(device)) as run:
        renderer, images = renderer_module(spec.renderer), spec.image_specs
        seeds = [("ground truth", spec.concept, image.number, image.image, spec.sampling.seed) for image in images]
        drawn = [
            renderer.render_prompt(spec.concept, texts[image.number], seed_from(*seed))
            for image, seed in zip(images, seeds, strict=True)
        ]
        pixels = to_tensor([square(image, spec.base.resolution) for image in drawn])
        if spec.sampling.ground_truth == "autoencoder":
            pixels = _reconstructed(load_diffusion(spec.base, device), pixels)
    run |= {"sampled": len(images), "images": len(images), "parameters": 0}
    write_atomic(folder / ARCHIVE, archive_bytes(images, pixels, None))
    finish(unit, work, [folder / ARCHIVE], run)


@torch.no_grad()
def _reconstructed(diffusion: Diffusion, pixels: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """Images [n, 3, h, w] encoded and decoded, on the CPU."""
    return torch.cat([diffusion.decode(diffusion.posterior(part)[0]).cpu() for part in pixels.split(batch)])


@contextmanager
def _background_writer() -> Iterator[Callable[..., None]]:
    """Encodes PNG while the next batch is sampled: at the paper's size a CPU takes long enough for a GPU to wait.

    At most one batch waits. An error is raised at the next write or on exit.
    """
    pending: list[Future] = []

    def write(path: Path, *batch) -> None:
        while pending:
            pending.pop().result()
        pending.append(thread.submit(lambda: write_atomic(path, archive_bytes(*batch))))

    with ThreadPoolExecutor(1) as thread:
        yield write
        while pending:
            pending.pop().result()


def _parts(folder: Path) -> dict[str, bytes]:
    """All files of the batches so far."""
    files: dict[str, bytes] = {}
    for part in sorted(folder.glob("*.zip")):
        files |= unzip_bytes(part)
    return files


def archive_bytes(images: list[ImageSpec], pixels: torch.Tensor, masks: torch.Tensor | None) -> bytes:
    """An image archive: a PNG of each image [n, 3, h, w] in [-1, 1] and of each mask [n, h, w] in [0, 1], all on the CPU."""
    files = {f"{i.name}.png": png_bytes(x) for i, x in zip(images, to_images(pixels), strict=True)}
    if masks is not None:
        grey = (masks * 255).round().byte().numpy()
        files |= {f"masks/{i.name}.png": png_bytes(Image.fromarray(m)) for i, m in zip(images, grey, strict=True)}
    return zip_bytes(files)
