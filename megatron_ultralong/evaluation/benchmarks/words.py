"""Words to name things by: a short list of common English ones, and made-up ones where more are needed.

All were written down for this project. A made-up word has three syllables, "talorim"; there are 2.5 million.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import overload

import numpy as np

_ADJECTIVES = """
able active agile alert amber ample ancient autumn basic bitter blank bold brave brief bright brisk broad bronze busy
calm candid careful cheap cheerful chilly civil classic clean clear clever close cloudy cold common cosy crimson crisp
curious curved daring dark dear deep distant double dry dull dusty eager early easy elegant empty equal exact faint fair
famous fancy fast fertile fierce final fine firm flat fond formal fragile fresh frosty full gentle giant glad golden
grand grave great green happy hardy heavy hidden high hollow honest humble icy ideal idle inner ivory jolly keen kind
large late lazy lean level light lively local lonely long loud loyal lucky lunar major marble mellow merry mighty mild
misty modern modest narrow neat new nimble noble northern novel odd old open orange pale patient plain pleasant polite
proud pure purple quick quiet rapid rare ready regal rich ripe rocky rough round royal rural rustic safe salty scarlet
secret sharp short shy silent silver simple sleepy slim slow small smooth sober soft solar solid southern spare steady
steep stern still strong sturdy subtle sudden sunny sweet swift tall tame tender thick thin tidy tiny tired true upper
urban useful vast velvet vital vivid warm wary wide wild windy wise witty wooden yellow young
"""
_NOUNS = """
acorn actor album alley anchor angle ankle apple apron arch arena armor arrow attic author badge bakery balcony balloon
banjo banner barley barn barrel basin basket beach beacon beaver bell bench berry bicycle bishop blanket blossom board
boat bonnet border bottle boulder bowl bracket branch bread brick bridge broom bucket buckle bundle butter button cabin
cable camel camera candle canoe canvas canyon captain caravan carbon carpet carrot castle cattle cavern cedar cellar
chain chalk chapel cherry chimney cinema circle citadel clay cliff clock closet cloth cloud clover coach coast coffee
collar comet compass copper coral corner cottage cotton cradle crane crater creek cricket crown crystal cupboard
curtain cushion daisy dancer desert desk diamond dinner doctor dolphin donkey donor dragon drawer drum eagle ear
easel elbow elephant ember engine envelope falcon farmer feather fence ferry festival fiddle field finger flag flame
flute forest fortress fountain fox frame furnace galaxy garage garden garlic gate geyser ginger giraffe glacier glass
glove goat goose grape gravel guitar hammer hammock harbor harvest hat hawk hedge helmet herald hill hinge honey
hook horizon horse hotel hour house hunter iceberg inlet island jacket jaguar jar jewel journal judge juice jungle
kernel kettle key king kitchen kite knight ladder lagoon lake lamp lantern laurel lawyer leaf ledger lemon lentil
letter lever library lilac lion lizard lobby locket log lotus lumber magnet mango maple market mason meadow medal melon
mentor mill mirror mitten monk moon mosaic moss motor mountain museum napkin needle nest nickel notebook oasis ocean
olive onion orbit orchard organ otter oven owl oxygen oyster paddle palace panda panel paper parade parcel parrot
pasture path pavement peach peacock pearl pebble pelican pencil pepper piano picnic pigeon pillow pilot pine pirate
planet plank plaza plum pocket poem pond pony poplar porch potato potter prairie prism puddle pumpkin puzzle quarry
queen quill rabbit radar raft railway raven record reef ribbon rider river robin rocket roof rope saddle sailor salmon
sandal satchel saucer scarf school scooter sculptor seal season shadow shelf shell shepherd shield shore shovel signal
singer skater sketch sky sled slipper snail soap soldier spade spider spoon spring squirrel stable stadium stamp
statue steamer stove straw stream street student summit surgeon swallow swamp sweater table tailor teapot temple tent
theater thimble thistle thread throne ticket tiger timber toast tomato torch tower town tractor trail train tray tulip
tunnel turtle umbrella valley vase vault verse vessel village vine violin visitor volcano wagon waiter walnut walrus
water weaver whale wheat wheel whistle widow willow window winter wizard wolf workshop yard yarn zebra
"""
ADJECTIVES: tuple[str, ...] = tuple(dict.fromkeys(_ADJECTIVES.split()))
NOUNS: tuple[str, ...] = tuple(dict.fromkeys(_NOUNS.split()))
COMMON: tuple[str, ...] = tuple(sorted({*ADJECTIVES, *NOUNS}))
"""Both, each once."""

_SYLLABLES = tuple(first + vowel for first in "b d f g k l m n p r s t v z".split() for vowel in "aeiou")
_LAST = tuple(syllable + end for syllable in _SYLLABLES for end in ("", "l", "m", "n", "r", "s", "t"))
MADE_UP = len(_SYLLABLES) ** 2 * len(_LAST)
"""How many made-up words there are."""


def made_up(number: int) -> str:
    """The made-up word of a number below `MADE_UP`, another one for each."""
    number, last = divmod(number, len(_LAST))
    first, middle = divmod(number, len(_SYLLABLES))
    return _SYLLABLES[first] + _SYLLABLES[middle] + _LAST[last]


class MadeUp(Sequence[str]):
    """All made-up words, written when they are asked for."""

    def __len__(self) -> int:
        """How many."""
        return MADE_UP

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        """One, or several."""
        if isinstance(number, slice):
            return [made_up(each) for each in range(MADE_UP)[number]]
        return made_up(range(MADE_UP)[number])


def array_rng(rng: random.Random) -> np.random.Generator:
    """A NumPy generator that depends on the state of a Python one."""
    return np.random.Generator(np.random.PCG64(rng.getrandbits(128)))
