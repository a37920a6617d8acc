"""fetch: concepts with their photos and prompts -> ``data/concepts/``."""

from __future__ import annotations

import logging

from persres.datasets.registry import dataset_named
from persres.units.context import Context
from persres.units.files import publishing
from persres.units.locks import stage_lock

log = logging.getLogger(__name__)


def fetch(context: Context) -> None:
    """Publish the selected concepts. Raises PersresError naming missing or unreadable photos."""
    settings = context.profile.fetch
    with stage_lock(context.work, "fetch"), publishing(context.data / "concepts") as folder:
        count = dataset_named(settings.dataset).fetch(settings, folder)
    log.info("fetch: %d concepts in %s", count, context.data / "concepts")
