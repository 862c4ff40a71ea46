//! Another binary that is to take over: asked what it needs of what is there, then started beside the data process that
//! serves. Until it serves itself nothing has changed, and whatever goes wrong leaves nothing behind.
//!
//! What crosses between two versions is [`Estate`], [`Planned`] and [`Note`]: fields are added with defaults, and never
//! change their meaning. All else (`Facts`) is made and read by the same binary; the one before only passes it on.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::open::{self, Inherited};
use crate::control::handover::{self, Counts, Facts, Sockets};
use crate::control::requests::{self, KeptTicketKeys, Said};
use crate::control::source::Source;
use crate::control::{Outcome, log};
use crate::sys::child::Child;
use crate::sys::fd_passing::Channel;
use crate::sys::process::{self, Signal};
use crate::sys::{notify, rlimit, succession};

/// The hidden subcommand that tells what a binary needs.
pub const PLAN_COMMAND: &str = "__plan";
/// How long a binary may take to say what it needs.
pub const PLAN_TIMEOUT: Duration = Duration::from_secs(10);
/// From its start, how long its data process may take to serve. Names that are slow to resolve are part of it.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STDERR_BYTES_MAX: u64 = 4_096;

/// A listener, as sockets are found again by it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Group {
    pub name: String,
    /// As configured.
    pub listen: SocketAddr,
}

/// What is there. Its sockets come with it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Estate {
    /// The file of the configuration.
    pub config: Option<PathBuf>,
    pub listeners: Vec<Group>,
    pub admin_listen: SocketAddr,
    pub admin_socket: Option<PathBuf>,
    pub restarts: u32,
    pub upgrades: u32,
    pub supervisor: u32,
    pub alive_every: Option<Duration>,
    pub ticket_keys: Option<KeptTicketKeys>,
}

/// What a binary needs.
#[derive(Deserialize, Serialize)]
pub enum Planned {
    /// Its sockets come with it.
    Good { version: String, facts: serde_json::Value, counts: Counts },
    /// Why it cannot take over, a line each.
    Refused(Vec<String>),
}

/// What the other program finds when it has come in place of this one.
#[derive(Deserialize, Serialize)]
pub struct Note {
    pub config: Option<PathBuf>,
    pub version: String,
    pub facts: serde_json::Value,
    pub counts: Counts,
    /// In the order of `counts`.
    pub sockets: Vec<i32>,
    /// The data process that serves now.
    pub data: Kept,
    /// The one that served before, and the number of its question.
    pub before: Kept,
    pub question: u64,
    /// How long it may take to leave.
    pub before_within: Duration,
    pub admin_socket_before: Option<PathBuf>,
    /// Processes that leave, and for how long each may.
    pub leaving: Vec<(u32, Duration)>,
}

/// A data process and its channel.
#[derive(Deserialize, Serialize)]
pub struct Kept {
    pub id: u32,
    pub channel: i32,
}

/// What a binary said that it needs, as it is passed on.
pub(super) struct Plan {
    pub version: String,
    pub facts: serde_json::Value,
    pub sockets: Sockets,
}

/// An upgrade on its way.
pub(super) struct Upgrade {
    /// Of the question that waits for it.
    pub question: u64,
    pub stage: Stage,
}

pub(super) enum Stage {
    Planning { planner: Child, planned: oneshot::Receiver<Result<Plan, Vec<String>>> },
    Starting(Candidate),
}

/// A data process of the other binary that does not serve yet.
pub(super) struct Candidate {
    pub child: Child,
    pub channel: Arc<Channel>,
    pub plan: Arc<Plan>,
    /// Told when it serves; closed where it never will.
    pub ready: oneshot::Receiver<()>,
    pub by: Instant,
    /// Its log was moved away while it started, when it may not have taken the signal: to be told once it is ready.
    pub reopens_log: bool,
}

/// What a step of an upgrade came to.
pub(super) enum Step {
    Planned(Result<Plan, Vec<String>>),
    Ready,
    Failed(String),
}

impl Upgrade {
    /// Begins: asks the binary at `program`.
    pub(super) fn begin(
        question: u64,
        program: &Path,
        estate: Estate,
        sockets: Arc<Sockets>,
    ) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let (stderr, writer) = io::pipe()?;
        let mut command = command(program, PLAN_COMMAND, theirs);
        let planner = Child::spawn(command.stderr(writer))?;
        // The writing end of the pipe goes with it: the other side is to see the end.
        drop(command);
        let (tell, planned) = oneshot::channel();
        let id = planner.id();
        let ask = move || drop(tell.send(ask(&ours, &estate, sockets, stderr, id)));
        succession::without_signals(|| std::thread::Builder::new().name("upgrade".into()).spawn(ask))?;
        Ok(Self { question, stage: Stage::Planning { planner, planned } })
    }

    /// Waits for the next step.
    pub(super) async fn next(&mut self) -> Step {
        match &mut self.stage {
            Stage::Planning { planned, .. } => Step::Planned(
                planned.await.unwrap_or_else(|_| Err(vec!["the upgrade ended without a word".to_owned()])),
            ),
            Stage::Starting(Candidate { ready, by, .. }) => tokio::select! {
                ready = ready => match ready {
                    Ok(()) => Step::Ready,
                    Err(_) => Step::Failed(
                        "the new data process ended before it served; what it said stands in the log".to_owned()
                    ),
                },
                () = tokio::time::sleep_until(*by) => Step::Failed(format!(
                    "the new data process did not serve within {} s; look at what it said in the log",
                    READY_TIMEOUT.as_secs()
                )),
            },
        }
    }

    /// The process that was started for it.
    pub(super) fn into_child(self) -> Child {
        match self.stage {
            Stage::Planning { planner, .. } => planner,
            Stage::Starting(candidate) => candidate.child,
        }
    }
}

