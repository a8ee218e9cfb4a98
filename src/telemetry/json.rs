//! A log line as a JSON object: time, level, message and fields of the event, and what it belongs to: `request_id`,
//! `trace_id`, `span_id`. Written straight into a buffer; no key stands twice, and no line is longer than a container
//! runtime takes in one piece.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer;

use super::queue::Queue;
use super::traces;

/// Container runtimes split a longer line in two.
const LINE: usize = 16 * 1024;

/// Where the event's own fields end: what follows is short.
const FIELDS: usize = LINE - 1024;

/// What a caller can make us log is cut to this; in bytes, escaped.
const VALUE: usize = 1024;

/// A backtrace is ours, and worth more.
const BACKTRACE: usize = 12 * 1024;

const CUT: &str = "… (cut)";

/// Writes each event to the queue.
pub(super) struct Json(pub(super) Arc<Queue>);

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _context: layer::Context<'_, S>) {
        thread_local! {
            static LINE: RefCell<Line> = RefCell::default();
        }
        let write = |line: &mut Line| {
            line.write(event);
            self.0.push(&line.text);
        };
        // a panic while a field is formatted is logged while the thread's line is in use
        let written = LINE.try_with(|line| line.try_borrow_mut().map(|mut line| write(&mut line)));
        if !matches!(written, Ok(Ok(()))) {
            write(&mut Line::default());
        }
    }
}

/// The line that a thread writes, and what it can use again for the next.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    keys: Vec<&'static str>,
    left_out: usize,
    /// Events of the `log` crate tell their origin in fields.
    from_log: Option<String>,
    is_from_log: bool,
    /// The second that `date` is.
    second: u64,
    date: String,
}

impl Line {
    fn write(&mut self, event: &Event<'_>) {
        let metadata = event.metadata();
        self.text.clear();
        self.keys.clear();
        self.keys.extend(["timestamp", "level", "target", "trace_id", "span_id"]);
        self.left_out = 0;
        self.is_from_log = metadata.target() == "log";
        self.timestamp();
        self.text.extend_from_slice(b"\",\"level\":\"");
        self.text.extend_from_slice(metadata.level().as_str().as_bytes());
        self.text.push(b'"');
        event.record(self);
        if self.left_out > 0 {
            let left_out = self.left_out;
            self.raw("fields_left_out", format_args!("{left_out}"));
        }
        let target = self.from_log.take();
        self.key("target");
        self.string(target.as_deref().unwrap_or(metadata.target()), VALUE / 2);
        self.belonging();
        self.text.extend_from_slice(b"}\n");
    }

    fn timestamp(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != now.as_secs() {
            self.second = now.as_secs();
            let seconds = i64::try_from(now.as_secs()).unwrap_or_default();
            let date = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let (hour, minute, second) = date.to_hms();
            self.date = format!("{}T{hour:02}:{minute:02}:{second:02}.", date.date());
        }
        self.text.extend_from_slice(b"{\"timestamp\":\"");
        self.text.extend_from_slice(self.date.as_bytes());
        let mut micros = now.subsec_micros();
        let mut digits = *b"000000Z";
        for digit in digits[..6].iter_mut().rev() {
            *digit += (micros % 10) as u8;
            micros /= 10;
        }
        self.text.extend_from_slice(&digits);
    }

    /// The request and the trace that the event is part of.
    fn belonging(&mut self) {
        if !self.keys.contains(&"request_id") {
            traces::with_request_id(|id| {
                self.key("request_id");
                self.string(id, VALUE / 4);
            });
        }
        Context::map_current(|context| {
            let span = context.span();
            let span = span.span_context();
            if span.is_valid() {
                self.raw("trace_id", format_args!("\"{}\"", span.trace_id()));
                // a caller's span is no part of this service
                if !span.is_remote() {
                    self.raw("span_id", format_args!("\"{}\"", span.span_id()));
                }
            }
        });
    }

    /// Whether a field may be written: its key is new and there is room.
    fn admits(&mut self, field: &Field) -> bool {
        let name = field.name();
        if self.keys.contains(&name) || (self.is_from_log && name.starts_with("log.")) {
            return false;
        }
        if self.text.len() + name.len() + 64 > FIELDS {
            self.left_out += 1;
            return false;
        }
        self.keys.push(name);
        self.key(name.strip_prefix("r#").unwrap_or(name));
        true
    }

    /// How long a field's value may be; `admits` has seen to it that something is left.
    fn limit(&self, field: &Field) -> usize {
        let limit = if field.name() == "backtrace" { BACKTRACE } else { VALUE };
        limit.min((FIELDS - CUT.len()).saturating_sub(self.text.len() + 2))
    }

    fn key(&mut self, key: &str) {
        self.text.extend_from_slice(b",\"");
        self.text.extend_from_slice(key.as_bytes());
        self.text.extend_from_slice(b"\":");
    }

    fn raw(&mut self, key: &str, value: fmt::Arguments<'_>) {
        self.key(key);
        self.number(value);
    }

    fn number(&mut self, value: fmt::Arguments<'_>) {
        use std::io::Write;
        let _ = self.text.write_fmt(value);
    }

    fn string(&mut self, value: &str, limit: usize) {
        self.value(limit, |text| text.write_str(value));
    }

