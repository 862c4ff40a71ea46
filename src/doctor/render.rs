//! The report for people: the verdict, what is wrong with its cure, what is unknown, what is fine. Pure.

use super::finding::{Finding, Status, verdict};

/// No line is longer, so that it fits a terminal and a ticket.
const COLUMNS: usize = 100;
/// Where the texts begin: status and name stand before them.
const INDENT: usize = 30;

/// What stands around the findings.
pub struct Heading<'a> {
    /// Whose needs the machine was held against.
    pub config: &'a str,
    pub has_colours: bool,
}

/// The whole report, with a newline at its end.
pub fn text(findings: &[Finding], heading: &Heading<'_>) -> String {
    let paint = |status, text: &str| if heading.has_colours { paint(status, text) } else { text.to_owned() };
    let mut text = String::new();
    for line in wrap(&summary(findings), COLUMNS) {
        text += &format!("{}\n", paint(verdict(findings), &line));
    }
    text += &format!("ringfort {}, configuration: {}\n", env!("CARGO_PKG_VERSION"), heading.config);
    for status in [Status::Fail, Status::Warn, Status::Unknown] {
        for finding in findings.iter().filter(|finding| finding.status == status) {
            text.push('\n');
            text += &row(finding, &paint(status, &format!("{:<7}", label(status))));
            text +=
                &detail("want", finding.want.as_str().map_or_else(|| number(&finding.want), str::to_owned));
            text += &detail("why", finding.why.clone());
            text += &detail("cure", finding.cure.clone().unwrap_or_default());
        }
    }
    text.push('\n');
    for finding in findings.iter().filter(|finding| finding.status == Status::Ok) {
        text += &row(finding, &paint(Status::Ok, &format!("{:<7}", label(Status::Ok))));
    }
    text
}

fn summary(findings: &[Finding]) -> String {
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let named = |status| {
        let ids: Vec<&str> =
            findings.iter().filter(|finding| finding.status == status).map(|finding| finding.id).collect();
        ids.join(", ")
    };
    let unknown = match count(Status::Unknown) {
        0 => String::new(),
        _ => format!("; not known here: {}", named(Status::Unknown)),
    };
    match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) if unknown.is_empty() => "OK: this machine is fit for ringfort".to_owned(),
        (0, 0) => format!("OK as far as can be seen{unknown}"),
        (0, _) => format!("WARN: ringfort runs here, and would run better: {}{unknown}", named(Status::Warn)),
        (_, 0) => format!("FAIL: {}{unknown}", named(Status::Fail)),
        _ => format!("FAIL: {}; then {}{unknown}", named(Status::Fail), named(Status::Warn)),
    }
}

const fn label(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Unknown => "?",
        Status::Warn => "WARN",
        Status::Fail => "FAIL",
    }
}

fn paint(status: Status, text: &str) -> String {
    let colour = match status {
        Status::Ok => "32",
        Status::Unknown => "36",
        Status::Warn => "33",
        Status::Fail => "31",
    };
    format!("\x1b[1;{colour}m{text}\x1b[0m")
}

/// `label` has its width already: colours have none.
fn row(finding: &Finding, label: &str) -> String {
    block(&format!("{label} {:<20}  ", finding.id), &finding.shown)
}

fn detail(name: &str, text: String) -> String {
    block(&format!("{:INDENT$}", format!("{:>width$}", name, width = INDENT - 2)), &text)
}

/// A text beside its heading, its lines below each other.
fn block(heading: &str, text: &str) -> String {
    let lines = wrap(text, COLUMNS - INDENT);
    let mut out = String::new();
    for (n, line) in lines.iter().enumerate() {
        out += &if n == 0 { format!("{heading}{line}\n") } else { format!("{:INDENT$}{line}\n", "") };
    }
    out
}

fn number(value: &serde_json::Value) -> String {
    value.as_u64().map_or_else(|| value.to_string(), super::judge::grouped)
}

/// Lines of at most `columns` characters, broken between words where that can be done.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    // A number stays with its sign of percent.
    let text = text.replace(" %", "\u{a0}%");
    for word in text.split([' ', '\n', '\t']).filter(|word| !word.is_empty()) {
        let mut letters: Vec<char> = word.chars().filter(|letter| !letter.is_control()).collect();
        letters.iter_mut().filter(|letter| **letter == '\u{a0}').for_each(|letter| *letter = ' ');
        if used > 0 && used + 1 + letters.len() > columns {
            lines.push(String::new());
            used = 0;
        }
        while !letters.is_empty() {
            let space = usize::from(used > 0);
            let fits = letters.len().min(columns - used - space);
            let line = lines.last_mut().expect("at least one line");
            line.extend(std::iter::repeat_n(' ', space).chain(letters.drain(..fits)));
            used += space + fits;
            if !letters.is_empty() {
                lines.push(String::new());
                used = 0;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn findings() -> Vec<Finding> {
        let good = |id| Finding::ok(id, "fine", "fine", "why it matters");
        vec![
            good("kernel"),
            good("nofile").judged(Status::Warn, "few ".repeat(40), "raise it"),
            Finding::unknown("steal", "0.5 % or less", "hidden", "ask"),
            good("cpus").judged(Status::Fail, "none", "some"),
        ]
    }

    fn report(has_colours: bool) -> String {
        text(&findings(), &Heading { config: "a.toml", has_colours })
    }

    #[test]
    fn the_verdict_stands_first_and_problems_before_what_is_fine() {
        let text = report(false);
        assert!(text.starts_with("FAIL: cpus; then nofile; not known here: steal\nringfort "), "{text}");
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in {text}"));
        assert!(at("\nFAIL ") < at("\nWARN ") && at("\nWARN ") < at("\n? ") && at("\n? ") < at("\nok "));
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let columns: Vec<usize> =
            text.lines().filter_map(|line| line.find("fine").or_else(|| line.find("few "))).collect();
        assert!(columns.iter().all(|column| *column == INDENT), "{text}");
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        let coloured = report(true);
        let mut plain = String::new();
        for (n, part) in coloured.split('\x1b').enumerate() {
            plain += if n == 0 { part } else { part.split_once('m').unwrap().1 };
        }
        assert_eq!(plain, report(false));
        assert!(coloured.contains("\x1b[1;31mFAIL"), "{coloured}");
    }

    proptest! {
        #[test]
        fn every_text_fits_and_loses_no_letter(text in "\\PC{0,300}") {
            let lines = wrap(&text, 20);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= 20), "{lines:?}");
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect::<String>();
            prop_assert_eq!(letters(&lines.join("")), letters(&text));
        }
    }
}
