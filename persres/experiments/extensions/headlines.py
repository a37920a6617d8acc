"""What docs/results.md says of what goes past the paper: of each part what was found and what was not, with intervals."""

from __future__ import annotations

from persres.experiments.evidence.pages import claim_row
from persres.report.table_text import markdown

# By part: what it is called, where docs/beyond.md tells of it, and the claims that say most, those that do not hold among them.
ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "masks": ("masks of the thing's own size", "masks-past-the-median", ("auto_disk", "median", "kept", "quarter", "disk_off")),
    "choosing": ("LAG or not", "lag-or-not-by-itself", ("words_background", "looks_identity")),
    "stopping": ("when to stop", "when-to-stop", ("steps_saved", "identity_dino")),
    "loras": ("LAG for any LoRA", "lag-for-any-lora", ("attention_kept", "attention_halved", "attention_worth_disk", "text_halved")),
    "nouns": ("the macro class", "the-macro-class-found-by-itself", ("found_over_nearest", "judge_adds", "votes_over_nearest")),
    "several": (
        "several concepts", "several-concepts-in-one-picture",
        ("worse_added", "contrast_added", "contrast_merged", "worse_halves_best", "missing_base"),
    ),
}  # fmt: skip


def claims(summaries: dict[str, dict]) -> str:
    """Of each part its rows; ``summaries`` by part."""
    rows = []
    for part, (title, place, names) in ROWS.items():
        found = {claim["claim"]: claim for claim in summaries[part]["claims"]}
        rows += [[f"[{title}](beyond.md#{place})", *claim_row(found[name])] for name in names]
    return markdown(["part", "claim", "score", "difference", "margin", "holds"], rows)


BLOCKS = {"claims": claims}
