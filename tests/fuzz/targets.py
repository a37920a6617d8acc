"""The fuzz targets: every reader of something from outside, with honest inputs to start from."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from persres.config.load import load_params
from persres.datasets import customconcept101, dreambooth
from persres.datasets.folder import describe
from persres.datasets.layout import Concept, check_concept, read_concept
from persres.datasets.prompt_groups import DREAMBOOTH, grouped
from persres.datasets.unpack import unpack
from persres.exports.metadata import _card_facts
from persres.fleet.content_store import blob_key, get_unit, manifest_key
from persres.fleet.store import FolderStore
from persres.fleet.worker import ShardReport, read_shard
from persres.images import load_photo, unzip_images
from persres.methods.common.registry import settings_types
from persres.residuals.file import load_residual
from persres.residuals.header import read_header
from persres.residuals.lora import read_lora
from persres.units.context import Context
from persres.units.files import write_atomic
from persres.units.outputs import read_index, read_macro_classes
from persres.units.specs import Spec
from persres.units.unit import MANIFEST, RESULTS, Unit, facts, finish, finish_interrupted, is_done
from persres.untrusted.documents import parse_json
from persres.untrusted.text import markdown
from persres.versions import compare
from persres.versions.remote import foreign_remote
from persres.versions.repository import Repository
from persres.versions.tracked import StoredFile, tracked_files
from tests.fuzz.inputs import as_json, as_yaml, damaged, damaged_bytes, json_files, yaml_files
from tests.fuzz.rule import FuzzTarget
from tests.support.small_models import tiny_unet

ROOT = Path(__file__).parents[2]


def file_target(
    name: str,
    file: str,
    inputs: st.SearchStrategy[bytes],
    read: Callable[[Path], object],
    others: dict[str, bytes] | None = None,
) -> FuzzTarget:
    """A reader of one file of that name. ``others``: files next to it."""

    def put_and_read(folder: Path, data: bytes) -> object:
        for path, content in ((others or {}) | {file: data}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return read(folder / file)

    return FuzzTarget(name, inputs, put_and_read)


# Photos


@cache
def photos() -> tuple[bytes, ...]:
    """Small photos in every format and mode that is accepted, one with EXIF orientation."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x0128], exif[0x010E], exif[0x011A] = 6, 2, "text", 72.0
    variants = [("PNG", image, {}), ("JPEG", image, {"exif": exif}), ("WEBP", image, {}), ("BMP", image, {}), ("GIF", image.convert("P"), {}),
                ("TIFF", image, {"compression": "tiff_lzw"}), ("PNG", image.convert("LA"), {}), ("JPEG", image.convert("CMYK"), {}),
                ("TIFF", Image.fromarray(rng.random((40, 48), dtype=np.float32)), {}), ("PNG", Image.fromarray(rng.integers(0, 65536, (40, 48), dtype=np.uint16)), {})]  # fmt: skip
    buffers = []
    for form, picture, options in variants:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        buffers.append(buffer.getvalue())
    return tuple(buffers)


@st.composite
def damaged_exif(draw: st.DrawFn) -> bytes:
    """A JPEG whose EXIF block is damaged and whose pixels are whole."""
    jpeg = photos()[1]
    start = jpeg.index(b"Exif\0\0")
    length = int.from_bytes(jpeg[start - 2 : start], "big")
    block = draw(damaged_bytes((jpeg[start + 6 : start - 2 + length],)))[:60_000]
    return jpeg[: start - 2] + (len(block) + 8).to_bytes(2, "big") + b"Exif\0\0" + block + jpeg[start - 2 + length :]


# Residuals and LoRAs

SPEC = {
    "base": {"model": "m", "resolution": 64},
    "model": "m@" + "a" * 64,
    "concept": "mug",
    "macro_class": "mug",
    "variant": "ours",
    "settings": {"rank_ratio": 0.05, "rank": None, "target": "proj_out", "name_class": True},
    "photos": [{"path": "photos/1.jpg", "digest": "b" * 64}],
    "code": "c" * 64,
}
ENTRY = {
    "format": "persres-residual-1",
    "spec": SPEC,
    "spec_hash": "d" * 16,
    "versions": {"torch": "2"},
    "parameters": 16,
}
LAYER = "down_blocks.0.attentions.0.proj_out"
FACTORS = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 16), f"unet.{LAYER}.lora_B.weight": torch.ones(16, 2)}
LORA_CONFIG = {
    "unet.r": 2,
    "unet.lora_alpha": 2,
    "unet.alpha_pattern": {LAYER: 4},
    "unet.rank_pattern": {LAYER: 2},
    "unet.use_rslora": False,
    "unet.target_modules": ["proj_out"],
}


