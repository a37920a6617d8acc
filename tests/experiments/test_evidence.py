"""The evidence: its measures by hand, its claims on made-up rows, and what the committed summary and pages say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from persres.cli.main import main
from persres.config.load import read_profile
from persres.errors import PersresError
from persres.experiments.evidence import claims, pages, timing
from persres.experiments.evidence.localisation import STEPS, auc, half_mask_ceiling, iou, latent_truth, upsampled
from persres.experiments.evidence.provenance import weight_digests
from persres.experiments.evidence.report import claims_text
from persres.experiments.miniworld_training import evaluate
from persres.methods.common.registry import load_profile
from persres.prompts import PROMPT_GROUPS
from persres.sampling.masks import upper_half


def by_hand(scores, truth) -> float:
    """AUC one pair of pixels at a time."""
    pairs = [
        (a, b) for a, t in zip(scores, truth, strict=True) if t for b, u in zip(scores, truth, strict=True) if not u
    ]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def test_auc_and_iou_equal_a_plain_count():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 4, (5, 12), generator=draw).float()  # with ties
    truth = torch.rand(5, 12, generator=draw) > 0.5
    for row, scores, object_ in zip(auc(maps, truth), maps.tolist(), truth.tolist(), strict=True):
        assert row == pytest.approx(by_hand(scores, object_))
    masks = (maps > 1).float()
    for row, mask, object_ in zip(iou(masks, truth), masks.bool().tolist(), truth.tolist(), strict=True):
        both = sum(m and o for m, o in zip(mask, object_, strict=True))
        either = sum(m or o for m, o in zip(mask, object_, strict=True))
        assert row == pytest.approx(both / either)


@pytest.mark.parametrize("area", [2, 8, 13])
def test_no_half_mask_beats_the_ceiling_and_the_best_reaches_it(area):
    truth = torch.zeros(1, 16, dtype=torch.bool)
    truth[0, :area] = True
    best = upper_half(truth.float() + torch.linspace(0.1, 0, 16))
    assert iou(best, truth) == pytest.approx(half_mask_ceiling(truth))
    for seed in range(50):
        other = upper_half(torch.rand(1, 16, generator=torch.Generator().manual_seed(seed)))
        assert iou(other, truth) <= half_mask_ceiling(truth) + 1e-9


def test_maps_are_enlarged_in_squares_and_masks_shrunk_by_area():
    assert upsampled(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 4)[0].tolist() == [
        1,
        1,
        2,
        2,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        3,
        3,
        4,
        4,
    ]
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, :2, :2] = True
    mask[0, 0, 2] = True  # a quarter of a cell: not the object's
    assert latent_truth(mask, 2)[0].tolist() == [[True, False], [False, False]]


def made_up(**shift: float) -> pd.DataFrame:
    """Rows in which ``ours`` is better than ``base`` by 0.3, and others by what is said."""
    gains = {"base": 0.0, "ours": 0.3, "ours_lag": 0.28, "v_alone": 0.0} | shift
    rows = []
    for concept in range(6):
        for group in PROMPT_GROUPS:
            for config, gain in gains.items():
                change = float("nan") if config == "base" else 0.02 if config == "ours_lag" else 0.05
                score = 0.3 + 0.01 * concept + gain
                rows.append(
                    {
                        "config": config,
                        "concept": f"c{concept}",
                        "prompt_group": group,
                        "clip_text": 1.0 - gain / 3,
                        "clip_image": score,
                        "dino": score,
                        "dino_object": score,
                        "followed": 1.0,
                        "background_change": change,
                    }
                )
    return pd.DataFrame(rows)


def effect_of(rows: pd.DataFrame, name: str, standins=None) -> dict:
    return claims.effect(rows, next(c for c in claims.CLAIMS if c.name == name), standins, rounds=200)


def test_a_claim_holds_by_its_margin_and_falls_with_a_broken_method():
    rows = made_up()
    assert effect_of(rows, "identity_dino")["effect"] == pytest.approx(0.3)
    assert effect_of(rows, "identity_dino")["holds"]
    assert effect_of(rows, "lag_efficiency")["effect"] == pytest.approx(0.28 / 0.02 - 0.3 / 0.05)
    assert not effect_of(rows, "identity_dino", {"ours": "v_alone"})["holds"]
    assert not effect_of(made_up(ours=0.05), "identity_dino")["holds"], "below its margin"
    assert not effect_of(rows, "lag_efficiency_disk")["holds"], "a method that was not drawn proves nothing"


def test_broken_methods_and_claims_name_one_another():
    names = [c.name for c in claims.CLAIMS]
    assert len(set(names)) == len(names)
    for standins, must_fall in claims.NEGATIVE_CONTROLS.values():
        assert set(must_fall) <= set(names)
        for name in must_fall:
            claim = claims.CLAIMS[names.index(name)]
            assert {claim.more, claim.less} & set(standins), f"{name} does not depend on what is broken"
            more, less = (standins.get(method, method) for method in (claim.more, claim.less))
            assert more != less, f"{name}: when broken it compares {more} with itself, which nothing could pass"
    with pytest.raises(ValueError, match="with itself"):
        effect_of(made_up(), "lag_background", {"ours": "v_alone", "ours_lag": "v_alone"})


def test_a_claim_that_does_not_hold_unbroken_proves_nothing():
    """LAG's masks inverted can't be said to lose what LAG never had."""
    rows = made_up(ours_lag=0.02, lag_inverted=0.0)
    verdicts = claims.examine_negative_controls(rows)
    assert verdicts["mask inverted"]["lag_identity"] == "never held"
    assert claims.examine_negative_controls(made_up())["residual zeroed"]["identity_dino"] == "fails"


def test_the_profiles_draw_every_method_that_a_claim_needs(repo):
    drawn = set(load_profile(repo / "params.yaml", "evidence").sample.configs)
    needed = {m for c in claims.CLAIMS for m in (c.more, c.less)} | {
        m for s, _ in claims.NEGATIVE_CONTROLS.values() for m in s.values()
    }
    assert needed <= drawn
    profile = load_profile(repo / "params.yaml", "evidence")
    assert not profile.fetch.concepts and profile.sample.images_per_prompt >= 4 and profile.sample.prompts is None
    mini = load_profile(repo / "params.yaml", "mini")
    assert profile.train.variant("ours") == mini.train.variant("ours"), (
        "the evidence is the mini profile's own training"
    )


@pytest.fixture(scope="module")
def summary(repo) -> dict:
    return json.loads((repo / "data" / "evidence" / "summary.json").read_text())


def test_the_summary_belongs_to_the_shipped_weights_and_settings(repo, summary):
    assert summary["provenance"]["weights"] == weight_digests(), "other weights ship: run make evidence"
    now = load_profile(repo / "params.yaml", "evidence").model_dump(mode="json", exclude={"runtime"})
    assert changed(summary["provenance"]["settings"], now) == [], "settings changed: run make evidence"


def changed(recorded, now, where: str = "") -> list[str]:
    """Recorded settings that have another value now; settings that came later must leave the old behaviour as their default."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        return [line for key in recorded for line in changed(recorded[key], now.get(key), f"{where}.{key}")]
    return [] if recorded == now else [f"{where}: {recorded} was recorded, now {now}"]


