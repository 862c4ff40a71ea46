//! What a client may not send and the `h2` crate lets pass, or ends with another code than RFC 9113 names: frames of a
//! wrong length, frames on streams that the client has ended, settings out of range. Judges frame headers and settings;
//! never holds a frame and never sends anything.

use super::tap::{Frame, kind};

/// Streams that the client ended most recently, of which it is remembered that it did. The crate tells for the others.
const ENDED_REMEMBERED: usize = 16;
/// RFC 9113 §6.9.1.
const WINDOW_BYTES_MAX: u32 = u32::MAX >> 1;
/// RFC 9113 §6.5.2.
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// An error of the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Violation {
    /// The first frame is none of SETTINGS: PROTOCOL_ERROR (RFC 9113 §3.4).
    NoSettings,
    /// A frame of a length that its type does not have: FRAME_SIZE_ERROR (§6).
    FrameSize,
    /// PUSH_PROMISE of a client: PROTOCOL_ERROR (§8.4).
    Push,
    /// A window larger than there are: FLOW_CONTROL_ERROR (§6.5.2).
    Window,
    /// DATA or HEADERS on a stream that the client has ended or reset: STREAM_CLOSED (§5.1). An error of the stream may
    /// be treated as one of the connection (§5.4.1): whoever does this does not know its streams.
    StreamClosed,
}

impl Violation {
    /// The code of the GOAWAY that ends the connection (RFC 9113 §7).
    pub(super) const fn reason(self) -> h2::Reason {
        match self {
            Self::NoSettings | Self::Push => h2::Reason::PROTOCOL_ERROR,
            Self::FrameSize => h2::Reason::FRAME_SIZE_ERROR,
            Self::Window => h2::Reason::FLOW_CONTROL_ERROR,
            Self::StreamClosed => h2::Reason::STREAM_CLOSED,
        }
    }
}

/// What is remembered of one direction to judge its frames.
#[derive(Debug)]
pub(super) struct Rules {
    /// Whether the peer is a client: then streams are its own.
    of_client: bool,
    started: bool,
    stream_last: u32,
    ended: [u32; ENDED_REMEMBERED],
    ended_at: usize,
    /// A field block began and its last frame has not: whatever else comes is the crate's to judge (§6.10).
    block_open: bool,
}

impl Rules {
    pub(super) const fn new(of_client: bool) -> Self {
        let ended = [0; ENDED_REMEMBERED];
        Self { of_client, started: false, stream_last: 0, ended, ended_at: 0, block_open: false }
    }

    pub(super) fn judge(&mut self, frame: Frame) -> Option<Violation> {
        if !std::mem::replace(&mut self.started, true) && frame.kind != kind::SETTINGS {
            return Some(Violation::NoSettings);
        }
        if is_misfit(frame) {
            return Some(Violation::FrameSize);
        }
        if !self.of_client {
            return None;
        }
        let in_block = self.block_open;
        if matches!(frame.kind, kind::HEADERS | kind::CONTINUATION) {
            self.block_open = frame.flags & END_HEADERS == 0;
        }
        match frame.kind {
            _ if in_block => None,
            kind::PUSH_PROMISE => Some(Violation::Push),
            kind::DATA | kind::HEADERS => {
                let begins = frame.kind == kind::HEADERS && frame.stream > self.stream_last;
                if begins {
                    self.stream_last = frame.stream;
                } else if self.ended.contains(&frame.stream) && frame.stream != 0 {
                    return Some(Violation::StreamClosed);
                }
                if frame.flags & END_STREAM != 0 {
                    self.end(frame.stream);
                }
                None
            }
            kind::RST_STREAM => {
                self.end(frame.stream);
                None
            }
            _ => None,
        }
    }

    fn end(&mut self, stream: u32) {
        // An idle stream cannot end: the crate says so.
        if stream <= self.stream_last {
            self.ended[self.ended_at] = stream;
            self.ended_at = (self.ended_at + 1) % ENDED_REMEMBERED;
        }
    }
}