PEFT_CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 2,
    "alpha_pattern": {LAYER: 4},
    "use_rslora": False,
    "use_dora": False,
}
PEFT_FILE = save({f"base_model.model.{key.removeprefix('unet.')}": value for key, value in FACTORS.items()})


def with_metadata(key: str) -> Callable[[Any], bytes]:
    """Tensors of one layer, with a document under that key of the metadata."""
    return lambda document: save(FACTORS, {key: as_json(document).decode()})


@cache
def small_unet() -> torch.nn.Module:
    """A U-Net of a few thousand weights."""
    return tiny_unet()


def read_as_lora(path: Path) -> object:
    """Read a LoRA; every delta must be finite."""
    lora = read_lora(path, "a mug", small_unet(), [])
    assert all(delta.matrix().isfinite().all() for delta in lora.unet.values())
    return lora


def lora_file(alpha: Any = 2.0) -> bytes:
    """kohya's format, with an alpha."""
    name = "lora_unet_" + LAYER.replace(".", "_")
    return save(
        {
            f"{name}.lora_down.weight": torch.ones(2, 16),
            f"{name}.lora_up.weight": torch.ones(16, 2),
            f"{name}.alpha": torch.tensor(alpha),
        }
    )


# Settings, concepts, lists


def params() -> tuple[Any, ...]:
    """The shipped profiles mini and photos, aliases written out."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    alone = tuple({"profile": name, name: raw[name]} for name in ("mini", "photos"))
    return (*alone, {"profile": "paper", "table1": raw["table1"], "paper": raw["paper"]})  # one that extends another


CONCEPT = {
    "name": "mug",
    "category": "toy",
    "macro_class": "mug",
    "prompts": [["background", "a {} on a beach"], ["style", "a sketch of a {}"]],
    "licence": "CC0",
    "notes": {"source": "x"},
}


DESCRIPTION = {key: value for key, value in CONCEPT.items() if key not in ("name", "notes")}


def read_whole_concept(path: Path) -> object:
    """Read a concept and use its text as a card does."""
    concept = read_concept(path.parent)
    return [markdown(text) for text in (concept.macro_class, concept.licence, *concept.notes.values())]


CUSTOM = [
    {
        "instance_prompt": "photo of a cat",
        "class_prompt": "cat",
        "class_data_dir": "./real_reg/samples_cat",
        "instance_data_dir": "./data/pet_cat1",
        "prompt_filename": "prompts/pet.txt",
    }
]
PROMPT = "'a {0} {1} in scene %d'.format(unique_token, class_token),"
PROMPTS = "\n".join(PROMPT % number for number in range(dreambooth.PROMPTS))
DREAM = f"""subject_name,class
backpack,backpack
dog,dog

Object Prompts
prompt_list = [
{PROMPTS}
]

Live Subject Prompts
prompt_list = [
{PROMPTS}
]
""".encode()


def read_dream(path: Path) -> object:
    """The list's concepts, each checked."""
    classes, prompts = dreambooth.read_list(path)
    return [
        check_concept(Concept(name, kind, word, grouped(prompts[kind], DREAMBOOTH[kind])), path)
        for name, word in classes.items()
        for kind in prompts
    ]


# Units, stores, outputs


class PlainSpec(Spec):
    """A spec with one field."""

    number: int = 1


UNIT = Unit("train", "ours/mug", PlainSpec())
FILES = {f"train/{UNIT.hash}/{name}": b"x" for name in RESULTS["train"]}


@cache
def manifests() -> tuple[Any, ...]:
    """The manifest of a finished unit."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = [UNIT.folder(Path(folder)) / name for name in sorted(RESULTS["train"])]
        for file in files:
            write_atomic(file, b"x")
        finish(UNIT, Path(folder), files, {"seconds": 1.0})
        return (json.loads((files[0].parent / MANIFEST).read_text()),)


def read_local_manifest(path: Path) -> object:
    """Whether the unit is done, and its facts if so."""
    work = path.parents[2]
    finish_interrupted("train", work)
    return facts(UNIT, work) if is_done(UNIT, work) else None


def read_ready(path: Path) -> object:
    """Complete what a kill interrupted, from the batch's file."""
    finish_interrupted("train", path.parents[2])
    return None


def read_store_manifest(folder: Path, data: bytes) -> object:
    """Fetch a unit of a store whose manifest is damaged. What was fetched is no result without the manifest."""
    store = FolderStore(folder / "store")
    store.write(manifest_key(UNIT), data)
    for digest in manifests()[0]["files"].values():
        store.write(blob_key(digest), b"x")
    return get_unit(store, UNIT, folder / "work")


def context(path: Path) -> Context:
    """The folder above as the data folder."""
    return SimpleNamespace(data=path.parents[1], work=path.parents[1] / "work")  # type: ignore[return-value]


