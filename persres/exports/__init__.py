"""A residual in the formats that other tools read, and back: diffusers/PEFT, kohya, and V* as a Textual-Inversion file."""
