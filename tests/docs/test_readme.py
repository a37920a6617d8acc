"""The README's code runs as it stands there, but for the names of models and devices."""

from __future__ import annotations

import re

from PIL import Image

from tests.cli.test_personalize import photos  # noqa: F401  (a fixture)


def python_of(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def test_the_ten_lines_of_python_run(repo, tiny_params, tiny_pipeline, photos, tmp_path, monkeypatch):  # noqa: F811
    code = python_of((repo / "README.md").read_text())
    for theirs, ours in (
        (
            '"my-dog", macro_class="dog"',
            f'{str(photos)!r}, params={str(tiny_params)!r}, profile="tiny", macro_class="mug"',
        ),
        ('"CompVis/stable-diffusion-v1-4").to("cuda")', f"{str(tiny_pipeline)!r}, safety_checker=None)"),
        ("num_inference_steps=50", "num_inference_steps=2"),
    ):
        assert theirs in code
        code = code.replace(theirs, ours)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    assert Image.open(tmp_path / "moon.png").size == (32, 32)
    assert set(found["info"]) >= {"spec", "versions"} and any(key.endswith(".up") for key in found["factors"])


def test_the_readme_is_a_front_door(repo):
    readme = (repo / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for page in re.findall(r"\]\(((?!http)[^)#]+)", readme):
        assert (repo / page).exists(), f"README links to {page}, which is not there"


def test_links_in_docs_lead_somewhere(repo):
    for page in (repo / "docs").glob("*.md"):
        for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
