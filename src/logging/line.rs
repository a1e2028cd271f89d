//! One record as one line: text for people, or JSON for programs. A record stays one line whatever it contains. In
//! text, a line that starts with spaces belongs to the line above.

use std::fmt::{self, Write};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::Record;
use serde_json::{Map, Value};

/// A longer message is cut: text from a ZooKeeper record or a MetaServer may be long.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// `2026-11-23T08:00:00.123Z WARN  worker-007 query: table=orders ...`
pub fn text(record: &Record<'_>) -> String {
    let level = record.level();
    let mut line = format!("{} {level:<5} {} {}: ", Utc::now(), thread_name(), target(record));
    for c in message(record).chars() {
        match c {
            '\n' => line.push_str("\n    "),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// `{"time":...,"level":"WARN","thread":"worker-007","target":"query","message":"table=orders ...","table":"orders"}`
pub fn json(record: &Record<'_>) -> String {
    let message = message(record);
    let mut line = fields(&message);
    for (key, value) in [
        ("time", Utc::now().to_string()),
        ("level", record.level().to_string()),
        ("thread", thread_name()),
        ("target", target(record).to_owned()),
        ("message", message),
    ] {
        line.insert(key.to_owned(), Value::String(value));
    }
    Value::Object(line).to_string() + "\n"
}

fn message(record: &Record<'_>) -> String {
    let mut message = Bounded(String::new());
    match message.write_fmt(*record.args()) {
        Ok(()) => message.0,
        Err(fmt::Error) => message.0 + "...",
    }
}

/// Collects a message up to its limit.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.floor_char_boundary(MAX_MESSAGE_BYTES - self.0.len());
        self.0.push_str(&text[..fits]);
        if fits < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

fn target<'a>(record: &Record<'a>) -> &'a str {
    record.target().rsplit("::").next().unwrap_or_default()
}

fn thread_name() -> String {
    thread::current().name().unwrap_or("?").to_owned()
}

/// The `key=value` words of a message. A value in brackets or quotes may have spaces.
fn fields(message: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut rest = message;
    while let Some(at) = rest.find('=') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        let key = before.rsplit(|c: char| !(c.is_ascii_lowercase() || c == '_')).next();
        let len = match after.as_bytes().first() {
            Some(b'[') => after.find(']').map(|end| end + 1),
            Some(b'"') => after[1..].find('"').map(|end| end + 2),
            _ => None,
        };
        let len = len.unwrap_or_else(|| after.find(' ').unwrap_or(after.len()));
        let is_word = before.trim_end_matches(key.unwrap_or_default()).ends_with([' ', '(']);
        if let Some(key) = key.filter(|key| !key.is_empty())
            && (is_word || before.len() == key.len())
        {
            let value = after[..len].trim_end_matches([',', ':', ';', ')']).trim_matches('"');
            fields.insert(key.to_owned(), typed(key, value));
        }
        rest = &after[len..];
    }
    fields
}

/// A number for keys that always have one; text for all others, because a table may be called 7.
fn typed(key: &str, value: &str) -> Value {
    let units = ["_us", "_ms", "_s", "_bytes"];
    let is_number = key == "conn" || units.iter().any(|unit| key.ends_with(unit));
    match value.parse::<u64>() {
        Ok(number) if is_number => number.into(),
        _ => Value::String(value.to_owned()),
    }
}

/// A time as RFC 3339 in UTC, with milliseconds.
#[derive(Clone, Copy)]
pub struct Utc(pub Duration);

impl Utc {
    pub fn now() -> Self {
        Utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// The time as a part of a file name: `2026-11-23T08-00-00.123`. Stamps sort as their times do.
    pub fn stamp(self) -> String {
        self.to_string().trim_end_matches('Z').replace(':', "-")
    }
}

/// Whether `text` has the form of [`Utc::stamp`].
pub fn is_stamp(text: &str) -> bool {
    let shape = Utc(Duration::ZERO).stamp();
    let fits = |(byte, like): (u8, u8)| match like {
        b'0'..=b'9' => byte.is_ascii_digit(),
        like => byte == like,
    };
    text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, ms) = (self.0.as_secs(), self.0.subsec_millis());
        let (year, month, day) = civil(secs / 86_400);
        let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }
}

/// Year, month and day of a day since 1970. Eras have 400 years and start on March 1st, so that the leap day is the
/// last day of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (secs, want) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_709_251_200, "2024-03-01T00:00:00.007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(Utc(Duration::from_millis(secs * 1000 + 7)).to_string(), want);
        }
    }

    #[test]
    fn fields_of_a_message() {
        let message = r#"table=orders from=none metas=["a:1", "b:2"] zxid=0x1f: gone (took=5ms), x=, name="a b" 1=2"#;
        let fields = fields(message);
        let want = [
            ("from", "none"),
            ("metas", r#"["a:1", "b:2"]"#),
            ("name", "a b"),
            ("table", "orders"),
            ("took", "5ms"),
            ("x", ""),
            ("zxid", "0x1f"),
        ];
        let found: Vec<_> = fields.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
        assert_eq!(found, want);
    }

    #[test]
    fn numbers_are_numbers_under_their_keys_alone() {
        let fields = fields("conn=41 table=7 latency_us=812: x_s=soon held_bytes=9)");
        let want = serde_json::json!({
            "conn": 41, "table": "7", "latency_us": 812, "x_s": "soon", "held_bytes": 9
        });
        assert_eq!(Value::Object(fields), want);
    }

    #[test]
    fn whatever_a_message_says_its_line_is_json() {
        for message in
            ["", "a\nb \"c\" \u{1}", "level=high time=now", "==", "\u{e9}=\u{1f600}", "k=[", "k=\""]
        {
            let line =
                json(&Record::builder().args(format_args!("{message}")).target("a::b").build());
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (line["message"].as_str(), line["target"].as_str()),
                (Some(message), Some("b"))
            );
            assert_eq!(line["level"], "INFO");
        }
    }

    #[test]
    fn nothing_in_a_message_looks_like_another_line() {
        let forged = "meta=a\n2026-11-23T08:00:00.123Z ERROR b \u{1b}[2J\r";
        let line = text(&Record::builder().args(format_args!("{forged}")).build());
        assert_eq!(line.lines().count(), 2, "{line:?}");
        assert!(line.lines().nth(1).unwrap().starts_with("    2026-"), "{line:?}");
        assert!(line.chars().all(|c| c == '\n' || !c.is_control()), "{line:?}");
    }

    #[test]
    fn messages_are_bounded() {
        let long = "ä".repeat(MAX_MESSAGE_BYTES);
        let line = json(&Record::builder().args(format_args!("{long}")).build());
        let line: Value = serde_json::from_str(&line).unwrap();
        let message = line["message"].as_str().unwrap();
        assert_eq!(message.len(), MAX_MESSAGE_BYTES + 3);
        assert!(message.ends_with("ä..."));
    }

    #[test]
    fn stamps_are_recognized_among_other_words() {
        assert_eq!(Utc(Duration::from_millis(7)).stamp(), "1970-01-01T00-00-00.007");
        for (text, want) in [
            ("1970-01-01T00-00-00.007", true),
            ("1970-01-01T00:00:00.007", false),
            ("1970-01-01T00-00-00.00", false),
            ("1970-01-01T00-00-00.0077", false),
            ("197O-01-01T00-00-00.007", false),
            ("", false),
        ] {
            assert_eq!(is_stamp(text), want, "{text:?}");
        }
    }
}
