"""The stages: plain functions that DVC's commands run and Prefect's tasks wrap.

Each takes a :class:`persres.units.context.Context`, reads what earlier stages published in ``data/``, works in the work folder, and
publishes its own folder at the end, completely or not at all.
"""

STAGES = ("fetch", "macro_class", "train", "sample", "score", "tables")  # in order
POOLED = ("train", "sample", "score")  # those whose units run in parallel
