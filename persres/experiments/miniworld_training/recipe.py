"""Training settings of the shipped mini world models."""

from __future__ import annotations

from dataclasses import dataclass

from persres.miniworld.vocabulary import TRAINED_KINDS, TRAINED_PATTERNS


@dataclass(frozen=True)
class Recipe:
    """Vocabulary, sizes and training budgets.

    ``style_weights`` are probabilities in the order of ``styles``; ``second`` is the share of scenes with a second object. The shards that
    the autoencoder and the U-Net train on have shares of their own.
    """

    seed: int = 7
    kinds: tuple[str, ...] = TRAINED_KINDS
    patterns: tuple[str, ...] = TRAINED_PATTERNS
    styles: tuple[str, ...] = ("photo", "watercolour", "sketch", "pixel")
    style_weights: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    second: float = 0.2
    scenes: int = 20_000
    identities: int = 4_000  # appearances that no caption can describe, for the image encoders
    views: int = 4  # images of each identity
    # shards of rendered scenes, for the autoencoder and the U-Net: balanced ones, and nameless ones whose subject no caption can describe
    shard: int = 5_000  # scenes in one
    balanced_shards: int = 40
    nameless_shards: int = 20
    shard_style_weights: tuple[float, ...] = (0.55, 0.15, 0.15, 0.15)
    shard_second: float = 0.35
    # autoencoder
    vae_shards: int = 3  # of each kind
    latent_channels: int = 8  # with 4 emblems and small parts are lost
    vae_channels: tuple[int, ...] = (24, 48, 96)
    vae_steps: int = 5_700
    vae_batch: int = 16  # crops
    vae_whole_steps: int = 1_200  # at the end, on whole images instead of crops
    vae_whole_batch: int = 8
    vae_decoder_steps: int = 800  # then the decoder alone, on whole images
    # image encoders and attribute classifier
    clip_steps: int = 1_600
    clip_batch: int = 64
    clip_locked_steps: int = 600  # then, with the text tower frozen, on random captions and identities
    dino_steps: int = 600
    dino_batch: int = 64  # identities, two views each
    classifier_steps: int = 1_000
    classifier_batch: int = 64
    marks_shards: int = 9  # nameless ones
    marks_steps: int = 5_000
    marks_batch: int = 64
    # U-Net
    unet_workers: int = 2  # processes on a CPU; their batches add up
    unet_channels: tuple[int, ...] = (48, 96, 144)
    unet_steps: int = 16_000
    unet_batch: int = 64  # per worker
    unet_lr: float = 2e-3  # of Muon
    unet_decay_from: float = 0.75  # share of the steps after which the learning rate decays to zero
    unet_ema: float = 0.999
    unet_nameless: float = 1 / 3  # share of images whose subject no caption can describe
    unet_favoured: tuple[tuple[str, float], ...] = (("robot", 1.5), ("cat", 1.3))
    prompt_length: int = 24  # tokens with start and end; the longest caption has 21


RECIPE = Recipe()
