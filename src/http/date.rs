//! The one date format HTTP writes (RFC 9110 §5.6.7). Pure: the second comes from the caller.

use crate::base::calendar::Moment;

/// Bytes of an IMF-fixdate.
pub const DATE_BYTES: usize = 29;

/// `Sun, 06 Nov 1994 08:49:37 GMT` from Unix seconds. Years after 9999 are shown as 9999.
pub fn imf_fixdate(unix_s: u64) -> [u8; DATE_BYTES] {
    const LAST_S: u64 = 253_402_300_799;
    const DAY_NAMES: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTH_NAMES: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let at = Moment::of_unix(unix_s.min(LAST_S));
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    text[..3].copy_from_slice(DAY_NAMES[at.weekday_from_thursday as usize]);
    put_two(&mut text, 5, at.day);
    text[8..11].copy_from_slice(MONTH_NAMES[at.month as usize - 1]);
    put_two(&mut text, 12, at.year / 100);
    put_two(&mut text, 14, at.year % 100);
    put_two(&mut text, 17, at.hour);
    put_two(&mut text, 20, at.minute);
    put_two(&mut text, 23, at.second);
    text
}

fn put_two(text: &mut [u8; DATE_BYTES], at: usize, number: u64) {
    text[at] = b'0' + (number / 10) as u8;
    text[at + 1] = b'0' + (number % 10) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdates() {
        for (unix_s, want) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&imf_fixdate(unix_s)).unwrap(), want);
        }
    }
}
