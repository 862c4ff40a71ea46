//! Looks at the frame headers of one direction of an HTTP/2 connection as the bytes pass: counts what costs the other
//! side nothing and us something. The crate above decides what frames mean; this decides when a peer is no peer but a
//! flood (one number a connection, as HAProxy's glitches). Never holds or changes a byte.

use std::cell::Cell;
use std::time::Duration;

use crate::base::time::Instant;

use super::rules::{INITIAL_WINDOW_SIZE, Rules, Violation, judge_setting};

/// RFC 9113 §6.5.2.
const INITIAL_WINDOW_BYTES: u32 = 65_535;
/// A peer is suspect from such a part of its glitches on.
const SUSPECT_PART: u32 = 16;

/// Bytes of a frame header (RFC 9113 §4.1).
const HEADER_BYTES: usize = 9;
/// Bytes of one setting (§6.5.1).
const SETTING_BYTES: usize = 6;
/// WINDOW_UPDATE frames for each DATA frame we sent (CVE-2019-9511 is millions of them).
const WINDOW_UPDATES_PER_DATA: u32 = 10;
/// Unpaid WINDOW_UPDATE and PING frames before they count: what a connection begins with, and its pauses.
const ALLOWANCE_MAX: u32 = 1_000;
/// Streams in a row that may cost more than their frames: a reader that rests leaves one response untaken, one that
/// holds our memory all of them; a client with too many cookies asks a few times, a bomb comes in thousands.
const OFFENCES_MAX: u32 = 16;
/// One glitch is forgiven in this time: keep-alive frames of a connection that lasts for days.
const FORGIVEN_EVERY: Duration = Duration::from_millis(100);

/// RFC 9113 §6, and what RFC 9218 adds.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const PRIORITY: u8 = 2;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// Codes of RST_STREAM that answer what the peer did: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED,
/// FRAME_SIZE_ERROR, and REFUSED_STREAM for one above the limit. With others we tell of ourselves or of an endpoint.
const PROVOKED: [u32; 5] = [1, 3, 5, 6, REFUSED_STREAM];
const REFUSED_STREAM: u32 = 7;

/// A frame header.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frame {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

/// Finds the frame headers in a stream of bytes.
#[derive(Debug, Default)]
struct Scanner {
    /// Bytes that come before the first frame, or of the present payload.
    skip: usize,
    header: [u8; HEADER_BYTES],
    have: usize,
    /// The bytes of a payload that are looked into: what tells of a reset or a GOAWAY, or one setting.
    payload: [u8; SETTING_BYTES],
    payload_have: usize,
    payload_want: usize,
    frame: Frame,
    /// Bytes seen of payloads of DATA, and of what comes before the first frame.
    data_bytes: u64,
}

impl Scanner {
    const fn new(skip: usize) -> Self {
        let frame = Frame { len: 0, kind: 0, flags: 0, stream: 0 };
        let (header, payload) = ([0; HEADER_BYTES], [0; SETTING_BYTES]);
        Self { skip, header, have: 0, payload, payload_have: 0, payload_want: 0, frame, data_bytes: 0 }
    }

