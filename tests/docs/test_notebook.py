"""docs/quickstart.ipynb: every cell runs, in a fresh process and another folder, on the mini world and on the path of a GPU with Stable Diffusion."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support.doc_blocks import ROOT, Block, run_blocks, substituted

PAGE = "docs/quickstart.ipynb"
NOTEBOOK = json.loads((ROOT / PAGE).read_text())
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def cells() -> list[Block]:
    """The code cells; the line is the cell's number."""
    numbered = enumerate(NOTEBOOK["cells"])
    return [Block(PAGE, n, "python", "".join(cell["source"])) for n, cell in numbered if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_outputs():
    """As nbformat 4.5 has it; a stored output would be of somebody's photos."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3" and NOTEBOOK["metadata"]["accelerator"] == "GPU"
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert not cell.get("outputs") and cell.get("execution_count") is None
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))  # plain Python: no magics, which nothing but a kernel runs


@pytest.mark.parametrize("place", ["mini world", "GPU"])
def test_every_cell_runs(place, tmp_path, tiny_profile, tiny_pipeline, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mini = yaml.safe_load((ROOT / "params.yaml").read_text())["mini"]
    quick = {"train": mini["train"] | {"steps": 2}, "sample": {"steps": 2}, "tables": {}, "runtime": {"workers": 1}}
    mini = {key: mini[key] for key in ("base", "encoders", "macro_class")} | quick
    mini["fetch"] = {"dataset": "miniworld"}
    settings = {"profile": "mini", "mini": mini, "paper": tiny_profile}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    names = {"num_inference_steps=50": "num_inference_steps=2"}
    if place == "GPU":
        names |= {SD15: str(tiny_pipeline), "torch.cuda.is_available()": "True", '"float16"': '"float32"'}
        names |= {"torch.float16": "torch.float32", '"cuda" if GPU': '"cpu" if GPU'}
    run_blocks(substituted(cells(), names), tmp_path)
    out, side = tmp_path / "mine", 64 if place == "mini world" else 32
    assert Image.open(out / "grass.png").size == (side, side)
    assert {path.name for path in out.iterdir()} >= {
        "mine.safetensors",
        "mine.kohya.safetensors",
        "mine.png",
        "README.md",
    }
    assert len(list((out / "images").glob("*.png"))) == 6 and len(list(Path(tmp_path / "photos").iterdir())) == 5
