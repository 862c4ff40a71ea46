//! Prints the manual page of the configuration file, `ringfort.toml(5)`, from the rows.

use super::keys;
use super::reference::facts;
use super::schema::{Kind, Table};
use crate::base::roff::Page;

const EXAMPLE: &str = "\
[[listener]]
name = \"web\"
listen = \"0.0.0.0:80\"

[[route]]
hosts = [\"api.test\"]
cluster = \"api\"

[[cluster]]
name = \"api\"
endpoints = [\"127.0.0.1:9001\", \"127.0.0.1:9002\"]";

/// The page, for `version`.
pub fn manual(version: &str) -> String {
    let mut page = Page::new("ringfort.toml", 5, version, "configuration of the proxy ringfort");
    page.heading("DESCRIPTION");
    page.paragraph(
        "TOML 1.0. An unknown key is an error, and every problem of a file is told at once: `ringfort check --config FILE`. Relative \
         paths are taken from the folder of the file. Names end in their unit: `_ms`, `_bytes`, `_percent`.",
    );
    page.paragraph(
        "`[[name]]` may stand several times. A table in which no key is required may be left out.",
    );
    page.heading("KEYS");
    print_below(&mut page, &keys::ROOT, "");
    page.heading("EXAMPLE");
    page.example(EXAMPLE);
    page.heading("FILES");
    page.item(
        "/etc/ringfort/ringfort.toml",
        "Where the packages install it, with every key and its default.",
    );
    page.heading("SEE ALSO");
    page.paragraph("`ringfort`(1)");
    page.finish()
}

fn print_below(page: &mut Page, table: &Table, parent: &str) {
    for row in table.rows {
        let path = if parent.is_empty() { row.key.to_owned() } else { format!("{parent}.{}", row.key) };
        let (below, header) = match row.kind {
            Kind::Table(below) | Kind::Choice(below) => (below, format!("[{path}]")),
            Kind::Tables(below) => (below, format!("[[{path}]]")),
            _ => continue,
        };
        page.subheading(&header);
        page.paragraph(below.help);
        for row in below.rows.iter().filter(|row| !row.kind.is_table()) {
            let facts = facts(row);
            page.item(&format!("{} = {}", row.key, facts.value), &format!("{} ({})", row.help, facts.note));
        }
        print_below(page, below, &path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_in_the_manual_page() {
        fn keys_of(table: &'static Table) -> Vec<&'static str> {
            let below = |row: &'static super::super::schema::Row| match row.kind {
                Kind::Table(below) | Kind::Choice(below) | Kind::Tables(below) => keys_of(below),
                _ => vec![row.key],
            };
            table.rows.iter().flat_map(below).collect()
        }
        let page = manual("1.0");
        let keys = keys_of(&keys::ROOT);
        assert!(keys.len() > 50);
        for key in keys {
            assert!(page.contains(&format!("\\fB{key} = ")), "{key}");
        }
        assert!(crate::config::parse("example", EXAMPLE).is_ok());
    }
}
