//! Prints the reference file, `packaging/ringfort.toml`, from the rows.

use std::fmt::Write;

use super::keys;
use super::schema::{Kind, Preset, Row, Table};

const HEADING: &str = "\
# Ringfort: reference configuration. Every key with its default, unit and range.
#
# A line that begins with \"# key = \" shows the default, or an example where it says so. What is not commented out
# serves http://127.0.0.1:8080/ with an answer from here. `ringfort check --config FILE` tells all problems of a file.
# Relative paths are taken from the folder of the file. Names end in their unit: _ms, _bytes, _percent.
";
const WIDTH: usize = 110;

/// The text of `packaging/ringfort.toml`.
pub fn reference() -> String {
    let mut out = HEADING.to_owned();
    print_below(&mut out, &keys::ROOT, "", true);
    out
}

fn print_below(out: &mut String, table: &Table, parent: &str, shown: bool) {
    for row in table.rows {
        let path = if parent.is_empty() { row.key.to_owned() } else { format!("{parent}.{}", row.key) };
        let (below, header) = match row.kind {
            Kind::Table(below) | Kind::Choice(below) => (below, format!("[{path}]")),
            Kind::Tables(below) => (below, format!("[[{path}]]")),
            _ => continue,
        };
        let shown = shown && below.shown;
        out.push('\n');
        comment(out, below.help);
        let sign = if shown { "" } else { "# " };
        let _ = writeln!(out, "{sign}{header}");
        for row in below.rows.iter().filter(|row| !row.kind.is_table()) {
            out.push('\n');
            print_row(out, row, shown);
        }
        print_below(out, below, &path, shown);
    }
}

fn print_row(out: &mut String, row: &Row, shown: bool) {
    let Facts { value, set, note } = facts(row);
    comment(out, &format!("{} ({note})", row.help));
    let sign = if set && shown { "" } else { "# " };
    let _ = writeln!(out, "{sign}{} = {value}", row.key);
}

/// What a reader is told of a key beside its help.
pub(super) struct Facts {
    /// The default, or an example.
    pub value: String,
    /// Whether the reference file sets it.
    set: bool,
    /// Which of both the value is, and what may stand there.
    pub note: String,
}

pub(super) fn facts(row: &Row) -> Facts {
    let (value, set, note) = match row.preset {
        Preset::Boolean(default) => (default.to_string(), false, "default"),
        Preset::Integer(default) => (default.to_string(), false, "default"),
        Preset::Ratio(default) => (format!("{default:?}"), false, "default"),
        Preset::Inherited(default) => (default.to_string(), false, "default: that of [timeouts]"),
        Preset::Text(default) => (format!("\"{default}\""), false, "default"),
        Preset::Absent(example) => (example.to_owned(), false, "example"),
        Preset::Shown(example) => (example.to_owned(), true, "example"),
        Preset::Required(example) => (example.to_owned(), true, "required"),
    };
    let mut facts = vec![note.to_owned()];
    match row.kind {
        Kind::Integer { min, max } => {
            facts.push(format!("{min} to {max}{}{}", if row.unit.is_empty() { "" } else { " " }, row.unit));
        }
        Kind::Ratio { min, max } => facts.push(format!("{min:?} to {max:?}")),
        Kind::Word(..) => facts.push(row.kind.describe()),
        _ => {}
    }
    Facts { value, set, note: facts.join("; ") }
}

/// Wraps at the width of the file.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    if line.len() > 1 {
        let _ = writeln!(out, "{line}");
    }
}
