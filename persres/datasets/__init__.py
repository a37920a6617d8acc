"""Datasets: where concepts come from. Each writes the one layout of :mod:`persres.datasets.layout`."""
