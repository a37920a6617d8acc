"""The code of README, docs/ and generated pages runs as it is handed out: in a fresh process, in another folder.

Only the names of models, devices, repositories and concepts are substituted by small ones, and numbers of images and steps. Commands that
cannot run here are in :data:`NOT_RUN` with the reason; all commands are parsed.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from functools import cache
from pathlib import Path

import pytest
import typer.main
import yaml

from persres.cli.main import RENAMED, app
from persres.config.load import PACKAGE
from persres.datasets.layout import Concept
from persres.methods.common.registry import make_profile
from persres.report.cards import card_text
from persres.residuals.header import read_header
from persres.versions.git_dvc import git
from tests.support.doc_blocks import ROOT, Block, blocks, commands, pages, run_blocks, substituted

V0_1 = ROOT / "tests" / "fixtures" / "v0_1"
MINI = str(PACKAGE / "miniworld" / "weights" / "sd")
SD14, SD15 = "CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"
URL = "https://github.com/you/your-persres"
LANGUAGES = {"python", "sh", "yaml", "ini", "bibtex", ""}
NOT_RUN = {  # commands, by their first words
    "pip install": "it would change this environment",
    ". .venv/bin/activate": "a shell's state",
    "cd": "a shell's state",
    "export": "a shell's state",
    "make": "minutes to hours; the target is checked here, and tests/workflow runs the pipeline",
    "git": "needs a repository with a remote: tests/versions",
    "dvc": "needs a repository with a remote: tests/versions, tests/workflow; DVC's parser reads it here",
    "python -m": "needs a Prefect server or hours; the module is checked here",
    "prefect": "needs a Prefect server: tests/fleet",
    "docker": "needs Docker",
    "persres publish": "needs a remote in S3: tests/versions/test_publish.py",
    "persres link": "needs a remote in S3: tests/versions/test_versions.py",
    "persres gc": "needs a remote in S3: tests/versions",
    "persres doctor": "reports on this machine: tests/cli/test_command_line.py",
    "persres dev": "hours; tests/experiments",
    "persres run": "minutes to hours; tests/workflow",
    "persres profile": "changes params.yaml: tests/cli",
    "persres settings": "prints: tests/config/test_extends.py",
    "persres preflight": "needs the hub and a GPU: tests/workflow/test_preflight.py",
}


def page_blocks(name: str) -> list[Block]:
    return blocks((ROOT / name).read_text(), name)


ALL = [block for page in pages() for block in blocks(page.read_text(), str(page.relative_to(ROOT)))]
COMMANDS = [(block.at, words) for block in ALL if block.language == "sh" for words in commands(block.text)]


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_persres(words: list[str]) -> None:
    """Raises if the command line has no such command, option or argument."""
    assert words[0] not in RENAMED, f"persres {words[0]} is now persres {RENAMED[words[0]]}"
    group = typer.main.get_command(app)
    if words[0].startswith("-"):
        group.make_context("persres", words, resilient_parsing=True)
        return
    if words[0] == "dev":
        group, words = group.commands["dev"], words[1:]
    group.commands[words[0]].make_context(words[0], list(words[1:]))


def check_command(words: list[str]) -> None:
    """Raises if the command can't be called like this."""
    if words[0] == "persres":
        check_persres(words[1:])
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= make_targets()
    elif words[0] == "dvc":
        from dvc.cli.parser import get_main_parser

        get_main_parser().parse_args(words[1:])
    elif words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), words[2]
        source = module.with_suffix(".py").read_text()
        assert all(word in source for word in words[3:] if word.startswith("--"))
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()


@pytest.mark.parametrize(("at", "words"), COMMANDS, ids=[f"{at} {' '.join(words)[:40]}" for at, words in COMMANDS])
def test_every_command_is_a_valid_call_and_runs_or_is_listed(at, words):
    check_command([word.replace("…", "x") for word in words])
    line = " ".join(words)
    listed = any(line == start or line.startswith(f"{start} ") for start in NOT_RUN)
    assert listed or words[0] == "persres", f"{at}: {line} neither runs nor is in NOT_RUN"


def test_every_block_has_a_language_that_is_checked():
    assert {block.language for block in ALL} <= LANGUAGES


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "yaml"], ids=lambda block: block.at)
def test_settings_in_pages_are_valid(block):
    assert make_profile(
        {"fetch": {"dataset": "miniworld"}, "macro_class": {"nearest": True}} | yaml.safe_load(block.text)
    )


def test_the_setting_that_the_readme_changes_exists(tmp_path):
    from dvc.utils.hydra import apply_overrides

    (change,) = re.findall(r"^dvc exp run -S (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", [change])
    before, after = (make_profile(yaml.safe_load((f / "params.yaml").read_text())["mini"]) for f in (ROOT, tmp_path))
    assert before != after


