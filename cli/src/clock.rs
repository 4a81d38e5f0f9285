//! Moments and spans as docker writes and reads them: RFC 3339 in UTC, `2 minutes ago`, `10m`.

use std::time::Duration;

const DAY: u64 = 86_400;
const BILLION: u64 = 1_000_000_000;

/// A moment, in nanoseconds since the epoch, as RFC 3339 with nine digits of a second; docker's zero for what never was.
pub fn rfc3339(ns: u64) -> String {
    if ns == 0 {
        return "0001-01-01T00:00:00Z".into();
    }
    let (seconds, fraction) = (ns / BILLION, ns % BILLION);
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// Reads what `--since` and its like are told: RFC 3339 (a date alone, too), seconds since the epoch with or without a
/// fraction, or how long before `now_ns`, as `1h30m`.
pub fn moment(text: &str, now_ns: u64) -> Result<u64, String> {
    let wrong =
        || format!("'{text}' is no moment; write 2006-01-02T15:04:05Z, seconds since the epoch, or a span such as 10m");
    if let Some(span) = span(text) {
        return Ok(now_ns.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)));
    }
    if let Some(ns) = seconds(text) {
        return Ok(ns);
    }
    parse_rfc3339(text).ok_or_else(wrong)
}

/// `1h30m10s`, `250ms`: docker's (Go's) spans, without signs.
pub fn span(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let unit = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()?)?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

/// Seconds since the epoch, as nanoseconds.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let fraction = format!("{fraction:0<9}").parse::<u64>().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(BILLION)?.checked_add(fraction)
}

/// A moment in RFC 3339 in UTC, or a date alone, in nanoseconds since the epoch.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let numbers = |text: &str, separator: char| -> Option<Vec<u64>> {
        text.split(separator).map(|part| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?).collect()
    };
    let (&[year, month, day], time) = (&numbers(date, '-')?[..], numbers(time, ':')?) else { return None };
    let (hour, minute, second) = match time[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let sound = (1970..=2500).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !(sound && hour < 24 && minute < 60 && second <= 60 && fraction.len() <= 9) {
        return None;
    }
    let days =
        (1970..year).map(days_of).sum::<u64>() + (1..month).map(|month| days_in(year, month)).sum::<u64>() + day - 1;
    seconds(&format!("{}.{fraction}", days * DAY + hour * 3600 + minute * 60 + second))
}

fn is_leap(year: u64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Year, month and day of a day since the epoch.
fn date(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while days >= days_of(year) {
        days -= days_of(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_in(year, month) {
        days -= days_in(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

/// A span for people, as docker has it.
pub fn human(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_and_read_back() {
        for (ns, text) in [
            (1, "1970-01-01T00:00:00.000000001Z"),
            (951_782_400 * BILLION, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199 * BILLION + 5, "2024-02-29T23:59:59.000000005Z"),
            (4_102_444_800 * BILLION, "2100-01-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(ns), text);
            assert_eq!(moment(text, 0), Ok(ns), "{text}");
        }
        assert_eq!(rfc3339(0), "0001-01-01T00:00:00Z");
        rfc3339(u64::MAX);
        let now = 10_000 * BILLION;
        for (text, ns) in [
            ("10m", 9_400 * BILLION),
            ("1h30m", 4_600 * BILLION),
            ("500ms", now - BILLION / 2),
            ("999999h", 0),
            ("12", 12 * BILLION),
            ("12.5", 12 * BILLION + BILLION / 2),
            ("1970-01-02", DAY * BILLION),
            ("1970-01-01T00:01", 60 * BILLION),
        ] {
            assert_eq!(moment(text, now), Ok(ns), "{text}");
        }
        for bad in [
            "",
            "x",
            "1.2.3",
            "10q",
            "-5",
            "1970-13-01",
            "1970-01-01T25:00:00",
            "1970-01",
            "T",
            "1e9h",
            "ä",
            "99999999999999999999",
        ] {
            assert!(moment(bad, now).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_told_in_dockers_words() {
        let told = |seconds| human(Duration::from_secs(seconds));
        assert_eq!(
            [told(0), told(1), told(59), told(60)],
            ["Less than a second", "1 second", "59 seconds", "About a minute"]
        );
        assert_eq!(
            [told(120), told(3599), told(3600), told(5400)],
            ["2 minutes", "59 minutes", "About an hour", "2 hours"]
        );
        assert_eq!([told(DAY), told(3 * DAY), told(20 * DAY)], ["24 hours", "3 days", "2 weeks"]);
        assert_eq!([told(100 * DAY), told(1000 * DAY)], ["3 months", "2 years"]);
    }
}
