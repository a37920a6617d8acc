"""The frozen models: Stable Diffusion 1.x, 2.x and XL, their text encoding, and how they are loaded."""
