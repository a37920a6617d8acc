"""Versions of what was learned: a git tag and DVC's remote, published, listed, pulled and compared."""
