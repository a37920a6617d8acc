"""The frozen models: Stable Diffusion 1.x, 2.x and XL, their prompts, and where they are found."""

from persres.models.compat import declare_torchvision_ops

declare_torchvision_ops()  # before anything here imports diffusers or transformers
