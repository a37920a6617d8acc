"""A ``CLIPTokenizer`` in which every word of the vocabulary is one token.

The byte-pair merges are trained on the word list until nothing is left to merge. Single letters
stay in the vocabulary, so an unknown word becomes its letters.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from persres.miniworld.vocabulary import words

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, prompt_length: int) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json in the format of Stable Diffusion."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([word for word in words() for _ in range(2)] + letters, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(set(model["vocab"]) | set(letters) | {letter + "</w>" for letter in letters})
    vocab = {piece: index for index, piece in enumerate([*pieces, START, END])}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": prompt_length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "errors": "replace",
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
