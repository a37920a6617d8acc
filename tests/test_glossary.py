"""The vocabulary of ../shared/glossary.md: words that no name may contain, and old names of concepts."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from pathlib import Path

import pytest

FOLDERS = ("persres", "tasks", "flows", "tests")

# Glossary, "Not to be used, whatever they stand for": as a part of any identifier.
RULED_OUT = frozenset(
    [
        "found",
        "said",
        "told",
        "own",
        "heard",
        "kept",
        "asked",
        "beside",
        "together",
        "mend",
        "house",
        "wish",
        "ways",
        "how",
        "look",
    ]
)
OTHER_LIBRARIES = {  # names that Python or another library gives
    "FileNotFoundError",
    "ModuleNotFoundError",
    "PackageNotFoundError",
    "EntryNotFoundError",
    "ObjectNotFound",
    "RepositoryNotFoundError",
    "how",  # pandas merge(how="left")
}

# Glossary, column "instead of": names of modules, classes, functions, fields and parameters, by the concept's new name.
REPLACED = {
    "method": {"learner", "Learner"},
    "config (sample.configs)": {"way", "arm", "Way"},
    "ImageSpec": {"Item", "Items"},
    "image archive": {"pack", "packs", "Pack", "PACK", "base_pack"},
    "extensions, study": {"beyond"},
    "negative controls": {"broken", "BROKEN"},
    "attribute classifier, diffusion classifier, classify_outcome": {"judge", "Judge", "judges", "JUDGES", "JUDGED"},
    "target module, TargetLayer": {"Target", "Place", "PLACES"},
    "residual_hooks, merged_weights": {"attached", "merged", "inside"},
    "lag_hooks, LagAttnProcessor": {"localised", "ListeningAttention"},
    "MaskConfig, threshold, source_blocks, policy": {"Masking", "masking", "cut", "listens_to"},
    "masked_lora_hooks, lag_lora": {"confined", "in_towers"},
    "multi_concept": {"several"},
    "concepts_per_batch": {"train_together", "can_train_together"},
    "batched_sampling": {"mixed", "draws_mixed"},
    "patched_weights": {"swap", "replaced", "token_as"},
    "TextKVCache": {"KeptText", "text_kept"},
    "feature_cache, EncoderSet": {"Eyes", "eyes"},
    "TrainingData, batches": {"Material", "material", "materials", "lesson", "lessons", "Lesson"},
    "TrainingResult, LoadedMethod": {"Learned", "Loaded"},
    "early_stopping": {"settling", "Settling", "settle_every", "settle_draws", "settle_below"},
    "lr, bench": {"rates", "Rates"},
    "memory_budget, oom_retry": {"room"},
    "scheduler, worker": {"agent", "Agent", "agents"},
    "ShardOutcome": {"Ended"},
    "ResidualHeader, header_validation": {"Said", "untrusted"},
    "zero_shot_class, class_naming": {"found_class", "basic_level"},
    "diffusion_classifier": {"denoiser", "Denoiser"},
    "config/schema.py, config/load.py": {"Known", "peek"},
    "num_class_images": {"prior_images"},
    "gradient_checkpointing": {"recompute"},
    "cpu_offload": {"offload"},
    "wrong_concept": {"other_concept"},
}
# Not in the list: "part" (S3, shapes), "parent" (pathlib, Prefect), "item" (pytest, loops), "job" (stages/jobs.py: JobType is the type of a unit's work).
# Old modules whose words are fine elsewhere:
OLD_MODULES = {
    "persres.runs", "persres.benchmarks", "persres.evidence", "persres.dependencies", "persres.params", "persres.places",
    "persres.plan", "persres.progress", "persres.prompt_text", "persres.personalized", "persres.miniworld.judge",
    "persres.miniworld.build", "persres.fleet.agent", "persres.fleet.parent", "persres.fleet.objects", "persres.fleet.kinds",
    "persres.metrics.kept", "persres.metrics.denoiser", "persres.models.swap", "persres.models.ready", "persres.sampling.draw",
    "persres.training.lessons", "persres.training.settling", "persres.units.room", "persres.units.memory",
    "persres.units.untrusted", "persres.versions.housekeeping", "persres.experiments.evidence.same",
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(repo) -> dict[Path, str]:
    """Every module by its path below the repository."""
    paths = [p for folder in FOLDERS for p in sorted((repo / folder).rglob("*.py")) if "fixtures" not in p.parts]
    return {path.relative_to(repo): path.read_text() for path in paths}


@pytest.fixture(scope="module")
def defined(texts) -> dict[Path, dict[str, int]]:
    """What every module defines."""
    return {path: definitions(ast.parse(text)) for path, text in texts.items()}


def parts(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return set(re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_"))


def names(text: str) -> dict[str, int]:
    """Every identifier of a module with its first line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines: dict[str, int] = {}
    for token in tokens:
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            lines.setdefault(token.string, token.start[0])
    return lines


def definitions(tree: ast.Module) -> dict[str, int]:
    """Names of classes, functions, parameters, fields and constants that a module defines, with their lines."""
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines[node.name] = node.lineno
        elif isinstance(node, ast.arg):
            lines[node.arg] = node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines[node.target.id] = node.lineno
        elif isinstance(node, ast.Assign) and node in tree.body:
            lines |= {target.id: node.lineno for target in node.targets if isinstance(target, ast.Name)}
    return lines


def test_no_name_contains_a_ruled_out_word(texts):
    wrong = []
    for path, text in texts.items():
        for name, line in names(text).items():
            if parts(name) & RULED_OUT and name not in OTHER_LIBRARIES:
                wrong.append(f"{path}:{line} {name}")
        wrong += [str(path) for word in parts(path.stem) & RULED_OUT]
    assert not wrong, f"{len(wrong)} names\n" + "\n".join(wrong)


@pytest.mark.parametrize("concept", REPLACED)
def test_no_definition_has_a_replaced_name(defined, concept):
    wrong = []
    for path, lines in defined.items():
        wrong += [f"{path}:{lines[name]} {name}" for name in sorted(REPLACED[concept] & lines.keys())]
        wrong += [str(path)] if path.stem in REPLACED[concept] else []
    assert not wrong, f"say {concept}\n" + "\n".join(wrong)


def test_no_old_module_is_left(repo):
    left = [
        m for m in OLD_MODULES for p in [repo.joinpath(*m.split("."))] if p.with_suffix(".py").exists() or p.exists()
    ]
    assert not left


def test_every_kind_of_name_is_seen():
    text = "class Judge:\n    kept: int = 0\n\n\ndef how_far(own=1, *told):\n    looked = own\n    return {'said': looked}\n"
    assert {"Judge", "kept", "how_far", "own", "told"} <= definitions(ast.parse(text)).keys()
    assert {n for n in names(text) if parts(n) & RULED_OUT} == {"kept", "how_far", "own", "told"}
    assert parts("HeardAttention") & RULED_OUT and not parts("showed_lookup") & RULED_OUT
