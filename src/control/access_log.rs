//! The access log's way out: a thread that takes the lines of all workers and writes them to standard output, a file or
//! a pipe. What cannot be written is dropped and counted; nobody ever waits for it. Never makes a line itself.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use crate::base::byte_ring::{Consumer, Producer, byte_ring};
use crate::proxy::access::spec::{AccessLogSpec, Target};
use crate::sys::poll;

/// Bytes written at once.
const BATCH_BYTES: usize = 64 * 1024;
/// Writes between two looks at the orders, however many lines there are: they may come faster than they are written.
const WRITES_MAX: usize = 16;
/// The same where a write might block: `PIPE_BUF` of Linux, which a pipe that has room takes whole (pipe(7)).
const BLOCKING_BYTES_MAX: usize = 4_096;
/// How long the thread sleeps after it found lines, and at most: nobody wakes it, as that would cost the workers.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Least time between two warnings.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// The handle of the control thread.
pub struct AccessLog {
    /// Where the thread learns of rings.
    announce: Sender<Consumer>,
    has_rings: bool,
    /// Kept for a thread that is started later.
    rings: Option<Receiver<Consumer>>,
    target: Option<Target>,
    orders: Option<Sender<Order>>,
}

enum Order {
    /// Write there from now on.
    To(Out),
    Finish(SyncSender<()>),
}

impl Default for AccessLog {
    fn default() -> Self {
        let (announce, rings) = mpsc::channel();
        Self { announce, has_rings: false, rings: Some(rings), target: None, orders: None }
    }
}

impl AccessLog {
    /// A ring for the lines of each worker, with the first `spec` there is. Made here and not where lines are: the largest
    /// takes tens of milliseconds.
    pub fn rings(&mut self, spec: Option<&AccessLogSpec>, workers: usize) -> Vec<Option<Producer>> {
        let bytes = spec.map(|spec| spec.buffer_bytes).filter(|_| !self.has_rings);
        self.has_rings |= bytes.is_some();
        let ring = |_| {
            let (producer, consumer) = byte_ring(bytes?);
            self.announce.send(consumer).ok()?;
            Some(producer)
        };
        (0..workers).map(ring).collect()
    }

    /// Writes to `target` from now on; `None`: no lines will come.
    ///
    /// # Errors
    /// Where it cannot be opened; says why, and what to do. The last one stays.
    pub fn follow(&mut self, target: Option<&Target>) -> Result<(), String> {
        if self.target.as_ref() == target {
            return Ok(());
        }
        if let Some(target) = target {
            self.open(target)?;
        }
        self.target = target.cloned();
        Ok(())
    }

    /// Takes note of a target that could not be opened, for `reopen`.
    pub fn await_target(&mut self, target: Option<&Target>) {
        self.target = target.cloned();
    }

    /// Opens the file anew, which somebody may have moved away, and tells what came of it.
    pub fn reopen(&mut self) {
        match self.target.clone().map(|target| self.open(&target)) {
            Some(Ok(())) => tracing::info!("SIGUSR1: the access log is open anew"),
            None => tracing::info!("SIGUSR1: there is no access log to open anew"),
            Some(Err(problem)) => tracing::error!("{problem}; the last one is still written"),
        }
    }

    /// Waits until what came is written, for at most `timeout`.
    pub fn finish(&self, timeout: Duration) {
        let Some(orders) = &self.orders else { return };
        let (done, finished) = mpsc::sync_channel(1);
        if orders.send(Order::Finish(done)).is_ok() {
            let _ = finished.recv_timeout(timeout);
        }
    }

    fn open(&mut self, target: &Target) -> Result<(), String> {
        let out = open(target)?;
        let orders = match (&self.orders, self.rings.take()) {
            (Some(orders), _) => orders,
            (None, Some(rings)) => {
                let (orders, inbox) = mpsc::channel();
                let thread = std::thread::Builder::new().name("access-log".into());
                let writer = Writer {
                    rings,
                    consumers: Vec::new(),
                    out: None,
                    batch: Batch::default(),
                    told_at: None,
                };
                thread
                    .spawn(move || writer.run(&inbox))
                    .map_err(|error| format!("cannot start the access log's thread: {error}"))?;
                self.orders.insert(orders)
            }
            (None, None) => return Err("the access log's thread did not start".into()),
        };
        let _ = orders.send(Order::To(out));
        Ok(())
    }
}

