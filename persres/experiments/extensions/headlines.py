"""The table of docs/results.md that shows two or three claims of each study, one of which does not hold."""

from __future__ import annotations

from persres.experiments.evidence.pages import claim_row
from persres.report.table_text import markdown

# By study: its title in the table and the claims to show.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "masks": ("masks of the object's size", ("auto_disk", "quarter")),
    "lag_by_prompt": ("LAG by prompt", ("words_background", "appearance_identity")),
    "early_stopping": ("early stopping", ("steps_saved", "identity_dino")),
    "masked_lora": ("LAG for any LoRA", ("attention_halved", "text_halved")),
    "zero_shot_class": ("zero-shot macro class", ("zero_shot_over_nearest", "encoder_over_nearest")),
    "multi_concept": ("several concepts in one image", ("worse_added", "contrast_merged", "missing_base")),
}


def claims(summaries: dict[str, dict]) -> str:
    """Headline claims of each study. ``summaries``: by study."""
    rows = []
    for study, (title, names) in ROWS.items():
        by_name = {claim["claim"]: claim for claim in summaries[study]["claims"]}
        rows += [[f"[{title}](extensions/{study}.md)", *claim_row(by_name[name])] for name in names]
    return markdown(["study", "claim", "score", "difference", "margin", "holds"], rows)


BLOCKS = {"claims": claims}
