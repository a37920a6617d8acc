"""README is short, and links in pages lead to files."""

from __future__ import annotations

import re

from tests.support.doc_blocks import pages


def test_readme_is_short(repo):
    assert len((repo / "README.md").read_text().splitlines()) <= 150


def test_links_lead_to_files():
    for page in pages():
        for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page} links to {target}, which does not exist"
