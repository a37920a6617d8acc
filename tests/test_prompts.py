"""A phrase in a prompt: whole words, singular or plural, everywhere."""

from __future__ import annotations

import pytest

from persres.prompts import mentions


@pytest.mark.parametrize(
    ("phrase", "prompt", "expected"),
    [
        ("car", "a cartoon of a careful car in a carpark", ["car"]),
        ("man", "a romantic man, many men and a woman", ["man", "men"]),
        ("cat", "A Cat, two cats and a caterpillar; the cat's bowl", ["Cat", "cats", "cat"]),
        ("<v*> dish", "a pair of <v*> dishes on a <v*> dish", ["<v*> dishes", "<v*> dish"]),
        ("<v*> mug", "<V*> mug, <v*> smug, <v*> mugger, <v*>  Mug.", ["<v*>  Mug"]),
        ("<v*>", "a <v*>, a<v*>b and <v1*>", ["<v*>", "<v*>"]),
        ("teddy bear", "a teddy-bear and teddy\nbears", ["teddy\nbears"]),
        ("puppy", "puppies of a puppy", ["puppies", "puppy"]),
        ("wolf", "wolves and wolfhounds", ["wolves"]),
        ("knife", "knives, knifes", ["knives", "knifes"]),
        ("glass", "glasses, glassware, glass", ["glasses", "glass"]),
        ("policewoman", "policewomen and policewomanly", ["policewomen"]),
        ("child", "children, childish", ["children"]),
        ("quiz", "quizzes", ["quizzes"]),
        ("Škoda", "an old škoda, škodas", ["škoda", "škodas"]),
        ("r2d2", "R2D2 and r2d2 and r2d22", ["r2d2"]),
        ("", "anything", []),
    ],
)
def test_mentions(phrase, prompt, expected):
    assert [prompt[start:end] for start, end in mentions(prompt, phrase)] == expected
