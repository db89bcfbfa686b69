"""The dashboard and the rules name only series that the code makes, with labels that they have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

import cluster.manifests
from orchestrator.rollout.metrics import OF_SHADOWS
from orchestrator.router_health.metrics import LAYERS, VERSIONS
from orchestrator.telemetry.series import OF_ENGINES, OF_REQUESTS, WRONG_KEYS

FOLDER = Path(cluster.manifests.__path__[0])
SERIES = (*OF_REQUESTS, WRONG_KEYS, *OF_ENGINES, *LAYERS, *VERSIONS, *OF_SHADOWS)
VARIABLES = {"$__rate_interval": "5m", "$name": ".*", "$version": ".*", "$layer": ".*"}
VALUES = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


def made() -> dict[str, set[str]]:
    """Every series of serving as Prometheus has it, and its labels."""
    return {
        name: {*one.labels, *(["le"] if name.endswith("_bucket") else [])}
        for one in SERIES
        for name in one.exported
    }


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "serving.rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "serving.dashboard.json").read_text()))


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    yield from shown()
    for variable in dashboard()["templating"]["list"][1:]:
        found = VALUES.fullmatch(variable["definition"])
        assert found
        yield f"max by ({found['label']}) ({found['series']})"


def shown() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def parsed(expression: str) -> promql_parser.Expr:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return promql_parser.parse(expression)


def visited(expression: str) -> list[Any]:
    nodes: list[Any] = []
    promql_parser.walk(parsed(expression), nodes.append)
    return nodes


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_an_expression_names_what_there_is(expression: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    series, labels = made(), set[str]()
    selectors = [n for n in visited(expression) if isinstance(n, promql_parser.VectorSelector)]
    assert selectors
    for selector in selectors:
        assert selector.name in series.keys() | recorded
        labels |= series.get(selector.name or "", set())
        if selector.name in series:
            used = {matcher.name for matcher in selector.matchers.matchers}
            assert used <= series[selector.name]
    for node in visited(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier and labels:
            assert set(node.modifier.labels) <= labels


def test_every_series_is_on_the_dashboard() -> None:
    selectors = (n for e in shown() for n in visited(e) if hasattr(n, "matchers"))
    named = {selector.name for selector in selectors}
    for one in SERIES:
        assert named & set(one.exported), one.name


def test_an_alert_names_only_labels_that_its_expression_leaves() -> None:
    for rule in (rule for rule in rules() if "alert" in rule):
        wanted = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        left = parsed(rule["expr"])
        while isinstance(left, promql_parser.BinaryExpr):
            left = left.lhs
        if isinstance(left, promql_parser.AggregateExpr):
            assert wanted <= set(left.modifier.labels if left.modifier else ()), rule["alert"]


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 5
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    assert board["uid"] == "moetune-serving"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["description"]
    variables = {one["name"] for one in board["templating"]["list"]}
    assert variables == {"datasource", "name", "version", "layer"}
