"""The two benchmarks against a local server, and the real lists where this machine has them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from persres.config.schema import Fetch
from persres.datasets import customconcept101, download, dreambooth, prompt_groups
from persres.datasets.layout import read_concepts
from persres.datasets.photos import find_photos
from persres.errors import PersresError
from persres.images import list_photos
from persres.methods.common.registry import load_profile
from persres.prompts import PROMPT_GROUPS
from persres.stages.fetch import fetch
from persres.units.context import Context
from tests.support.local_server import zipped

ROOT = Path(__file__).parents[2]
SHARED = next((p for p in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if p.is_dir()), Path("nowhere"))
real_lists = pytest.mark.skipif(not SHARED.is_dir(), reason="the published lists are not on this machine")


def jpeg(size=(40, 30), colour="red") -> bytes:
    buffer, image = io.BytesIO(), Image.new("RGB", size, colour)
    image.paste("black", (0, 0, 9, 9))
    image.save(buffer, "JPEG")
    return buffer.getvalue()


PROMPTS = "\n".join(["photo of a {}. "] + [f"{{}} number {i}." for i in range(2, 21)])  # blanks, no newline at the end
ENTRIES = [("pet_cat1", "cat", "cat"), ("transport_car1", "car", "transport"), ("toy_bear", "bear", "toy")]
LIST = json.dumps(
    [
        {
            "instance_prompt": f"photo of a <new1> {word}",
            "class_prompt": word,
            "instance_data_dir": f"./benchmark_dataset/{name}",
            "class_data_dir": "",
            "prompt_filename": f"prompts/{file}.txt",
        }
        for name, word, file in ENTRIES
    ]
)


@pytest.fixture
def hub(server, monkeypatch):
    """Look-alikes of the two published archives."""
    lists = {"dataset.json": LIST.encode()} | {f"prompts/{file}.txt": PROMPTS.encode() for *_, file in ENTRIES}
    server.files["/lists.zip"] = zipped(
        {f"custom-diffusion-main/customconcept101/{n}": b for n, b in lists.items()}
        | {"custom-diffusion-main/LICENSE.md": b"ADOBE RESEARCH LICENSE", "custom-diffusion-main/x.py": b""}
    )
    server.files["/a.zip"] = zipped(
        {f"benchmark_dataset/{name}/{i}.jpg": jpeg() for name, *_ in ENTRIES for i in range(3)}
        | {"__MACOSX/benchmark_dataset/._0.jpg": b"x"}
    )
    monkeypatch.setattr(customconcept101, "LISTS_URL", f"{server.url}/lists.zip")
    monkeypatch.setattr(customconcept101, "PHOTOS", ("someone/photos", "benchmark_dataset.zip"))
    monkeypatch.setattr(download, "ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return server


def localized(tmp_path: Path, dataset: str, folder: Path, **settings) -> list:
    given_settings = {"fetch": {"dataset": dataset, "folder": str(folder)} | settings}
    (tmp_path / "params.yaml").write_text(json.dumps({"profile": "own", "own": given_settings}))
    where = Context(load_profile(tmp_path / "params.yaml"), tmp_path / "data", tmp_path / "work")
    fetch(where)
    return read_concepts(where.data / "concepts")


def test_the_benchmark_from_its_archives(hub, tmp_path, logged):
    concepts = localized(tmp_path, "customconcept101", tmp_path / "files")
    assert [(c.name, c.category, c.macro_class) for c, _ in concepts] == [
        ("pet_cat1", "pet", "cat"),
        ("toy_bear", "toy", "bear"),
        ("transport_car1", "transport", "car"),
    ]
    for concept, folder in concepts:
        assert len(list_photos(folder / "images")) == 3
        assert len(concept.prompts) == 20 and concept.prompts[0] == ("background", "photo of a {}.")
        assert "non-commercial" in concept.licence and "DreamBench" in concept.licence
    assert "Adobe Research License" in logged.text and logged.text.count("has sha256") == 2
    assert (tmp_path / "files" / "customconcept101" / "LICENSE.md").exists()
    assert not (tmp_path / "files" / "customconcept101" / "x.py").exists()
    requests = len(hub.requests)
    localized(tmp_path, "customconcept101", tmp_path / "files", concepts=["toy_bear"])
    assert len(hub.requests) == requests, "existing files are not fetched again"


def test_lists_that_a_user_copied_are_not_fetched(hub, tmp_path):
    folder = tmp_path / "files"
    (folder / "prompts").mkdir(parents=True)
    (folder / "dataset.json").write_text(LIST)
    for *_, file in ENTRIES:
        (folder / "prompts" / f"{file}.txt").write_text(PROMPTS)
    assert len(localized(tmp_path, "customconcept101", folder)) == 3
    assert {path.rsplit("/", 1)[1] for path, _ in hub.requests} == {"benchmark_dataset.zip", "a.zip"}


def test_offline_one_error_names_url_folder_and_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(customconcept101, "LISTS_URL", "http://127.0.0.1:9/lists.zip")
    monkeypatch.setattr(dreambooth, "URL", "http://127.0.0.1:9/main.zip")
    with pytest.raises(PersresError) as caught:
        localized(tmp_path, "customconcept101", tmp_path / "files")
    for part in ("127.0.0.1:9/lists.zip", str(tmp_path / "files"), "benchmark_dataset/<concept>/*.jpg", "dataset.json"):
        assert part in str(caught.value)
    with pytest.raises(PersresError, match=r"127\.0\.0\.1:9/main\.zip.*prompts_and_classes\.txt.*<subject>"):
        localized(tmp_path, "dreambooth", tmp_path / "files")
    assert not (tmp_path / "data" / "concepts").exists()


def test_missing_files_of_a_copy_are_named(hub, tmp_path):
    folder = tmp_path / "files"
    localized(tmp_path, "customconcept101", folder)
    with pytest.raises(PersresError, match="has no pet_cat9"):
        localized(tmp_path, "customconcept101", folder, concepts=["pet_cat9"])
    (folder / "customconcept101" / "prompts" / "toy.txt").write_text(PROMPTS + "\none more {}")
    with pytest.raises(PersresError, match=r"toy\.txt has 21 prompts"):
        localized(tmp_path, "customconcept101", folder)
    shutil.rmtree(folder / "benchmark_dataset" / "toy_bear")
    with pytest.raises(PersresError, match=r"no folder for 1 of the concepts \(toy_bear\)"):
        localized(tmp_path, "customconcept101", folder)
    (folder / "customconcept101" / "dataset.json").write_text("[1]")
    with pytest.raises(PersresError, match=r"not CustomConcept101's dataset\.json"):
        localized(tmp_path, "customconcept101", folder)


def test_a_pinned_digest_is_checked_at_the_edge_and_after_the_download(hub, tmp_path):
    with pytest.raises(PersresError, match="pinned one"):
        localized(tmp_path, "customconcept101", tmp_path / "files", sha256={"benchmark_dataset.zip": "0" * 64})
    with pytest.raises(PersresError, match=r"fetch\.sha256"):
        localized(tmp_path, "customconcept101", tmp_path / "files", sha256={"benchmark_dataset.zip": "short"})


def test_every_table_cuts_20_prompts_into_four_groups_in_order():
    for name, starts in prompt_groups.CUSTOMCONCEPT101.items():
        assert 0 < starts[0] < starts[1] < starts[2] < 20, name
        groups = [group for group, _ in prompt_groups.grouped([""] * 20, starts)]
        assert [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g] == list(PROMPT_GROUPS)


@real_lists
def test_the_real_benchmark_lists(tmp_path):
    """All 101 concepts of 16 categories from the published lists, with generated photos in the place of the archive's."""
    source, folder = SHARED / "customconcept101", tmp_path / "files"
    shutil.copytree(source / "prompts", folder / "prompts")
    shutil.copy(source / "dataset.json", folder)
    for entry in json.loads((source / "dataset.json").read_text()):
        place = folder / entry["instance_data_dir"]
        place.mkdir(parents=True)
        (place / "0.jpg").write_bytes(jpeg())
    concepts = [concept for concept, _ in localized(tmp_path, "customconcept101", folder)]
    assert len(concepts) == customconcept101.COUNT
    assert len({c.category for c in concepts}) == 16
    assert all(len(c.prompts) == 20 and {g for g, _ in c.prompts} == set(PROMPT_GROUPS) for c in concepts)
    assert all(text == text.strip() for c in concepts for _, text in c.prompts)
    single = {p.stem for p in (source / "prompts").iterdir() if "{}" in p.read_text()}
    assert single == set(prompt_groups.CUSTOMCONCEPT101), "every file with one concept, and no other"


