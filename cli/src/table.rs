//! Tables for people.

use serde_json::Value;

/// The heading of a column, and the JSON pointer of its cells.
pub(crate) type Column = (&'static str, &'static str);

/// Rows under headings, each column as wide as its widest cell.
pub(crate) fn of(columns: &[Column], rows: &[Value]) -> String {
    let mut lines: Vec<Vec<String>> =
        vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    lines.extend(
        rows.iter().map(|row| columns.iter().map(|(_, pointer)| cell(row.pointer(pointer))).collect()),
    );
    let width = |column: usize| {
        lines.iter().map(|line: &Vec<String>| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// A line for each fact of a document that is there: its name, and its value in a column.
pub(crate) fn facts(facts: &[Column], document: &Value) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count() + 1).max().unwrap_or_default();
    let shown = facts.iter().filter_map(|(name, pointer)| {
        let value = document.pointer(pointer).filter(|value| !value.is_null())?;
        Some(format!("{:<width$}   {}\n", format!("{name}:"), cell(Some(value))))
    });
    shown.collect()
}

/// A table under a title, or a word that there is nothing.
pub(crate) fn section(title: &str, columns: &[Column], rows: Option<&Value>) -> String {
    match rows.and_then(Value::as_array) {
        Some(rows) if !rows.is_empty() => {
            let mut text = format!("{title}:\n");
            for line in of(columns, rows).lines() {
                text.extend(["  ", line, "\n"]);
            }
            text
        }
        _ => format!("{title}: none\n"),
    }
}

fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    // What others wrote must neither break the table nor steer the terminal.
    text.chars()
        .flat_map(|letter| {
            let escaped = letter.is_control().then(|| letter.escape_default());
            let plain = escaped.is_none().then_some(letter);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_line_up_and_what_is_absent_is_a_dash() {
        let rows = [json!({"name": "a", "status": {"held": 12}}), json!({"name": "orders"})];
        let text = of(&[("NAME", "/name"), ("HELD", "/status/held")], &rows);
        assert_eq!(text, "NAME     HELD\na        12\norders   -\n");
    }

    #[test]
    fn facts_line_up_and_what_is_absent_is_left_out() {
        let text = facts(
            &[("Id", "/id"), ("Outcome", "/outcome"), ("Why", "/why")],
            &json!({"id": "x", "outcome": "committed"}),
        );
        assert_eq!(text, "Id:        x\nOutcome:   committed\n");
    }

    #[test]
    fn an_empty_section_says_so() {
        let columns: &[Column] = &[("KEY", "/key")];
        assert_eq!(section("Waiters", columns, Some(&json!([]))), "Waiters: none\n");
        assert_eq!(section("Waiters", columns, Some(&json!([{"key": "k"}]))), "Waiters:\n  KEY\n  k\n");
    }

    #[test]
    fn what_others_wrote_steers_no_terminal() {
        let text = of(&[("OWNER", "/owner")], &[json!({"owner": "a\u{1b}[2J\nb"})]);
        assert_eq!(text, "OWNER\na\\u{1b}[2J\\nb\n");
    }
}
