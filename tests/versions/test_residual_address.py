"""``load_residual("dog7@v1")``: which file an address names, and that the pipeline loads it. Downloads: tests/versions/test_versions.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from persres.pipeline import PersonalizedPipeline
from persres.versions import residual_address
from persres.versions.repository import Repository
from tests.exports.test_exports import saved
from tests.exports.test_importing import other_layer
from tests.support.small_models import tiny_unet


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """Replaces the server: records the requests, and has a residual of dog7 and a foreign LoRA."""
    calls: list[tuple[str, str, str]] = []
    (tmp_path / "store").mkdir()
    saved(tiny_unet(), tmp_path / "store" / "dog7.safetensors", concept="dog7")
    save_file(other_layer(), tmp_path / "store" / "any.safetensors")

    def pulled(concept: str, rev: str, repository: Repository, out: Path) -> Path:
        calls.append((concept, rev, repository.where))
        out.mkdir(parents=True, exist_ok=True)
        name = f"{concept.rpartition('/')[2]}.safetensors"
        return Path(shutil.copy(tmp_path / "store" / name, out / name))

    monkeypatch.setenv("PERSRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(residual_address, "pull", pulled)
    monkeypatch.setattr(Repository, "newest", lambda self: "v9")
    return calls


def test_an_address_is_loaded_as_a_file_is(requests, tiny_pipeline, tmp_path):
    pipe = PersonalizedPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipe.load_residual("dog7@v3", repo="https://git.example/repo", allow_other_base=True)
    assert pipe.active == "dog7" and pipe.residuals["dog7"].info["spec"]["concept"] == "dog7"
    pipe.load_residual("ours/dog7", "newest", repo=tmp_path, allow_other_base=True)
    pipe.load_residual("any@v1", subject="sks mug", repo=Repository("/there", remote="store"))
    assert list(pipe.residuals) == ["dog7", "newest", "any"] and pipe.residuals["any"].phrase == "sks mug"
    assert requests == [("dog7", "v3", "https://git.example/repo"), ("ours/dog7", "v9", str(tmp_path)), ("any", "v1", "/there")]  # fmt: skip


def test_paths_and_addresses(requests, tmp_path):
    for path in ("my_dog.safetensors", "me@home/dog.safetensors", Path("dog7@v3"), "folder/dog"):
        assert residual_address.file_of(path) == Path(path)
    assert not requests
    here, there = (residual_address.file_of("dog7@v3", repo) for repo in (None, "/other"))
    assert here != there and here.name == there.name == "dog7.safetensors", "two repositories have separate caches"
    assert residual_address.file_of("dog7@", ".") != here
    assert requests == [("dog7", "v3", "."), ("dog7", "v3", "/other"), ("dog7", "v9", ".")]
