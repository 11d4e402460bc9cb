"""Word problems made by a seeded grammar, and copies of given questions planted among them.

For benchmarks of decontamination and deduplication: what was planted is known, so recall and precision can be
counted. The clean questions come from the same grammar as the made-up benchmark, with another seed: like real
pools they share turns of phrase with what they are checked against, by chance.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass


def _listed(text: str) -> list[str]:
    return text.split()


def _parted(text: str) -> list[str]:
    return text.split(",")


NAMES = _listed(
    "Ada Ben Carla Dmitri Elena Farid Grace Hugo Ines Jonas Kavya Liam Mona Nils Olga Pablo Quinn "
    "Rosa Sven Tara Umar Vera Wes Ximena Yara Zoe Amir Bela Chloe Dara Emil Fiona Goran Hana Ivan "
    "Julia Kofi Lena Marek Nora Otis Petra Rahul Selma Tomas Ulla Viktor Wanda Yusuf Zora "
)
PLACES = _listed(
    "bakery market library harbour workshop orchard museum stadium laboratory farm garage school "
    "bookshop theatre warehouse clinic factory nursery studio kitchen camp station gallery brewery "
    "quarry "
)
THINGS = _listed(
    "apples pencils stamps bolts tickets candles lamps chairs bricks shirts tiles roses cookies "
    "marbles bottles notebooks posters ribbons shells screws puzzles kites buttons plates scarves "
    "magnets cables coins feathers pebbles baskets cushions mugs paintings keys radios hinges "
    "blankets jars whistles "
)
COLOURS = _listed(
    "red blue green silver striped wooden plain heavy tiny antique spare polished painted cracked "
)
TIMES = _parted(
    "on Monday,in June,before lunch,last spring,every Friday,at noon,since autumn,by night,near midnight,"
    "each January,until dusk,after school,around Easter,past dawn,within hours,next year,all day"
)
FRIENDS = _listed("brother neighbour teacher cousin colleague aunt landlord coach grandmother classmate ")
VERBS = _listed(
    "keeps carries counts paints repairs wraps orders stacks sorts borrows weighs delivers collects loads "
    "cleans trades photographs labels hides unpacks measures inspects donates misplaces restores rents "
    "auctions "
)
EACH = _listed(
    "crate shelf table drawer visitor basket wagon corner display sack row bench ladder hour trip "
)
WHY = _parted(
    "as agreed,without hurry,very carefully,despite noise,for free,just because,in silence,"
    "on request,by mistake,with pride,unasked,under protest,for once,out loud,in secret,by hand,"
    "in turns"
)
ASKED = _parted("remain,are left,are missing,get lost,stay,count double,fit,are needed,were there,can go")
MATERIALS = _listed(
    "oak tin velvet paper cotton glass copper leather rubber woollen marble bamboo linen steel clay "
    "plastic ivory cork silk brass maple canvas granite porcelain denim wax pewter straw nylon amber "
)
SURNAMES = _listed(
    "Abbott Becker Castillo Dunn Eriksen Ferrari Gupta Haddad Ito Jansen Kowalski Larsen Moreau Novak "
    "Okafor Petrov Quintero Rossi Schmidt Tanaka Ueda Vargas Weber Xu Yilmaz Zhang Alvarez Brandt "
    "Costa Dvorak Egede Fischer Greene Horvat Ivanova Jensen Keller Lindqvist Meyer Nakamura "
)
SYNONYMS = {
    "buys": "purchases", "bought": "purchased", "buy": "purchase", "sells": "offers", "sold": "traded",
    "many": "numerous", "each": "every", "every": "each", "total": "overall", "money": "cash",
    "gets": "receives", "makes": "earns", "made": "earned", "make": "earn", "left": "remaining",
    "more": "additional", "gave": "handed", "gives": "hands", "takes": "needs", "took": "needed",
    "wants": "wishes", "has": "owns", "had": "owned", "have": "own", "week": "seven-day stretch",
    "day": "single day", "year": "twelve months", "hours": "hrs", "minutes": "mins", "children": "kids",
    "kids": "children", "friends": "pals", "friend": "pal", "big": "large", "large": "big",
    "small": "little", "little": "small", "house": "home", "home": "house", "car": "vehicle",
    "also": "as well", "then": "afterwards", "after": "following", "before": "ahead of", "if": "supposing",
    "and": "plus", "but": "yet", "because": "since", "so": "hence", "per": "for each", "cost": "price",
    "costs": "is priced at", "spends": "uses up", "spent": "used up", "pays": "hands over",
    "paid": "handed over", "started": "began", "starts": "begins", "uses": "employs", "used": "employed",
    "needs": "requires", "need": "require", "works": "labours", "eats": "consumes", "ate": "consumed",
    "reads": "looks through", "went": "travelled", "goes": "travels", "times": "fold", "number": "count",
    "people": "persons", "students": "pupils", "books": "volumes", "store": "shop", "shop": "store",
    "how": "exactly how", "first": "initial", "second": "next", "last": "final", "new": "fresh",
    "old": "aged", "only": "just", "together": "jointly", "all": "the whole lot of", "much": "a great deal",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")
_NUMBER = re.compile(r"\d+")
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
KINDS = ("exact", "paraphrased", "number-changed", "partial")


@dataclass(frozen=True, slots=True)
class Planted:
    """A question of the pool: of which kind it is ("" for clean), and which item it was made from."""

    id: str
    question: str
    kind: str = ""
    item: int = -1


def question(rng: random.Random, sentences: int = 3) -> str:
    """A question of about 20 words a sentence. The fixed parts between drawn words are short, as in natural
    text, so that runs of eight words are shared by chance only."""
    things = [f"{rng.choice(MATERIALS)} {each}" for each in rng.sample(THINGS, 2)]
    names = [f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}" for _ in range(2)]
    friends, places = rng.sample(FRIENDS, 2), rng.sample(PLACES, 2)

    def clause() -> str:
        who = rng.choice(
            [names[0], names[1], f"the {friends[0]}", f"one {friends[1]}", f"{names[0]}'s {friends[0]}"]
        )
        what = rng.choice(things)
        amount = rng.choice(
            [
                f"{rng.randint(2, 900)} {rng.choice(COLOURS)} {what}",
                f"{rng.randint(2, 90)} {what} per {rng.choice(EACH)}",
                f"{rng.randint(2, 95)} percent of {rng.randint(2, 900)} {what}",
                f"{rng.randint(2, 40)} {rng.choice(EACH)}s with {rng.randint(2, 60)} {what} each",
                f"{what} worth {rng.randint(2, 900)} dollars",
            ]
        )
        where = rng.choice(
            [f"at the {rng.choice(places)}", f"near {rng.randint(2, 9)} {rng.choice(EACH)}s", ""]
        )
        return " ".join(filter(None, (who, rng.choice(VERBS), amount, where)))

    def sentence() -> str:
        parts = [clause()]
        parts.append(rng.choice([rng.choice(TIMES), rng.choice(WHY), f"and {clause()}", f"but {clause()}"]))
        if rng.random() < 0.5:
            parts.reverse()
        text = " ".join(parts).removeprefix("and ").removeprefix("but ")
        return text[0].upper() + text[1:] + "."

    things_, ask = rng.choice(things), rng.choice(ASKED)
    asked = f"How many {things_} {ask} {rng.choice(['once', 'when', 'if'])} {clause()} but {clause()}?"
    return " ".join([*(sentence() for _ in range(sentences - 1)), asked])


def paraphrased(rng: random.Random, text: str) -> str:
    """The same problem in other words: synonyms, another name, and half of the time sentences swapped."""
    sentences = _SENTENCE.split(text)
    if len(sentences) > 3 and rng.random() < 0.5:
        at = rng.randrange(len(sentences) - 2)
        sentences[at], sentences[at + 1] = sentences[at + 1], sentences[at]
    name = rng.choice(NAMES)
    old = next((word for word in _WORD.findall(sentences[0])[1:] if word[0].isupper()), None)

    def other(found: re.Match[str]) -> str:
        word = found.group()
        if old and word == old:
            return name
        new = SYNONYMS.get(word.lower())
        return new if new and rng.random() < 0.6 else word

    return _WORD.sub(other, " ".join(sentences))


def renumbered(rng: random.Random, text: str) -> str:
    """The same problem with other numbers."""
    return _NUMBER.sub(lambda found: str(int(found.group()[:9]) + rng.randint(1, 9)), text)


def partial(rng: random.Random, text: str) -> str:
    """Half of the problem's sentences, one after another, inside other sentences."""
    sentences = _SENTENCE.split(text)
    count = max(1, len(sentences) // 2)
    at = rng.randrange(len(sentences) - count + 1)
    own = _SENTENCE.split(question(rng, 2))
    return " ".join([*own[:1], *sentences[at : at + count], *own[1:]])


MAKERS = {
    "exact": lambda rng, text: text,
    "paraphrased": paraphrased,
    "number-changed": renumbered,
    "partial": partial,
}


def pool(seed: int, size: int, items: Sequence[str], each: int) -> list[Planted]:
    """`size` questions in a random order, `each` of every kind of copy of different `items` among them."""
    rng = random.Random(f"pool-{seed}")
    made = []
    for kind in KINDS:
        # Without a number there is nothing to change.
        fit = [n for n, item in enumerate(items) if kind != "number-changed" or _NUMBER.search(item)]
        for item in rng.sample(fit, min(each, len(fit))):
            made.append((MAKERS[kind](rng, items[item]), kind, item))
    made += [(question(rng), "", -1) for _ in range(size - len(made))]
    rng.shuffle(made)
    return [Planted(f"q{at}", *each_) for at, each_ in enumerate(made)]
