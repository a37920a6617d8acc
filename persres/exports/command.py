"""What ``persres export`` does and says."""

from __future__ import annotations

import json
from pathlib import Path

from persres.errors import PersresError
from persres.exports.export import export, export_embedding, largest_difference

TOLERANCE = 1e-4  # of final latents, in float32


def run_export(residual: Path, to: str, out: Path, embedding: bool, verify: bool, device: str, as_json: bool) -> str:
    """Export, and what to say: lines for people, or JSON. Raises PersresError, also where ``verify`` finds another picture."""
    written = {to: str(export(residual, to, out / f"{residual.stem}.{to}.safetensors"))}
    v_star = None
    if embedding:
        v_star = export_embedding(residual, out / f"{residual.stem}.v_star.safetensors", device)
        written["v_star"] = str(v_star)
    said: dict = {"written": written}
    if verify:
        found = largest_difference(residual, Path(written[to]), v_star, device=device)
        said |= {"largest_difference": found, "tolerance": TOLERANCE}
        if not found <= TOLERANCE:
            raise PersresError(
                f"{written[to]}: plain diffusers draws something else (latents differ by up to {found:.2g}, at most {TOLERANCE:g} is"
                " rounding); do not use the file, and report it with the versions of diffusers and peft"
            )
    return json.dumps(said, indent=1) if as_json else _lines(said)


def _lines(said: dict) -> str:
    lines = [f"{what:<11} {path}" for what, path in said["written"].items()]
    if "largest_difference" in said:
        lines.append(
            f"verified    plain diffusers' latents differ from ours by at most {said['largest_difference']:.2g}"
        )
    return "\n".join(lines)