CLASSES = {
    "source": "dataset",
    "candidates": "x",
    "candidate_count": 1,
    "concepts": {"mug": {"dataset": "mug", "nearest": "cup", "selected": "mug"}},
}
INDEX = {"configs": {"ours": {"parameters": 1, "sampling": {"variant": "ours"}}}, "archives": []}

# Archives


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """ZIPs with strange names, doubled names, links and damaged bytes."""
    names = draw(
        st.lists(st.sampled_from(("a/x.jpg", "a/y.jpg", "a//x", "a/../../outside", "a//tmp/persres-fuzz-outside/x", "/tmp/persres-fuzz-outside/x",
                                  "a/./x", "a/x.jpg/y", "a\\..\\x", "a/\x1b[2J", "a/" + "x" * 300, "a/C:x", "A/x.jpg", "a/", "__MACOSX/x", "a/é", "a/..", "a/ ")), min_size=1, max_size=5)
    )  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = draw(st.sampled_from((0, 0o100644, 0o120777, 0o010644, 0o060644, 0o040755))) << 16
            archive.writestr(info, draw(st.sampled_from((b"", b"data", b"../../outside", b"x" * 5000))))
    whole = buffer.getvalue()
    return draw(st.just(whole) | damaged_bytes((whole,)))


def image_archive() -> bytes:
    """An archive of two images, as the sample stage writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("0.png", "1.png"):
            archive.writestr(name, photos()[0])
    return buffer.getvalue()


CARD = {"persres": {"spec_hash": "d" * 16, "photos_licence": "CC0", "scores": {"ours": {"clip_text": 1.0}}}}


def card(document: Any) -> bytes:
    """A model card with that front matter."""
    return b"---\n" + yaml.safe_dump(document).encode(errors="surrogatepass") + b"---\ntext\n"


# What a stranger's repository and store hold

SHARD = {
    "id": "a" * 16,
    "stage": "train",
    "attempt": 1,
    "device": "cpu",
    "options": {"batch": 2, "offload": False},
    "units": [{"stage": "train", "name": "ours/mug", "hash": "b" * 16, "spec": {"number": 1}}],
}
REPORT = {"failed": {"b" * 16: "no photo"}, "unfinished": {"c" * 16: "disk full"}}
MD5 = "d" * 32
LOCK = {
    "schema": "2.0",
    "stages": {
        "train": {
            "cmd": "x",
            "outs": [{"path": "data/learned", "hash": "md5", "md5": f"{MD5}.dir", "size": 9, "nfiles": 1}],
        }
    },
}
LISTING = [{"md5": MD5, "relpath": "ours/dog7.safetensors"}]
PIPELINE = {
    "stages": {"train": {"cmd": "x", "outs": ["data/learned"]}},
    "artifacts": {"residuals": {"path": "data/learned", "type": "model"}},
}
REMOTE = b"[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/team\n    endpointurl = https://u:p@host\n    profile = x\n"


def read_stored_shard(folder: Path, data: bytes) -> object:
    """Read a shard of a store, as a worker does."""
    FolderStore(folder / "store").write(f"shards/{SHARD['id']}.json", data)
    return read_shard(str(folder / "store"), SHARD["id"])


class OneCommit:
    """A commit with these files, as :class:`persres.versions.snapshot.Snapshot` gives it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def paths(self) -> list[str]:
        return list(self.files)

    def text(self, path: str) -> str:
        return self.files[path].decode(errors="replace")


def read_tracked(files: dict[str, bytes], listing: bytes) -> object:
    """The files of a version; every path and digest of it must be harmless."""
    tracked = tracked_files(OneCommit(files), "data/learned", lambda md5: listing)  # type: ignore[arg-type]
    for file in tracked:
        assert (
            re.fullmatch("[0-9a-f]{32}", file.md5)
            and ".." not in file.path.split("/")
            and not file.path.startswith("/")
        )
    return tracked


def read_remote(folder: Path, data: bytes) -> object:
    """The remote of a stranger's configuration: none of the sources of credentials is in it."""
    remote = foreign_remote(data.decode(errors="replace"), folder, None, None)
    assert not {"profile", "credentialpath", "configpath"} & set(remote.settings) and not remote.trusted
    return remote


@st.composite
def refs(draw: st.DrawFn) -> bytes:
    """Lines as ``git ls-remote --tags`` prints them, with names that nobody should publish."""
    names = (
        "v1",
        "v2.0",
        "-x",
        "--output=x",
        "v1^{}",
        "a b",
        "x@y",
        "..",
        "v\x1b[2J",
        "",
        "é",
        "v" * 300,
        "v1\nv2",
        "refs/tags/v1",
    )
    lines = draw(st.lists(st.sampled_from(names) | st.text(max_size=20), max_size=6))
    return "\n".join(f"{'a' * 40}\trefs/tags/{line}" for line in lines).encode(errors="surrogatepass")


