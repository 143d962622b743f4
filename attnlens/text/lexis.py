"""Word forms, and which of them carry content: the closed classes of English, written for this project.

The classes are those that Universal Dependencies calls closed (adpositions, auxiliaries, conjunctions, determiners,
numerals, particles, pronouns), with the adverbs that only point, join or grade. Words as often met in an open class
("like", "past", "need") are left out, and so count as content.
"""

import re
from functools import lru_cache

import numpy as np

from attnlens.text.align import HAN, words

_DETERMINERS = """
a an the this that these those each every either neither some any no all both half such many much more most few
fewer fewest little less least several enough another other others own same
"""
_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves themself one ones oneself thou thee thy thine
who whom whose which what whoever whomever whatever whichever whosoever whatsoever
someone somebody something anyone anybody anything everyone everybody everything nobody nothing none
"""
_ADPOSITIONS = """
about above across after against along alongside amid amidst among amongst around as at atop because before behind
below beneath beside besides between beyond but by concerning despite down during except excepting excluding for
from in including inside into near of off on onto opposite out outside over per plus regarding since than through
throughout till to toward towards under underneath unlike until unto up upon versus via with within without
notwithstanding
"""
_CONJUNCTIONS = """
and or nor yet so if unless although though whereas while whilst whether lest once provided providing that when
whenever where wherever why how however because albeit
"""
_AUXILIARIES = """
be am is are was were been being have has had having do does did doing done can could may might must shall should
will would ought cannot
ain't aren't can't couldn't daren't didn't doesn't don't hadn't hasn't haven't isn't mayn't mightn't mustn't needn't
oughtn't shan't shouldn't wasn't weren't won't wouldn't
i'm i've i'd i'll you're you've you'd you'll he'd he'll she'd she'll it'd it'll we're we've we'd we'll they're
they've they'd they'll that'd that'll there'd there'll who'd who'll who've who're what're what'll
could've might've must've should've would've
"""
_PARTICLES_AND_ADVERBS = """
not never ever else also too very quite rather almost just only even still already again always often sometimes
then thus hence therefore otherwise moreover furthermore nevertheless nonetheless meanwhile instead anyway maybe
perhaps indeed now here there anywhere everywhere nowhere somewhere somehow thereby therein thereof thereto thereon
thereunder thereafter thereupon therefrom therewith therefor thereunto theretofore hereby herein hereof hereto hereon
hereunder hereafter hereupon herewith hereinafter hereinbefore hereinabove hereinbelow heretofore hereunto whereby
wherein whereof whereto whereupon wherefore away ago etc
"""
_NUMERALS = """
zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
ii iii iv vi vii viii ix xi xii xiii xiv xv xvi xvii xviii xix xx
1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th
"""
FUNCTION_WORDS = frozenset(
    " ".join(
        (
            _DETERMINERS,
            _PRONOUNS,
            _ADPOSITIONS,
            _CONJUNCTIONS,
            _AUXILIARIES,
            _PARTICLES_AND_ADVERBS,
            _NUMERALS,
        )
    ).split()
)
_HAN_CHARACTER = re.compile(rf"[{HAN}]")


_PLAIN = str.maketrans({"’": "'", "‐": "-", "‑": "-", "\u00ad": None})


@lru_cache(maxsize=1 << 17)
def form(word: str) -> str:
    """The form under which a word is counted: lower case, plain apostrophes and hyphens, no possessive 's."""
    return word.lower().translate(_PLAIN).removesuffix("'s")


@lru_cache(maxsize=1 << 10)  # every definition of salience and every control asks again for the same texts
def forms(text: str) -> tuple[str, ...]:
    """The counted form of each word of a text, in order: W of them."""
    return tuple(form(text[start:end]) for start, end in words(text))


@lru_cache(maxsize=1 << 17)
def is_content(word_form: str) -> bool:
    """Whether a counted form carries content: two letters or a Chinese character, and of no closed class."""
    if word_form in FUNCTION_WORDS:
        return False
    return sum(map(str.isalpha, word_form)) >= 2 or _HAN_CHARACTER.match(word_form) is not None


def content_flags(text: str) -> np.ndarray:
    """Whether each word of a text carries content: (W,) bool."""
    return np.array([is_content(word) for word in forms(text)], dtype=bool)
