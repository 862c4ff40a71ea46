//! From seconds since 1970 to the Gregorian calendar, in UTC. Never asks what time it is.

use std::fmt;

/// A moment of the calendar, to the second. Shown as RFC 3339 writes it, without a fraction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
    /// Since Thursday, 0 to 6: 1970 began on one.
    pub weekday_from_thursday: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
}

impl Moment {
    /// Counts in eras of 400 years that begin on 1 March, so that a leap day ends a year.
    pub const fn of_unix(unix_s: u64) -> Self {
        let (since_1970, second) = (unix_s / 86_400, unix_s % 86_400);
        let days = since_1970 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + (month <= 2) as u64,
            month,
            day,
            weekday_from_thursday: since_1970 % 7,
            hour: second / 3_600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second, .. } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (unix_s, shown, weekday) in [
            (0, "1970-01-01T00:00:00Z", 0),
            (951_782_399, "2000-02-28T23:59:59Z", 4),
            (951_868_800, "2000-03-01T00:00:00Z", 6),
            (4_107_542_400, "2100-03-01T00:00:00Z", 4),
            (1_709_164_800, "2024-02-29T00:00:00Z", 0),
            (253_402_300_799, "9999-12-31T23:59:59Z", 1),
        ] {
            let moment = Moment::of_unix(unix_s);
            assert_eq!((moment.to_string().as_str(), moment.weekday_from_thursday), (shown, weekday));
        }
    }
}
