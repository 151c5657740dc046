"""Rules, alerts, runbooks, dashboard, page of metrics: they speak of what is there; alerts fire when they should."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from vmpool.api.crd import KINDS
from vmpool.cli.main import app
from vmpool.cli.metricspage import GUIDE_NAMES, Described, every_metric, metrics_page
from vmpool.cli.reference import walk
from vmpool.plan.crds import definitions
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry.gateway import GatewayMetrics
from vmpool.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
RUNBOOKS = ROOT / "docs/runbooks"
PROMTOOL_SECONDS = 120
TARGET_LABELS = {"instance", "pod", "job"}
"""Labels that scraping adds."""
SUFFIXES = {"counter": ("_total", "_created"), "histogram": ("_bucket", "_count", "_sum", "_created"), "gauge": ("",)}
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
DASHBOARD_ROWS = [
    "Fleet health",
    "Pools",
    "Queues and ages",
    "Dead letters by cause and queue",
    "Purge",
    "Providers",
    "Claims and gateway",
    "Operator",
]
GRAFANA_VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$namespace": ".*", "$pool": ".*"}
PRINTED = """
- alert: VMPoolerUnhealthy
  expr: vmpooler_health_status >= 2
  for: 10m
  annotations:
    summary: "VMPooler is unhealthy"

- alert: VMPoolerHighDLQ
  expr: vmpooler_health_dlq_total_size > 500
  for: 30m
  annotations:
    summary: "VMPooler DLQ size is high"

- alert: VMPoolerStuckVMs
  expr: vmpooler_health_stuck_vms_count > 20
  for: 15m
  annotations:
    summary: "Many VMs stuck in pending queue"
"""
"""The sample alerts of VMPooler's guide."""
LISTED = [
    "vmpooler.health.status",
    "vmpooler.health.dlq.total_size",
    "vmpooler.health.stuck_vms.count",
    "vmpooler.health.orphaned_metadata.count",
    "vmpooler.health.queue.<pool_name>.pending.size",
    "vmpooler.health.queue.<pool_name>.pending.oldest_age",
    "vmpooler.health.queue.<pool_name>.pending.stuck_count",
    "vmpooler.health.queue.<pool_name>.ready.size",
    "vmpooler.health.queue.<pool_name>.ready.oldest_age",
    "vmpooler.health.queue.<pool_name>.completed.size",
    "vmpooler.health.dlq.<queue_type>.size",
    "vmpooler.health.tasks.clone.active",
    "vmpooler.health.tasks.ondemand.active",
    "vmpooler.health.tasks.ondemand.pending",
]
"""The metrics of VMPooler's guide."""


@cache
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@cache
def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@cache
def rule_tests() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((MONITORING / "tests.yaml").read_text())["tests"]
    return found


@cache
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return found


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def series(metric: Described) -> Iterator[str]:
    base = metric.name.removesuffix("_total") if metric.type == "counter" else metric.name
    return (base + suffix for suffix in SUFFIXES[metric.type])


@cache
def exported() -> dict[str, set[str]]:
    """Every time series of the product by name, with its labels."""
    return {
        name: {*metric.labels, *TARGET_LABELS, *(("le",) if name.endswith("_bucket") else ())}
        for metric in every_metric()
        for name in series(metric)
    }


def nodes(query: str, kind: type[Any]) -> list[Any]:
    found: list[Any] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, kind):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def assert_known(query: str) -> None:
    """Check that series, the labels that choose among them, and the labels they are summed up by exist."""
    selectors = nodes(query, promql_parser.VectorSelector)
    assert selectors, f"nothing is asked for in {query}"
    for selector in selectors:
        assert selector.name in exported() or selector.name in recorded(), f"nobody exports {selector.name}: {query}"
        if selector.name in exported():
            asked = {matcher.name for matcher in selector.matchers.matchers}
            assert asked <= exported()[selector.name], f"{selector.name} has no label {asked}: {query}"
    for sum_of in nodes(query, promql_parser.AggregateExpr):
        if sum_of.modifier is not None and sum_of.modifier.type == promql_parser.AggModifierType.By:
            for selector in nodes(str(sum_of.expr.prettify()), promql_parser.VectorSelector):
                assert set(sum_of.modifier.labels) <= exported()[selector.name], query


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    return subprocess.run(
        [tool, *arguments], cwd=MONITORING, capture_output=True, text=True, check=False, timeout=PROMTOOL_SECONDS
    )


# --- rules -------------------------------------------------------------------------------------------------------


