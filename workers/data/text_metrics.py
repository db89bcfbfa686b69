"""Scores of an answer against a row's gold answer. Pure functions of text and log-likelihoods."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.config.base import InputError
from workers.data.gold import Gold
from workers.data.plugged_metrics import plugged_score

CHOICE_METRICS = ("acc", "acc_norm")
"""Metrics of rows with choices: the choice with the highest log-likelihood counts."""
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?|\d+(?:,\d{3})*(?:\.\d+)?")
_ROUGE_WORD = re.compile(r"[a-z0-9]", re.IGNORECASE | re.ASCII)
"""All that google-research's tokenizer keeps."""
_CALL = re.compile(r"\s*([^\W\d]\w*)\((.*?)\)?\s*$", re.DOTALL)
# A comma parts two pairs only where a key follows: `city: Paris, Texas` is one pair.
_BETWEEN_PAIRS = re.compile(r"[;\n]|,(?=\s*\w+\s*[:=])")
_PAIR = re.compile(r"\s*(\w[\w .-]*?)\s*[:=]\s*(.*?)\s*$", re.DOTALL)


def fits(metric: str, gold: Gold) -> bool:
    """Whether any answer could score above 0; of a metric of choices its rows must have them. Of a
    package's nobody knows, but it is tried out on the right answer: InputError where that fails."""
    if metric not in (*CHOICE_METRICS, *TEXT_METRICS):
        plugged_score(metric, gold.answer, gold)
    return metric not in NEEDS or NEEDS[metric].there(gold)


def score(metric: str, prediction: str, gold: Gold) -> float:
    """Score a generated answer, from 0 to 1."""
    if metric in CHOICE_METRICS:
        raise InputError(f"score: {metric} wants log-likelihoods of the choices, not a text")
    if metric not in TEXT_METRICS:
        return plugged_score(metric, prediction, gold)
    return TEXT_METRICS[metric](prediction, gold)


def score_choices(metric: str, log_likelihoods: Sequence[float], gold: Gold) -> float:
    """1 if the right choice is the likeliest, else 0."""
    return float(likeliest(metric, log_likelihoods, gold) == gold.answer_index)


def likeliest(metric: str, log_likelihoods: Sequence[float], gold: Gold) -> int:
    """The choice with the highest log-likelihood (acc_norm: per character).

    `log_likelihoods` are sums over each choice's tokens, in the order of `gold.choices`.
    """
    if metric not in CHOICE_METRICS:
        raise InputError(f"score: {metric} wants a text; {', '.join(CHOICE_METRICS)} want choices")
    lengths = [max(len(choice), 1) if metric == "acc_norm" else 1 for choice in gold.choices]
    values = [value / length for value, length in zip(log_likelihoods, lengths, strict=True)]
    return values.index(max(values))


def exact_match(prediction: str, gold: Gold) -> float:
    """Equal up to case and white space."""
    return float(_plain(prediction) == _plain(gold.answer))


def number_match(prediction: str, gold: Gold) -> float:
    """The last number of the prediction is the last number of the answer."""
    found, wanted = _numbers(prediction), _numbers(gold.answer)
    return float(bool(found and wanted) and abs(found[-1] - wanted[-1]) < 1e-6)


def slot_f1(prediction: str, gold: Gold) -> float:
    """F1 between the two sets of lower-cased `key: value` or `key=value` pairs.

    A call `Name(key=value, …)` also holds the pair `intent: Name`.
    """
    found, wanted = _pairs(prediction), _pairs(gold.answer)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def rouge_l(prediction: str, gold: Gold) -> float:
    """ROUGE-L F1 (google-research's rouge_score, no stemming), the best over the references."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return float(max(scorer.score(text, prediction)["rougeL"].fmeasure for text in gold.references))


TEXT_METRICS: dict[str, Callable[[str, Gold], float]] = {
    "exact_match": exact_match,
    "number_match": number_match,
    "slot_f1": slot_f1,
    "rouge_l": rouge_l,
}
"""Metrics of generated answers, by the names that rows give them."""


@dataclass(frozen=True)
class Need:
    """What a metric must find in a row."""

    says: str
    there: Callable[[Gold], bool]


NEEDS = {
    "number_match": Need("a number in the answer", lambda gold: bool(_numbers(gold.answer))),
    "slot_f1": Need(
        "`key: value` or `key=value` pairs in the answer", lambda gold: bool(_pairs(gold.answer))
    ),
    "rouge_l": Need(
        "words of Latin letters or digits in the answer or its references",
        lambda gold: any(map(_ROUGE_WORD.search, gold.references)),
    ),
}
"""Of metrics that not every answer fits."""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _pairs(text: str) -> set[tuple[str, str]]:
    pairs = set()
    if call := _CALL.match(text):
        pairs.add(("intent", call[1].casefold()))
        text = call[2]
    for part in _BETWEEN_PAIRS.split(text):
        if pair := _PAIR.match(part):
            pairs.add((_plain(pair[1]), _plain(pair[2])))
    return pairs
