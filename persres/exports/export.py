"""``persres export``: a residual in another tool's format."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from persres.errors import PersresError
from persres.exports.clients import cover_entries, kohya_entries, model_entries, sidecar
from persres.exports.formats import FORMATS, to_embedding
from persres.exports.metadata import provenance, provenance_entry
from persres.images import load_photo
from persres.models.diffusion import load_diffusion
from persres.residuals.file import load_residual
from persres.residuals.header import ResidualHeader
from persres.units.checkpoints import write_tensors
from persres.units.files import write_atomic

log = logging.getLogger(__name__)


def export(path: Path | str, to: str, out: Path | str, cover: Path | str | None = None) -> Path:
    """Writes the residual in a format of :data:`~persres.exports.formats.FORMATS`, with its provenance in the header; returns the file.

    Next to kohya's file it writes A1111's notes, unless there are some already. ``cover`` is an image that clients show; the default is the
    preview of the residual's model card. Raises PersresError where a file can't be read or written.
    """
    if to not in FORMATS:
        raise PersresError(f"unknown format {to!r}; one of {', '.join(FORMATS)}")
    path, out = Path(path), Path(out)
    residual = load_residual(path)
    tensors, header = FORMATS[to](residual.layers)
    about = provenance(path, residual.header.info)
    header |= provenance_entry(about) | model_entries(residual, path.stem, about)
    header |= kohya_entries(residual, path.stem, about, tensors) if to == "kohya" else {}
    header |= _cover(path, about, cover)
    write_tensors(out, tensors, header)
    notes = out.with_suffix(".json")
    if to == "kohya" and not notes.exists():  # else they may be the user's
        write_atomic(notes, json.dumps(sidecar(residual, path.stem), indent=1, ensure_ascii=False).encode())
    return out


def _cover(path: Path, about: dict[str, Any], cover: Path | str | None) -> dict[str, str]:
    """The entries of the cover image. A card's preview shows generated images; another image next to a residual may show photos."""
    if cover is not None:
        return cover_entries(load_photo(Path(cover)))
    preview = path.with_suffix(".png")
    if "scores" not in about or not preview.is_file():
        return {}
    try:
        return cover_entries(load_photo(preview))
    except PersresError as error:
        log.warning("%s; the export has no cover image", error)
        return {}


def export_embedding(path: Path | str, out: Path | str, device: str = "auto") -> Path:
    """Writes V*'s embedding as a Textual-Inversion file; returns the file. A frozen V* is the rare token's embedding.

    SDXL has two text towers, so its file has two vectors, under ComfyUI's and A1111's names. Raises PersresError where the base model can't
    be loaded.
    """
    residual, out = load_residual(path), Path(out)
    vectors = [residual.token] if residual.token is not None else _rare_vectors(residual.header, device)
    write_tensors(out, *to_embedding(vectors))
    return out


def _rare_vectors(header: ResidualHeader, device: str) -> list[torch.Tensor]:
    """The rare token's embedding in every text tower, which :func:`load_diffusion` has copied to V*'s."""
    towers = load_diffusion(header.base, device).towers
    tables = [(tokenizer, encoder.get_input_embeddings().weight) for tokenizer, encoder in towers]
    return [table[tokenizer.convert_tokens_to_ids(header.base.token)] for tokenizer, table in tables]
