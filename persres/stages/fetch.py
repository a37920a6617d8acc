"""fetch: concepts with their photos and prompts -> ``data/concepts/``."""

from __future__ import annotations

from persres.datasets.customconcept101 import fetch_customconcept101
from persres.datasets.dreambooth import fetch_dreambooth
from persres.datasets.folder import fetch_folder
from persres.datasets.miniworld import fetch_miniworld
from persres.stages.context import Context
from persres.units import publishing, stage_lock

SOURCES = {
    "miniworld": fetch_miniworld,
    "folder": fetch_folder,
    "customconcept101": fetch_customconcept101,
    "dreambooth": fetch_dreambooth,
}


def fetch(context: Context) -> None:
    """Publish the chosen concepts. Raises PersresError for missing or broken photos, naming them."""
    settings = context.profile.fetch
    with stage_lock(context.work, "fetch"), publishing(context.data / "concepts") as folder:
        count = SOURCES[settings.dataset](settings, folder)
    print(f"fetch: {count} concepts in {context.data / 'concepts'}", flush=True)
