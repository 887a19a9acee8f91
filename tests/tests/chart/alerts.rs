//! Every alert is tried by promtool (`make alerts`), and explained.

use std::fs;

use serde_json::Value;

use crate::world::file;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
const TRIED: &str = include_str!("alerts.yaml");

/// All that lists of this name hold, wherever they are.
fn of<'a>(value: &'a Value, list: &str) -> Vec<&'a Value> {
    match value {
        Value::Object(fields) => {
            let inner = fields.values().flat_map(|value| of(value, list));
            fields.get(list).and_then(Value::as_array).into_iter().flatten().chain(inner).collect()
        }
        Value::Array(values) => values.iter().flat_map(|value| of(value, list)).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_alert_is_tried_and_explained() {
    let rules: Value = serde_saphyr::from_str(&file("rules/concordat.yaml")).unwrap();
    let tried: Value = serde_saphyr::from_str(TRIED).unwrap();
    let page = fs::read_to_string(PAGE).unwrap();
    let (rules, tests) = (of(&rules, "rules"), of(&tried, "alert_rule_test"));
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        let of_it = || tests.iter().filter(|test| test["alertname"] == name);
        assert!(of_it().any(|test| test["exp_alerts"].is_array()), "{name} is not seen to come");
        assert!(of_it().any(|test| test["exp_alerts"].is_null()), "{name} is not seen to stay away");
        let row = format!("| `{name}` | {} | ", rule["labels"]["severity"].as_str().unwrap());
        assert!(page.contains(&row), "docs/metrics.md has no row {row}");
    }
    let told = page.lines().filter(|line| line.starts_with("| `Concordat")).count();
    assert_eq!(told, rules.len(), "docs/metrics.md tells of an alert that there is not");
}
