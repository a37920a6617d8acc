"""The pages quote the summary and nothing else: their tables stand between markers and are written from it.

A page holds ``<!-- KIND:NAME -->`` … ``<!-- /KIND -->`` with kind ``evidence`` (this file's blocks) or ``rivals``
(persres.experiments.rivals); :func:`fill` puts the block NAME between them. A test compares the pages with the
summaries, so a figure can't go stale unseen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from persres.errors import PersresError
from persres.experiments.evidence.provenance import EVIDENCE_CODE, code_line
from persres.metrics.scores import HEADLINE_SCORES, SCORES
from persres.report.table_text import markdown

COLUMNS = {name: score.title for name, score in SCORES.items()}


def _marked(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {kind}:(\w+) -->\n)(.*?)(<!-- /{kind} -->)", re.DOTALL)


def interval(found: dict, digits: int, sign: str = "") -> str:
    """The mean with its interval, where there is one: below five concepts there is none."""
    if found["mean"] is None:
        return "–"
    mean, low, high = (
        f"{found[key]:{sign}.{digits}f}" if _known(found[key]) else None for key in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]" if low else f"{mean}"


def _known(value: float | None) -> bool:
    return value is not None and value == value  # NaN is not


def digits_of(column: str) -> int:
    """Decimals that a score is told with."""
    return SCORES[column].digits if column in SCORES else 3


def base(summary: dict) -> str:
    """What the judge reads in the base model's pictures."""
    found = summary["base"]
    return markdown([name.replace("_", " ") for name in found], [[f"{value:.1%}" for value in found.values()]])


def methods(summary: dict) -> str:
    """Every method and control, overall."""
    rows = [
        [f"`{name}`", *(interval(found["overall"][c], digits_of(c)) for c in COLUMNS)]
        for name, found in summary["methods"].items()
    ]
    return markdown(["method", *COLUMNS.values()], rows)


HEADLINE = {
    "base": "Stable Diffusion",
    "ours": "Ours",
    "ours_lag": "Ours w/ LAG sampling",
    "lag_shared": "LAG, best block's mask",
}


def headline(summary: dict) -> str:
    """The front page's few rows and columns."""
    rows = [
        [label, *(interval(summary["methods"][name]["overall"][c], digits_of(c)) for c in HEADLINE_SCORES)]
        for name, label in HEADLINE.items()
    ]
    return markdown(["", *(COLUMNS[c] for c in HEADLINE_SCORES)], rows)


def claims(summary: dict) -> str:
    """Every claim, its effect and whether it holds."""
    return markdown(
        ["claim", "score", "difference", "margin", "holds"], [claim_row(claim) for claim in summary["claims"]]
    )


def claim_row(claim: dict) -> list[str]:
    """A claim as cells: what it says, the score, the difference with its interval, the margin, whether it holds."""
    column = claim["column"]
    score = COLUMNS.get(column, column.replace("_", " "))
    difference = interval(claim | {"mean": claim["effect"]}, digits_of(column), "+")
    return [claim["says"], score, difference, f"{claim['margin']:g}", "yes" if claim["holds"] else "**no**"]


def negative_controls(summary: dict) -> str:
    """What was broken on purpose, and which claims fell."""
    said = {"falls": "yes", "still holds": "**no**", "not held unbroken": "**does not hold unbroken either**"}
    rows = [
        [what, name, said[verdict]]
        for what, block_names in summary["broken"].items()
        for name, verdict in block_names.items()
    ]
    return markdown(["broken", "claim that must fall", "falls"], rows)


def groups(summary: dict) -> str:
    """LAG minus no mask by prompt group."""
    found = summary["lag_minus_ours"]
    columns = [c for c in COLUMNS if c in next(iter(found.values()))]
    rows = [[group, *(interval(scores[c], digits_of(c), "+") for c in columns)] for group, scores in found.items()]
    return markdown(["prompts", *(COLUMNS[c] for c in columns)], rows)


def localisation(summary: dict) -> str:
    """AUC and IoU by block, averaged over t, for both sets of scenes."""
    found = summary["localisation"]
    rows = []
    for block in found["best_blocks"]:
        cells = [
            found[score] if part is None else found[part][score]
            for part in (None, "concepts")
            for score in ("auc", "iou")
        ]
        rows.append([f"`{block}`", *(f"{_mean(cell[block]):.2f}" for cell in cells)])
    plain = found["without_attention"]
    for label, auc, iou in (
        ("a central disk", "centre_auc", "disk_iou"),
        ("a random half", None, "random_half_iou"),
        ("the best mask of half of the pixels", None, "half_mask_ceiling_iou"),
    ):
        cells = [f"{plain[part][key]:.2f}" if key else "–" for part in ("nameable", "concepts") for key in (auc, iou)]
        rows.append([f"*{label}*", *cells])
    return markdown(["block", "AUC, nameable scenes", "IoU", "AUC, concepts under LAG", "IoU "], rows)


def _mean(by_step: dict[str, float]) -> float:
    return sum(by_step.values()) / len(by_step)


def identity(summary: dict) -> str:
    """How well the encoders tell a concept from its like."""
    found = summary["identity_auc_by_encoder"]
    return markdown([f"{name} identity AUC" for name in found], [[f"{value:.3f}" for value in found.values()]])


def time(summary: dict) -> str:
    """What LAG costs in seconds."""
    found = summary.get("time")
    if found is None:
        return "Not measured yet: `make evidence` does.\n"
    return (
        f"Drawing {found['pictures']} pictures in {found['steps']} steps took {found['lag_s']:.2f} s with LAG and {found['fused_s']:.2f} s"
        f" with the residual fused into the weights; the median ratio of {found['rounds']} pairs in one process is"
        f" **{found['ratio']:.2f}** ({found['threads']} threads).\n"
    )


def code(summary: dict) -> str:
    """By which code the figures were made."""
    return code_line(summary["of"], EVIDENCE_CODE, "make evidence")


Blocks = dict[str, Callable[[dict], str]]
BLOCKS: Blocks = {f.__name__: f for f in (base, headline, methods, claims, groups, localisation, identity, time, code)}


def fill(text: str, summary: dict, blocks: Blocks = BLOCKS, kind: str = "evidence") -> str:
    """The page with every marked block of a kind written from the summary. Raises PersresError for an unknown block."""

    def block(match: re.Match) -> str:
        if match[2] not in blocks:
            raise PersresError(f"no {kind} block {match[2]!r}; one of {', '.join(blocks)}")
        return match[1] + blocks[match[2]](summary) + match[4]

    return _marked(kind).sub(block, text)


def block_names(text: str, kind: str = "evidence") -> list[str]:
    """The blocks of a kind that a page holds."""
    return [match[2] for match in _marked(kind).finditer(text)]


def update(pages: Iterable[Path], summary: dict, blocks: Blocks = BLOCKS, kind: str = "evidence") -> None:
    """Rewrite the pages that exist."""
    for page in pages:
        if page.exists():
            page.write_text(fill(page.read_text(), summary, blocks, kind))