def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_names_of_the_guide_have_their_numbers() -> None:
    done = promtool("test", "rules", "tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    checks = [one for test in rule_tests() for one in test.get("alert_rule_test", ()) if one["alertname"] == alert]
    assert any(one["exp_alerts"] for one in checks)
    assert any(not one["exp_alerts"] for one in checks)


def test_every_name_of_the_guide_is_recorded_tested_and_on_the_page() -> None:
    assert [one.guide for one in GUIDE_NAMES] == LISTED
    names = {one.recorded for one in GUIDE_NAMES}
    assert names == {name for name in recorded() if name.startswith("vmpooler_")}
    assert names == {check["expr"] for test in rule_tests() for check in test.get("promql_expr_test", ())}
    made = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    for one in GUIDE_NAMES:
        plain = re.sub(r"[<>_.]+", "_", one.guide.replace("<pool_name>.", "").replace("<queue_type>.", ""))
        assert one.recorded == plain
        assert f"({one.source})" in made[one.recorded]


@pytest.mark.parametrize("printed", yaml.safe_load(PRINTED), ids=lambda printed: printed["alert"])
def test_an_alert_of_the_guide_is_as_printed(printed: dict[str, Any]) -> None:
    ours = alerts()[printed["alert"]]
    assert {key: ours[key] for key in ("alert", "expr", "for")} == {
        key: printed[key] for key in ("alert", "expr", "for")
    }
    assert ours["annotations"]["summary"] == printed["annotations"]["summary"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_is_exported(rule: dict[str, Any]) -> None:
    assert_known(rule["expr"])


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_says_how_bad_it_is_what_it_saw_and_where_to_read_on(alert: str) -> None:
    rule = alerts()[alert]
    told = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(told) == {"summary", "description", "runbook"}
    assert all(told.values())
    assert "$labels." in told["description"] or not re.search(r"namespace|kind", rule["expr"])
    assert "$value" in told["description"] or alert == "VMPoolNoLeader"
    assert told["runbook"] == f"docs/runbooks/{kebab(alert)}.md"


# --- metrics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", every_metric(), ids=lambda metric: metric.name)
def test_a_metric_is_explained_in_a_sentence_and_stands_on_the_page(metric: Described) -> None:
    assert metric.help[:1].isupper() or metric.help[:1].isdigit()
    assert metric.help.endswith(".")
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    assert f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |\n" in metrics_page()


@pytest.mark.parametrize("make", [Metrics, GatewayMetrics])
def test_the_page_leaves_no_metric_of_a_registry_out(make: Callable[[], Metrics | GatewayMetrics]) -> None:
    families = {(family.name, family.type) for family in make().registry.collect()}
    assert families
    known = {
        (one.name.removesuffix("_total") if one.type == "counter" else one.name, one.type) for one in every_metric()
    }
    assert families <= known


# --- dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboard_can_be_imported_and_chooses_its_data_source() -> None:
    found = dashboard()
    assert found["uid"] == "vmpool"
    assert found["schemaVersion"] >= 41
    variables = {one["name"]: one for one in found["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "pool"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [
        variables["namespace"],
        variables["pool"],
        *panels(),
        *(t for panel in panels() for t in panel["targets"]),
    ]
    assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in sources)
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_dashboard_has_its_rows_and_no_panel_lies_on_another() -> None:
    found = dashboard()["panels"]
    assert [panel["title"] for panel in found if panel["type"] == "row"] == DASHBOARD_ROWS
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize(("title", "query"), queries())
def test_a_query_of_the_dashboard_parses_and_asks_for_what_is_exported(title: str, query: str) -> None:
    for variable, value in GRAFANA_VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query, title
    assert_known(query)


@pytest.mark.parametrize("name", ["namespace", "pool"])
def test_a_variable_of_the_dashboard_reads_a_label_that_is_there(name: str) -> None:
    variable = next(one for one in dashboard()["templating"]["list"] if one["name"] == name)
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert found is not None
    query = found[1].replace("$namespace", ".*")
    assert_known(query)
    assert found[2] in exported()[nodes(query, promql_parser.VectorSelector)[0].name]


# --- runbooks ----------------------------------------------------------------------------------------------------


def kebab(alert: str) -> str:
    words = re.findall(r"VMPooler|VMPool|VMs|DLQ|[A-Z][a-z]+", alert)
    assert "".join(words) == alert
    return "-".join(words).lower()


def pages() -> list[Path]:
    return sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")


def commands(page: Path) -> Iterator[list[str]]:
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.splitlines():
            words: list[str] = []
            for word in shlex.split(line):
                if word == "|":
                    yield words
                    words = []
                else:
                    words.append(word)
            yield words


@cache
def source() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "operator/vmpool").rglob("*.py")))