    /// Calls `on_frame` for each header, and `on_payload` with the bytes that tell of a reset or a GOAWAY (the first
    /// four), or of each setting.
    fn scan(
        &mut self,
        mut bytes: &[u8],
        mut on_frame: impl FnMut(Frame),
        mut on_payload: impl FnMut(Frame, [u8; SETTING_BYTES]),
    ) {
        while !bytes.is_empty() {
            if self.payload_have < self.payload_want {
                self.payload[self.payload_have] = bytes[0];
                self.payload_have += 1;
                self.skip -= 1;
                bytes = &bytes[1..];
                if self.payload_have == self.payload_want {
                    on_payload(self.frame, self.payload);
                    self.look_into(self.frame.kind == kind::SETTINGS);
                }
                continue;
            }
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            if self.frame.kind == kind::DATA {
                self.data_bytes += skipped as u64;
            }
            bytes = &bytes[skipped..];
            let taken = (HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER_BYTES {
                self.have = 0;
                let [a, b, c, kind, flags, d, e, f, g] = self.header;
                let len = u32::from_be_bytes([0, a, b, c]) as usize;
                let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
                self.frame = Frame { len, kind, flags, stream };
                self.skip = len;
                self.look_into(matches!(kind, kind::RST_STREAM | kind::GOAWAY | kind::SETTINGS));
                on_frame(self.frame);
            }
        }
    }

    /// Has what follows of the payload looked into, if there is enough.
    fn look_into(&mut self, wanted: bool) {
        let want = if self.frame.kind == kind::SETTINGS { SETTING_BYTES } else { 4 };
        self.payload_have = 0;
        self.payload_want = if wanted && self.skip >= want { want } else { 0 };
    }

    const fn data_left(&self) -> usize {
        if self.frame.kind == kind::DATA { self.skip } else { 0 }
    }

    /// Whether a HEADERS or CONTINUATION frame has begun and not ended.
    const fn inside_block(&self) -> bool {
        self.skip > 0 && matches!(self.frame.kind, kind::HEADERS | kind::CONTINUATION)
    }
}

const fn word_of([a, b, c, d, ..]: [u8; SETTING_BYTES]) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// Both directions of one connection, and the verdict.
#[derive(Debug)]
pub(super) struct Tap {
    input: Scanner,
    output: Scanner,
    glitches: u32,
    glitches_total: u64,
    glitches_max: u32,
    forgiven_at: Instant,
    window_updates_free: u32,
    pings_free: u32,
    /// A field block began and its last frame has not.
    block_open: bool,
    /// Field blocks begun.
    blocks: u64,
    /// Frames that the peer began.
    frames: u64,
    /// DATA frames received that carry nothing and end nothing.
    empty_data: u64,
    /// What the peer lets each stream begin with.
    stream_window: u32,
    goaway: Option<u32>,
    goaways_sent: u64,
    /// SETTINGS of ours that the peer has not acknowledged.
    settings_owed: u32,
    rules: Rules,
    /// DATA frames sent that carry something.
    data_sent: u64,
    /// Resets with REFUSED_STREAM to come that the peer did nothing for.
    pardoned: u32,
    violation: Option<Violation>,
}

impl Tap {
    /// `preface_bytes`: what the peer sends before its first frame; `own_preface_bytes`: what we do.
    pub(super) const fn new(
        preface_bytes: usize,
        own_preface_bytes: usize,
        glitches_max: u32,
        now: Instant,
    ) -> Self {
        Self {
            input: Scanner::new(preface_bytes),
            output: Scanner::new(own_preface_bytes),
            glitches: 0,
            glitches_total: 0,
            glitches_max,
            forgiven_at: now,
            window_updates_free: ALLOWANCE_MAX,
            pings_free: ALLOWANCE_MAX,
            block_open: false,
            blocks: 0,
            frames: 0,
            empty_data: 0,
            stream_window: INITIAL_WINDOW_BYTES,
            goaway: None,
            goaways_sent: 0,
            settings_owed: 0,
            rules: Rules::new(preface_bytes > 0),
            data_sent: 0,
            pardoned: 0,
            violation: None,
        }
    }

