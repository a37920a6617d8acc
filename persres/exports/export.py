"""``persres export``: a residual in another tool's format."""

from __future__ import annotations

from pathlib import Path

import torch

from persres.errors import PersresError
from persres.exports.formats import FORMATS, to_embedding
from persres.exports.metadata import export_metadata
from persres.models.diffusion import load_diffusion
from persres.residuals.file import load_residual
from persres.residuals.header import ResidualHeader
from persres.units.checkpoints import write_tensors


def export(path: Path | str, to: str, out: Path | str) -> Path:
    """Writes the residual in a format of :data:`~persres.exports.formats.FORMATS`, with its provenance in the header; returns the file.

    Raises PersresError where the residual can't be read or the file can't be written.
    """
    if to not in FORMATS:
        raise PersresError(f"unknown format {to!r}; one of {', '.join(FORMATS)}")
    path, out = Path(path), Path(out)
    residual = load_residual(path)
    tensors, header = FORMATS[to](residual.layers)
    write_tensors(out, tensors, header | export_metadata(path, residual.header.info))
    return out


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
