"""The stages: plain functions that DVC's commands run and Prefect's tasks wrap.

Each takes a :class:`Context`, reads what the stage before published below ``data/``, works in the scratch
folder, and publishes its own folder at the end, whole or not at all.
"""

STAGES = ("fetch", "macro_class", "train", "sample", "score", "tables")  # in order
POOLED = ("train", "sample", "score")  # those whose units run side by side
