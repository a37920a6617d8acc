"""Diffusers' Stable Diffusion pipelines with LAG and residuals that are loaded and switched by name.

    pipe = PersonalizedPipeline.from_pretrained("CompVis/stable-diffusion-v1-4", dtype=torch.float16).to("cuda")
    pipe.load_residual("my_dog.safetensors")
    pipe("a photo of a <v*> dog on the moon", lag=True).images[0]

A LoRA of another tool is loaded with the words that name its subject in prompts, and restricted to the subject in the same way:

    pipe.load_residual("any_lora.safetensors", subject="dog")
    pipe("a photo of a sks dog on the moon", lag="auto").images[0]

Each class is a subclass of a class of diffusers, which samples. Residuals act in a call through hooks of its context
(:mod:`persres.models.call_hooks`), everywhere (paper 3.2) or inside LAG's masks (3.3); no weight and no module changes. So another pipeline
that shares the U-Net draws the base model's images.
"""

from __future__ import annotations

from persres.pipeline.calls import PersonalizedOutput
from persres.pipeline.classes import PERSONALIZED, PersonalizedPipeline

__all__ = ["PERSONALIZED", "PersonalizedOutput", "PersonalizedPipeline"]
