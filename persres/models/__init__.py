"""The frozen models: Stable Diffusion 1.x, 2.x and XL, their prompts, and where they are found."""
