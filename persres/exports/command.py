"""The work of ``persres export`` and its output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persres.errors import PersresError
from persres.residuals.header_validation import check_structure

TOLERANCE = 1e-4  # of final latents, in float32


@dataclass(frozen=True)
class ExportOptions:
    """The format; whether to write V*'s ``embedding`` too and to ``verify`` the file in plain diffusers, on which device; the ``cover``
    image that clients show."""

    to: str = "diffusers"
    embedding: bool = False
    verify: bool = False
    device: str = "auto"
    cover: Path | None = None


def run_export(residual: Path | str, out: Path | str, options: ExportOptions) -> dict[str, Any]:
    """Exports into the folder ``out``; returns the files and the verified difference.

    Raises PersresError, also where ``verify`` finds other latents.
    """
    residual, out, to, v_star = Path(residual), Path(out), options.to, None
    check_structure(residual)  # before torch and diffusers are imported, which takes seconds
    from persres.exports.clients import embedding_name
    from persres.exports.export import export, export_embedding
    from persres.exports.verify import largest_difference

    written = {to: str(export(residual, to, out / f"{residual.stem}.{to}.safetensors", options.cover))}
    if options.embedding:
        v_star = export_embedding(residual, out / f"{embedding_name(residual.stem)}.safetensors", options.device)
        written["v_star"] = str(v_star)
    report: dict[str, Any] = {"written": written}
    if options.verify:
        difference = largest_difference(residual, Path(written[to]), v_star, device=options.device)
        report |= {"largest_difference": difference, "tolerance": TOLERANCE}
        if not difference <= TOLERANCE:
            raise PersresError(
                f"{written[to]}: plain diffusers samples other latents (they differ by up to {difference:.2g}, rounding by at most"
                f" {TOLERANCE:g}); do not use the file, and report it with the versions of diffusers and peft"
            )
    return report


def report_lines(report: dict[str, Any]) -> str:
    """Returns the report of :func:`run_export` as lines for a terminal."""
    lines = [f"{name:<11} {path}" for name, path in report["written"].items()]
    if "largest_difference" in report:
        difference = report["largest_difference"]
        lines.append(f"verified    plain diffusers' latents differ from ours by at most {difference:.2g}")
    return "\n".join(lines)
