"""Training settings of the shipped mini world models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Vocabulary, sizes and training budgets.

    ``style_weights`` are probabilities in the order of ``styles``; ``second`` is the share of scenes with a second object.
    """

    seed: int = 7
    kinds: tuple[str, ...] = ("mug", "robot", "cat", "tree", "car", "fish", "house", "ball")
    patterns: tuple[str, ...] = ("plain", "striped")
    styles: tuple[str, ...] = ("photo", "watercolour", "sketch", "pixel")
    style_weights: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    second: float = 0.2
    scenes: int = 20_000
    identities: int = 4_000  # appearances that no caption can describe, for the image encoders
    views: int = 4  # images of each identity
    nameless_scenes: int = 14_000  # scenes in every style whose objects no caption can describe
    # autoencoder, on scenes and nameless scenes
    latent_channels: int = 8  # with 4 emblems and small parts are lost
    vae_channels: tuple[int, ...] = (24, 48, 96)
    vae_steps: int = 5_100
    vae_whole_steps: int = 1_200  # at the end, on whole images instead of crops
    vae_batch: int = 16
    vae_decoder_steps: int = 1_500  # then the decoder alone
    # image encoders and attribute classifier
    clip_steps: int = 1_600
    clip_batch: int = 64
    clip_locked_steps: int = 600  # then, with the text tower frozen, on random captions and identities
    dino_steps: int = 600
    dino_batch: int = 64  # identities, two views each
    classifier_steps: int = 1_000
    classifier_batch: int = 64
    # U-Net
    unet_workers: int = 2  # processes on a CPU; their batches add up
    unet_channels: tuple[int, ...] = (48, 96, 144)
    unet_steps: int = 2_800
    unet_batch: int = 32  # per worker
    unet_lr: float = 1e-3
    unet_decay_from: float = 0.6  # share of the steps after which the learning rate decays to zero
    unet_ema: float = 0.999
    # then with a new optimizer, with more hard scenes and identities
    unet_second_steps: int = 2_000
    unet_second_lr: float = 7e-4
    unet_second_decay_from: float = 0.4
    unet_nameless: float = 0.15  # share of images that show an identity
    unet_favoured: tuple[tuple[str, float], ...] = (("robot", 1.5), ("cat", 1.3), ("watercolour", 1.7), ("second", 1.5))
    prompt_length: int = 24  # tokens with start and end; the longest caption has 21


RECIPE = Recipe()
