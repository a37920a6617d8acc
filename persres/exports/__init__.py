"""A residual in the formats of other tools, and back: diffusers/PEFT, kohya, and V* as a Textual-Inversion file."""