impl Candidate {
    /// Starts a data process of the binary at `program`.
    pub(super) fn start(program: &Path, data_command: &str, plan: Plan) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let child = Child::spawn_unprivileged(&mut command(program, data_command, theirs))?;
        let (channel, plan) = (Arc::new(ours), Arc::new(plan));
        let (tell, ready) = oneshot::channel();
        let (sending, sent) = (channel.clone(), plan.clone());
        // Ends when it is ready: what it says then is for whoever supervises it then.
        let attend = move || {
            let mut heard = handover::send(&sending, &sent.facts, &sent.sockets).map(|()| Said::Alive);
            // Its sockets would stay open while this thread waits, also where the gateway is told to stop.
            drop(sent);
            while matches!(heard, Ok(Said::Alive | Said::TicketKeys(_))) {
                heard = requests::next_said(&sending);
            }
            if matches!(heard, Ok(Said::Ready)) {
                let _ = tell.send(());
            }
        };
        succession::without_signals(|| std::thread::Builder::new().name("candidate".into()).spawn(attend))?;
        Ok(Self { child, channel, plan, ready, by: Instant::now() + READY_TIMEOUT, reopens_log: false })
    }
}

/// A child of `program` that finds `channel` as its standard input.
pub(super) fn command(program: &Path, subcommand: &str, channel: Channel) -> Command {
    let mut command = Command::new(program);
    command.arg0("ringfort").arg(subcommand).stdin(Stdio::from(OwnedFd::from(channel)));
    // What the network reaches must not speak to the service manager in our name.
    for variable in notify::VARIABLES.iter().chain([&succession::VARIABLE]) {
        command.env_remove(variable);
    }
    command
}

/// On a thread of its own. Ends the binary where it does not answer.
fn ask(
    channel: &Channel,
    estate: &Estate,
    sockets: Arc<Sockets>,
    stderr: PipeReader,
    planner: u32,
) -> Result<Plan, Vec<String>> {
    let sent = channel.set_timeout(PLAN_TIMEOUT).and_then(|()| handover::send(channel, estate, &sockets));
    // They would stay open while this thread waits.
    drop(sockets);
    let asked = sent
        .and_then(|()| channel.recv())
        .and_then(|(payload, fds)| Ok((serde_json::from_slice(&payload)?, fds)));
    match asked {
        Ok((Planned::Good { version, facts, counts }, fds)) => {
            let sockets = Sockets::from_parts(&counts, fds).map_err(|error| vec![error.to_string()])?;
            Ok(Plan { version, facts, sockets })
        }
        Ok((Planned::Refused(problems), _)) => Err(problems),
        Err(error) => {
            // Still a child that nobody has waited for: the id is its own.
            let _ = process::send_signal(planner, Signal::Kill);
            let mut said = Vec::new();
            let _ = File::from(OwnedFd::from(stderr)).take(STDERR_BYTES_MAX).read_to_end(&mut said);
            Err(unanswered(&error, &String::from_utf8_lossy(&said)))
        }
    }
}

/// Why the binary is none that can take over, with what it said.
fn unanswered(error: &io::Error, said: &str) -> Vec<String> {
    let what = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the binary did not say within {} s what it needs", PLAN_TIMEOUT.as_secs())
        }
        _ => "the binary ended without saying what it needs".to_owned(),
    };
    let cure = "run it with \"version\", and install one that works on this machine";
    let said = said.lines().filter(|line| !line.trim().is_empty()).map(ToOwned::to_owned);
    [format!("{what}; {cure}")].into_iter().chain(said).collect()
}

/// The hidden subcommand: what this binary needs of what is there.
pub fn plan() -> Outcome {
    // To stderr, which the program that asks reads where this fails, and passes over else.
    if log::init().is_err() {
        return Outcome::CouldNotRun;
    }
    let answered = io::stdin().as_fd().try_clone_to_owned().map(Channel::from).and_then(|channel| {
        let (estate, sockets) = handover::receive::<Estate>(&channel)?;
        match planned(estate, sockets) {
            Ok((facts, sockets)) => {
                let (counts, fds) = sockets.parts();
                let version = env!("CARGO_PKG_VERSION").to_owned();
                let good = Planned::Good { version, facts: serde_json::to_value(facts)?, counts };
                channel.send(&serde_json::to_vec(&good)?, &fds)
            }
            Err(text) => {
                let problems = text.lines().map(ToOwned::to_owned).collect();
                channel.send(&serde_json::to_vec(&Planned::Refused(problems))?, &[])
            }
        }
    });
    match answered {
        Ok(()) => Outcome::Good,
        Err(error) => {
            eprintln!("ringfort: this is asked by \"ringfort run\" only: {error}");
            Outcome::CouldNotRun
        }
    }
}