/// Opens a target that is not in use yet, and closes it again.
///
/// # Errors
/// As [`AccessLog::follow`].
pub fn try_out(target: &Target) -> Result<(), String> {
    open(target).map(drop)
}

fn open(target: &Target) -> Result<Out, String> {
    Out::open(target).map_err(|error| match target {
        Target::Stdout => format!("the access log cannot go to standard output: {error}"),
        Target::File(path) => format!(
            "the access log {} cannot be opened: {error}; make its folder, writable for this user, or change access_log.path",
            path.display()
        ),
    })
}

/// Something that is written to.
struct Out {
    file: File,
    /// Not opened here: whether it blocks is a matter of all that have it.
    may_block: bool,
}

impl Out {
    fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Stdout => {
                let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                let may_block = !file.metadata()?.is_file();
                Ok(Self { file, may_block })
            }
            Target::File(path) => Ok(Self { file: open_file(path)?, may_block: false }),
        }
    }

    /// Writes some of it, or fails with `WouldBlock` before long.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.may_block {
            return self.file.write(bytes);
        }
        if !poll::is_writable(self.file.as_fd(), PAUSE_MAX)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.file.write(&bytes[..bytes.len().min(BLOCKING_BYTES_MAX)])
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let is_pipe = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
    // A pipe must not make us wait: neither for a reader, which may come later and may go (opened for reading, too, it
    // has one always), nor for a slow one.
    let mut options = OpenOptions::new();
    options.append(true).create(true).read(is_pipe).mode(0o640).custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

/// Lines of one worker that are being written.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    written: usize,
    /// Whose they are, in `Writer::consumers`.
    owner: usize,
    /// The last line before them was cut off: they begin on a new one.
    torn: bool,
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }

    /// Has the next write begin with a whole line, as it goes to another file.
    fn begin_anew(&mut self) {
        let written = &self.bytes[..self.written];
        self.written = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if self.torn && self.written == 0 && !self.bytes.is_empty() {
            self.written = 1;
        }
        self.torn = false;
    }
}

struct Writer {
    rings: Receiver<Consumer>,
    consumers: Vec<Consumer>,
    out: Option<Out>,
    batch: Batch,
    told_at: Option<Instant>,
}

/// What came of an attempt to write.
enum Progress {
    Nothing,
    /// And there is no more.
    Some,
    /// And there may be more.
    More,
    /// The reader takes no more now.
    Blocked,
}

