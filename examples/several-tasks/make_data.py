"""Writes train.jsonl, validation.jsonl and test.jsonl: letters to a shop, with three tasks each.

topic: which department it is for, a choice. order: what is asked of which order, as a call. reply:
a first answer. Numbers, names and goods of a letter are drawn anew for each; the ways to say it of
validation and test are not those of training.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

TOPICS = ("delivery", "invoice", "return")
GOODS = ("kettle", "lamp", "desk", "jacket", "bicycle pump", "tent", "toaster", "rucksack")
NAMES = ("Ada", "Ben", "Chidi", "Dora", "Emil", "Farah", "Goran", "Hanna", "Ines", "Jun")
TRAINING = {
    "delivery": (
        "my {good} from order {order} has not come yet.",
        "where is order {order}? I have waited for the {good} for a week.",
        "order {order}, a {good}: when will it be here?",
    ),
    "invoice": (
        "I need the bill for order {order}, the {good}.",
        "order {order} (a {good}) was charged twice on my card.",
        "please send me the invoice of the {good} again. The order is {order}.",
    ),
    "return": (
        "I want to send back the {good} of order {order}.",
        "the {good} is broken, and I want my money back. Order {order}.",
        "how do I return a {good}? My order was {order}.",
    ),
}
UNSEEN = {
    "delivery": ("the parcel with my {good} is late. It is order {order}.",),
    "invoice": ("the sum on the bill of order {order} for the {good} is wrong.",),
    "return": ("order {order}: the {good} does not fit. Can I give it back?",),
}
REPLIES = {
    "delivery": "Hello {name}, I am sorry that your {good} is late. I will look for the parcel.",
    "invoice": "Hello {name}, I will check the invoice of your {good} and send it to you.",
    "return": "Hello {name}, you can send the {good} back. A label is on its way to you.",
}
LETTERS = {"train": 200, "validation": 15, "test": 40}
"""Of each topic."""


def rows(topic: str, way: str, chance: Random) -> Iterator[dict[str, Any]]:
    """The three tasks of one letter."""
    words = {"good": chance.choice(GOODS), "name": chance.choice(NAMES)}
    order = chance.randrange(10_000, 100_000)
    letter = f"{words['name']} writes: {way.format(**words, order=order)}"
    yield {
        "task": "topic",
        "metric": "acc",
        "prompt": f"Which department is this for: delivery, invoice or return?\n{letter}",
        "target": topic,
        "choices": TOPICS,
    }
    yield {
        "task": "order",
        "metric": "slot_f1",
        "prompt": f"Write the call for this letter.\n{letter}",
        "target": f"{topic}(order={order}, good={words['good']})",
    }
    yield {
        "task": "reply",
        "metric": "rouge_l",
        "prompt": f"Write a first answer to this letter.\n{letter}",
        "target": REPLIES[topic].format(**words),
    }


def main() -> None:
    """Write the three files beside this one."""
    chance = Random(0)
    for name, letters in LETTERS.items():
        ways = TRAINING if name == "train" else UNSEEN
        asked = [(topic, chance.choice(ways[topic])) for topic in TOPICS for _ in range(letters)]
        chance.shuffle(asked)
        lines = [json.dumps(row) for topic, way in asked for row in rows(topic, way, chance)]
        Path(__file__).with_name(f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
