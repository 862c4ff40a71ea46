//! What the packages install beside the binary: manual pages and completions for shells, printed from the table of
//! commands and the table of keys, so that none can disagree with them.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use clap_complete::{Shell, generate_to};

use super::Cli;
use crate::base::roff::Page;
use crate::config;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const SIGNALS: [(&str, &str); 4] = [
    ("SIGTERM, SIGINT", "Drain and end. A second SIGINT ends at once."),
    ("SIGHUP", "Read the configuration and the files of certificates anew."),
    ("SIGUSR1", "Open the file of the access log anew."),
    ("SIGUSR2", "Have the binary that is installed now take over."),
];
const FILES: [(&str, &str); 2] = [
    ("/etc/ringfort/ringfort.toml", "The configuration that the service runs on, see `ringfort.toml`(5)."),
    ("/run/ringfort/admin.sock", "The admin socket, for its owner alone; admin.socket moves it."),
];

/// Writes every page and completion into `folder`, which is made if it is not there.
pub(super) fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("ringfort.1"), manual())?;
    fs::write(folder.join("ringfort.toml.5"), config::manual(VERSION))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut visible(), "ringfort", folder)?;
    }
    Ok(())
}

/// The command line without what is no operator's business.
fn visible() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect::<Vec<_>>();
    let about = all.get_about().cloned().unwrap_or_default();
    Command::new("ringfort").version(VERSION).about(about).subcommands(shown).disable_help_subcommand(true)
}

fn manual() -> String {
    let command = visible();
    let mut page = Page::new("ringfort", 1, VERSION, "thread-per-core proxy");
    page.heading("SYNOPSIS");
    for subcommand in command.get_subcommands() {
        synopsis(&mut page, subcommand, "ringfort");
    }
    page.heading("DESCRIPTION");
    page.paragraph(
        "A proxy for HTTP/1.1, HTTP/2, gRPC, WebSocket, TCP and TLS, with one worker pinned to each CPU. As a service it is started by \
         `systemctl start ringfort`, which `ringfort check` precedes.",
    );
    page.heading("COMMANDS");
    for subcommand in command.get_subcommands() {
        describe(&mut page, subcommand, "ringfort");
    }
    page.heading("EXIT STATUS");
    for (code, meaning) in [("0", "Good."), ("1", "It ran and found problems."), ("2", "It could not run.")] {
        page.item(code, meaning);
    }
    for (heading, rows) in [("SIGNALS", &SIGNALS[..]), ("FILES", &FILES[..])] {
        page.heading(heading);
        for (term, text) in rows {
            page.item(term, text);
        }
    }
    page.heading("SEE ALSO");
    page.paragraph("`ringfort.toml`(5), `systemctl`(1)");
    page.finish()
}

fn synopsis(page: &mut Page, command: &Command, parent: &str) {
    let path = format!("{parent} {}", command.get_name());
    if command.has_subcommands() {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            synopsis(page, below, &path);
        }
        return;
    }
    let arguments = arguments(command).map(|arg| match arg.is_required_set() {
        true => usage(arg),
        false => format!("[{}]", usage(arg)),
    });
    let arguments: Vec<String> = arguments.collect();
    page.paragraph(&format!("`{path}` {}", arguments.join(" ")));
}

fn describe(page: &mut Page, command: &Command, parent: &str) {
    let path = format!("{parent} {}", command.get_name());
    page.subheading(&path);
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string);
    page.paragraph(&about.unwrap_or_default());
    for arg in arguments(command) {
        let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string);
        page.item(&usage(arg), &help.unwrap_or_default());
    }
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        describe(page, below, &path);
    }
}

fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
}

/// `--config FILE`, `-H, --header FIELD`, `FILE`.
fn usage(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let flags = short.into_iter().chain(long).collect::<Vec<_>>().join(", ");
    let takes_values = arg.get_action().takes_values();
    let names = arg.get_value_names().filter(|_| takes_values).unwrap_or_default();
    let names = names.iter().map(ToString::to_string);
    Some(flags).filter(|flags| !flags.is_empty()).into_iter().chain(names).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_and_option_is_documented_and_completed() {
        let folder = std::env::temp_dir().join(format!("ringfort-pages-{}", std::process::id()));
        write(&folder).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let manual = read("ringfort.1");
        let completions = ["ringfort.bash", "_ringfort", "ringfort.fish"].map(read);
        assert!(read("ringfort.toml.5").contains("connections_max"));
        fs::remove_dir_all(&folder).unwrap();
        for command in visible().get_subcommands() {
            let name = command.get_name();
            assert!(manual.contains(&format!(".SS ringfort {name}\n")), "{name}");
            for arg in arguments(command) {
                let long = arg.get_long().unwrap_or_default();
                assert!(manual.contains(&long.replace('-', "\\-")), "{name} {long}");
                assert!(completions.iter().all(|text| text.contains(long)), "{name} {long}");
            }
        }
        for text in completions.iter().chain([&manual]) {
            assert!(!text.contains("__data") && !text.contains("__pages"), "what is hidden stays hidden");
        }
        assert!(manual.contains("[\\-H, \\-\\-header FIELD]"), "{manual}");
    }
}
