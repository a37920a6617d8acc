"""Blocks of the documentation pages: tables between markers, generated from committed summaries.

A page holds ``<!-- KIND:NAME -->`` … ``<!-- /KIND -->`` with kind ``evidence`` (this file's blocks), ``rivals``, ``bench`` or a study's
name; :func:`fill` writes the block NAME between them. Tests compare the pages with the summaries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from persres.errors import PersresError
from persres.experiments.evidence.provenance import measured_line
from persres.metrics.ceiling import DISTANCES, SHARES
from persres.metrics.scores import HEADLINE_SCORES, SCORES
from persres.report.table_text import markdown

NOT_MEASURED = "Not measured yet: run `make evidence`.\n"
COLUMNS = {name: score.title for name, score in SCORES.items()}


def _marked(kind: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {kind}:(\w+) -->\n)(.*?)(<!-- /{kind} -->)", re.DOTALL)


def interval(score: dict, digits: int, sign: str = "") -> str:
    """Return the mean with its interval; below five concepts there is no interval."""
    if score["mean"] is None:
        return "–"
    mean, low, high = (
        f"{score[key]:{sign}.{digits}f}" if _known(score[key]) else None for key in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]" if low else f"{mean}"


def _known(value: float | None) -> bool:
    return value is not None and value == value  # NaN is not


def digits_of(column: str) -> int:
    """Return the number of decimals shown for a score."""
    return SCORES[column].digits if column in SCORES else 3


def base(summary: dict) -> str:
    """The attribute classifier's accuracy on the base model's images."""
    accuracy = summary["base"]
    return markdown([name.replace("_", " ") for name in accuracy], [[f"{value:.1%}" for value in accuracy.values()]])


def configs(summary: dict) -> str:
    """Every config and control, overall."""
    columns = _measured_columns(summary, tuple(COLUMNS))
    rows = [
        [f"`{name}`", *(interval(scores["overall"][c], digits_of(c)) for c in columns)]
        for name, scores in summary["configs"].items()
    ]
    return markdown(["config", *(COLUMNS[c] for c in columns)], rows)


def _measured_columns(summary: dict, columns: tuple[str, ...]) -> list[str]:
    """Those of the scores that the measurement has: it may be older than a score."""
    known = next(iter(summary["configs"].values()))["overall"]
    return [column for column in columns if column in known]


def ceiling(summary: dict) -> str:
    """How near every config comes to the ground truth."""
    lines = summary.get("ceiling")
    if not lines:
        return NOT_MEASURED
    columns = {f"{name}_share": f"{COLUMNS[name]}, share" for name in SHARES}
    columns |= {f"{name}_distance": f"{COLUMNS[name]}, distance" for name in DISTANCES}
    rows = [[f"`{name}`", *(_from_line(line, column) for column in columns)] for name, line in lines.items()]
    return markdown(["config", *columns.values()], rows)


def _from_line(line: dict, column: str) -> str:
    """A share in percent, a distance with its sign, each with its interval."""
    if line.get(column) is None:
        return "–"
    share = column.endswith("_share")
    mean, low, high = (line[f"{column}{end}"] * (100 if share else 1) for end in ("", "_low", "_high"))
    return f"{mean:.0f}% [{low:.0f}, {high:.0f}]" if share else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


HEADLINE = {
    "ground_truth": "Ground truth",
    "base": "Stable Diffusion",
    "ours": "Ours",
    "ours_lag": "Ours w/ LAG sampling",
    "lag_shared": "LAG, best block's mask",
}


def headline(summary: dict) -> str:
    """The README's rows and columns."""
    columns = _measured_columns(summary, HEADLINE_SCORES)
    rows = [
        [label, *(interval(summary["configs"][name]["overall"][c], digits_of(c)) for c in columns)]
        for name, label in HEADLINE.items()
        if name in summary["configs"]
    ]
    return markdown(["", *(COLUMNS[c] for c in columns)], rows)


