"""Provenance in exported files: facts of the residual's header, scores and licence of the card next to it."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from persres.datasets.layout import Concept
from persres.exports.export import export
from persres.exports.metadata import ENTRY
from persres.report.cards import card_text
from persres.residuals.bank import ResidualBank
from persres.residuals.file import load_residual, save_residual
from persres.residuals.targets import find_targets
from persres.seeding import generator
from tests.exports.test_exports import spec_of
from tests.support.small_models import tiny_unet

SCORES = {"base": {"images": 2, "dino": 0.1}, "ours": {"images": 2, "dino": 0.6}}


@pytest.fixture
def residual(tmp_path):
    """A residual with a header as training writes it."""
    targets = find_targets(tiny_unet(), 0.15)
    bank = ResidualBank(targets).initialise(0, "scaled_normal", 0.5, generator("about"))
    more = {"variant": "ours", "photos": [{"path": "a.jpg", "digest": "12"}], "code": "c0de", "model": "/m@0123"}
    spec = spec_of("/m") | more
    spec["settings"] = spec["settings"] | {"method": "ours"}
    info = {"spec": spec, "spec_hash": "5bec", "versions": {"torch": "2"}, "parameters": 7}
    save_residual(tmp_path / "mug.safetensors", bank.deltas(), info)
    return tmp_path / "mug.safetensors"


def card(residual, spec_hash: str = "5bec") -> None:
    info = load_residual(residual).header.info
    concept = Concept("my_mug", "mug", "mug", (), "CC-BY-4.0")
    residual.with_suffix(".md").write_text(card_text(info | {"spec_hash": spec_hash}, concept, SCORES, "ours"))


def provenance(residual, to: str = "diffusers") -> dict:
    path = export(residual, to, residual.parent / "out" / f"{to}.safetensors")
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata().get(ENTRY, "{}"))


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_the_header_alone_gives_hashes_and_the_card_scores_and_licence(residual, to):
    alone = provenance(residual, to)
    assert (alone["base_model"], alone["base_model_weights"], alone["spec_hash"]) == ("/m", "0123", "5bec")
    assert len(alone["dataset_hash"]) == 64 and "unknown" in alone["photos_licence"] and "scores" not in alone
    card(residual)
    assert provenance(residual, to) == alone | {"photos_licence": "CC-BY-4.0", "scores": SCORES}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "card of another training"),
        ("no card at all", "not a model card"),
        ("---\n[1]\n---\n", "not a model card"),
        ("---\na: [\n---\n", "not a model card"),
        ("---\n" + "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "[" * 5000 + "\n---\n", "not a model card"),
        ("---\npersres: {spec_hash: 5bec, photos_licence: [x]}\n---\n", "not a model card"),
        ("---\npersres: {spec_hash: 5bec, photos_licence: x, scores: {ours: {dino: .nan}}}\n---\n", "not a model card"),
        ("---\npersres: {spec_hash: 5bec, photos_licence: x, scores: {ours: {dino: text}}}\n---\n", "not a model card"),
        ("\0\x1b", "not a model card"),
        ("---\npersres: {spec_hash: 5bec, photos_licence: x, scores: {ours: {dino: [1]}}}\n---\n", "not a model card"),
    ],
)
def test_what_is_no_card_of_it_is_left_out_and_provenance(residual, logged, text, message):
    if text is None:
        card(residual, "another")
    else:
        residual.with_suffix(".md").write_text(text)
    assert "scores" not in provenance(residual) and message in logged.text


def test_a_header_that_training_did_not_write_is_provenance(tmp_path, logged):
    from tests.exports.test_exports import saved

    saved(tiny_unet(), tmp_path / "r.safetensors")
    assert provenance(tmp_path / "r.safetensors") == {} and "the export has no provenance" in logged.text
