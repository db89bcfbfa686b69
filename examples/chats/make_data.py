"""Writes train.jsonl, validation.jsonl and test.jsonl: talks with a waiter who keeps the order.

A guest orders, changes the order once or twice, and asks what is on it. The last turn, which is
learned, depends on all turns before it. No order of validation or test is in training.
"""

import json
from pathlib import Path
from random import Random

SYSTEM = "You are a waiter. When the guest asks, say what is on the order, and nothing else."
DISHES = ("soup", "salad", "roll", "pancake", "omelette", "cake", "tea", "juice")
NUMBERS = ("no", "one", "two", "three", "four")
FIRST = ("I would like {what}.", "{what}, please.", "Can I have {what}?")
MORE = ("And {what}, please.", "I also take {what}.")
LESS = ("No {dish} after all.", "Please leave out any {dish}.")
ASK = ("What do I have now?", "Please read me my order.")
CHATS = {"train": 600, "validation": 40, "test": 100}


def said(order: dict[str, int]) -> str:
    """`one cake, two teas`."""
    several = {dish: f"{dish}s" if number > 1 else dish for dish, number in order.items()}
    return ", ".join(f"{NUMBERS[order[dish]]} {several[dish]}" for dish in sorted(order))


def chat(chance: Random) -> list[dict[str, str]]:
    """A talk: an order, its changes, and what is on it in the end."""
    dishes = chance.sample(DISHES, 3)
    order = {dish: chance.randint(1, 4) for dish in dishes[:2]}
    asked = [chance.choice(FIRST).format(what=said(order))]
    if chance.random() < 0.7:
        added = {dishes[2]: chance.randint(1, 4)}
        order |= added
        asked.append(chance.choice(MORE).format(what=said(added)))
    if chance.random() < 0.5:
        gone = chance.choice(sorted(order))
        del order[gone]
        asked.append(chance.choice(LESS).format(dish=gone))
    turns = [{"role": "system", "content": SYSTEM}]
    for text in asked:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "Gladly."}]
    last = {"role": "assistant", "content": f"You have {said(order)}."}
    return [*turns, {"role": "user", "content": chance.choice(ASK)}, last]


def main() -> None:
    """Write the three files beside this one."""
    chance = Random(0)
    seen: set[str] = set()
    for name, size in CHATS.items():
        lines: list[str] = []
        while len(lines) < size:
            line = json.dumps({"messages": chat(chance), "task": "order", "metric": "exact_match"})
            if line not in seen:
                seen.add(line)
                lines.append(line)
        Path(__file__).with_name(f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
