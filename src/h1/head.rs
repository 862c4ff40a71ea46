//! What the heads of requests and responses share: their end, their lines, one pass over their fields.
//! `httparse` finds tokens; what it lets pass (bare LF, repeated empty lines) is refused here.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::http::field_kind::{FieldKind, classify};
use crate::http::framing::LengthFields;
use crate::http::{Reject, trim_ows};
use crate::limits;

/// How large a head may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeadLimits {
    /// Request or status line and fields together, with the empty line that ends them.
    pub head_bytes_max: usize,
    pub target_bytes_max: usize,
    /// At most `limits::FIELDS_CEILING` count.
    pub fields_max: usize,
}

impl HeadLimits {
    /// For heads that we wrote: what came from others in them was measured when it came.
    pub const OURS: Self = Self {
        head_bytes_max: usize::MAX >> 1,
        target_bytes_max: usize::MAX >> 1,
        fields_max: limits::FIELDS_CEILING,
    };
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            head_bytes_max: limits::HEAD_BYTES_MAX_DEFAULT,
            target_bytes_max: limits::TARGET_BYTES_MAX_DEFAULT,
            fields_max: limits::FIELDS_MAX_DEFAULT,
        }
    }
}

/// Room for the fields of one head, on the caller's stack. Not initialised, so making it costs nothing.
pub struct FieldSlots<'b>(pub(super) [MaybeUninit<httparse::Header<'b>>; limits::FIELDS_CEILING]);

impl FieldSlots<'_> {
    #[inline(always)]
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; limits::FIELDS_CEILING])
    }
}

impl Default for FieldSlots<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the bytes so far hold a whole head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed<T> {
    Complete(T),
    /// More bytes are needed, and more are allowed.
    Partial,
}

/// Finds the empty line that ends a head and returns the length up to and with it. `scanned` bytes were looked at
/// by an earlier call that found nothing: a head that arrives in drips costs linear work. Also ends at an empty
/// line made of bare LF, so that the parser gets to refuse it.
pub fn find_head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    // The ending may have begun in what was scanned: LF, or LF CR.
    let from = scanned.saturating_sub(2).min(bytes.len());
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at + 1).find_map(|next| match bytes[next..] {
        [b'\n', ..] => Some(next + 1),
        [b'\r', b'\n', ..] => Some(next + 2),
        _ => None,
    })
}

/// A set of field positions within one head.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct FieldSet([u64; limits::FIELDS_CEILING / 64]);

impl FieldSet {
    #[inline]
    pub(super) fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    #[inline]
    pub(super) fn contains(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; limits::FIELDS_CEILING / 64]
    }

    pub(super) fn union(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
        self
    }

    /// In ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word_index, mut word)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
                word &= word - 1;
                Some(word_index * 64 + bit)
            })
        })
    }
}

/// The field lines of one head: the parsed fields, and the raw lines for copying. Every line ends in CRLF.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldLines<'h, 'b> {
    /// The whole head, from the first byte of its first line.
    raw: &'b [u8],
    pub(super) fields: &'h [httparse::Header<'b>],
}