def test_every_alert_has_a_runbook_every_runbook_an_alert_and_the_index_all_of_them() -> None:
    assert [page.name for page in pages()] == sorted(f"{kebab(alert)}.md" for alert in alerts())
    index = (RUNBOOKS / "README.md").read_text()
    for alert, rule in alerts().items():
        assert (
            f"| [{alert}]({kebab(alert)}.md) | {rule['labels']['severity']} | {rule['annotations']['summary']} |"
            in index
        )
    assert index.count("\n| [") == len(alerts())


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_runbook_has_its_sections_and_leads_to_pages_that_are_there(page: Path) -> None:
    text = page.read_text()
    assert kebab(text.splitlines()[0].removeprefix("# ")) == page.stem
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    parts = re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]
    assert all(part.strip() for part in parts)
    assert "kubectl" in parts[SECTIONS.index("Diagnosis")]
    assert all((page.parent / name).exists() for name in re.findall(r"\]\(([^)]+)\)", text))
    assert "://" not in text


VERBS = {"get", "describe", "logs", "patch", "apply"}
BUILT_IN = {"pods", "events", "lease", "crd"}
FLAGS_WITH_VALUE = {"-n", "--field-selector", "--sort-by", "-o", "--type", "-p", "-f"}
FLAGS = {"-A", "--previous", "--server-side", "--raw"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_commands_of_a_runbook_exist(page: Path) -> None:
    ours = {name: kind for kind in KINDS for name in (kind.short, kind.plural, kind.singular)}
    text = source()
    for program, *words in commands(page):
        if program == "grep":
            looked_for = words[0].replace("\\", "")
            assert looked_for in text, f"no line is logged with {looked_for}"
            continue
        if program == "vmpool":
            assert words[0] in {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
            continue
        assert program == "kubectl"
        flags, plain = {}, []
        rest = iter(words)
        for word in rest:
            if word in FLAGS_WITH_VALUE:
                flags[word] = next(rest)
            elif word.startswith("-"):
                assert word in FLAGS, word
                flags[word] = ""
            else:
                plain.append(word)
        assert plain[0] in VERBS, words
        if plain[0] in ("logs", "apply") or "--raw" in flags:
            assert flags.get("-f", "-") == "-" or (ROOT / flags["-f"]).exists(), words
            continue
        assert plain[1] in ours or plain[1] in BUILT_IN, words
        if plain[1] in ours:
            assert_takes(ours[plain[1]], flags)


def assert_takes(kind: Any, flags: dict[str, str]) -> None:
    """Check that a kind has the fields that a command names."""
    for part in filter(None, flags.get("--field-selector", "").split(",")):
        assert f".{part.partition('=')[0]}" in kind.selectable, part
    if path := flags.get("--sort-by"):
        assert path == ".metadata.creationTimestamp" or path.removeprefix(".") in fields(), path
    if patch := flags.get("-p"):
        wanted = json.loads(patch)
        assert set(wanted) == {"spec"}
        assert all(value in fields()[f"spec.{name}"]["enum"] for name, value in wanted["spec"].items()), patch


@cache
def fields() -> dict[str, Any]:
    """Every field of every kind with its schema, as ``spec.a.b``."""
    found = {}
    for definition in definitions().values():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for part in ("spec", "status"):
            found |= {f"{part}.{path}": node for path, node, _ in walk(schema["properties"][part])}
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_what_a_runbook_names_is_there(page: Path) -> None:
    """Fields, settings, metrics and log events in backticks."""
    words = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    text = source()
    tails = {path.rpartition(".")[2] for path in fields()}
    settings = {*Settings.model_fields, *GatewaySettings.model_fields}
    metrics = {metric.name for metric in every_metric()}
    for word in words:
        if word.startswith(("spec.", "status.")):
            assert word in fields(), word
        elif re.fullmatch(r"vmpool_\w+(\{.*\})?", word):
            if word not in metrics:
                assert_known(word)
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+", word):
            assert word in settings or f'"{word}"' in text, word
        elif re.fullmatch(r"[a-z]+([A-Z]+[a-z]*)+", word):
            assert word in tails, word
        elif re.fullmatch(r"([A-Z]+[a-z]+){2,}", word):
            assert f'"{word}"' in text or any(word == kind.name for kind in KINDS), word
