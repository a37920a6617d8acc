"""Which of a benchmark's prompts are about the background, an added object, the style or a property (the paper's figure 4).

**CustomConcept101.** Its authors made the prompts in four kinds (its README: change the background; insert an object or living
thing; style; property or material) and wrote each file's 20 in that order, but marked no boundary. The table below is our
reading of every file: how many prompts come before the first with an added object, before the first with a style, before the
first with a property. A prompt is never moved out of its place, so a few stand in a group that they do not fit well:

* The first prompt of every file is plain ("photo of a {}.") and counts as background.
* Places inside the object block: canal 9 (autumn), garden 10 (night sky), houseplant 6, instrument 8, 9 and 11, jacket 9 (wall
  hook), lamp 8, luggage 11 and 12 (12, "wet", could be a property), person 7, toy 8 and 10, transport 8 and 10, vase 9,
  woodenpot 9.
* Objects inside the background block: canal 3 (tourist ship), cup 4 (books), garden 4 (stone pillars, but part of the garden),
  headphone 3, instrument 5 (turtle), jewelry 3, lamp 2, 4 and 5, luggage 3, flower 5 and 6 (a bouquet, a garden of it).
* Person 8 to 12 are outfits, each in its place; like "wearing a hat" they count as objects. Cat and dog 14 to 16 (chef outfit,
  reading, costume) stand after the styles and so are properties, though "construction outfit" stands among the objects.
* Styles inside the property block: glasses and sunglasses 18 and 20, houseplant 18. Dish 13 (a cherry flower on top) stands among the styles; dish 19 and 20, headphone 18 and waterfall 17 and 20 are places or objects after them.
* "Painted with graffiti" (transport 12) and "graffiti art" count as styles; person 18 to 20 (a film's character) as properties,
  as do views ("top view", "close up") and "X in the style of {}".

``moongate.txt`` names no concept and no list uses it; the other files with two concepts belong to the multi-concept task.

**DreamBooth's** 25 prompts have no styles. For objects, 20 place the subject elsewhere and 5 change a property; for live subjects
10 place it, 10 dress it (an added object) and 5 change a property.
"""

from __future__ import annotations

from persres.prompts import PROMPT_GROUPS

# file of CustomConcept101's prompts -> index (from 0) of the first object, the first style and the first property prompt
CUSTOMCONCEPT101 = {
    "actionfigure": (6, 10, 15),
    "barn": (6, 10, 16),
    "canal": (5, 10, 15),
    "castle": (6, 10, 15),
    "cat": (5, 9, 13),
    "chair": (6, 10, 15),
    "cup": (7, 12, 18),
    "dish": (5, 11, 15),
    "dog": (4, 9, 13),
    "flower": (6, 10, 15),
    "garden": (4, 11, 15),
    "glasses": (5, 11, 16),
    "headphone": (4, 10, 15),
    "houseplant": (4, 10, 15),
    "instrument": (5, 11, 16),
    "jacket": (7, 10, 15),
    "jewelry": (5, 10, 15),
    "lamp": (6, 10, 15),
    "lighthouse": (6, 10, 15),
    "luggage": (7, 12, 17),
    "person": (4, 12, 17),
    "plushie": (6, 10, 16),
    "sculpture": (6, 10, 15),
    "shoes": (6, 10, 15),
    "sofa": (6, 10, 15),
    "sunglasses": (5, 11, 16),
    "table": (6, 11, 16),
    "tank": (7, 12, 16),
    "teddybear": (5, 10, 15),
    "things": (6, 10, 15),
    "toy": (5, 10, 15),
    "transport": (6, 11, 15),
    "vase": (5, 10, 15),
    "waterfall": (5, 10, 15),
    "woodenpot": (5, 10, 15),
}

# kind of DreamBooth's subjects -> the same; a group without prompts starts where the next one does
DREAMBOOTH = {"object": (20, 20, 20), "live subject": (10, 20, 20)}


def grouped(prompts: list[str], starts: tuple[int, int, int]) -> tuple[tuple[str, str], ...]:
    """Prompts in their order as (group, prompt), cut at the three starts."""
    return tuple(
        (PROMPT_GROUPS[sum(index >= start for start in starts)], prompt) for index, prompt in enumerate(prompts)
    )