    fn value(&mut self, limit: usize, write: impl FnOnce(&mut Text<'_>) -> fmt::Result) {
        self.text.push(b'"');
        let mut text = Text { end: self.text.len() + limit, line: &mut self.text };
        if write(&mut text).is_err() {
            self.text.extend_from_slice(CUT.as_bytes());
        }
        self.text.push(b'"');
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if self.admits(field) {
            // JSON has no infinity; serde writes null
            let _ = serde_json::to_writer(&mut self.text, &value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if self.admits(field) {
            self.number(format_args!("{value}"));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if self.admits(field) {
            self.number(format_args!("{value}"));
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if self.admits(field) {
            self.number(format_args!("{value}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if self.is_from_log && field.name() == "log.target" {
            self.from_log = Some(value.to_owned());
        }
        if self.admits(field) {
            self.string(value, self.limit(field));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.admits(field) {
            self.value(self.limit(field), |text| write!(text, "{value:?}"));
        }
    }
}

/// A string of the line, escaped. Writing past its end fails.
struct Text<'a> {
    line: &'a mut Vec<u8>,
    end: usize,
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        loop {
            let escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
            let clean = text.bytes().position(escaped).unwrap_or(text.len());
            let room = self.end.saturating_sub(self.line.len());
            if clean > room {
                self.line.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(room)]);
                return Err(fmt::Error);
            }
            self.line.extend_from_slice(&text.as_bytes()[..clean]);
            let Some(&byte) = text.as_bytes().get(clean) else { return Ok(()) };
            if self.line.len() + 6 > self.end {
                return Err(fmt::Error);
            }
            match byte {
                b'"' | b'\\' => self.line.extend_from_slice(&[b'\\', byte]),
                b'\n' => self.line.extend_from_slice(b"\\n"),
                b'\t' => self.line.extend_from_slice(b"\\t"),
                b'\r' => self.line.extend_from_slice(b"\\r"),
                _ => self.line.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            }
            text = &text[clean + 1..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt;

    /// What `say` logs.
    fn lines(say: impl FnOnce()) -> Vec<String> {
        let queue = Arc::new(Queue::default());
        let subscriber = tracing_subscriber::registry().with(Json(Arc::clone(&queue)));
        tracing::subscriber::with_default(subscriber, say);
        String::from_utf8(queue.take()).expect("a line is UTF-8").lines().map(str::to_owned).collect()
    }

    /// The only line, read.
    fn line(say: impl FnOnce()) -> Value {
        let lines = lines(say);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].len() < LINE, "{}", lines[0].len());
        let Keys(mut keys) = serde_json::from_str(&lines[0]).unwrap_or_else(|error| panic!("{error}: {}", lines[0]));
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "a key stands twice: {}", lines[0]);
        serde_json::from_str(&lines[0]).expect("it was read before")
    }

    struct Keys(Vec<String>);

    impl<'de> Deserialize<'de> for Keys {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Object;
            impl<'de> Visitor<'de> for Object {
                type Value = Keys;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, IgnoredAny)) = map.next_entry()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            deserializer.deserialize_map(Object)
        }
    }

    #[test]
    fn fields_keep_their_types() {
        let line = line(|| {
            tracing::warn!(n = 7, low = -7, f = 0.25, nan = f64::NAN, yes = true, s = "a\"\\\n\t\u{1}ü", d = ?Some(1), "m");
        });
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "m");
        assert_eq!(line["n"], 7);
        assert_eq!(line["low"], -7);
        assert_eq!(line["f"], 0.25);
        assert_eq!(line["nan"], Value::Null);
        assert_eq!(line["yes"], true);
        assert_eq!(line["s"], "a\"\\\n\t\u{1}ü");
        assert_eq!(line["d"], "Some(1)");
        assert_eq!(line["target"], module_path!());
        let timestamp = line["timestamp"].as_str().expect("a string");
        assert_eq!(timestamp.len(), "2026-01-02T03:04:05.000006Z".len(), "{timestamp}");
        let read = OffsetDateTime::parse(timestamp, &time::format_description::well_known::Rfc3339);
        assert!((OffsetDateTime::now_utc() - read.expect("RFC 3339")).whole_seconds().abs() < 5, "{timestamp}");
    }

    #[test]
    fn no_key_stands_twice() {
        let line = line(|| tracing::info!(message = "first", level = "mine", timestamp = 1, target = "t", "second"));
        assert_eq!(line["message"], "second", "the format string's");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_long_value_is_cut_and_the_line_stays_valid() {
        for text in ["x", "ü", "\u{1}", "\"", "\n"] {
            let long = text.repeat(100_000);
            let line = line(|| tracing::info!(long, other = %long, after = 1, "m"));
            for key in ["long", "other"] {
                let value = line[key].as_str().expect("a string");
                assert!(value.ends_with(CUT) && value.starts_with(text), "{value}");
                assert!(value.len() <= VALUE + CUT.len(), "{}", value.len());
            }
            assert_eq!(line["after"], 1);
        }
    }

    #[test]
    fn a_line_with_too_many_values_says_how_many_it_left_out() {
        let (a, backtrace) = ("\u{1}".repeat(5000), "b".repeat(50_000));
        let line = line(|| {
            tracing::info!(backtrace, a, b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, "m");
        });
        assert!(line["fields_left_out"].as_u64().is_some_and(|n| n > 2), "{line}");
        assert_eq!(line["target"], module_path!());
    }

    #[test]
    fn a_field_may_log_while_it_is_formatted() {
        struct Logs;
        impl fmt::Display for Logs {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::info!("inner");
                f.write_str("outer")
            }
        }
        let lines = lines(|| tracing::info!(field = %Logs, "m"));
        assert!(lines.iter().any(|line| line.contains("outer")), "{lines:?}");
    }
}