/// Judges one setting (RFC 9113 §6.5.1).
pub(super) const fn judge_setting(setting: [u8; 6]) -> Option<Violation> {
    let [a, b, value @ ..] = setting;
    let too_large = u32::from_be_bytes(value) > WINDOW_BYTES_MAX;
    if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE && too_large {
        Some(Violation::Window)
    } else {
        None
    }
}

/// Whether frames of its type never have this length.
const fn is_misfit(frame: Frame) -> bool {
    match frame.kind {
        kind::PRIORITY => frame.len != 5,
        kind::RST_STREAM | kind::WINDOW_UPDATE => frame.len != 4,
        kind::SETTINGS => !frame.len.is_multiple_of(6) || (frame.flags & ACK != 0 && frame.len > 0),
        kind::PING => frame.len != 8,
        kind::GOAWAY => frame.len < 8,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32) -> Frame {
        let len = if kind == kind::RST_STREAM { 4 } else { 0 };
        let flags = if kind == kind::HEADERS && stream != 13 { flags | END_HEADERS } else { flags };
        Frame { len, kind, flags, stream }
    }

    fn rules() -> Rules {
        let mut rules = Rules::new(true);
        assert_eq!(rules.judge(frame(kind::SETTINGS, 0, 0)), None);
        rules
    }

    #[test]
    fn a_stream_that_the_client_ended_takes_no_more() {
        for end in [
            &[frame(kind::HEADERS, END_STREAM, 5)][..],
            &[frame(kind::HEADERS, 0, 5), frame(kind::DATA, END_STREAM, 5)],
            &[frame(kind::HEADERS, 0, 5), frame(kind::HEADERS, END_STREAM, 5)],
            &[frame(kind::HEADERS, 0, 5), frame(kind::RST_STREAM, 0, 5)],
        ] {
            for more in [frame(kind::DATA, 0, 5), frame(kind::HEADERS, END_STREAM, 5)] {
                let mut rules = rules();
                assert!(end.iter().all(|frame| rules.judge(*frame).is_none()));
                assert_eq!(rules.judge(frame(kind::HEADERS, END_STREAM, 7)), None);
                assert_eq!(rules.judge(frame(kind::RST_STREAM, 0, 5)), None);
                assert_eq!(rules.judge(more), Some(Violation::StreamClosed));
            }
        }
    }

    #[test]
    fn streams_that_did_not_end_are_left_to_the_crate() {
        let mut rules = rules();
        for frame in [
            frame(kind::HEADERS, 0, 9),
            frame(kind::DATA, 0, 9),
            frame(kind::HEADERS, END_STREAM, 3),
            frame(kind::RST_STREAM, 0, 11),
            frame(kind::HEADERS, 0, 11),
            frame(kind::DATA, 0, 0),
            frame(kind::HEADERS, END_STREAM, 13),
            frame(kind::DATA, 0, 13),
            frame(kind::CONTINUATION, END_HEADERS, 13),
        ] {
            assert_eq!(rules.judge(frame), None, "{frame:?}");
        }
    }

    #[test]
    fn an_endpoint_is_not_judged_as_a_client() {
        let mut rules = Rules::new(false);
        assert_eq!(rules.judge(frame(kind::SETTINGS, 0, 0)), None);
        for _ in 0..2 {
            assert_eq!(rules.judge(frame(kind::HEADERS, END_STREAM, 1)), None);
        }
        assert_eq!(rules.judge(frame(kind::PING, 0, 0)), Some(Violation::FrameSize));
    }

    #[test]
    fn only_an_initial_window_can_be_too_large() {
        assert_eq!(judge_setting([0, 4, 0x80, 0, 0, 0]), Some(Violation::Window));
        assert_eq!(judge_setting([0, 4, 0x7f, 0xff, 0xff, 0xff]), None);
        assert_eq!(judge_setting([0, 3, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
