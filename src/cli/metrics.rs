//! `ringfort metrics`: what the gateway counts, printed from the catalogue. Asks no gateway.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::metrics::describe::{self, Description, LabelDescription};
use crate::proxy::outcome::Termination;

/// Columns of a line of text.
const WIDTH: usize = 100;

/// The whole list, as text or as JSON.
pub(super) fn list(as_json: bool) -> String {
    let all = describe::all(Termination::WORDS);
    if as_json {
        let metrics: Vec<Value> = all.iter().map(to_json).collect();
        let text = serde_json::to_string_pretty(&json!({ "metrics": metrics })).unwrap_or_default();
        return text + "\n";
    }
    let mut out = String::from(
        "# GET /metrics. Values of labels are names of the configuration, numbers of workers and CPUs, or the words here:\n\
         # traffic makes no new series. A histogram has _bucket (with le), _sum and _count.\n",
    );
    all.iter().for_each(|description| text(&mut out, description));
    out
}

fn to_json(description: &Description) -> Value {
    let Description { name, kind, unit, labels, help } = description;
    let label = |LabelDescription { name, values }: &LabelDescription| match values.is_empty() {
        true => json!({ "name": name }),
        false => json!({ "name": name, "values": values }),
    };
    let labels: Vec<Value> = labels.iter().map(label).collect();
    json!({ "name": name, "type": kind, "unit": unit, "labels": labels, "help": help })
}

fn text(out: &mut String, description: &Description) {
    let Description { name, kind, unit, labels, help } = description;
    let unit = if *unit == "1" { "" } else { unit };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\n{}", format!("{name}  {kind} {unit}").trim_end());
    wrap(out, help);
    for LabelDescription { name, values } in labels {
        match values.is_empty() {
            true => wrap(out, name),
            false => wrap(out, &format!("{name}: {}", values.join(", "))),
        }
    }
}

/// Words indented, within the width.
fn wrap(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + 1 + word.len() > WIDTH {
            out.push('\n');
            column = 0;
        }
        out.push_str(if column == 0 { "    " } else { " " });
        column += word.len() + if column == 0 { 4 } else { 1 };
        out.push_str(word);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_tell_the_same_of_every_metric() {
        let (text, json) = (list(false), list(true));
        let json: Value = serde_json::from_str(&json).unwrap();
        let metrics = json["metrics"].as_array().unwrap();
        assert!(metrics.len() > 80, "{}", metrics.len());
        for metric in metrics {
            let name = metric["name"].as_str().unwrap();
            let kind = metric["type"].as_str().unwrap();
            assert!(text.contains(&format!("\n{name}  {kind}")), "{name}");
        }
        assert!(text.lines().all(|line| line.len() <= WIDTH + 30), "a word is never cut");
        assert!(text.contains("\n    reason: full, unwritten\n"), "{text}");
        assert!(text.contains("\n    class: 1xx, 2xx, 3xx, 4xx, 5xx, none\n"), "{text}");
    }
}
