"""What the speed of each idea is measured by: one idea a file."""

import persres.models  # noqa: F401  declares what torchvision may lack, before diffusers and peft ask for it
