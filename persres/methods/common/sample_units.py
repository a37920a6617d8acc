"""A unit of sampling: one concept by one method, whatever learned it.

A pack holds ``<prompt>_<image>.png`` and, for LAG, ``masks/<prompt>_<image>.png``: the masks averaged over
blocks and steps. Noise belongs to (seed, prompt, image), so the same name is the same noise in every pack.
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
from persres.images import png_bytes, to_images, unzip_bytes, zip_bytes
from persres.logging import progress
from persres.methods.common.base import LearnedFile, LoadedMethod
from persres.methods.common.registry import method_named
from persres.models.diffusion import Diffusion, load_diffusion
from persres.models.loading import pick_device
from persres.sampling.sample import PromptCache, sample_images
from persres.units.files import write_atomic
from persres.units.provenance import measured
from persres.units.specs import ImageSpec, SampleSpec
from persres.units.unit import Unit, finish

ARCHIVE = "images.zip"


def load_method(diffusion: Diffusion, spec: SampleSpec) -> LoadedMethod:
    """What the spec's learner learned; nothing for the base model."""
    if spec.method is None:
        return LoadedMethod(diffusion.parameter_count())
    photo = Path(spec.photos[0].path) if spec.photos else None
    source = LearnedFile(Path(spec.learned.path), spec.concept, spec.base, photo)
    return method_named(spec.method).load(diffusion, source, spec.sampling.strength)


def sample_unit(unit: Unit[SampleSpec], work: Path, device: str, cpu_offload: bool = False, batch: int = 8) -> None:
    """Draw one concept's pictures by one method, batch by batch; whole batches survive a kill, at any batch size."""
    spec, folder = unit.spec, unit.folder(work)
    diffusion, items, parts = load_diffusion(spec.base, device, cpu_offload), spec.image_specs, folder / "parts"
    kept = set(_parts(parts))
    todo = [item for item in items if f"{item.name}.png" not in kept]
    with measured(pick_device(device)) as run, ExitStack() as stack:
        loaded = load_method(diffusion, spec)
        stack.enter_context(loaded.patch())
        advance = stack.enter_context(progress(unit.name, len(items), "picture", len(items) - len(todo)))
        texts, write = PromptCache(diffusion), stack.enter_context(_writing())
        for start in range(0, len(todo), batch):
            some = todo[start : start + batch]
            pictures, masks = sample_images(
                diffusion, some, spec.sampling, loaded.bank, spec.base.resolution, loaded.predictor, texts
            )
            write(parts / f"{some[0].name}.zip", some, pictures.cpu(), None if masks is None else masks.cpu())
            advance(len(some))
    run |= {"drawn": len(todo), "pictures": len(items), "parameters": loaded.parameters}
    write_atomic(folder / ARCHIVE, zip_bytes(_parts(parts)))
    finish(unit, work, [folder / ARCHIVE], run)
    shutil.rmtree(parts)


@contextmanager
def _writing() -> Iterator[Callable[..., None]]:
    """Pictures become PNG beside the next batch's drawing: at the paper's size that takes a CPU longer than a GPU has patience for. One
    batch at most waits, and what went wrong is raised at the next or on exit."""
    waiting: list[Future] = []

    def write(path: Path, items: list[ImageSpec], pictures: torch.Tensor, masks: torch.Tensor | None) -> None:
        while waiting:
            waiting.pop().result()
        # written whole, by rename, below a folder that the spec's hash names
        waiting.append(thread.submit(lambda: write_atomic(path, zip_bytes(archive_files(items, pictures, masks)))))

    with ThreadPoolExecutor(1) as thread:
        yield write
        while waiting:
            waiting.pop().result()


def _parts(folder: Path) -> dict[str, bytes]:
    """All files of the parts drawn so far."""
    files: dict[str, bytes] = {}
    for part in sorted(folder.glob("*.zip")):
        files |= unzip_bytes(part)
    return files


def archive_files(items: list[ImageSpec], pictures: torch.Tensor, masks: torch.Tensor | None) -> dict[str, bytes]:
    """A pack's files: a PNG of each picture [n, 3, h, w] in [-1, 1], and of each mask [n, h, w] in [0, 1], all on the CPU."""
    files = {f"{i.name}.png": png_bytes(p) for i, p in zip(items, to_images(pictures), strict=True)}
    if masks is not None:
        grey = (masks * 255).round().byte().numpy()
        files |= {f"masks/{i.name}.png": png_bytes(Image.fromarray(m)) for i, m in zip(items, grey, strict=True)}
    return files