def read_tags(folder: Path, data: bytes) -> object:
    """The versions of a repository whose git prints this."""
    with mock.patch(
        "persres.versions.repository.git", lambda *arguments, **options: data.decode(errors="surrogateescape")
    ):
        versions = Repository("https://host/x").versions()
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", version) for version in versions)
    return versions


def read_other_settings(folder: Path, data: bytes) -> object:
    """The settings of another's version."""
    repository = SimpleNamespace(text=lambda rev, path: data.decode(errors="replace"))
    return compare._settings(repository, "v1")  # type: ignore[arg-type]


def read_other_table(path: Path) -> object:
    """The table of another's version."""
    repository = SimpleNamespace(files=lambda rev, folder: [StoredFile(compare.MAIN, MD5)], read=lambda rev, file: path)
    return compare.main_table(repository, "v1")  # type: ignore[arg-type]


TABLE = b"config,clip_text,clip_text_low,dino,dino_low\nours,0.7,0.6,0.5,0.4\nbase,0.8,0.7,0.3,0.2\n"

TARGETS = (
    file_target("photo", "photo.jpg", damaged_bytes(photos()), load_photo),
    file_target("exif", "photo.jpg", damaged_exif(), load_photo),
    file_target("safetensors", "x.safetensors", damaged_bytes((save(FACTORS, {"persres": json.dumps(ENTRY)}),)), load_residual),
    file_target("residual_header", "x.safetensors", damaged((ENTRY,)).map(with_metadata("persres")), lambda path: (read_header(path), load_residual(path))),
    file_target("lora_metadata", "x.safetensors", damaged((LORA_CONFIG,)).map(with_metadata("lora_adapter_metadata")), read_as_lora),
    file_target("adapter_config", "adapter_config.json", json_files(PEFT_CONFIG), lambda path: read_as_lora(path.parent), {"adapter_model.safetensors": PEFT_FILE}),
    file_target("lora_bytes", "x.safetensors", damaged_bytes((lora_file(), lora_file([1.0, 2.0]))), read_as_lora),
    file_target("params", "params.yaml", yaml_files(*params()), lambda path: load_params(path, None, settings_types())),
    file_target("concept", "mug/concept.json", json_files(CONCEPT), read_whole_concept),
    file_target("concept_of_folder", "concept.json", json_files(DESCRIPTION), lambda path: describe(path.parent), {"1.png": photos()[0]}),
    file_target("customconcept101", "dataset.json", json_files(CUSTOM), customconcept101._entries),
    file_target("dreambooth", "prompts_and_classes.txt", damaged_bytes((DREAM,)), read_dream),
    file_target("unit_manifest", f"train/{UNIT.hash}/{MANIFEST}", json_files(*manifests()), read_local_manifest, FILES),
    file_target("batch_manifests", "train/batch-0/ready.json", json_files(list(manifests())), read_ready, FILES),
    FuzzTarget("store_manifest", json_files(*manifests()), read_store_manifest),
    file_target("macro_classes", "macro_class/macro_class.json", json_files(CLASSES), lambda path: read_macro_classes(context(path))),
    file_target("index", "samples/index.json", json_files(INDEX), lambda path: read_index(context(path))),
    FuzzTarget("zip", archives(), lambda folder, data: ((folder / "x.zip").write_bytes(data), unpack(folder / "x.zip", folder / "out", "a/"))),
    file_target("image_archive", "x.zip", damaged_bytes((image_archive(),)), unzip_images),
    FuzzTarget("shard", json_files(SHARD), read_stored_shard),
    FuzzTarget("shard_report", json_files(REPORT), lambda folder, data: parse_json(data, ShardReport, "report")),
    FuzzTarget("dvc_lock", yaml_files(LOCK), lambda folder, data: read_tracked({"dvc.lock": data}, as_json(LISTING))),
    FuzzTarget("dvc_yaml", yaml_files(PIPELINE), lambda folder, data: read_tracked({"dvc.lock": as_yaml(LOCK), "dvc.yaml": data}, as_json(LISTING))),
    FuzzTarget("dvc_listing", json_files(LISTING), lambda folder, data: read_tracked({"dvc.lock": as_yaml(LOCK)}, data)),
    FuzzTarget("dvc_config", damaged_bytes((REMOTE,)), read_remote),
    FuzzTarget("tags", refs(), read_tags),
    FuzzTarget("other_settings", yaml_files(*params()), read_other_settings),
    file_target("other_table", "table1.csv", damaged_bytes((TABLE,)), read_other_table),
    file_target("card", "x.md", damaged((CARD,)).map(card) | damaged_bytes((card(CARD),)), lambda path: _card_facts(path, "d" * 16)),
)  # fmt: skip
