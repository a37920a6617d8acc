"""What docs/speed.md quotes of ``data/bench``: blocks of kind ``bench``, each a function of the records by file name."""

from __future__ import annotations

import json
from pathlib import Path

from persres.experiments.benchmarks.tables import markdown
from persres.report.table_text import markdown as table

PAGE = Path("docs/speed.md")


def records(folder: Path) -> dict[str, dict]:
    """Every record of a folder, by its file's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def suite(found: dict[str, dict]) -> str:
    """``persres dev bench`` on the mini world."""
    return markdown(found["mini_cpu"]) if "mini_cpu" in found else "Not measured yet: `make bench` does.\n"


def chain(found: dict[str, dict]) -> str:
    """Where the time of ``make repro`` went."""
    run = found["chain"]["dvc"]
    rows = [[f"work: {stage}", f"{s:.0f}"] for stage, s in run["work_s"].items()]
    rows += [[where, f"{s:.0f}"] for where, s in run["rest_s"].items() if s >= 0.5]
    rows += [["*all work*", f"{run['bare_s']:.0f}"], ["*everything*", f"{run['wall_s']:.0f}"]]
    said = f"Everything takes {run['overhead']:.0%} more than the work alone, over {run['workers']} workers.\n"
    return table([found["chain"]["measured"], "seconds"], rows) + f"\n{said}"


def nouns(found: dict[str, dict]) -> str:
    """WordNet's nouns at their own length beside padded to CLIP's context."""
    if "nouns" not in found:
        return "Not measured yet: `persres dev bench nouns` does.\n"
    one = found["nouns"]
    shares = [way["padded"] / way["short"] for way in one["rounds"]]
    return (
        f"{one['texts']:,} random nouns, {one['model']}, {one['device']}, {one['threads']} thread{'s' * (one['threads'] != 1)}:"
        f" {one['padded_s']:.1f} s padded, {one['short_s']:.1f} s at their own length, **{one['ratio']:.1f} times** as fast"
        f" ({len(shares)} rounds, {min(shares):.1f} to {max(shares):.1f}). By positions read it would be {one['expected']:.1f} of these,"
        f" {one['expected_of_all']:.1f} of a list so long that no batch mixes lengths. Features differ by {one['difference']:.0e} at most.\n"
    )


def h100(found: dict[str, dict]) -> str:
    """Stable Diffusion's size on an H100, with LAG's price."""
    one = found["h100_sd14"]
    rows = []
    for batch, plain in one["image_s"].items():
        lag = one["image_lag_s"][batch]
        rows.append([batch, f"{plain:.3f}", f"{1 / plain:.1f}", f"{lag:.3f}", f"{lag / plain:.2f}"])
    said = (
        f"{one['device']}, {one['family']} with random weights, {one['resolution']} px, {one['dtype']}: 150 training steps of batch"
        f" {one['train_batch']} {150 * one['train_step_s']:.1f} s; pictures of {one['sample_steps']} steps:\n\n"
    )
    return said + table(["batch", "a picture, s", "pictures a second", "with LAG, s", "LAG, of without"], rows)


def gpu(found: dict[str, dict]) -> str:
    """``persres dev bench sd14`` on a GPU."""
    return markdown(found["sd14_gpu"]) if "sd14_gpu" in found else "Not measured yet: `make bench-gpu` does.\n"


def layouts(found: dict[str, dict]) -> str:
    """How pictures lie on a GPU, and where a batch's time goes."""
    one = found["h100_layouts"]
    ways = {"channels last": "cl", "autoencoder alone channels first": "cl,cf", "channels first": "cf"}
    rows = []
    for name, key in ways.items():
        drawn = [
            one["draw_s"][b][f"{what} {key if ',' in key else f'{key},{key}'}"]
            for b in ("4", "16")
            for what in ("ours", "lag")
        ]
        train = one["train_step_s"].get(key)
        rows.append(
            [
                name,
                *(f"{s:.5f}" for s in drawn),
                *([f"{train['ours']:.3f}", f"{train['8 together']:.3f}"] if train else ["", ""]),
            ]
        )
    bases = [f"{one['draw_s'][b]['base']:.5f}" for b in ("4", "16")]
    rows.append(["StableDiffusionPipeline, base model", bases[0], "", bases[1], "", "", ""])
    heads = ["a step's seconds", "a picture of 4", "LAG", "a picture of 16", "LAG", "training, alone", "8 in one pass"]
    cost = one["profile_ms"]["lag cf"]
    dear = ", ".join(f"`{name}` {ms:.0f}" for name, ms in cost.items() if name != "wall")
    return (
        table(heads, rows)
        + f"\nLAG at batch 16, channels first, three steps and decoding, {cost['wall']:.0f} ms in all, of which on the GPU: {dear}.\n"
    )


BLOCKS = {f.__name__: f for f in (suite, chain, nouns, h100, gpu, layouts)}
