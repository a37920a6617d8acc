"""Units, their resume, and where results come from: whole files, locks, specs, checkpoints, code digests."""