fn planned(estate: Estate, sockets: Sockets) -> Result<(Facts, Sockets), String> {
    let (source, config) = Source::read_again(estate.config.as_deref())?;
    rlimit::raise_nofile().map_err(|error| format!("cannot read the limit of open files: {error}"))?;
    let cpus = open::cpus(&config)?;
    let inherited = Inherited {
        listeners: estate.listeners.into_iter().zip(sockets.listeners).collect(),
        admin_tcp: Some((estate.admin_listen, sockets.admin_tcp)),
        admin_unix: estate.admin_socket.zip(sockets.admin_unix),
    };
    let (sockets, admin_socket) = open::sockets(&config, cpus.len(), inherited)?;
    let facts = Facts {
        source,
        cpus,
        admin_socket,
        restarts: estate.restarts,
        upgrades: estate.upgrades + 1,
        succeeds: true,
        supervisor: estate.supervisor,
        alive_every: estate.alive_every,
        ticket_keys: estate.ticket_keys,
    };
    Ok((facts, sockets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn estate(config: &Path, listeners: &[(&str, &str)]) -> Estate {
        let group =
            |&(name, listen): &(&str, &str)| Group { name: name.into(), listen: listen.parse().unwrap() };
        Estate {
            config: Some(config.into()),
            listeners: listeners.iter().map(group).collect(),
            admin_listen: "127.0.0.1:0".parse().unwrap(),
            admin_socket: None,
            restarts: 3,
            upgrades: 1,
            supervisor: 9,
            alive_every: None,
            ticket_keys: None,
        }
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn what_is_there_is_kept_and_what_is_new_is_opened() {
        let path = std::env::temp_dir().join(format!("ringfort-plan-{}.toml", std::process::id()));
        let text = "[admin]\nlisten = \"127.0.0.1:0\"\nsocket = \"a.sock\"\n[workers]\ncpus = \"0\"\n\
                    [[listener]]\nname = \"new\"\nlisten = \"127.0.0.1:0\"\n\
                    [[listener]]\nname = \"kept\"\nlisten = \"127.0.0.1:0\"\n";
        std::fs::write(&path, text.replace("a.sock", &format!("{}.sock", path.display()))).unwrap();
        let sockets = Sockets {
            listeners: vec![vec![listener()], vec![listener(), listener()]],
            admin_tcp: listener(),
            admin_unix: None,
        };
        let [kept, admin] = [&sockets.listeners[1][0], &sockets.admin_tcp].map(|s| s.local_addr().unwrap());
        let estate = estate(&path, &[("gone", "127.0.0.1:0"), ("kept", "127.0.0.1:0")]);
        let (facts, planned) = planned(estate, sockets).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((facts.restarts, facts.upgrades, facts.succeeds, facts.cpus), (3, 2, true, vec![0]));
        let counts: Vec<usize> = planned.listeners.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 2], "none is closed that somebody may wait in");
        assert_eq!(planned.listeners[1][0].local_addr().unwrap(), kept);
        assert_eq!(planned.admin_tcp.local_addr().unwrap(), admin);
        let opened = facts.admin_socket.expect("a socket of its own");
        std::fs::remove_file(opened).unwrap();
    }

    #[test]
    fn nobody_keeps_the_sockets_of_a_candidate_open_while_it_is_waited_for() {
        let sockets = Sockets { listeners: vec![vec![listener()]], admin_tcp: listener(), admin_unix: None };
        let plan = Plan { version: String::new(), facts: serde_json::Value::Null, sockets };
        let mut candidate = Candidate::start(Path::new("/bin/sleep"), "60", plan).unwrap();
        let give_up = Instant::now() + Duration::from_secs(10);
        while Arc::strong_count(&candidate.plan) > 1 {
            assert!(Instant::now() < give_up, "another has them");
            std::thread::yield_now();
        }
        assert!(candidate.child.try_wait().unwrap().is_none());
        candidate.child.signal(Signal::Kill).unwrap();
        while candidate.child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_binary_that_says_nothing_is_told_with_what_it_printed() {
        let told = unanswered(&io::ErrorKind::UnexpectedEof.into(), "no such library\n\n");
        assert!(told[0].contains("ended without saying") && told[0].contains("\"version\""), "{told:?}");
        assert_eq!(told[1..], ["no such library"]);
        assert!(unanswered(&io::ErrorKind::WouldBlock.into(), "")[0].contains("within 10 s"));
    }
}
