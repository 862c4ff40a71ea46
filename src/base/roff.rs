//! Writes a manual page in the macros of man(7). Escapes every text, and knows nothing of what it is about.

use std::fmt::Write;

/// A page that is being written.
#[derive(Debug)]
pub struct Page(String);

impl Page {
    /// `name` in capitals, `section` as of `man SECTION NAME`, `summary` for `apropos`.
    pub fn new(name: &str, section: u8, version: &str, summary: &str) -> Self {
        let mut page = Self(String::new());
        let title = escaped(&name.to_uppercase());
        page.line(&format!(".TH \"{title}\" {section} \"\" \"Ringfort {}\" \"Ringfort\"", escaped(version)));
        page.heading("NAME");
        page.line(&format!("{} \\- {}", escaped(name), escaped(summary)));
        page
    }

    pub fn heading(&mut self, text: &str) {
        self.line(&format!(".SH {}", escaped(text)));
    }

    pub fn subheading(&mut self, text: &str) {
        self.line(&format!(".SS {}", escaped(text)));
    }

    /// What stands between backticks is set in bold.
    pub fn paragraph(&mut self, text: &str) {
        self.line(".PP");
        self.text(text);
    }

    /// A term in bold, and what it means.
    pub fn item(&mut self, term: &str, text: &str) {
        self.line(".TP");
        self.line(&format!("\\fB{}\\fR", escaped(term)));
        self.text(text);
    }

    /// Lines set as they are.
    pub fn example(&mut self, lines: &str) {
        self.line(".PP\n.nf\n.RS");
        for line in lines.lines() {
            self.text(line);
        }
        self.line(".RE\n.fi");
    }

    pub fn finish(self) -> String {
        self.0
    }

    fn text(&mut self, text: &str) {
        for (index, part) in text.split('`').enumerate() {
            let bold = index % 2 == 1;
            let (on, off) = if bold { ("\\fB", "\\fR") } else { ("", "") };
            // Writing to a String cannot fail. A line that begins with a dot or a quote would be a request.
            let guard = if index == 0 && part.starts_with(['.', '\'']) { "\\&" } else { "" };
            let _ = write!(self.0, "{guard}{on}{}{off}", escaped(part));
        }
        self.0.push('\n');
    }

    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }
}

/// What roff would read as its own, or print as another character, by its name (groff_char(7)).
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            '\n' => out.push(' '),
            plain if plain.is_ascii() => out.push(plain),
            other => {
                let _ = write!(out, "\\[u{:04X}]", u32::from(other));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_never_read_as_a_request_or_an_escape() {
        let mut page = Page::new("x.toml", 5, "1.0", "it's a file");
        page.heading("KEYS");
        page.item("a-b", ".TH \\n `--c d` …");
        page.example("'quoted'\nplain");
        let expected = ".TH \"X.TOML\" 5 \"\" \"Ringfort 1.0\" \"Ringfort\"\n.SH NAME\nx.toml \\- it\\(aqs a file\n.SH KEYS\n.TP\n\
                        \\fBa\\-b\\fR\n\\&.TH \\en \\fB\\-\\-c d\\fR \\[u2026]\n.PP\n.nf\n.RS\n\\&\\(aqquoted\\(aq\nplain\n.RE\n.fi\n";
        assert_eq!(page.finish(), expected);
    }
}
