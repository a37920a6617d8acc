"""The paper's figures (tables 1, 3, 4 and 5): row -> (CLIP text, CLIP image, DINO), on Stable Diffusion v1.4 and CustomConcept101."""

from __future__ import annotations

MODEL = "CompVis/stable-diffusion-v1-4"

_OURS = (0.7193, 0.7594, 0.5671)
PAPER: dict[str, dict[str, tuple[float, float, float]]] = {
    "table1": {
        "Textual Inversion": (0.6150, 0.7259, 0.4700),
        "DreamBooth": (0.7536, 0.7424, 0.5212),
        "Custom Diffusion": (0.7664, 0.7074, 0.4669),
        "Ours": _OURS,
        "Ours w/ LAG sampling": (0.7220, 0.7424, 0.5411),
        "Stable Diffusion": (0.8126, 0.6207, 0.2920),
    },
    "table3": {
        "KV weights": (0.7172, 0.7508, 0.5353),
        "proj_in weights": (0.7136, 0.7460, 0.5333),
        "w/o macro class": (0.6605, 0.6521, 0.3798),
        "w/ reg images": (0.7204, 0.6771, 0.3830),
        "Update token embedding": (0.6673, 0.8000, 0.6194),
        "Ours": _OURS,
    },
    # Rows: macro class at training, at sampling; "dataset" is CustomConcept101's. The image scores do not change with the
    # second, so the paper seems to change the class in the scored prompt only.
    "table4": {
        "dataset, dataset": _OURS,
        "dataset, WordNet NN": (0.7155, 0.7594, 0.5671),
        "WordNet NN, dataset": (0.6626, 0.7798, 0.5904),
        "WordNet NN, WordNet NN": (0.6869, 0.7798, 0.5904),
    },
    "table5": {
        "1": (0.7398, 0.6809, 0.4148),
        "8": (0.7054, 0.7402, 0.5239),
        "16": (0.6926, 0.7573, 0.5513),
        "32": (0.6832, 0.7701, 0.5713),
        "64": (0.6704, 0.7798, 0.5865),
        "128": (0.6544, 0.7938, 0.6053),
        "0.025 m": (0.6889, 0.7622, 0.5595),
        "0.05 m": _OURS,
    },
}
