//! Logs: one JSON object a line on stderr, written by a thread of its own. Whoever logs never waits for the reader of
//! stderr: lines go through a bounded queue, and those that find it full are dropped and counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{Debug, Write as _};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use crate::base::calendar::Moment;
use crate::limits::LOG_LINES_MAX;

/// Least time between two lines that tell of dropped lines.
const DROPPED_NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// The process's log. Clones share one queue.
#[derive(Clone)]
pub struct Log {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(String),
    Flush(SyncSender<()>),
}

impl Log {
    /// Starts the writer thread over `out` with room for `lines_max` waiting lines.
    fn start(out: impl Write + Send + 'static, lines_max: usize) -> io::Result<Self> {
        let (queue, entries) = mpsc::sync_channel(lines_max);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer { out, dropped: dropped.clone(), told: 0, told_at: None };
        std::thread::Builder::new().name("log".into()).spawn(move || writer.run(&entries))?;
        Ok(Self { queue, dropped })
    }

    /// Lines dropped since start.
    pub fn lines_dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Waits until what was logged before is written, for at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let (done, written) = mpsc::sync_channel(1);
        let give_up = Instant::now() + timeout;
        let mut entry = Entry::Flush(done);
        while let Err(mpsc::TrySendError::Full(back)) = self.queue.try_send(entry) {
            if Instant::now() >= give_up {
                return;
            }
            entry = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = written.recv_timeout(give_up.saturating_duration_since(Instant::now()));
    }
}

/// Sends `tracing` events of this process to stderr. Once a process; a second call fails.
pub fn init() -> io::Result<Log> {
    let log = Log::start(io::stderr(), LOG_LINES_MAX)?;
    let subscriber = Registry::default().with(JsonLines(log.clone()));
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(log)
}

/// Ends the process on any panic, after one line that says where: a worker that is gone would leave its connections
/// waiting for ever, while the supervisor can start the data process afresh within a moment.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let location = info.location().map_or_else(String::new, ToString::to_string);
        let mut fields = vec![("location", Value::from(location))];
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            fields.push(("backtrace", backtrace.to_string().into()));
        }
        let line = line(Level::ERROR, "ringfort::panic", &format!("panic: {text}"), fields);
        // Straight to stderr: the writer thread may be the one that panicked, and nothing runs after this.
        let _ = io::stderr().write_all(line.as_bytes());
        std::process::abort();
    }));
}

struct JsonLines(Log);

impl<S: Subscriber> Layer<S> for JsonLines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // The HTTP/2 crate warns of what peers do; it is counted, and nobody may write the log from outside.
        *metadata.level() <= Level::INFO && !metadata.target().starts_with("h2::")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let line = line(*metadata.level(), metadata.target(), &fields.message, fields.others);
        if self.0.queue.try_send(Entry::Line(line)).is_err() {
            self.0.dropped.fetch_add(1, Relaxed);
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

struct Writer<W> {
    out: W,
    dropped: Arc<AtomicU64>,
    told: u64,
    told_at: Option<Instant>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, entries: &Receiver<Entry>) {
        while let Ok(entry) = entries.recv() {
            match entry {
                // A reader that is gone, or a full disk, is no reason to end: the next line may find room.
                Entry::Line(line) => {
                    if self.out.write_all(line.as_bytes()).is_err() {
                        self.dropped.fetch_add(1, Relaxed);
                    }
                }
                Entry::Flush(done) => {
                    let _ = self.out.flush();
                    let _ = done.try_send(());
                }
            }
            self.tell_dropped();
        }
    }

    fn tell_dropped(&mut self) {
        let dropped = self.dropped.load(Relaxed);
        let due = self.told_at.is_none_or(|at| at.elapsed() >= DROPPED_NOTICE_INTERVAL);
        if dropped > self.told && due {
            let fields = [("lines_dropped", Value::from(dropped - self.told))];
            let text =
                "log lines were dropped: the reader of stderr is too slow, or there was no room for them";
            let told = self.out.write_all(line(Level::WARN, "ringfort::log", text, fields).as_bytes());
            if told.is_ok() {
                (self.told, self.told_at) = (dropped, Some(Instant::now()));
            }
        }
    }
}

/// One finished line: `ts`, `level`, `target`, `thread`, `message` and, where there are any, `fields`.
fn line(
    level: Level,
    target: &str,
    message: &str,
    fields: impl IntoIterator<Item = (&'static str, Value)>,
) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let thread = std::thread::current();
    let line = Line {
        ts: timestamp(since),
        level: level.as_str().to_lowercase(),
        target,
        thread: thread.name().unwrap_or("unnamed"),
        message,
        fields: fields.into_iter().collect(),
    };
    let text = serde_json::to_string(&line).unwrap_or_default();
    format!("{}{text}\n", if is_journal() { priority(level) } else { "" })
}

