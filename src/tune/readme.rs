//! `tuning/README.md` and `ringfort tune explain`, printed from the settings. A test holds the file equal to them.

use std::fmt::Write;

use super::settings::{Kind, Setting, Tier, Tuning};

const OPENING: &str = "\
# Kernel settings

What Ringfort asks of the kernel, and why. `settings.toml` beside this file is the source: `ringfort tune` has it built in, and this page is
printed from it (`ringfort tune explain`; `RINGFORT_WRITE_TUNING=1 cargo test --lib tune` writes the file). Nothing is set by installing or running Ringfort.

```
ringfort tune check                          # how each setting stands, and which file sets it; exit 1 where one differs
ringfort tune plan --tier recommended        # what would change
ringfort tune apply --yes --confirm-within 120   # taken back in two minutes unless:
ringfort tune confirm                        # now it is also for the next boot, in /etc/sysctl.d/60-ringfort.conf
ringfort tune revert                         # everything as it was, but for what somebody has changed since
```

`apply` is a dry run without `--yes`. What was there before is recorded in `/var/lib/ringfort/tune/state.json` before the first change; each change is
read back, and if one fails all are taken back. What waits for `confirm` is in no file yet, so that a reboot undoes it too.
";

/// The page, in Markdown.
pub(super) fn page(tuning: &Tuning) -> String {
    let mut text = OPENING.to_owned();
    text.push_str("\n## What the usual guides set, judged\n\n| setting | verdict | reason | instead |\n|---|---|---|---|\n");
    for guide in &tuning.guides {
        let _ = writeln!(
            text,
            "| `{}` | **{}** | {} | {} |",
            guide.setting, guide.verdict, guide.reason, guide.instead
        );
    }
    text.push_str(
        "\n## For each socket rather than for the machine\n\nKeys of the configuration: no effect on other programs, good in containers, gone \
         with the process.\n\n| option | key | instead of | why |\n|---|---|---|---|\n",
    );
    for option in &tuning.socket_options {
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {} | {} |",
            option.option, option.key, option.instead_of, option.why
        );
    }
    for (tier, title) in [
        (Tier::Safe, "Tier safe"),
        (Tier::Recommended, "Tier recommended (the default)"),
        (Tier::Aggressive, "Tier aggressive"),
        (Tier::Never, "Shown, never written"),
    ] {
        let _ = write!(
            text,
            "\n## {title}\n\n| setting | want | where | why | risk | reverting counts | source |\n|---|---|---|---|---|---|---|\n"
        );
        for setting in tuning.settings.iter().filter(|setting| setting.tier == tier) {
            text.push_str(&row(setting));
        }
    }
    text
}

fn row(setting: &Setting) -> String {
    let mut place: Vec<String> = setting.condition.iter().map(ToString::to_string).collect();
    if setting.kernel != Default::default() {
        place.insert(0, format!("kernels {}", setting.kernel));
    }
    let accepted: String = setting.accept.iter().map(|value| format!(", or {value}")).collect();
    let want = match (setting.kind, &setting.module) {
        (Kind::Module, Some(module)) => format!("module {module}"),
        _ => format!("{} `{}`{accepted}", setting.operator.word(), setting.want),
    };
    let sources: Vec<String> = setting
        .source
        .iter()
        .enumerate()
        .map(|(index, source)| format!("[{}]({source})", index + 1))
        .collect();
    format!(
        "| `{}` ({}) | {want} | {} | {} | {} | {} | {} |\n",
        setting.key,
        setting.id,
        place.join(", "),
        setting.why,
        setting.risk,
        setting.revert.words(),
        sources.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use crate::tune::settings::embedded;

    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/README.md");

    #[test]
    fn the_page_is_the_one_that_the_settings_make() {
        let page = super::page(&embedded());
        if std::env::var_os("RINGFORT_WRITE_TUNING").is_some() {
            std::fs::write(PATH, &page).unwrap();
        }
        let there = std::fs::read_to_string(PATH).unwrap_or_default();
        assert!(
            there == page,
            "tuning/README.md is out of date: RINGFORT_WRITE_TUNING=1 cargo test --lib tune"
        );
    }
}
