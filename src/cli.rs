//! The command line: what can be asked of `ringfort`, and what each command calls. Decides nothing itself.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::config;
use crate::control::supervisor::DATA_COMMAND;
use crate::control::supervisor::upgrade::{self, PLAN_COMMAND};
use crate::control::{Outcome, certificates, data, socket, supervisor};
use crate::doctor;
use crate::sys::clock;
use crate::tune;

mod metrics;
mod pages;

/// Thread-per-core proxy appliance.
///
/// Exit codes: 0 good, 1 found problems, 2 could not run.
#[derive(Debug, Parser)]
#[command(name = "ringfort", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or Ctrl-C, which drain it.
    Run {
        /// The configuration, TOML. Without it: HTTP on 127.0.0.1:8080 with a built-in answer, admin on 127.0.0.1:9901.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Tell every problem of a configuration and of the certificates it names, and which route a request would take.
    Check {
        /// The configuration, TOML. Without it: the embedded default.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// A request to explain, such as 'GET http://api.test/v1/x'.
        #[arg(long, value_name = "REQUEST")]
        explain: Option<String>,
        /// A field of the request to explain, such as 'x-canary: yes'. May be repeated.
        #[arg(short = 'H', long = "header", value_name = "FIELD", requires = "explain")]
        fields: Vec<String>,
        /// List every listener and cluster that would carry plaintext, and exit 1 if there is one.
        #[arg(long)]
        require_encryption: bool,
        /// The SPIFFE identity of the client that sends it, such as 'spiffe://cluster.local/ns/production/sa/shop'.
        #[arg(long, value_name = "ID", requires = "explain")]
        identity: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at this machine: engine, stolen CPU time, CPUs, network, limits. What to run first; changes nothing.
    Doctor {
        /// The configuration, TOML, whose needs the machine is held against. Without it: the embedded default.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Seconds for which the CPUs are watched; 0 for not at all.
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=86_400))]
        seconds: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List every metric with its type, unit, labels and meaning.
    Metrics {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell the running gateway to stop accepting, finish what it accepted, and end.
    Drain {
        /// The admin Unix socket. Without it: where "run" puts it by default.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Have the running gateway read its configuration and certificates anew; exit 1 with every problem if it stays with
    /// the old one.
    Reload {
        /// The admin Unix socket. Without it: where "run" puts it by default.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Have the binary that is installed now take over from the one that runs, with the same sockets and without a pause;
    /// exit 1 with the reason if the present one goes on.
    Upgrade {
        /// The admin Unix socket. Without it: where "run" puts it by default.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Look at the kernel's settings, and change them so that it can be taken back.
    Tune {
        #[command(subcommand)]
        command: tune::Command,
    },
    /// Print the version.
    Version {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// The data process, which "run" starts.
    #[command(name = DATA_COMMAND, hide = true)]
    Data,
    /// What this binary needs to take over, asked by the one that runs.
    #[command(name = PLAN_COMMAND, hide = true)]
    Plan,
    /// Write the manual pages and the completions for shells into a folder, as the packages install them.
    #[command(name = "__pages", hide = true)]
    Pages { folder: PathBuf },
}

impl Cli {
    /// Carries the command out and returns the exit code.
    pub fn run(self) -> u8 {
        match self.command {
            Command::Run { config } => supervisor::run(config.as_deref()).exit_code(),
            Command::Check { config, explain, fields, identity, require_encryption, json } => {
                let (text, code) = config::check(&config::Asking {
                    path: config.as_deref(),
                    explain: explain.as_deref(),
                    fields: &fields,
                    identity: identity.as_deref(),
                    require_encryption,
                    as_json: json,
                    inspect: &|name, config| {
                        certificates::inspect(name, config, clock::unix_seconds().cast_signed())
                    },
                });
                print(&text);
                code
            }
            Command::Doctor { config, seconds, json } => {
                let (text, code) =
                    doctor::doctor(&doctor::Asking { path: config.as_deref(), seconds, as_json: json });
                print(&text);
                code
            }
            Command::Metrics { json } => {
                print(&metrics::list(json));
                Outcome::Good.exit_code()
            }
            Command::Drain { socket } => ask("/drain", socket.as_deref()),
            Command::Reload { socket } => ask("/reload", socket.as_deref()),
            Command::Upgrade { socket } => ask("/upgrade", socket.as_deref()),
            Command::Tune { command } => match tune::run(command) {
                Ok((text, code)) => {
                    print(&text);
                    code
                }
                Err(text) => {
                    eprintln!("ringfort: {text}");
                    Outcome::CouldNotRun.exit_code()
                }
            },
            Command::Version { json } => {
                let version = env!("CARGO_PKG_VERSION");
                let json_text = || serde_json::json!({ "name": "ringfort", "version": version }).to_string();
                print(&format!("{}\n", if json { json_text() } else { format!("ringfort {version}") }));
                Outcome::Good.exit_code()
            }
            Command::Data => data::run().exit_code(),
            Command::Plan => upgrade::plan().exit_code(),
            Command::Pages { folder } => match pages::write(&folder) {
                Ok(()) => Outcome::Good.exit_code(),
                Err(error) => {
                    eprintln!("ringfort: {}: {error}", folder.display());
                    Outcome::CouldNotRun.exit_code()
                }
            },
        }
    }
}

/// Has the running gateway change something, and tells what it says of it.
fn ask(path: &str, socket: Option<&Path>) -> u8 {
    match socket::post(path, socket) {
        Ok(answer) if answer.is_good() => {
            print(&answer.body);
            Outcome::Good.exit_code()
        }
        Ok(answer) => {
            answer.problems().iter().for_each(|problem| eprintln!("{problem}"));
            Outcome::Problems.exit_code()
        }
        Err(text) => {
            eprintln!("ringfort: {text}");
            Outcome::CouldNotRun.exit_code()
        }
    }
}

/// To standard output. A reader that is gone, as in `ringfort check | head -1`, is no error of ours.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_hides_the_data_process() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("check") && help.contains("Exit codes"), "{help}");
        assert!(!help.contains(DATA_COMMAND), "{help}");
    }

    #[test]
    fn commands_are_read_as_documented() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for line in [
            "ringfort run",
            "ringfort run --config a.toml",
            "ringfort check --config a.toml",
            "ringfort check --config a.toml --require-encryption --json",
            "ringfort check --config a.toml --explain / -H a:b -H c:d --json",
            "ringfort check --explain / --identity spiffe://td/a",
            "ringfort doctor",
            "ringfort doctor --json --seconds 0 --config a.toml",
            "ringfort metrics --json",
            "ringfort drain",
            "ringfort drain --socket a.sock",
            "ringfort reload --socket a.sock",
            "ringfort upgrade --socket a.sock",
            "ringfort tune check --config a.toml --json --root dir --tier safe",
            "ringfort tune plan --only io_uring --only vm.swappiness",
            "ringfort tune apply --yes --tier aggressive --confirm-within 120",
            "ringfort tune confirm",
            "ringfort tune revert --quiet",
            "ringfort version --json",
            "ringfort __data",
            "ringfort __pages folder",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in [
            "ringfort",
            "ringfort walk",
            "ringfort check -H a:b",
            "ringfort check --identity x",
            "ringfort run a.toml",
            "ringfort tune",
            "ringfort tune apply --confirm-within 5",
            "ringfort tune apply --yes --confirm-within 0",
            "ringfort tune apply --tier never",
            "ringfort doctor --seconds -1",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