@real_lists
@pytest.mark.parametrize(
    ("file", "object_", "style", "prop"),
    [
        ("cat", "is wearing sunglasses", "oil painting ghibli", "chef outfit"),
        ("tank", "squirrel perched", "digital illustration", "gingerbread"),
        ("person", "playing with their pet dog", "pointillistic", "Sherlock"),
        ("waterfall", "golden retriever", "ukiyo-e", "molten gold"),
    ],
)
def test_the_first_prompt_of_a_group_reads_like_it(file, object_, style, prop):
    prompts = customconcept101.read_prompts(SHARED / "customconcept101" / "prompts" / f"{file}.txt")
    first = dict(reversed(prompts))
    assert object_ in first["object"] and style in first["style"] and prop in first["property"]


SUBJECTS = {"dog2": "dog", "teapot": "teapot", "bear_plushie": "stuffed animal"}


def dreambooth_files(live: int = 25) -> dict[str, bytes]:
    def block(count):
        return (
            "prompt_list = [\n"
            + ",\n".join(f"'a {{0}} {{1}} in place {i}'.format(unique_token, class_token)" for i in range(count))
            + "\n]\n"
        )

    classes = "".join(f"{name},{word}\n" for name, word in SUBJECTS.items())
    text = f"Classes\n\nsubject_name,class\n{classes}\nPrompts\n\nObject Prompts\n\n{block(25)}\nLive Subject Prompts\n\n{block(live)}"
    credits = (
        "dog2: \n(credit: someone)\n00: https://unsplash.com/photos/x\n\nteapot: Photos taken by A\n\nbear_plushie: B"
    )
    photos = {f"{name}/0{i}.jpg": jpeg() for name in SUBJECTS for i in range(4)}
    return photos | {"prompts_and_classes.txt": text.encode(), "references_and_licenses.txt": credits.encode()}


