//! What of a configuration cannot change by a reload, told with its place and what to do instead. Pure.

use toml::Spanned;
use toml::de::DeTable;

use super::problem::{Finding, Findings, Problem};
use super::{Config, Source};

/// Where a key stands: its table, and its name there.
type Key = (&'static str, &'static str);

/// Every value that is another than the running one and has to stay. Empty: `new` can take over from `old`.
pub fn unchangeable(old: &Config, new: &Config, source: Source<'_>) -> Vec<Problem> {
    let same = [
        (("workers", "cpus"), old.workers.cpus == new.workers.cpus),
        (("workers", "engine"), old.workers.engine == new.workers.engine),
        (("workers", "ring"), old.workers.ring == new.workers.ring),
        (("admin", "listen"), old.admin.listen == new.admin.listen),
        (("admin", "socket"), old.admin.socket == new.admin.socket),
        (("host", "procfs"), old.host.procfs == new.host.procfs),
        (("host", "sysfs"), old.host.sysfs == new.host.sysfs),
        (("host", "cgroupfs"), old.host.cgroupfs == new.host.cgroupfs),
    ];
    let mut findings = Findings::default();
    let (values, _) = DeTable::parse_recoverable(source.text);
    for (key, _) in same.into_iter().filter(|(_, same)| !same) {
        let at = offset(values.get_ref(), key);
        let what = format!("{}.{} cannot change by a reload", key.0, key.1);
        let cure =
            "run \"ringfort upgrade\", which takes the new value without a pause, or put the old one back";
        findings.push(Finding::error(&(at..at), what).cure(cure));
    }
    findings.into_problems(source.name, source.text)
}

/// A problem at the address of listener number `index` that only opening its socket showed.
pub fn at_listener(index: usize, what: &str, source: Source<'_>) -> Vec<Problem> {
    let (values, _) = DeTable::parse_recoverable(source.text);
    let listeners = values.get_ref().get("listener").and_then(|value| value.get_ref().as_array());
    let listener =
        listeners.and_then(|listeners| listeners.get(index)).and_then(|item| item.get_ref().as_table());
    let at = listener.and_then(|listener| listener.get("listen")).map_or(0, |value| value.span().start);
    let mut findings = Findings::default();
    findings.push(Finding::error(&(at..at), what.to_owned()));
    findings.into_problems(source.name, source.text)
}

/// Where the key stands, else its table, else the beginning: what was taken out is nowhere.
fn offset(root: &DeTable<'_>, (table, key): Key) -> usize {
    let Some((name, value)) = root.get_key_value(table) else { return 0 };
    let found = value.get_ref().as_table().and_then(|table| table.get_key_value(key));
    found.map_or_else(|| name.span().start, |(key, _): (&Spanned<_>, _)| key.span().start)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const WEB: &str = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n\
                       [[route]]\nlistener = \"web\"\nrespond = { status = 200 }\n";

    fn between(old: &str, new: &str) -> Vec<String> {
        let [old_text, new_text] = [old, new].map(|keys| format!("{keys}\n{WEB}"));
        let config = |text: &str| parse("a.toml", text).unwrap_or_else(|problems| panic!("{problems:?}")).0;
        let source = Source { name: "a.toml", text: &new_text };
        let problems = unchangeable(&config(&old_text), &config(&new_text), source);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_has_to_stay_is_told_with_its_line_and_all_at_once() {
        let told = between(
            "[workers]\ncpus = \"0\"",
            "[admin]\nlisten = \"127.0.0.1:9\"\n[workers]\nengine = \"epoll\"",
        );
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("a.toml:2:1: error: admin.listen cannot change"), "{told:?}");
        assert!(
            told.iter().any(|line| line.starts_with("a.toml:4:1: error: workers.engine cannot")),
            "{told:?}"
        );
        assert!(
            told.iter().any(|line| line.starts_with("a.toml:3:2: error: workers.cpus cannot")),
            "{told:?}"
        );
        assert!(
            told.iter()
                .all(|line| line.ends_with("takes the new value without a pause, or put the old one back"))
        );
    }

    #[test]
    fn the_rest_may_change() {
        let told =
            between("[limits]\nconnections_max = 10", "[drain]\ndeadline_ms = 9000\n[steal]\nmode = \"off\"");
        assert_eq!(told, [""; 0]);
    }

    #[test]
    fn an_address_that_cannot_be_had_is_told_at_its_line() {
        let problems = at_listener(0, "the address is in use", Source { name: "a.toml", text: WEB });
        assert_eq!(problems[0].to_string(), "a.toml:3:10: error: the address is in use");
    }
}
