//! W3C Trace Context, level 1 (<https://www.w3.org/TR/trace-context/>): the field `traceparent`, strictly read and newly
//! begun. Never reports a span: what is passed on is passed on as it came, so that the spans around it stay joined.

/// Digits of a trace's id.
pub const TRACE_ID_LEN: usize = 32;
/// Digits of a span's id.
const PARENT_ID_LEN: usize = 16;
/// Bytes of a field in version 00: `00-` trace `-` span `-` flags.
pub const TRACEPARENT_LEN: usize = 55;
/// Where the span's id begins, and the flags.
const PARENT_AT: usize = 3 + TRACE_ID_LEN + 1;
const FLAGS_AT: usize = PARENT_AT + PARENT_ID_LEN + 1;

/// What happens to a request's trace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TracePolicy {
    /// Its fields go on as they came.
    #[default]
    Pass,
    /// Likewise where they are valid; else a trace begins here.
    Begin,
    /// A trace begins here, whatever came.
    Replace,
}

/// The field that begins a trace.
pub type Traceparent = [u8; TRACEPARENT_LEN];

/// The id of the trace in this value, if the value is valid (§3.2.2; of a later version, what §3.3 lets us read).
pub fn trace_id(value: &[u8]) -> Option<[u8; TRACE_ID_LEN]> {
    let field: &Traceparent = value.first_chunk()?;
    let [b'0'..=b'9' | b'a'..=b'f', b'0'..=b'9' | b'a'..=b'f', b'-', ..] = field else { return None };
    match (&field[..2], value.get(TRACEPARENT_LEN)) {
        (b"ff", _) => return None,
        (_, None) => {}
        // A later version may have more behind a dash.
        (b"00", Some(_)) => return None,
        (_, Some(next)) if *next != b'-' => return None,
        _ => {}
    }
    let dashes = field[PARENT_AT - 1] == b'-' && field[FLAGS_AT - 1] == b'-';
    let id: [u8; TRACE_ID_LEN] = *field[3..].first_chunk()?;
    let parent = &field[PARENT_AT..PARENT_AT + PARENT_ID_LEN];
    let valid = dashes && is_id(&id) && is_id(parent) && field[FLAGS_AT..].iter().all(|byte| is_digit(*byte));
    valid.then_some(id)
}

/// The id of the trace that a message's fields name. Two fields name none (§3.2.1: one is sent).
pub fn of_fields<'b>(fields: impl Iterator<Item = (&'b str, &'b [u8])>) -> Option<[u8; TRACE_ID_LEN]> {
    let mut values = fields.filter(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
    let (_, value) = values.next()?;
    if values.next().is_some() { None } else { trace_id(value) }
}

/// Begins a trace. `random`: uniform bits. It is marked as sampled: that is what services do who find no trace at all.
pub fn begin(random: [u64; 3]) -> Traceparent {
    let [high, low, parent] = random;
    let mut field = *b"00-00000000000000000000000000000000-0000000000000000-01";
    // All zeros are no id.
    let low = if high == 0 { low.max(1) } else { low };
    for (at, word) in [(3, high), (3 + 16, low), (PARENT_AT, parent.max(1))] {
        for (digit, byte) in field[at..at + 16].iter_mut().enumerate() {
            let value = (word >> (60 - 4 * digit)) as u8 & 15;
            *byte = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        }
    }
    field
}

const fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_id(digits: &[u8]) -> bool {
    digits.iter().all(|byte| is_digit(*byte)) && digits.iter().any(|byte| *byte != b'0')
}

/// For the fuzzer: what is taken is what §3.2.2 describes, and nothing behind it changes that.
///
/// # Panics
/// Where it does not hold.
pub fn fuzz_traceparent(value: &[u8]) {
    let Some(id) = trace_id(value) else { return };
    let text = std::str::from_utf8(&value[..TRACEPARENT_LEN]).expect("digits and dashes");
    let parts: Vec<&str> = text.split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
    assert!(parts.iter().all(|part| part.bytes().all(is_digit)), "{text}");
    assert!(parts[0] != "ff" && parts[1..3].iter().all(|id| id.bytes().any(|byte| byte != b'0')), "{text}");
    assert_eq!(parts[1].as_bytes(), id);
    assert!(parts[0] != "00" || value.len() == TRACEPARENT_LEN);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_the_specification_calls_invalid_is_not_taken() {
        let id = |value: &str| trace_id(value.as_bytes()).map(|id| String::from_utf8(id.into()).unwrap());
        let trace = Some("0af7651916cd43dd8448eb211c80319c".to_owned());
        assert_eq!(id(GOOD), trace);
        assert_eq!(id(&GOOD.replace("-01", "-00")), trace);
        assert_eq!(id(&GOOD.replacen("00", "cc", 1)), trace, "a later version");
        assert_eq!(id(&(GOOD.replacen("00", "cc", 1) + "-what-the-future-holds")), trace);
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0", 1),
            format!("{GOOD}-"),
            format!("{GOOD} "),
            format!(" {GOOD}"),
            GOOD.replacen("00", "cc", 1) + ".",
            GOOD.replace('-', "_"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("b7ad6b7169203331", "b7ad6b716920333g"),
            GOOD.replace("-01", "-0x"),
            GOOD[..54].to_owned(),
        ] {
            assert_eq!(id(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn two_fields_name_no_trace() {
        let one = ("TraceParent", GOOD.as_bytes());
        assert!(of_fields([("host", b"a".as_slice()), one].into_iter()).is_some());
        assert!(of_fields([one, one].into_iter()).is_none());
        assert!(of_fields([("tracestate", GOOD.as_bytes())].into_iter()).is_none());
    }

    #[test]
    fn a_trace_that_begins_is_valid_whatever_chance_says() {
        assert_eq!(
            begin([0x0af7_6519_16cd_43dd, 0x8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331]),
            *GOOD.as_bytes()
        );
        for random in [[0; 3], [u64::MAX; 3], [1, 0, 0]] {
            assert!(trace_id(&begin(random)).is_some(), "{random:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_strictly(mut value in proptest::collection::vec(any::<u8>(), 0..80), at in 0..70_usize, byte: u8) {
            fuzz_traceparent(&value);
            value = GOOD.into();
            value.resize(at.clamp(55, 60), b'-');
            if let Some(place) = value.get_mut(at) {
                *place = byte;
            }
            fuzz_traceparent(&value);
        }

        #[test]
        fn what_begins_is_read_again(random: [u64; 3]) {
            prop_assert!(trace_id(&begin(random)).is_some());
        }
    }
}
