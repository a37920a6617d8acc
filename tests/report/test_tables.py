"""The paper's tables: like with like, failed variants, costs of training and sampling."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from PIL import Image

from persres.config.schema import Base, Profile
from persres.datasets.layout import Concept
from persres.errors import PersresError, UnitFailures
from persres.experiments import rivals
from persres.experiments.evidence import pages
from persres.experiments.evidence.provenance import weight_digests
from persres.methods.common.registry import load_profile, make_profile
from persres.methods.ours import Ours
from persres.metrics.paper_figures import PAPER
from persres.report.tables import metrics_text, run_text, shared_images
from persres.report.terminal import show_tables
from persres.residuals.header import header_facts, read_header
from persres.stages.settings import write_settings
from persres.units.context import Context
from persres.units.costs import read_costs, write_train_costs
from persres.units.specs import TrainSpec
from persres.units.unit import Unit, finish
from persres.workflow import load_context, run_chain, without
from tests.experiments.test_evidence import changed

RIVAL = {"method": "textual_inversion", "steps": 2, "templates": "prompt"}


@pytest.fixture(scope="module")
def run(tiny_pipeline, tiny_encoders, tmp_path_factory):
    """A run in which one variant fails for every concept, one trains fewer concepts and one config samples fewer prompts."""
    folder = tmp_path_factory.mktemp("tables")
    profile = {
        "base": {"model": str(tiny_pipeline), "resolution": 32},
        "encoders": tiny_encoders,
        "fetch": {
            "dataset": "miniworld",
            "concepts": ["heart_mug", "diamond_mug", "star_robot"],
            "references": 3,
            "held_out": 0,
        },
        "train": {
            "steps": 2,
            "variants": {
                "ours": {},
                "few": RIVAL | {"init_word": "mug", "concepts": 2},
                "broken": RIVAL | {"init_word": "zebra"},
            },
        },
        "sample": {
            "steps": 2,
            "images_per_prompt": 1,
            "prompts": 8,
            "configs": {
                "base": {},
                "ours": {"variant": "ours"},
                "few": {"variant": "few", "prompts": 4},
                "broken": {"variant": "broken"},
            },
        },
        "score": {},
        "runtime": {"workers": 1, "device": "cpu", "sample_batch": 4},
        "tables": {
            "bootstrap": 200,
            "rows": {"table1": {"broken": "Broken", "few": "Few", "ours": "Ours"}, "table3": {"broken": "Broken"}},
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "tiny": profile}, sort_keys=False))
    context = load_context(folder / "params.yaml", None, folder / "data", folder / "work")
    return context, str(run_chain(context))


def read(context: Context, name: str) -> pd.DataFrame:
    return pd.read_csv(context.data / "tables" / f"{name}.csv")


def test_a_failed_variant_is_named_once_and_the_others_rows_stand(run):
    context, message = run
    assert "train: 3 of 8 units failed" in message and message.count("broken/star_robot") == 1
    assert "init_word 'zebra' is 5 tokens" in message and "the other rows are in" in message
    assert list(read(context, "methods")["config"]) == ["base", "ours", "few"]
    assert list(read(context, "table1")["row"]) == ["Few", "Ours"]
    assert not (context.data / "tables" / "table3.csv").exists(), "all of its rows failed"


def test_a_table_compares_like_with_like(run):
    context, _ = run
    table, everything = read(context, "table1"), read(context, "methods").set_index("config")
    assert set(table["concepts"]) == {2} and set(table["images"]) == {8}
    assert everything.loc["ours", "images"] == 24 and everything.loc["few", "images"] == 8
    pairs = read(context, "differences").set_index(["config", "against"])
    assert pairs.loc[("few", "ours"), "concepts"] == 2, "a table's rows are tested against its row Ours"
    assert pairs.loc[("ours", "base"), "concepts"] == 3


def test_metrics_are_those_of_table_1(run):
    context, _ = run
    metrics, table = json.loads((context.data / "tables" / "metrics.json").read_text()), read(context, "table1")
    assert list(metrics) == list(table["config"]) == ["few", "ours"]
    for _, row in table.iterrows():
        assert metrics[row["config"]]["clip_text"] == pytest.approx(row["clip_text"], abs=1e-5)
    gaps = metrics_text(pd.DataFrame({"config": ["a"], "clip_text": [float("nan")], "other": [1.0]}))
    assert json.loads(gaps) == {"a": {"clip_text": None}}, "JSON has no NaN"


def test_show_names_the_profile_and_the_model(run, capsys):
    context, _ = run
    show_tables(context.data)
    model = context.profile.base.model
    assert f"{model}, 32 pixels, float32" in capsys.readouterr().out and "Profile" not in run_text(context)
    write_settings(context.data.parent / "params.yaml", None, context.data)
    (context.data / "tables" / "run.json").write_text(run_text(context))
    show_tables(context.data)
    assert capsys.readouterr().out.startswith(f"Profile tiny: {model}, 32 pixels")
    for text in ("{", "[]", '{"profile": 5}', '{"profile": "x", "model": 1}'):
        (context.data / "tables" / "run.json").write_text(text)
        with pytest.raises(PersresError, match=r"run\.json is not valid"):
            show_tables(context.data)
    (context.data / "tables" / "run.json").unlink()
    show_tables(context.data)  # of an earlier version


def test_shared_images_have_the_same_concept_prompt_and_number():
    rows = pd.DataFrame(
        [
            ("a", "c1", "p1", 0),
            ("a", "c1", "p2", 0),
            ("a", "c2", "p1", 0),
            ("a", "c1", "p1", 1),
            ("b", "c1", "p1", 0),
            ("b", "c2", "p1", 0),
        ],
        columns=["config", "concept", "prompt", "image"],
    )
    shared = shared_images(rows, ["b", "a"])
    assert list(shared["config"]) == ["b", "b", "a", "a"] and set(shared["concept"]) == {"c1", "c2"}
    assert set(shared["image"]) == {0} and set(shared["prompt"]) == {"p1"}


def test_costs_stand_next_to_the_scores(run):
    context, _ = run
    table = read(context, "methods").set_index("config")
    assert table.loc["ours", "train_s"] > 0 and pd.isna(table.loc["base", "train_s"])
    assert (table["image_s"] > 0).all() and table.loc["ours", "train_mib"] > 50
    text = (context.data / "tables" / "methods.md").read_text()
    assert "| image_s | train_s | class_images_s | train_mib |" in text and "nan" not in text


def test_everything_trained_has_a_card_that_a_program_reads(run):
    context, _ = run
    cards = context.data / "cards"
    names = {str(path.relative_to(cards)) for path in cards.rglob("*") if path.is_file()}
    made = {"ours": ["heart_mug", "diamond_mug", "star_robot"], "few": ["heart_mug", "diamond_mug"]}
    assert names == {f"{v}/{c}{end}" for v, concepts in made.items() for c in concepts for end in (".md", ".png")}
    _, front, page = (cards / "ours" / "heart_mug.md").read_text().split("---\n", 2)
    card, info = yaml.safe_load(front), read_header(context.data / "learned" / "ours" / "heart_mug.safetensors")
    assert card["license_name"] == "Apache-2.0: drawn by persres" and "lora" in card["tags"]
    facts = card["persres"]
    assert facts["spec_hash"] == info["spec_hash"] and facts["code"] == info["spec"]["code"]
    assert f"{facts['base_model']}@{facts['base_model_weights']}" == info["spec"]["model"]
    assert facts["settings"]["steps"] == 2 and facts["macro_class"] == "mug" and facts["photos"] == 3
    rows = pd.read_parquet(context.data / "scores" / "scores.parquet")
    mean = rows[(rows["config"] == "ours") & (rows["concept"] == "heart_mug")]["dino"].mean()
    assert facts["scores"]["ours"]["dino"] == pytest.approx(mean, abs=1e-5) and set(facts["scores"]) == {"base", "ours"}
    assert "(heart_mug.png)" in page and "persres export heart_mug.safetensors" in page
    other = (cards / "few" / "heart_mug.md").read_text()
    assert "lora" not in yaml.safe_load(other.split("---\n")[1])["tags"] and "persres export" not in other
    with Image.open(cards / "ours" / "heart_mug.png") as preview:
        assert preview.size == (4 * 160, 160)


def test_photos_without_a_licence_have_an_unknown_one():
    concept = Concept("dog7", "pet", "dog", ())
    spec = {
        "base": Base().model_dump(),
        "model": "hub/name",
        "concept": "dog7",
        "variant": "ours",
        "macro_class": "dog",
    }
    spec |= {"settings": {"method": "ours"}, "photos": [{"path": "a", "digest": "12"}], "code": "c"}
    info = {"format": "persres-residual-1", "spec": spec, "spec_hash": "s", "parameters": 5, "versions": {}}
    facts = header_facts(info, concept.licence)
    assert "unknown" in facts["photos_licence"] and facts["base_model_weights"] is None
    moved = spec | {"photos": [{"path": "b", "digest": "12"}]}
    assert header_facts(info | {"spec": moved}, concept.licence)["dataset_hash"] == facts["dataset_hash"], (
        "the path does not count"
    )


def test_a_resumed_units_seconds_are_not_reported(tmp_path):
    context = Context(load_profile(), tmp_path / "data", tmp_path / "work")
    units = []
    # whole; resumed; whole though of fewer steps, for it settled; settled and resumed
    for concept, steps, of, seconds in (
        ("one", 150, 150, 9.0),
        ("two", 50, 150, 3.0),
        ("three", 75, 75, 10.0),
        ("four", 25, 75, 2.0),
    ):
        spec = TrainSpec(
            base=Base(),
            model="none",
            concept=concept,
            variant="ours",
            settings=Ours(steps=150),
            macro_class="mug",
            photos=(),
            class_images=None,
            code="none",
        )
        unit = Unit("train", f"ours/{concept}", spec)
        facts = {"seconds": seconds, "steps": steps, "of_steps": of, "peak_mib": 100, "device": "cpu"}
        finish(unit, context.work, [], facts)
        units.append(unit)
    write_train_costs(context, units, [])
    assert pd.read_csv(context.data / "costs" / "train.csv")["seconds"].fillna(-1).tolist() == [9.0, -1.0, 10.0, -1.0]
    (context.data / "costs" / "sample.csv").write_text("config,concept,variant,image_seconds\nours,one,ours,0.5\n")
    assert read_costs(context).loc["ours", "train_s"] == 9.0


def profile() -> Profile:
    return make_profile(
        {
            "fetch": {"dataset": "miniworld"},
            "train": {"variants": {"ours": {}, "db": {"method": "dreambooth"}, "kv": {"target": "attn_kv"}}},
            "sample": {
                "configs": {"base": {}, "ours": {"variant": "ours"}, "db": {"variant": "db"}, "kv": {"variant": "kv"}}
            },
            "tables": {"rows": {"table1": {"db": "DreamBooth", "ours": "Ours"}, "table3": {"kv": "KV weights"}}},
        }
    )


@pytest.mark.parametrize(
    ("stage", "unit", "variants", "methods"),
    [
        ("train", "kv/mug", {"ours", "db"}, {"base", "ours", "db"}),
        ("class_images", "a_photo_of_a_mug", {"ours", "kv"}, {"base", "ours", "kv"}),
        ("score", "db/mug", {"ours", "db", "kv"}, {"base", "ours", "kv"}),
    ],
)
def test_what_failed_is_left_out_of_what_follows(stage, unit, variants, methods):
    left = without(profile(), UnitFailures(stage, {unit: "why"}, 3))
    assert set(left.train.variants) == variants and set(left.sample.configs) == methods
    assert all(name in methods for titles in left.tables.rows.values() for name in titles)


def test_a_failure_that_no_variant_can_be_named_for_is_raised():
    with pytest.raises(UnitFailures):
        without(profile(), UnitFailures("train", {"unknown/mug": "why"}, 1))


# What `make tables` measured, as committed in data/rivals.

RIVALS = ("textual_inversion", "dreambooth", "custom_diffusion", "vico", "ours", "ours_lag")


@pytest.fixture(scope="module")
def measured(repo):
    return rivals.summary_of(repo / "data" / "rivals")


def test_the_page_quotes_the_measured_tables(repo, measured):
    page = (repo / "docs" / "results.md").read_text()
    readme = (repo / "README.md").read_text()
    assert set(pages.block_names(page, "rivals")) == set(rivals.BLOCKS) and pages.block_names(readme, "rivals") == [
        "table1"
    ]
    assert pages.fill(readme, measured, rivals.BLOCKS, "rivals") == readme, "README is stale: run persres dev pages"
    assert pages.fill(page, measured, rivals.BLOCKS, "rivals") == page, (
        "docs/results.md is stale: run persres dev pages"
    )


def test_the_comparison_quotes_the_measured_tables(repo, tmp_path):
    shutil.copytree(repo / "data" / "rivals", tmp_path / "rivals")
    rivals.write_comparison(tmp_path / "rivals")
    committed = (repo / "data" / "rivals" / "comparison.md").read_text()
    assert (tmp_path / "rivals" / "comparison.md").read_text() == committed, "stale: run persres dev pages"


def test_the_measured_tables_are_of_the_shipped_weights_and_settings(repo):
    recorded = json.loads((repo / "data" / "rivals" / "settings.json").read_text())
    assert recorded["weights"] == weight_digests()
    now = load_profile(repo / "params.yaml", "tables").model_dump(mode="json")
    for section in ("train", "sample", "tables"):
        assert changed(recorded["settings"][section], now[section]) == []


def test_every_row_of_the_papers_tables_was_measured_whole(measured):
    for name in rivals.TABLES:
        rows = {row.replace("0.025 m", "half the ratio").replace("0.05 m", "Ours") for row in PAPER[name]}
        assert rows <= set(measured[name]["row"]), name
        assert set(measured[name]["concepts"]) == {10} and set(measured[name]["images"]) == {80}


@pytest.mark.parametrize("method", RIVALS)
def test_every_method_learned_its_concepts(measured, method):
    """Identity over the base model: the whole interval lies above nothing, by DINO and by CLIP."""
    pair = measured["differences"].set_index(["config", "against"]).loc[(method, "base")]
    assert pair["dino_low"] > 0 and pair["clip_image_low"] > 0


def test_costs_where_only_the_base_model_draws(tmp_path):
    """A profile may train and draw nothing with it; pandas reads a column of empty entries as numbers."""
    folder = tmp_path / "costs"
    folder.mkdir()
    (folder / "train.csv").write_text(
        "variant,concept,seconds,class_images_seconds,peak_mib,device\nours,mug,9,0,5,cpu\n"
    )
    (folder / "sample.csv").write_text("config,concept,variant,image_seconds,peak_mib,device\nbase,mug,,2,5,cpu\n")
    facts = read_costs(SimpleNamespace(data=tmp_path))
    assert facts.loc["base", "image_s"] == 2 and pd.isna(facts.loc["base", "train_s"])