def claims(summary: dict) -> str:
    """Claims with effect and interval."""
    return markdown(
        ["claim", "score", "difference", "margin", "holds"], [claim_row(claim) for claim in summary["claims"]]
    )


def claim_row(claim: dict) -> list[str]:
    """Return a claim as cells: text, score, difference with interval, margin, and whether it holds."""
    column = claim["column"]
    score = COLUMNS.get(column, column.replace("_", " "))
    difference = interval(claim | {"mean": claim["effect"]}, digits_of(column), "+")
    return [claim["text"], score, difference, f"{claim['margin']:g}", "yes" if claim["holds"] else "**no**"]


def negative_controls(summary: dict) -> str:
    """Negative controls and the claims that they must make fail."""
    labels = {"fails": "yes", "still holds": "**no**", "never held": "does not hold before either"}
    rows = [
        [what, name, labels[verdict]]
        for what, verdicts in summary["negative_controls"].items()
        for name, verdict in verdicts.items()
    ]
    return markdown(["negative control", "claim", "fails"], rows)


def groups(summary: dict) -> str:
    """LAG minus no mask by prompt group."""
    by_group = summary["lag_minus_ours"]
    columns = [c for c in COLUMNS if c in next(iter(by_group.values()))]
    rows = [[group, *(interval(scores[c], digits_of(c), "+") for c in columns)] for group, scores in by_group.items()]
    return markdown(["prompts", *(COLUMNS[c] for c in columns)], rows)


def localisation(summary: dict) -> str:
    """AUC and IoU of the attention by block, averaged over t, for both sets of scenes."""
    scores = summary["localisation"]
    sets, rows = (scores, scores["concepts"]), []
    for block in scores["best_blocks"]:
        cells = [f"{_mean(scenes[score][block]):.2f}" for scenes in sets for score in ("auc", "iou")]
        rows.append([f"`{block}`", *cells])
    plain = scores["without_attention"]
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
    """The encoders' AUC for telling a concept from other subjects of its class."""
    auc = summary["identity_auc_by_encoder"]
    return markdown([f"{name} identity AUC" for name in auc], [[f"{value:.3f}" for value in auc.values()]])


def time(summary: dict) -> str:
    """The cost of LAG in seconds."""
    cost = summary.get("time")
    if cost is None:
        return NOT_MEASURED
    return (
        f"Sampling {cost['images']} images with {cost['steps']} steps took {cost['lag_s']:.2f} s with LAG and {cost['fused_s']:.2f} s with the"
        f" residual fused into the weights; the median ratio of {cost['rounds']} pairs of runs is **{cost['ratio']:.2f}**"
        f" ({cost['threads']} threads).\n"
    )


def measured(summary: dict) -> str:
    """Commit and date of the measurement."""
    return measured_line(summary["provenance"])


Blocks = dict[str, Callable[[dict], str]]
BLOCKS: Blocks = {
    f.__name__: f
    for f in (
        base,
        headline,
        configs,
        ceiling,
        claims,
        negative_controls,
        groups,
        localisation,
        identity,
        time,
        measured,
    )
}


def fill(text: str, summary: dict, blocks: Blocks = BLOCKS, kind: str = "evidence") -> str:
    """Return the page with every block of a kind generated from the summary. Raises PersresError for an unknown block."""

    def block(match: re.Match) -> str:
        if match[2] not in blocks:
            raise PersresError(f"no {kind} block {match[2]!r}; one of {', '.join(blocks)}")
        return match[1] + blocks[match[2]](summary) + match[4]

    return _marked(kind).sub(block, text)


def block_names(text: str, kind: str = "evidence") -> list[str]:
    """Return the names of the blocks of a kind in a page."""
    return [match[2] for match in _marked(kind).finditer(text)]


def update(pages: Iterable[Path], summary: dict, blocks: Blocks = BLOCKS, kind: str = "evidence") -> None:
    """Update the blocks of a kind in the pages that exist."""
    for page in pages:
        if page.exists():
            page.write_text(fill(page.read_text(), summary, blocks, kind))