impl Writer {
    /// Until the process ends.
    fn run(mut self, inbox: &Receiver<Order>) {
        let (mut pause, mut finishing) = (PAUSE_MIN, None::<SyncSender<()>>);
        loop {
            self.consumers.extend(self.rings.try_iter());
            let progress = self.pump();
            pause = match progress {
                Progress::More => Duration::ZERO,
                Progress::Some => PAUSE_MIN,
                Progress::Nothing | Progress::Blocked => (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
            };
            if matches!(progress, Progress::Nothing | Progress::Some)
                && let Some(done) = finishing.take()
            {
                let _ = done.try_send(());
            }
            match inbox.recv_timeout(pause) {
                Ok(Order::To(out)) => {
                    self.out = Some(out);
                    self.batch.begin_anew();
                }
                Ok(Order::Finish(done)) => finishing = Some(done),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes what there is, until there is no more, the reader takes no more, or it is time to look at the orders.
    fn pump(&mut self) -> Progress {
        let mut progress = Progress::Nothing;
        let (mut idle, mut next, mut writes) = (0, self.batch.owner, 0);
        if self.out.is_none() {
            return progress;
        }
        while writes < WRITES_MAX {
            if self.batch.bytes.is_empty() {
                if idle >= self.consumers.len() {
                    self.consumers.retain(|consumer| !consumer.is_over());
                    return progress;
                }
                next = (next + 1) % self.consumers.len();
                self.fill(next);
                idle += 1;
                continue;
            }
            idle = 0;
            if !self.write() {
                return Progress::Blocked;
            }
            writes += 1;
            progress = Progress::Some;
        }
        Progress::More
    }

    fn fill(&mut self, owner: usize) {
        let Batch { bytes, torn, .. } = &mut self.batch;
        while bytes.len() < BATCH_BYTES && self.consumers[owner].pop(bytes) {}
        if *torn && !bytes.is_empty() {
            bytes.insert(0, b'\n');
        }
        (self.batch.owner, self.batch.written) = (owner, 0);
    }

    /// Writes some of the batch, or drops what of it cannot be written. `false`: later.
    fn write(&mut self) -> bool {
        let (Some(out), batch) = (&mut self.out, &mut self.batch) else { return false };
        match out.write(&batch.bytes[batch.written..]) {
            Ok(0) => return self.give_up(&ErrorKind::WriteZero.into()),
            Ok(count) => batch.written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => return self.give_up(&error),
        }
        if batch.written == batch.bytes.len() {
            batch.torn = false;
            batch.clear();
        }
        true
    }

    fn give_up(&mut self, error: &io::Error) -> bool {
        let Batch { bytes, written, owner, torn } = &mut self.batch;
        let lost = bytes[*written..].iter().filter(|byte| **byte == b'\n').count() as u64;
        // The newline in front of a batch behind a torn line is no line of its own.
        let own = u64::from(*torn && *written == 0);
        if *written > 0 {
            *torn = bytes[*written - 1] != b'\n';
        }
        self.consumers[*owner].note_lost(lost.saturating_sub(own));
        self.batch.clear();
        self.tell(error);
        true
    }

    fn tell(&mut self, error: &io::Error) {
        if self.told_at.is_none_or(|at| at.elapsed() >= NOTICE_INTERVAL) {
            self.told_at = Some(Instant::now());
            tracing::warn!(
                %error,
                "the access log cannot be written: lines are dropped and counted (ringfort_access_log_dropped_total) until \
                 there is room and a reader"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::access::spec::Format;

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ringfort-access-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn log(&self) -> Target {
            Target::File(self.0.join("access.log"))
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn lines_of_every_worker_arrive_whole_and_a_moved_file_is_left() {
        let folder = Folder::new("moved");
        let mut log = AccessLog::default();
        log.follow(Some(&folder.log())).unwrap();
        let workers = [byte_ring(4_096), byte_ring(4_096)].map(|(producer, consumer)| {
            log.announce.send(consumer).unwrap();
            producer
        });
        for n in 0..20 {
            assert!(workers[n % 2].push(format!("line {n}\n").as_bytes()));
        }
        log.finish(LONG);
        assert_eq!(folder.read("access.log").lines().count(), 20);
        std::fs::rename(folder.0.join("access.log"), folder.0.join("access.log.1")).unwrap();
        assert!(workers[0].push(b"late\n"));
        log.finish(LONG);
        log.reopen();
        // What is on its way when it is told to may still go to the old one.
        log.finish(LONG);
        assert!(workers[1].push(b"new\n"));
        log.finish(LONG);
        assert!(folder.read("access.log.1").ends_with("late\n"));
        assert_eq!(folder.read("access.log"), "new\n");
    }

    #[test]
    fn workers_get_their_rings_with_the_first_configuration_that_has_a_log() {
        let folder = Folder::new("rings");
        let mut log = AccessLog::default();
        let made = |rings: Vec<Option<Producer>>| rings.into_iter().flatten().collect::<Vec<_>>();
        assert!(made(log.rings(None, 2)).is_empty());
        let (target, format, buffer_bytes) = (folder.log(), Format::Json, 65_536);
        let spec = AccessLogSpec { target, format, buffer_bytes, rules: Vec::new() };
        let rings = made(log.rings(Some(&spec), 2));
        assert!(rings.len() == 2 && rings.iter().all(|ring| ring.push(b"a line\n")));
        assert!(made(log.rings(Some(&spec), 2)).is_empty(), "they have them already");
        log.follow(Some(&spec.target)).unwrap();
        log.finish(LONG);
        assert_eq!(folder.read("access.log").lines().count(), 2);
    }

    /// A writer with lines of 1,000 bytes, and orders to go on elsewhere and then to end.
    fn busy(lines: usize, out: Out, then: Out) -> (Writer, Receiver<Order>) {
        let (producer, consumer) = byte_ring(lines * 1_008);
        let line = [&[b'x'; 999][..], b"\n"].concat();
        (0..lines).for_each(|_| assert!(producer.push(&line)));
        let (_announce, rings) = mpsc::channel();
        let (consumers, batch) = (vec![consumer], Batch::default());
        let (orders, inbox) = mpsc::channel();
        orders.send(Order::To(then)).unwrap();
        (Writer { rings, consumers, out: Some(out), batch, told_at: None }, inbox)
    }

    #[test]
    fn another_file_is_taken_also_while_lines_keep_coming() {
        let folder = Folder::new("busy");
        let open = |name: &str| Out::open(&Target::File(folder.0.join(name))).unwrap();
        let (writer, inbox) = busy(4_000, open("first"), open("second"));
        writer.run(&inbox);
        for name in ["first", "second"] {
            let text = folder.read(name);
            assert!(!text.is_empty() && text.lines().all(|line| line.len() == 999), "{name}");
        }
    }

    #[test]
    fn standard_output_that_nobody_reads_is_left_for_a_file() {
        let folder = Folder::new("stuck");
        let file = Out::open(&folder.log()).unwrap();
        let (reader, mut pipe) = io::pipe().unwrap();
        // With it the lines are more than it ever writes without a look at its orders.
        pipe.write_all(&[b'x'; 4_096]).unwrap();
        let stuck = Out { file: File::from(std::os::fd::OwnedFd::from(pipe)), may_block: true };
        let (writer, inbox) = busy(200, stuck, file);
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            writer.run(&inbox);
            let _ = ended.send(());
        });
        end.recv_timeout(LONG).expect("it does not wait for the reader");
        drop(reader);
        let text = folder.read("access.log");
        assert!(!text.is_empty() && text.lines().all(|line| line.len() == 999), "{} bytes", text.len());
    }

    #[test]
    fn a_full_disk_loses_lines_that_are_counted() {
        let mut log = AccessLog::default();
        log.follow(Some(&Target::File("/dev/full".into()))).unwrap();
        let (producer, consumer) = byte_ring(4_096);
        log.announce.send(consumer).unwrap();
        for _ in 0..3 {
            assert!(producer.push(b"a line\n"));
        }
        log.finish(LONG);
        assert_eq!(producer.lost(), 3);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_told_with_its_cure_and_the_last_one_stays() {
        let folder = Folder::new("kept");
        let mut log = AccessLog::default();
        log.follow(Some(&folder.log())).unwrap();
        let error = log.follow(Some(&Target::File(folder.0.join("none/access.log")))).unwrap_err();
        assert!(error.contains("none/access.log") && error.contains("make its folder"), "{error}");
        let (producer, consumer) = byte_ring(4_096);
        log.announce.send(consumer).unwrap();
        assert!(producer.push(b"a line\n"));
        log.finish(LONG);
        assert_eq!(folder.read("access.log"), "a line\n");
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_spoil_the_next() {
        let (producer, consumer) = byte_ring(4_096);
        let (_announce, rings) = mpsc::channel();
        let batch = Batch { bytes: b"first\nsecond\n".into(), written: 8, ..Batch::default() };
        let mut writer = Writer { rings, consumers: vec![consumer], out: None, batch, told_at: None };
        assert!(writer.give_up(&ErrorKind::StorageFull.into()));
        assert_eq!(producer.lost(), 1);
        assert!(producer.push(b"third\n"));
        writer.fill(0);
        assert_eq!(writer.batch.bytes, b"\nthird\n");
        assert!(writer.give_up(&ErrorKind::StorageFull.into()));
        assert_eq!(producer.lost(), 2);
        assert!(producer.push(b"fourth\n"));
        writer.fill(0);
        assert_eq!(writer.batch.bytes, b"\nfourth\n");
        writer.batch.begin_anew();
        assert_eq!(
            &writer.batch.bytes[writer.batch.written..],
            b"fourth\n",
            "another file begins with a line"
        );
        writer.batch.written = 4;
        writer.batch.begin_anew();
        assert_eq!(
            &writer.batch.bytes[writer.batch.written..],
            b"fourth\n",
            "and never with the rest of one"
        );
    }
}