/// Whether stderr is journald's, which `JOURNAL_STREAM` names by device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    static IS_JOURNAL: OnceLock<bool> = OnceLock::new();
    *IS_JOURNAL.get_or_init(|| {
        let stderr =
            std::fs::metadata("/proc/self/fd/2").map(|stderr| format!("{}:{}", stderr.dev(), stderr.ino()));
        stderr.is_ok_and(|stderr| std::env::var("JOURNAL_STREAM").is_ok_and(|journal| journal == stderr))
    })
}

/// What journald takes off the begin of a line (sd-daemon(3)): `journalctl -p warning` goes by it.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// The keys in the order a reader wants them.
#[derive(Serialize)]
struct Line<'a> {
    ts: String,
    level: String,
    target: &'a str,
    thread: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_map")]
    fields: Vec<(&'static str, Value)>,
}

fn as_map<S: Serializer>(fields: &[(&'static str, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(key, value)| (key, value)))
}

/// RFC 3339 with milliseconds, in UTC. `since` counts from 1970.
fn timestamp(since: Duration) -> String {
    let mut text = Moment::of_unix(since.as_secs()).to_string();
    text.pop();
    let _ = write!(text, ".{:03}Z", since.subsec_millis());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::mpsc::Sender;

    /// Hands every write to the test, and waits for its go-ahead before returning.
    struct Gate {
        written: Sender<String>,
        go: Receiver<()>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.written.send(String::from_utf8_lossy(bytes).into_owned());
            let _ = self.go.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_never_blocks_the_writer_of_logs() {
        let ((written, lines), (go, gate)) = (mpsc::channel(), mpsc::channel());
        let log = Log::start(Gate { written, go: gate }, 2).unwrap();
        let subscriber = Registry::default().with(JsonLines(log.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(worker = 1, reason = "reset", "first");
            // The writer has taken the first line and stands in the gate; two more fit the queue.
            let first: Value = serde_json::from_str(&lines.recv().unwrap()).unwrap();
            assert_eq!(first["message"], "first");
            assert_eq!(first["level"], "warn");
            assert_eq!(first["fields"]["worker"], 1);
            assert_eq!(first["fields"]["reason"], "reset");
            for _ in 0..5 {
                tracing::info!("more");
            }
            tracing::debug!("not of interest");
        });
        assert_eq!(log.lines_dropped(), 3);
        drop(go);
        let told: Value = serde_json::from_str(&lines.recv().unwrap()).unwrap();
        assert_eq!(told["fields"]["lines_dropped"], 3);
        log.flush(Duration::from_secs(10));
        assert_eq!(lines.try_iter().count(), 2);
    }

    /// Has no room for the first lines, nor for what is told of them: four writes.
    struct Full(Sender<String>, u32);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1 < 5 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_without_room_are_counted_and_told_of_once_there_is_some() {
        let (written, lines) = mpsc::channel();
        let log = Log::start(Full(written, 0), 8).unwrap();
        for text in ["first", "second", "third"] {
            log.queue.send(Entry::Line(text.into())).unwrap();
        }
        log.flush(Duration::from_secs(10));
        assert_eq!(log.lines_dropped(), 2);
        assert_eq!(lines.recv().unwrap(), "third");
        let told: Value = serde_json::from_str(&lines.recv().unwrap()).unwrap();
        assert_eq!(told["fields"]["lines_dropped"], 2);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(timestamp(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(Duration::from_millis(951_827_696_789)), "2000-02-29T12:34:56.789Z");
        assert_eq!(timestamp(Duration::from_secs(4_102_444_799)), "2099-12-31T23:59:59.000Z");
    }

    #[test]
    fn a_panic_on_any_thread_leaves_one_line_and_ends_the_process() {
        const MARK: &str = "RINGFORT_TEST_ABORT";
        if std::env::var_os(MARK).is_some() {
            abort_on_panic();
            let worker = std::thread::Builder::new().name("worker-7".into());
            let _ = worker.spawn(|| panic!("index {} is gone", 3)).unwrap().join();
            return;
        }
        let name = "control::log::tests::a_panic_on_any_thread_leaves_one_line_and_ends_the_process";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name, "--nocapture"]).env(MARK, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(6), "SIGABRT");
        let text = String::from_utf8(output.stderr).unwrap();
        let line: Value =
            serde_json::from_str(text.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
        assert_eq!(line["level"], "error");
        assert_eq!(line["thread"], "worker-7");
        assert_eq!(line["message"], "panic: index 3 is gone");
        assert!(line["fields"]["location"].as_str().unwrap().contains("log.rs:"));
    }
}