def test_dreambooth_from_its_archive(server, tmp_path, monkeypatch):
    server.files["/main.zip"] = zipped({f"dreambooth-main/dataset/{n}": b for n, b in dreambooth_files().items()})
    monkeypatch.setattr(dreambooth, "URL", f"{server.url}/main.zip")
    concepts = {c.name: c for c, _ in localized(tmp_path, "dreambooth", tmp_path / "files")}
    assert {name: c.macro_class for name, c in concepts.items()} == SUBJECTS
    assert concepts["dog2"].category == "live subject" and concepts["teapot"].category == "object"
    counts = {name: [sum(g == group for g, _ in c.prompts) for group in PROMPT_GROUPS] for name, c in concepts.items()}
    assert counts["dog2"] == [10, 10, 0, 5] and counts["teapot"] == [20, 0, 0, 5]
    assert concepts["dog2"].prompts[3] == ("background", "a {} in place 3")
    assert "CC BY 4.0" in concepts["dog2"].licence and "https://unsplash.com/photos/x" in concepts["dog2"].licence


def test_a_dreambooth_folder_that_lacks_something(tmp_path, logged):
    folder = tmp_path / "files"
    for name, content in dreambooth_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shutil.rmtree(folder / "dog2")
    assert len(localized(tmp_path, "dreambooth", folder)) == 2
    assert "lacks 1 of 3 subjects: dog2" in logged.text
    with pytest.raises(PersresError, match="no folder of photos for dog2"):
        localized(tmp_path, "dreambooth", folder, concepts=["dog2"])
    with pytest.raises(PersresError, match="has no unicorn"):
        localized(tmp_path, "dreambooth", folder, concepts=["unicorn"])
    (folder / "prompts_and_classes.txt").write_bytes(dreambooth_files(live=24)["prompts_and_classes.txt"])
    with pytest.raises(PersresError, match="not DreamBooth's list"):
        localized(tmp_path, "dreambooth", folder)


@real_lists
def test_the_real_dreambooth_folder(tmp_path):
    concepts = {
        c.name: (c, f) for c, f in localized(tmp_path, "dreambooth", SHARED / "dreambooth", concepts=["dog6", "vase"])
    }
    assert len(dreambooth.read_list(SHARED / "dreambooth" / "prompts_and_classes.txt")[0]) == dreambooth.COUNT
    dog, vase = concepts["dog6"][0], concepts["vase"][0]
    assert ("object", "a {} wearing a red hat") in dog.prompts and ("property", "a cube shaped {}") in dog.prompts
    assert ("background", "a {} floating in an ocean of milk") in vase.prompts and "oriento" in vase.licence
    assert len(list_photos(concepts["vase"][1] / "images")) == 6


def test_skipped_files_and_phone_formats_are_named(tmp_path, logged):
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(PersresError, match=r"IMG_1\.HEIC.*save them as JPEG"):
        find_photos(tmp_path)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "concept.json").write_text("{}")
    assert [p.name for p in find_photos(tmp_path)] == ["a.jpg"]
    assert "left out IMG_1.HEIC; save HEIC" in logged.text and "concept.json" not in logged.text
    with pytest.raises(PersresError, match="no folder"):
        find_photos(tmp_path / "none")


def test_the_default_folder_is_not_in_the_repositorys_tracked_part(repo):
    ignored = (repo / ".gitignore").read_text().split()
    for dataset in (customconcept101, dreambooth):
        assert f"{dataset.FOLDER.parts[0]}/" in ignored
    assert Fetch(dataset="dreambooth").folder is None
