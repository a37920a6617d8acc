"""The work of ``persres export`` and its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persres.errors import PersresError
from persres.exports.export import export, export_embedding
from persres.exports.verify import largest_difference

TOLERANCE = 1e-4  # of final latents, in float32


def run_export(residual: Path, to: str, out: Path, embedding: bool, verify: bool, device: str, as_json: bool) -> str:
    """Exports, and returns the output as lines or JSON. Raises PersresError, also where ``verify`` finds other latents."""
    written = {to: str(export(residual, to, out / f"{residual.stem}.{to}.safetensors"))}
    v_star = None
    if embedding:
        v_star = export_embedding(residual, out / f"{residual.stem}.v_star.safetensors", device)
        written["v_star"] = str(v_star)
    report: dict[str, Any] = {"written": written}
    if verify:
        difference = largest_difference(residual, Path(written[to]), v_star, device=device)
        report |= {"largest_difference": difference, "tolerance": TOLERANCE}
        if not difference <= TOLERANCE:
            raise PersresError(
                f"{written[to]}: plain diffusers samples other latents (they differ by up to {difference:.2g}, rounding by at most"
                f" {TOLERANCE:g}); do not use the file, and report it with the versions of diffusers and peft"
            )
    return json.dumps(report, indent=1) if as_json else _lines(report)


def _lines(report: dict[str, Any]) -> str:
    lines = [f"{name:<11} {path}" for name, path in report["written"].items()]
    if "largest_difference" in report:
        difference = report["largest_difference"]
        lines.append(f"verified    plain diffusers' latents differ from ours by at most {difference:.2g}")
    return "\n".join(lines)
