//! The caller's side of the admin Unix socket, for commands that change the running gateway. Knows no command.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A reload may take its time; all else is answered from memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Where the socket is when the configuration does not say, in order of preference.
pub fn default_paths() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let bases = [Some(PathBuf::from("/run")), runtime];
    bases.into_iter().flatten().map(|base| base.join("ringfort/admin.sock")).collect()
}

/// What the gateway said.
#[derive(Debug, Eq, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub const fn is_good(&self) -> bool {
        self.status / 100 == 2
    }

    /// What a refusal says is wrong, a line each; the whole answer where it does not say.
    pub fn problems(&self) -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        let problems = value["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
        let texts: Vec<String> =
            problems.iter().filter_map(|problem| problem.as_str().map(ToOwned::to_owned)).collect();
        if texts.is_empty() { vec![format!("{}: {}", self.status, self.body.trim_end())] } else { texts }
    }
}

/// Sends `POST path` and waits for the answer. Without a socket path the default ones are tried. An error is a text
/// for the operator.
pub fn post(path: &str, socket: Option<&Path>) -> Result<Answer, String> {
    let candidates = socket.map_or_else(default_paths, |socket| vec![socket.into()]);
    let mut causes = Vec::new();
    for candidate in candidates {
        match UnixStream::connect(&candidate) {
            Ok(stream) => {
                let failed = |error| format!("{}: no answer: {error}", candidate.display());
                return exchange(stream, path).map_err(failed);
            }
            Err(error) => causes.push(format!("{}: {error}", candidate.display())),
        }
    }
    Err(format!(
        "no gateway answers ({}); is it running? name its admin.socket with --socket, as its user or root",
        causes.join("; ")
    ))
}

fn exchange(mut stream: UnixStream, path: &str) -> io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    write!(stream, "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

/// The gateway closes behind its answer, so the body is the rest.
fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let answer = parse("HTTP/1.0 202 Accepted\r\nContent-Length: 3\r\n\r\nok\n").unwrap();
        assert_eq!(answer, Answer { status: 202, body: "ok\n".into() });
        assert!(answer.is_good());
        assert!(!parse("HTTP/1.1 405 Method Not Allowed\r\n\r\n").unwrap().is_good());
        let refused = "HTTP/1.0 422 X\r\n\r\n{\"problems\":[\"a.toml:1:1: error: x\",\"b\"]}";
        assert_eq!(parse(refused).unwrap().problems(), ["a.toml:1:1: error: x", "b"]);
        let other = parse("HTTP/1.0 403 X\r\n\r\nno\n").unwrap();
        assert_eq!(other.problems(), ["403: no"]);
        for text in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 x y\r\n\r\n"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn nobody_there_is_told_with_its_cure() {
        let error = post("/drain", Some(Path::new("/nonexistent.sock"))).unwrap_err();
        assert!(error.contains("/nonexistent.sock: No such file") && error.contains("--socket"), "{error}");
    }

    #[test]
    fn a_peer_that_closes_without_an_answer_is_an_error() {
        let path = std::env::temp_dir().join(format!("ringfort-mute-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let mute = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request).unwrap();
        });
        let error = post("/drain", Some(&path)).unwrap_err();
        assert!(error.contains("no answer"), "{error}");
        mute.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
