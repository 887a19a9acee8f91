//! What people see of a cluster at work: every query of dashboard and alerts, asked of a real Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};
use concordat_tests::process::eventually;
use regex::Regex;
use serde_json::Value;

use crate::{
    bank::Bank,
    installation::Installation,
    prometheus::{OF_TARGETS, Prometheus},
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
/// How wide Grafana would look, and in which namespaces.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "1m"), ("$namespace", ".*")];

/// Each has series, and the page names every metric that there is.
pub(crate) async fn all_of_it(installation: &Installation<'_>, bank: &Bank) -> Result<()> {
    let monitoring = ["serviceMonitor", "podMonitor", "rules", "dashboard"]
        .map(|part| format!("monitoring.{part}.enabled=true"));
    let objects = installation.rendered(&monitoring.each_ref().map(String::as_str)).await?;
    let prometheus = Prometheus::start(installation.node, &objects).await?;
    let dashboard = objects.iter().find_map(|object| object["data"]["concordat.json"].as_str());
    dashboard_shows(&prometheus, &serde_json::from_str(dashboard.context("no dashboard")?)?).await?;
    let rules = objects.iter().find(|object| object["kind"] == "PrometheusRule").context("no rules")?;
    alerts_look(&prometheus, &rules["spec"]["groups"]).await?;
    dead_letters_alarm(&prometheus, bank).await?;
    page_is_true(&prometheus).await
}

async fn has_series(prometheus: &Prometheus, what: &str, query: &str) -> Result<()> {
    let query = VARIABLES.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    eventually(what, async || {
        ensure!(!prometheus.query(&query).await?.is_empty(), "{query} has no series");
        Ok(())
    })
    .await
}

async fn dashboard_shows(prometheus: &Prometheus, dashboard: &Value) -> Result<()> {
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().context("no title")?;
            has_series(prometheus, title, target["expr"].as_str().context("no query")?).await?;
            asked += 1;
        }
    }
    ensure!(asked > 0, "it asks for nothing");
    let form = Regex::new(r"^label_values\((\w+), (\w+)\)$")?;
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        if variable["type"] == "query" {
            let query = variable["query"].as_str().context("no query")?;
            let (_, [metric, label]) = form.captures(query).with_context(|| query.to_owned())?.extract();
            let values = prometheus.get(&format!("label/{label}/values"), &[("match[]", metric)]).await?;
            ensure!(values.as_array().is_some_and(|values| !values.is_empty()), "{query} has no values");
        }
    }
    Ok(())
}

/// In a healthy cluster no alert comes, but what it looks at is there; and Prometheus can tell.
async fn alerts_look(prometheus: &Prometheus, groups: &Value) -> Result<()> {
    let of = |groups: &Value| -> Vec<Value> {
        let groups = groups.as_array().into_iter().flatten();
        groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()).cloned().collect()
    };
    let rules = of(groups);
    for rule in &rules {
        let (name, query) =
            (rule["alert"].as_str().context("no name")?, rule["expr"].as_str().unwrap_or_default());
        let selectors = selectors(query)?;
        ensure!(!selectors.is_empty(), "{name} looks at nothing");
        for selector in selectors {
            has_series(prometheus, name, &selector).await?;
        }
    }
    eventually("every rule works", async || {
        let found = of(&prometheus.get("rules", &[]).await?["groups"]);
        ensure!(found.len() == rules.len(), "of {} rules {} are there", rules.len(), found.len());
        let sick: Vec<_> = found.iter().filter(|rule| rule["health"] != "ok").collect();
        ensure!(sick.is_empty(), "{sick:?}");
        Ok(())
    })
    .await
}

/// The series that a query is made of: what stands in it before no parenthesis and is no word of the language.
fn selectors(query: &str) -> Result<Vec<String>> {
    let grouping = Regex::new(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^\]]*\]")?;
    let selector = Regex::new(r"\b([a-zA-Z_:][\w:]*)(\s*\{[^}]*\})?(\s*\()?")?;
    let query = grouping.replace_all(query, "");
    let found = selector.captures_iter(&query).filter(|found| found.get(3).is_none());
    let found = found.filter(|found| !["and", "or", "unless", "bool", "offset"].contains(&&found[1]));
    Ok(found.map(|found| found[0].to_owned()).collect())
}

#[test]
fn selectors_are_found_wherever_they_stand() -> Result<()> {
    let query =
        r#"sum by (le) (rate(a_total{job=~".*x.*"}[5m])) / on(pod) b > 1e3 unless max(c) - time() < bool 1"#;
    assert_eq!(selectors(query)?, [r#"a_total{job=~".*x.*"}"#, "b", "c"]);
    Ok(())
}

/// The message that nobody can read, of the story so far.
async fn dead_letters_alarm(prometheus: &Prometheus, bank: &Bank) -> Result<()> {
    eventually("dead letters alarm", async || {
        let alerts = prometheus.get("alerts", &[]).await?["alerts"].clone();
        let comes = |alert: &Value| {
            let labels = &alert["labels"];
            labels["alertname"] == "ConcordatDeadLetters"
                && labels["namespace"] == bank.namespace.name()
                && labels["object_name"] == "statements"
                && alert["state"] == "firing"
        };
        ensure!(alerts.as_array().is_some_and(|alerts| alerts.iter().any(comes)), "{alerts}");
        Ok(())
    })
    .await
}

/// A metric's type and labels.
type Described = BTreeMap<String, (String, BTreeSet<String>)>;

/// The page says of every metric its name, type and labels, and of no other.
async fn page_is_true(prometheus: &Prometheus) -> Result<()> {
    let page = described(&fs::read_to_string(PAGE)?)?;
    eventually("docs/metrics.md tells what there is", async || {
        let found = scraped(prometheus).await?;
        for (name, what) in &page {
            ensure!(found.get(name) == Some(what), "{name} is {:?}, not {what:?}", found.get(name));
        }
        let missing: Vec<_> = found.keys().filter(|name| !page.contains_key(*name)).collect();
        ensure!(missing.is_empty(), "it does not tell of {missing:?}");
        Ok(())
    })
    .await
}

/// The rows of its tables that begin with a metric.
fn described(page: &str) -> Result<Described> {
    let rows = page.lines().filter(|line| line.starts_with("| `concordat_"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells[..] else { anyhow::bail!("{line} has too few cells") };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Ok((name.trim_matches('`').to_owned(), (kind.to_owned(), labels)))
    };
    rows.map(row).collect()
}

async fn scraped(prometheus: &Prometheus) -> Result<Described> {
    let metadata = prometheus.get("metadata", &[]).await?;
    let mut found = Described::new();
    for (name, of) in metadata.as_object().context("no metadata")? {
        if name.starts_with("concordat_") {
            let kind = of[0]["type"].as_str().context("no type")?;
            let name = if kind == "counter" { format!("{name}_total") } else { name.clone() };
            found.insert(name, (kind.to_owned(), BTreeSet::new()));
        }
    }
    let series = prometheus.get("series", &[("match[]", r#"{__name__=~"concordat_.+"}"#)]).await?;
    for labels in series.as_array().into_iter().flatten().filter_map(Value::as_object) {
        let name = labels["__name__"].as_str().context("no name")?;
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = if found.contains_key(name) { name } else { base.unwrap_or(name) };
        let (_, of) = found.get_mut(name).with_context(|| format!("{name} has no type"))?;
        of.extend(labels.keys().filter(|label| !OF_TARGETS.contains(&label.as_str())).cloned());
    }
    Ok(found)
}
