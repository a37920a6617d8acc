"""Evidence for the paper's claims on the mini world: localisation, effects with controls, and what a broken method shows."""
