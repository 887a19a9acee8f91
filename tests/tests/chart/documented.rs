//! Every value is explained where it is set, and the chart's README says the same.

use std::{env, fs};

use serde_json::Value;

use crate::world::{chart, file};

/// What a README's table of values stands between.
const TABLE: [&str; 2] = ["<!-- values -->\n", "<!-- end of values -->\n"];

/// A value: its path, its default, what it is for.
type Row = (String, Value, String);

/// The values that have a comment `# --`, in their order.
fn rows(text: &str) -> Vec<Row> {
    let values: Value = serde_saphyr::from_str(text).unwrap();
    let (mut path, mut comment, mut rows) = (Vec::<(usize, &str)>::new(), None, Vec::new());
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        if let Some(text) = line.trim_start().strip_prefix("# -- ") {
            comment = Some(text);
        } else if let Some((key, _)) = line.trim_start().split_once(':').filter(|(key, _)| plain(key)) {
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, key));
            if let Some(comment) = comment.take() {
                let keys: Vec<_> = path.iter().map(|(_, key)| *key).collect();
                let value = values.pointer(&format!("/{}", keys.join("/"))).unwrap();
                rows.push((keys.join("."), value.clone(), comment.to_owned()));
            }
        }
    }
    rows
}

fn plain(key: &str) -> bool {
    key.chars().all(char::is_alphanumeric)
}

/// Paths of the values that no documented path covers.
fn bare(path: &str, value: &Value, rows: &[Row], found: &mut Vec<String>) {
    if rows.iter().any(|(documented, ..)| documented == path) {
        return;
    }
    match value.as_object().filter(|object| !object.is_empty()) {
        Some(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                bare(&path, value, rows, found);
            }
        }
        None => found.push(path.to_owned()),
    }
}

fn table(rows: &[Row]) -> String {
    let row = |(path, value, comment): &Row| {
        let value = serde_json::to_string(value).unwrap();
        format!("| `{path}` | `{value}` | {} |\n", comment.replace('|', "\\|"))
    };
    format!("| value | default | |\n|---|---|---|\n{}", rows.iter().map(row).collect::<String>())
}

#[test]
fn every_value_is_explained() {
    let text = file("values.yaml");
    let mut found = Vec::new();
    bare("", &serde_saphyr::from_str(&text).unwrap(), &rows(&text), &mut found);
    assert!(found.is_empty(), "without a comment `# --` above: {found:?}");
    let mut found = Vec::new();
    let text = "a:\n  # -- For b\n  b: 1\n  c: 2\n";
    bare("", &serde_saphyr::from_str(text).unwrap(), &rows(text), &mut found);
    assert_eq!(found, ["a.c"]);
}

#[test]
fn the_readme_lists_them() {
    let path = chart().join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once(TABLE[0]).unwrap();
    let (_, tail) = rest.split_once(TABLE[1]).unwrap();
    let [begin, end] = TABLE;
    let fresh = format!("{head}{begin}{}{end}{tail}", table(&rows(&file("values.yaml"))));
    if env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        fs::write(path, fresh).unwrap();
    } else {
        assert!(readme == fresh, "run INSTA_UPDATE=always cargo test --test chart");
    }
}