impl<'h, 'b> FieldLines<'h, 'b> {
    /// `raw` is a head as `httparse` accepted it, `fields` what it found there. Refuses bare LF line ends.
    #[inline]
    fn check(raw: &'b [u8], fields: &'h [httparse::Header<'b>]) -> Result<Self, Reject> {
        let lines = Self { raw, fields };
        // Lines follow one another without a gap, so what stands before a name is the end of the line before.
        let all_crlf =
            raw.ends_with(b"\r\n\r\n") && (0..fields.len()).all(|index| raw[lines.start(index) - 2] == b'\r');
        if all_crlf { Ok(lines) } else { Err(Reject::BAD_LINE_END) }
    }

    /// Where a field's line starts in `raw`.
    #[inline]
    fn start(&self, index: usize) -> usize {
        self.fields[index].name.as_ptr().addr() - self.raw.as_ptr().addr()
    }

    /// Appends all field lines but those in `without`, as they came. Neighbours are copied together.
    #[inline]
    pub(super) fn copy(&self, out: &mut Vec<u8>, without: &FieldSet) {
        if self.fields.is_empty() {
            return;
        }
        let end = self.raw.len() - 2;
        let mut from = self.start(0);
        for index in without.iter() {
            let line = self.line(index);
            if from < line.start {
                out.extend_from_slice(&self.raw[from..line.start]);
            }
            from = line.end;
        }
        out.extend_from_slice(&self.raw[from..end]);
    }

    #[inline]
    fn line(&self, index: usize) -> Range<usize> {
        let end = if index + 1 < self.fields.len() { self.start(index + 1) } else { self.raw.len() - 2 };
        self.start(index)..end
    }

    pub(super) fn len(&self) -> usize {
        self.raw.len()
    }

    pub(super) fn find(&self, name: &str) -> Option<&'b [u8]> {
        self.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

/// What the known fields of one head say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts<'b> {
    pub(super) lengths: LengthFields<'b>,
    pub(super) host: Option<&'b [u8]>,
    pub(super) host_repeated: bool,
    pub(super) upgrade: Option<&'b [u8]>,
    pub(super) upgrade_repeated: bool,
    pub(super) expect: Option<&'b [u8]>,
    pub(super) expect_repeated: bool,
    pub(super) max_forwards: Option<&'b [u8]>,
    pub(super) te_trailers: bool,
    pub(super) has_date: bool,
    pub(super) connection: ConnectionOptions,
    /// Never copied to the other side: hop by hop, or written anew from what was decided.
    pub(super) dropped: FieldSet,
    /// `X-Forwarded-*` and its like, whose fate the policy decides.
    pub(super) forwarded: FieldSet,
    /// `Trailer` and `Upgrade`, which stay where what they announce does.
    pub(super) trailer: FieldSet,
    pub(super) upgrades: FieldSet,
}

/// What the `Connection` fields list.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct ConnectionOptions {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// How many other names are listed. Fields of these names are dropped (RFC 9110 §7.6.1).
    others: usize,
}

/// Looks at every field once.
#[inline]
pub(super) fn collect<'h, 'b>(
    raw: &'b [u8],
    fields: &'h [httparse::Header<'b>],
) -> Result<(FieldLines<'h, 'b>, Facts<'b>), Reject> {
    let lines = FieldLines::check(raw, fields)?;
    let mut facts = Facts::default();
    for (index, field) in fields.iter().enumerate() {
        let kind = classify(field.name.as_bytes());
        if kind != FieldKind::Other {
            note(&mut facts, kind, index, field.value)?;
        }
    }
    if facts.connection.others > 0 {
        drop_listed(fields, &mut facts)?;
    }
    Ok((lines, facts))
}

#[inline]
fn note<'b>(facts: &mut Facts<'b>, kind: FieldKind, index: usize, value: &'b [u8]) -> Result<(), Reject> {
    match kind {
        FieldKind::Other => {}
        FieldKind::Date => facts.has_date = true,
        FieldKind::ForwardedClientCert
        | FieldKind::ForwardedFor
        | FieldKind::ForwardedHost
        | FieldKind::ForwardedOther
        | FieldKind::ForwardedProto => facts.forwarded.insert(index),
        FieldKind::Trailer => facts.trailer.insert(index),
        FieldKind::Connection => {
            facts.dropped.insert(index);
            read_connection(&mut facts.connection, value);
        }
        FieldKind::ContentLength => {
            facts.dropped.insert(index);
            facts.lengths.add_content_length(value);
        }
        FieldKind::Expect => {
            facts.dropped.insert(index);
            facts.expect_repeated = facts.expect.is_some();
            facts.expect = Some(value);
        }
        FieldKind::Host => {
            facts.dropped.insert(index);
            facts.host_repeated = facts.host.is_some();
            facts.host = Some(value);
        }
        FieldKind::HopByHop => facts.dropped.insert(index),
        FieldKind::MaxForwards => facts.max_forwards = Some(value),
        FieldKind::Te => {
            facts.dropped.insert(index);
            facts.te_trailers |= list(value).any(|item| item.eq_ignore_ascii_case(b"trailers"));
        }
        FieldKind::TransferEncoding => {
            facts.dropped.insert(index);
            facts.lengths.add_transfer_encoding(value);
        }
        FieldKind::UnderscoredFraming => return Err(Reject::UNDERSCORED_FRAMING),
        FieldKind::Upgrade => {
            facts.upgrades.insert(index);
            facts.upgrade_repeated = facts.upgrade.is_some();
            facts.upgrade = Some(value);
        }
    }
    Ok(())
}

