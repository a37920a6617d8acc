"""Whether today's code computes what older code computed, so that figures made by that one stand for today's.

A change of the code behind committed figures makes them "older code" (persres.experiments.evidence.provenance), also where it moved functions or only added
up in another order. Measuring everything again takes hours. This runs the same few things by both checkouts on one machine
(``subjects``, ``sides``, ``few/``), compares what they learned, drew and scored (``differences``), holds the differences against
tolerances that were set beforehand (``tolerances``), and records today's digest beside the old one (``carry``).

What it can't show: differences that a long training would grow out of one too small to see here. So the older code also runs
against itself with its sums in another order, and the record says both.
"""