def test_changed_settings_are_named():
    assert changed({"a": {"b": 1, "c": [2]}}, {"a": {"b": 1, "c": [2], "new": 3}}) == []
    assert changed({"a": {"b": 1}}, {"a": {"b": 2}}) == [".a.b: 1 was recorded, now 2"]


def test_the_base_model_meets_its_bars(summary):
    bars = {"class": 0.85, "colour": 0.85, "background": 0.90, "style": 0.80, "second_object": 0.60}
    assert summary["base_prompts"] >= 240
    assert {name: value for name, value in summary["base"].items() if value < bars[name]} == {}
    assert summary["identity_auc"] >= 0.95


def test_attention_localises_where_the_summary_says(summary):
    place = summary["localisation"]
    plain = place["without_attention"]["nameable"]
    best = place["best_blocks"][0]
    for t in map(str, STEPS):
        assert place["auc"][best][t] > 0.85
        assert plain["random_half_iou"] + 0.15 < place["iou"][best][t] <= plain["half_mask_ceiling_iou"] + 1e-6
    assert set(place["auc"]) == set(place["iou"]) and all(set(v) == set(map(str, STEPS)) for v in place["auc"].values())


def test_no_broken_method_passes(summary):
    assert {verdict for names in summary["negative_controls"].values() for verdict in names.values()} == {"fails"}


# What docs/results.md says does not appear. A claim that comes or goes must change its prose, so this list is exact.
ABSENT = {
    "lag_efficiency_disk",
    "shared_efficiency_disk",
    "lag_scenes_text",
    "lag_scenes_followed",
    "lag_appearance_text",
    "lag_appearance_followed",
    "lag_groups_differ",
}


def test_the_claims_hold_with_their_margins_but_for_those_that_the_page_names(summary):
    assert {claim["claim"] for claim in summary["claims"] if not claim["holds"]} == ABSENT
    for claim in summary["claims"]:
        if claim["holds"]:
            assert claim["effect"] >= claim["margin"] and claim["low"] > 0, claim


def test_every_method_has_every_score_with_its_interval_overall_and_by_group(summary):
    for name, method in summary["configs"].items():
        for scores in (method["overall"], *method["groups"].values()):
            for score in ("clip_text", "clip_image", "dino", "background_change"):
                value = scores[score]
                if name == "base" and score == "background_change":
                    assert value["mean"] is None
                else:
                    assert value["low"] <= value["mean"] <= value["high"]
        assert set(method["groups"]) == set(PROMPT_GROUPS)
    assert all(summary["configs"][m]["images"] >= 800 for m in ("base", "ours", "ours_lag", "lag_random", "lag_disk"))