SKIP = tuple(start for start in NOT_RUN if start.startswith("persres"))


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(V0_1 / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> str:
    """A published repository whose residual is heart_mug, at v1 and v2."""
    root = unpack("versions", tmp_path_factory.mktemp("versions"))
    git(root, "clone", "-q", "origin.git", "work")
    return str(root / "work")


@pytest.fixture(scope="module")
def readme(tmp_path_factory, tiny_profile, tiny_pipeline, repository) -> Path:
    """The folder in which README's blocks ran."""
    folder = unpack("data", tmp_path_factory.mktemp("readme"))  # what a run published: persres show, persres compare
    shutil.copytree(folder / "data" / "concepts" / "heart_mug" / "images", folder / "my-dog")
    settings = {"profile": "paper", "paper": tiny_profile}  # of persres personalize
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    names = {
        f'"{SD14}"': repr(str(tiny_pipeline)),
        '"cuda"': '"cpu"',
        URL: repository,
        "dog7": "heart_mug",
        "v3": "v1",
        "--count 4": "--count 1 --steps 5 --device cpu",
    }
    run_blocks(substituted(page_blocks("README.md"), names), folder, skip=SKIP)
    return folder


def test_readme(readme):
    made = {path.name for path in readme.iterdir()}
    assert made >= {"moon.png", "heart_mug.safetensors", "heart_mug.md", "heart_mug.kohya.safetensors"}
    assert len(list(readme.glob("images/a_photo_of_a_heart_mug_at_sea_*.png"))) == 1


def test_the_readme_of_personalize(readme):
    """Nothing is substituted: it names the model that the user has."""
    folder = readme / "personal" / "my-dog"
    run_blocks(blocks((folder / "README.md").read_text(), "personal/my-dog/README.md"), folder)
    assert (folder / "beach.png").exists()


def test_personalize_page(tmp_path, tiny_profile):
    """With fewer steps; the second call takes prompts of a file."""
    folder = unpack("data", tmp_path)
    shutil.copytree(folder / "data" / "concepts" / "heart_mug" / "images", folder / "my-dog")
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "paper", "paper": tiny_profile}))
    (folder / "prompts.txt").write_text("# scenes\na {} in snow\n")
    names = {
        "--steps 300": "--steps 4 --prompt 'a {}'",
        "--preview-every 100": "--preview-every 2",
        "--count 4": "--count 2",
    }
    run_blocks(substituted(page_blocks("docs/personalize.md"), names), folder)
    assert (folder / "personal" / "my-dog" / "previews" / "my-dog_step_0002.png").exists()
    assert len(list((folder / "more" / "images").iterdir())) == 3 * 2 * 2


def test_model_cards(tmp_path):
    """Of today and of version 0.1."""
    shutil.copy(V0_1 / "residuals" / "ours.safetensors", tmp_path / "heart_mug.safetensors")
    concept = Concept("heart_mug", "object", "mug", (("background", "a photo of a {}"),), "CC0")
    today = card_text(read_header(tmp_path / "heart_mug.safetensors"), concept, {"ours": {"clip_text": 1.0}}, "ours")
    cards = blocks(today, "card") + blocks((V0_1 / "residuals" / "ours.md").read_text(), "residuals/ours.md")
    assert len(cards) == 2
    generate = {"persres generate": "persres generate --steps 2 --device cpu"}
    run_blocks(substituted(cards, generate), tmp_path)
    assert (tmp_path / "heart_mug.diffusers.safetensors").exists() and list(
        tmp_path.glob("images/*_on_the_beach_*.png")
    )


def test_diffusers_page(tmp_path):
    from tests.support.family_models import save_family
    from tests.support.single_files import save_single_file

    models = tmp_path / "models"
    shutil.copytree(MINI, models / "dreamshaper_8", ignore=shutil.ignore_patterns("*.safetensors"))
    save_single_file(Path(MINI), models / "dreamshaper_8.safetensors")
    residuals = V0_1 / "residuals"
    for name, source in {
        "my_dog": residuals / "ours.safetensors",
        "my_mug": residuals / "ours.safetensors",
        "my_robot": residuals / "other.safetensors",
        "my_dog_lora": V0_1 / "exports" / "ours.diffusers.safetensors",
        "their_dog": V0_1 / "exports" / "ours.kohya.safetensors",
    }.items():
        shutil.copy(source, tmp_path / f"{name}.safetensors")
    names = {
        SD14: MINI,
        SD15: MINI,
        '"cuda"': '"cpu"',
        "torch.float16": "torch.float32",
        "num_inference_steps=50": "num_inference_steps=3",
        "persres generate": "persres generate --steps 3 --device cpu",
        "--count 4": "--count 1",
        "<v*> dog": "<v*> mug",
    }
    sdxl = f"""
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
pipe = DiffusionPipeline.from_pretrained({str(save_family("sdxl", models))!r}, dtype=torch.float32)
save_file({{"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 48)}}, "my_dog.v_star.safetensors")
"""
    run_blocks(substituted(page_blocks("docs/diffusers.md"), names), tmp_path, {'"clip_g"': sdxl})
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"my_dog.diffusers.safetensors", "my_dog.kohya.safetensors", "my_dog.v_star.safetensors", "snow"}


def test_versions_page(tmp_path, repository):
    names = {
        URL: repository,
        "…": repository,
        "dog7": "heart_mug",
        "persres generate": "persres generate --steps 2 --device cpu",
    }
    output = run_blocks(substituted(page_blocks("docs/versions.md"), names), tmp_path, skip=SKIP)
    assert "train.steps: 5 -> 3" in output and list(tmp_path.glob("images/*_on_the_moon_*.png"))


RUN = {"docs/personalize.md", "README.md", "docs/diffusers.md", "docs/versions.md"}


def test_no_other_page_has_code_that_runs():
    """A page with new code needs a test above, or its command a line in NOT_RUN."""
    for block in ALL:
        if block.page not in RUN:
            assert block.language != "python", block.at
            for words in commands(block.text) if block.language == "sh" else []:
                line = " ".join(words)
                assert line.startswith((*NOT_RUN, "persres estimate --profile paper")), f"{block.at}: {line}"
