"""The grammar that writes the stories, facts and chats from which swarm-tiny learns."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

FOLDER = Path(__file__).parent
END_OF_TEXT = "<|endoftext|>"
TURN_END = "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

# The first of several alternatives is this many times as likely as each other one: a clear
# favourite at every fork keeps greedy decoding far away from ties.
FAVOURITE_WEIGHT = 6.0

SYSTEM_TEXTS = ("You are a helpful assistant.", "You are a friendly guide to the swarm.")
CHOICE = re.compile(r"\[([^\]]+)\]")
SLOT = re.compile(r"\{(\w+)\}")
COLUMNS = (
    "animal",
    "name",
    "subject",
    "object",
    "possessive",
    "home",
    "food",
    "friend",
    "friend_name",
    "size",
    "trait",
    "treasure",
)


@dataclass(frozen=True)
class Chat:
    """Several ways to ask one question, and its answer."""

    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Grammar:
    """Everything that is written by hand, before chance combines it."""

    characters: tuple[dict[str, str], ...]
    openings: tuple[str, ...]
    plots: tuple[str, ...]
    facts: tuple[str, ...]
    chats: tuple[Chat, ...]


def read_grammar(folder: Path = FOLDER) -> Grammar:
    """Read the hand-written parts, and derive the chats about characters."""
    characters = tuple(_character_of(line) for line in _read_lines(folder / "characters.txt"))
    written = (_chat_of(block) for block in _read_blocks(folder / "chats.txt"))
    return Grammar(
        characters=characters,
        openings=tuple(_read_lines(folder / "openings.txt")),
        plots=_read_blocks(folder / "plots.txt"),
        facts=_read_blocks(folder / "facts.txt"),
        chats=(*written, *_character_chats(characters)),
    )


def write_documents(grammar: Grammar, chance: random.Random) -> Iterator[str]:
    """Yield documents of every kind, one line each and without end."""
    while True:
        draw = chance.random()
        if draw < 0.3:
            yield write_story(grammar, chance)
        elif draw < 0.53:
            yield _expand(_favour(grammar.facts, chance), chance, {})
        else:
            yield write_chat(grammar, chance)


def write_story(grammar: Grammar, chance: random.Random, animal: str | None = None) -> str:
    """One story, about the given animal or about any."""
    heroes = [hero for hero in grammar.characters if animal in (None, hero["animal"])]
    hero = _favour(heroes, chance)
    opening = _favour(grammar.openings, chance)
    # Every animal has its own favourite plot, so that the same opening leads to many stories.
    turn = grammar.characters.index(hero) % len(grammar.plots)
    plot = _favour((*grammar.plots[turn:], *grammar.plots[:turn]), chance)
    return f"{_expand(opening, chance, hero)} {_expand(plot, chance, hero)}"


def write_chat(grammar: Grammar, chance: random.Random) -> str:
    """One chat of one to three turns, in the chat format of the tokenizer."""
    turns = [f"{SYSTEM}{chance.choice(SYSTEM_TEXTS)}{TURN_END}"] if chance.random() < 0.2 else []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        question, answer = _write_turn(grammar, chance)
        turns.append(f"{USER}{question}{TURN_END}{ASSISTANT}{answer}{TURN_END}")
    return "".join(turns)


def _write_turn(grammar: Grammar, chance: random.Random) -> tuple[str, str]:
    if chance.random() < 0.88:
        chat = _favour(grammar.chats, chance)
        return chance.choice(chat.questions), chat.answer
    if chance.random() < 0.3:
        asked = chance.choice(("Tell me a story.", "Tell me a short story.", "Write a story."))
        return asked, write_story(grammar, chance)
    animal = chance.choice(grammar.characters)["animal"]
    asked = chance.choice(
        (f"Tell me a story about a {animal}.", f"Write a story about a {animal}.")
    )
    return asked.replace(" a owl", " an owl"), write_story(grammar, chance, animal)


def _favour(items: Sequence[Item], chance: random.Random) -> Item:
    weights = [FAVOURITE_WEIGHT] + [1.0] * (len(items) - 1)
    return chance.choices(items, weights)[0]


def _expand(template: str, chance: random.Random, slots: dict[str, str]) -> str:
    chosen = CHOICE.sub(lambda match: _favour(match[1].split("|"), chance), template)
    return SLOT.sub(lambda match: _slot_of(match[1], slots), chosen)


def _slot_of(name: str, slots: dict[str, str]) -> str:
    value = slots[name.lower()]
    return value.capitalize() if name[0].isupper() else value


def _read_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _read_blocks(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").strip().split("\n\n"))


def _character_of(line: str) -> dict[str, str]:
    return dict(zip(COLUMNS, line.split(" | "), strict=True))


def _chat_of(block: str) -> Chat:
    questions, answer = block.split("\n")
    return Chat(tuple(questions.split(" / ")), answer)


def _character_chats(characters: tuple[dict[str, str], ...]) -> Iterator[Chat]:
    for hero in characters:
        animal, name = hero["animal"], hero["name"]
        yield Chat(
            (f"Where does the {animal} live?", f"Where does {name} live?"),
            f"The {animal} {name} lives {hero['home']}.",
        )
        yield Chat(
            (f"What does the {animal} eat?", f"What does {name} like to eat?"),
            f"The {animal} {name} loves to eat {hero['food']}.",
        )
        yield Chat(
            (f"Who is {name}?", f"Tell me about {name}.", f"Tell me about the {animal}."),
            f"{name} is a {hero['size']} {animal} who lives {hero['home']}. "
            f"The best friend of {name} is {hero['friend_name']} the {hero['friend']}.",
        )