fn read_connection(options: &mut ConnectionOptions, value: &[u8]) {
    for option in list(value) {
        match option.len() {
            0 => {}
            2 if option.eq_ignore_ascii_case(b"te") => {}
            5 if option.eq_ignore_ascii_case(b"close") => options.close = true,
            7 if option.eq_ignore_ascii_case(b"upgrade") => options.upgrade = true,
            10 if option.eq_ignore_ascii_case(b"keep-alive") => options.keep_alive = true,
            _ => options.others += 1,
        }
    }
}

/// Drops the fields that `Connection` lists. `Host`, framing and what the proxy says itself are written after this,
/// from what was decided, so listing them strips nothing.
fn drop_listed(fields: &[httparse::Header], facts: &mut Facts) -> Result<(), Reject> {
    if facts.connection.others > limits::CONNECTION_OPTIONS_MAX {
        return Err(Reject::CONNECTION_OPTIONS);
    }
    let connections = fields.iter().filter(|field| classify(field.name.as_bytes()) == FieldKind::Connection);
    for option in connections.flat_map(|field| list(field.value)) {
        let listed = |field: &httparse::Header| field.name.as_bytes().eq_ignore_ascii_case(option);
        for (index, _) in fields.iter().enumerate().filter(|(_, field)| listed(field)) {
            // `Upgrade` is always listed where it means anything: it has a set of its own.
            if !facts.upgrades.contains(index) {
                facts.dropped.insert(index);
            }
        }
    }
    Ok(())
}

fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim_ows)
}

/// The refusal for what `httparse` found wrong in or after the fields, or for a head without end.
#[cold]
pub(super) fn reject_fields(error: httparse::Error, otherwise: Reject) -> Reject {
    match error {
        httparse::Error::HeaderName => Reject::BAD_FIELD_NAME,
        httparse::Error::HeaderValue => Reject::BAD_FIELD_VALUE,
        httparse::Error::NewLine => Reject::BAD_LINE_END,
        httparse::Error::TooManyHeaders => Reject::TOO_MANY_FIELDS,
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => otherwise,
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_at_any_split() {
        for (head, end) in [
            (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n"[..], Some(27)),
            (b"GET / HTTP/1.1\n\nx", Some(16)),
            (b"GET / HTTP/1.1\n\r\nx", Some(17)),
            (b"GET / HTTP/1.1\r\nHost: a\r\n", None),
            (b"", None),
        ] {
            assert_eq!(find_head_end(head, 0), end);
            let mut scanned = 0;
            let found = (1..=head.len()).find_map(|len| {
                let found = find_head_end(&head[..len], scanned);
                scanned = len;
                found
            });
            assert_eq!(found, end);
        }
    }

    #[test]
    fn a_field_set_gives_back_its_members_in_order() {
        let mut set = FieldSet::default();
        assert!(set.is_empty());
        for index in [255, 0, 63, 64, 130] {
            set.insert(index);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 130, 255]);
        assert!(set.contains(64) && !set.contains(65));
    }
}