    /// What the peer sent.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        let Self { input, glitches, glitches_total, window_updates_free, pings_free, goaway, .. } = self;
        let (block_open, blocks, frames) = (&mut self.block_open, &mut self.blocks, &mut self.frames);
        let (settings_owed, empty_data) = (&mut self.settings_owed, &mut self.empty_data);
        let stream_window = &mut self.stream_window;
        let (rules, violation) = (&mut self.rules, Cell::from_mut(&mut self.violation));
        let mut glitch = || {
            *glitches = glitches.saturating_add(1);
            *glitches_total += 1;
        };
        let on_frame = |frame: Frame| {
            *frames += 1;
            violation.set(violation.get().or_else(|| rules.judge(frame)));
            match frame.kind {
                kind::DATA => {
                    let empty = if frame.flags & PADDED != 0 { frame.len <= 1 } else { frame.len == 0 };
                    if empty && frame.flags & END_STREAM == 0 {
                        *empty_data += 1;
                        glitch();
                    } else {
                        *pings_free = (*pings_free + 1).min(ALLOWANCE_MAX);
                    }
                }
                kind::HEADERS => {
                    *block_open = frame.flags & END_HEADERS == 0;
                    *blocks += 1;
                    if frame.len == 0 {
                        glitch();
                    }
                }
                kind::CONTINUATION => {
                    *block_open &= frame.flags & END_HEADERS == 0;
                    glitch();
                }
                kind::WINDOW_UPDATE if *window_updates_free > 0 => *window_updates_free -= 1,
                kind::PING if frame.flags & ACK != 0 => {}
                kind::PING if *pings_free > 0 => *pings_free -= 1,
                kind::SETTINGS if frame.flags & ACK != 0 => *settings_owed = settings_owed.saturating_sub(1),
                kind::GOAWAY | kind::PUSH_PROMISE => {}
                // RST_STREAM, PRIORITY, SETTINGS, unknown ones, and what exceeds its allowance.
                _ => glitch(),
            }
        };
        input.scan(bytes, on_frame, |frame, payload| match frame.kind {
            kind::GOAWAY => *goaway = Some(word_of(payload) & (u32::MAX >> 1)),
            kind::SETTINGS => {
                violation.set(violation.get().or_else(|| judge_setting(payload)));
                let [a, b, value @ ..] = payload;
                if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
                    *stream_window = u32::from_be_bytes(value);
                }
            }
            _ => {}
        });
    }

    /// Frames that began, of any kind.
    pub(super) const fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes that each stream may send before the peer opens its window.
    pub(super) const fn stream_window(&self) -> u32 {
        self.stream_window
    }

    /// DATA frames that carry nothing and end nothing.
    pub(super) const fn empty_data(&self) -> u64 {
        self.empty_data
    }

    /// Whether the peer's first frame, its SETTINGS (RFC 9113 §3.4), came whole.
    pub(super) const fn has_settings(&self) -> bool {
        self.frames > 1 || (self.frames == 1 && self.input.skip == 0)
    }

    /// What we send.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        let Self { output, glitches, glitches_total, window_updates_free, pings_free, .. } = self;
        let (goaways_sent, settings_owed) = (&mut self.goaways_sent, &mut self.settings_owed);
        let (data_sent, pardoned) = (&mut self.data_sent, &mut self.pardoned);
        let mut provoked = 0;
        let mut finished = 0;
        let on_frame = |frame: Frame| {
            if frame.kind == kind::DATA && frame.len > 0 {
                *data_sent += 1;
                *window_updates_free = (*window_updates_free + WINDOW_UPDATES_PER_DATA).min(ALLOWANCE_MAX);
                *pings_free = (*pings_free + 1).min(ALLOWANCE_MAX);
            }
            if matches!(frame.kind, kind::DATA | kind::HEADERS) && frame.flags & END_STREAM != 0 {
                finished += 1;
            }
            match frame.kind {
                kind::GOAWAY => *goaways_sent += 1,
                kind::SETTINGS if frame.flags & ACK == 0 => *settings_owed += 1,
                _ => {}
            }
        };
        output.scan(bytes, on_frame, |frame, payload| {
            if frame.kind != kind::RST_STREAM {
                return;
            }
            match word_of(payload) {
                REFUSED_STREAM if *pardoned > 0 => *pardoned -= 1,
                code => provoked += u32::from(PROVOKED.contains(&code)),
            }
        });
        // What the peer made us reset counts (CVE-2025-8671); a response brought to its end pays for one glitch.
        *glitches = glitches.saturating_add(provoked).saturating_sub(finished);
        *glitches_total += u64::from(provoked);
    }

    /// The next stream that is refused is refused for our own reasons.
    pub(super) fn pardon(&mut self) {
        self.pardoned = self.pardoned.saturating_add(1);
    }

    /// So many streams cost more than their frames.
    pub(super) fn offended(&mut self, streams: u32) {
        let cost = streams.saturating_mul(self.glitches_max / OFFENCES_MAX);
        self.glitches = self.glitches.saturating_add(cost);
        self.glitches_total += u64::from(cost);
    }

    /// Whether the peer has had all its glitches: what else it sent is not looked at.
    pub(super) const fn is_spent(&self) -> bool {
        self.glitches > self.glitches_max
    }

    /// Whether the peer has had so many that it is to wait more often than others.
    pub(super) const fn is_suspect(&self) -> bool {
        self.glitches > self.glitches_max / SUSPECT_PART
    }

    /// DATA frames sent that carry something.
    pub(super) const fn data_sent(&self) -> u64 {
        self.data_sent
    }

    /// Whether the peer costs more than it may. Forgives what time forgives.
    pub(super) fn is_excessive(&mut self, now: Instant) -> bool {
        if self.is_spent() {
            return true;
        }
        let elapsed = now.since(self.forgiven_at);
        if elapsed >= FORGIVEN_EVERY {
            let forgiven =
                u32::try_from(elapsed.as_millis() / FORGIVEN_EVERY.as_millis()).unwrap_or(u32::MAX);
            self.glitches = self.glitches.saturating_sub(forgiven);
            self.forgiven_at = now;
        }
        false
    }

    /// What the peer did that ends the connection and that the crate lets pass, or has another word for.
    pub(super) const fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Glitches so far, forgiven or not.
    pub(super) const fn glitches_total(&self) -> u64 {
        self.glitches_total
    }

    /// The last stream the peer said it would process, once it sent GOAWAY.
    pub(super) const fn goaway(&self) -> Option<u32> {
        self.goaway
    }

    pub(super) const fn goaways_sent(&self) -> u64 {
        self.goaways_sent
    }

    /// Whether the peer has not acknowledged our SETTINGS.
    pub(super) const fn owes_settings_ack(&self) -> bool {
        self.settings_owed > 0
    }

    /// What is still to come of the DATA frame that has begun.
    pub(super) const fn data_left(&self) -> usize {
        self.input.data_left()
    }

    /// Bytes of payloads of DATA that came, which nobody has to make sense of.
    pub(super) const fn data_received(&self) -> u64 {
        self.input.data_bytes
    }

    /// Field blocks begun so far.
    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The number of the field block whose rest the peer owes, if it does.
    pub(super) fn open_block(&self) -> Option<u64> {
        (self.block_open || self.input.inside_block()).then_some(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize, kind: u8, flags: u8) -> Vec<u8> {
        let [_, a, b, c] = (len as u32).to_be_bytes();
        let mut bytes = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEADER_BYTES + len, 0);
        bytes
    }

    /// Of a connection whose SETTINGS came.
    fn tap() -> Tap {
        let mut tap = Tap::new(0, 0, 100, Instant::ZERO);
        tap.received(&frame(0, kind::SETTINGS, ACK));
        tap
    }

    fn flood(one: &[u8], count: usize) -> bool {
        let mut tap = tap();
        for _ in 0..count {
            tap.received(one);
        }
        tap.is_excessive(Instant::ZERO)
    }

    #[test]
    fn payloads_of_data_are_counted_apart() {
        let bytes = [frame(7, kind::HEADERS, END_HEADERS), frame(200, kind::DATA, 0)].concat();
        let mut tap = tap();
        bytes.chunks(13).for_each(|piece| tap.received(piece));
        assert_eq!(tap.data_received(), 200);
    }

    #[test]
    fn cheap_frames_are_a_flood_once_there_are_many() {
        for (name, one) in [
            ("reset", frame(4, kind::RST_STREAM, 0)),
            ("continuation", frame(0, kind::CONTINUATION, 0)),
            ("empty data", frame(0, kind::DATA, 0)),
            ("padded empty data", frame(1, kind::DATA, PADDED)),
            ("settings", frame(0, kind::SETTINGS, 0)),
            ("priority", frame(5, kind::PRIORITY, 0)),
            ("empty headers", frame(0, kind::HEADERS, END_HEADERS)),
            ("unknown", frame(3, 0x77, 0)),
        ] {
            assert!(flood(&one, 101), "{name}");
            assert!(!flood(&one, 100), "{name}");
        }
        for (name, one) in
            [("ping", frame(8, kind::PING, 0)), ("window update", frame(4, kind::WINDOW_UPDATE, 0))]
        {
            assert!(flood(&one, 1_101), "{name}");
            assert!(!flood(&one, 1_100), "{name}");
        }
        for (name, one) in [
            ("data", frame(1, kind::DATA, 0)),
            ("end of stream", frame(0, kind::DATA, END_STREAM)),
            ("headers", frame(5, kind::HEADERS, END_HEADERS)),
            ("ping ack", frame(8, kind::PING, ACK)),
        ] {
            assert!(!flood(&one, 10_000), "{name}");
        }
    }

    #[test]
    fn the_rest_of_a_data_frame_is_known() {
        let mut tap = tap();
        assert_eq!(tap.data_left(), 0);
        tap.received(&frame(300, kind::DATA, 0)[..109]);
        assert_eq!(tap.data_left(), 200);
        tap.received(&[0; 200]);
        assert_eq!(tap.data_left(), 0);
        tap.received(&frame(300, kind::HEADERS, 0)[..109]);
        assert_eq!(tap.data_left(), 0);
    }

    #[test]
    fn frames_are_found_at_any_split() {
        let mut bytes = b"preface".to_vec();
        for _ in 0..20 {
            bytes.extend(frame(300, kind::DATA, 0));
            bytes.extend(frame(4, kind::RST_STREAM, 0));
        }
        let mut goaway = frame(8, kind::GOAWAY, 0);
        goaway[9..13].copy_from_slice(&77_u32.to_be_bytes());
        bytes.extend(goaway);
        for split in 1..40 {
            let mut tap = Tap::new(7, 0, 100, Instant::ZERO);
            bytes.chunks(split).for_each(|piece| tap.received(piece));
            assert_eq!(
                (tap.glitches_total(), tap.goaway(), tap.open_block()),
                (20, Some(77), None),
                "{split}"
            );
        }
    }

    #[test]
    fn responses_pay_for_resets_and_time_forgives() {
        let mut tap = tap();
        for _ in 0..1_000 {
            tap.received(&frame(4, kind::RST_STREAM, 0));
            tap.sent(&frame(5, kind::HEADERS, END_STREAM | END_HEADERS));
        }
        assert!(!tap.is_excessive(Instant::ZERO));
        for _ in 0..100 {
            tap.received(&frame(4, kind::RST_STREAM, 0));
        }
        assert!(!tap.is_excessive(Instant::ZERO + Duration::from_secs(5)));
        for _ in 0..51 {
            tap.received(&frame(4, kind::RST_STREAM, 0));
        }
        assert!(tap.is_excessive(Instant::ZERO + Duration::from_secs(5)));
    }

    #[test]
    fn resets_that_the_peer_provoked_count_and_cancels_do_not() {
        let mut tap = tap();
        let mut reset = frame(4, kind::RST_STREAM, 0);
        reset[12] = 8;
        (0..1_000).for_each(|_| tap.sent(&reset));
        assert!(!tap.is_excessive(Instant::ZERO));
        reset[12] = 1;
        (0..101).for_each(|_| tap.sent(&reset));
        assert!(tap.is_excessive(Instant::ZERO));
    }

    #[test]
    fn streams_that_we_refuse_for_our_own_reasons_do_not_count() {
        let mut tap = tap();
        let mut refused = frame(4, kind::RST_STREAM, 0);
        refused[12] = 7;
        for _ in 0..1_000 {
            tap.pardon();
            tap.sent(&refused);
        }
        assert_eq!(tap.glitches_total(), 0);
        (0..101).for_each(|_| tap.sent(&refused));
        assert!(tap.is_excessive(Instant::ZERO));
    }

    #[test]
    fn the_first_frame_is_settings() {
        for (kind, violation) in [(kind::SETTINGS, None), (kind::PING, Some(Violation::NoSettings))] {
            let mut tap = Tap::new(0, 0, 100, Instant::ZERO);
            tap.received(&frame(if kind == kind::PING { 8 } else { 0 }, kind, 0));
            assert_eq!(tap.violation(), violation);
        }
    }

    #[test]
    fn frames_of_a_wrong_length_are_misfits() {
        for (kind, flags, good, bad) in [
            (kind::PRIORITY, 0, 5, 4),
            (kind::RST_STREAM, 0, 4, 3),
            (kind::SETTINGS, 0, 12, 5),
            (kind::SETTINGS, ACK, 0, 6),
            (kind::PING, 0, 8, 7),
            (kind::GOAWAY, 0, 9, 7),
            (kind::WINDOW_UPDATE, 0, 4, 3),
        ] {
            for (len, misfit) in [(good, false), (bad, true)] {
                let mut tap = tap();
                tap.received(&frame(len, kind, flags));
                assert_eq!(tap.violation().is_some(), misfit, "{kind} {len}");
            }
        }
    }

    #[test]
    fn our_settings_are_owed_an_acknowledgement() {
        let mut tap = tap();
        tap.sent(&frame(6, kind::SETTINGS, 0));
        tap.sent(&frame(0, kind::SETTINGS, ACK));
        tap.received(&frame(0, kind::SETTINGS, 0));
        assert!(tap.owes_settings_ack());
        tap.received(&frame(0, kind::SETTINGS, ACK));
        assert!(!tap.owes_settings_ack());
    }

    #[test]
    fn offences_cost_more_than_frames() {
        let mut tap = Tap::new(0, 0, 160, Instant::ZERO);
        tap.offended(16);
        assert!(!tap.is_excessive(Instant::ZERO));
        tap.offended(1);
        assert!(tap.is_excessive(Instant::ZERO));
    }

    #[test]
    fn a_peer_that_stops_inside_a_field_block_owes_the_rest() {
        let mut tap = tap();
        tap.received(&frame(5, kind::HEADERS, 0));
        assert_eq!(tap.open_block(), Some(1));
        tap.received(&frame(5, kind::CONTINUATION, END_HEADERS));
        assert_eq!(tap.open_block(), None);
        tap.received(&frame(5, kind::HEADERS, END_HEADERS)[..10]);
        assert_eq!(tap.open_block(), Some(2));
    }
}