def test_the_pages_quote_the_summary(repo, summary):
    results, readme = (repo / "docs" / "results.md").read_text(), (repo / "README.md").read_text()
    card = (repo / "persres" / "miniworld" / "weights" / "MODEL_CARD.md").read_text()
    assert set(pages.block_names(results)) == {"measured", "configs"}
    assert {"base", "identity", "localisation"} <= set(pages.block_names(card))
    assert (repo / "data" / "evidence" / "claims.md").read_text() == claims_text(summary), (
        "stale: run persres dev pages"
    )
    assert pages.block_names(readme) == ["headline"]
    assert pages.fill(results, summary) == results, "docs/results.md is stale: run persres dev pages"
    assert pages.fill(readme, summary) == readme, "README is stale: run persres dev pages"
    assert pages.fill(card, summary) == card, "the model card is stale: run persres dev pages"


def test_an_unknown_block_is_refused(summary):
    with pytest.raises(PersresError, match="no evidence block 'nonsense'"):
        pages.fill("<!-- evidence:nonsense -->\nx\n<!-- /evidence -->", summary)


def small_params(repo: Path, folder: Path, profile: str, **sections) -> Path:
    """The shipped profile cut down to seconds."""
    given_settings = read_profile(repo / "params.yaml", profile)[2]
    given_settings["fetch"] |= {"concepts": ["heart_mug", "rally_car"], "references": 3}
    given_settings["train"] = {k: v for k, v in given_settings["train"].items() if k != "variants"} | {
        "steps": 2,
        "variants": given_settings["train"]["variants"],
    }
    given_settings["sample"] |= {"images_per_prompt": 1, "prompts": 4, "steps": 1}
    given_settings["tables"] = {"bootstrap": 200}
    given_settings["runtime"] |= {"workers": 1}  # here, where diffusers is imported already
    given_settings |= sections
    path = folder / "params.yaml"
    text = yaml.safe_dump({"profile": profile, profile: given_settings}, sort_keys=False)
    path.write_text(text)
    return path


def test_the_evidence_command_writes_what_it_promises(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = small_params(repo, tmp_path, "evidence")
    card = repo / "persres" / "miniworld" / "weights" / "MODEL_CARD.md"
    before = card.read_text()
    monkeypatch.setattr("persres.experiments.evidence.commands.PAGES", [tmp_path / "README.md"])
    monkeypatch.setattr(evaluate, "CONCEPTS", evaluate.CONCEPTS[:2])  # of the encoders' identity AUC
    for name in ("ROUNDS", "BATCH", "STEPS"):  # how long LAG takes is measured, but not well
        monkeypatch.setattr(timing, name, 1)
    (tmp_path / "README.md").write_text("a\n<!-- evidence:claims -->\nold\n<!-- /evidence -->\nb\n")
    given = ["--params", str(path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "data")]
    assert main(["dev", "evidence", *given, "--prompts", "48", "--scenes", "6", "--views", "2"]) == 0
    out = tmp_path / "data" / "evidence"
    assert {"summary.json", "localisation.png", "attention.png", "frontier.png", "claims.png", "lag_by_group.png"} <= {
        p.name for p in out.iterdir()
    }
    fresh = json.loads((out / "summary.json").read_text())
    assert set(fresh["base"]) == {"class", "colour", "background", "style", "second_object"}
    assert len(fresh["claims"]) == len(claims.CLAIMS)
    assert "the residual raises identity" in (tmp_path / "README.md").read_text() and card.read_text() == before
    assert main(["dev", "evidence", *given, "--prompts", "10"]) == 1, "too few prompts for the grid: one clear error"
    assert json.loads((out / "summary.json").read_text()) == fresh, "what stood there is left"


def test_the_sweep_command_writes_one_row_a_method(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"variants": {"paper": {"lr": 0.001}, "wide": {"rank_ratio": 0.2}}, "steps": 2}
    methods = {
        "base": {},
        "paper": {"variant": "paper"},
        "wide": {"variant": "wide", "lag": True, "uncond_rule": "full"},
    }
    path = small_params(
        repo,
        tmp_path,
        "sweep",
        train=few,
        sample={"configs": methods, "images_per_prompt": 1, "prompts": 4, "steps": 1},
    )
    assert (
        main(["dev", "sweep", "--params", str(path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "data")])
        == 0
    )
    table = pd.read_csv(tmp_path / "data" / "sweep" / "sweep.csv").set_index("config")
    assert list(table.index) == ["base", "paper", "wide"]
    assert table.loc["wide", "parameters"] > 3 * table.loc["paper", "parameters"]
    assert table.loc["paper", "lr"] == 0.001 and table.loc["wide", "sampling"].endswith("full")
    assert "balance" in (tmp_path / "data" / "sweep" / "sweep.md").read_text()
