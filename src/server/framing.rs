//! Where a request ends on an HTTP/1 connection: its head, and a chunked body. Neither checks anything: hyper parses, and
//! refuses what is malformed.

use memchr::memchr_iter;

/// Finds the empty line that ends a head, or the trailers of a chunked body, in bytes that come in any pieces.
#[derive(Debug, Default)]
pub(super) struct HeadEnd(Line);

/// What the line so far is.
#[derive(Debug, Default, Clone, Copy)]
enum Line {
    #[default]
    Empty,
    /// A carriage return alone.
    Return,
    Text,
}

impl HeadEnd {
    /// The length of what still belongs to the head, if these bytes end it. A line ends at a line feed with or without a
    /// carriage return, as hyper takes it.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut begin = 0;
        for feed in memchr_iter(b'\n', bytes) {
            if !matches!(self.0.and(&bytes[begin..feed]), Line::Text) {
                return Some(feed + 1);
            }
            (self.0, begin) = (Line::Empty, feed + 1);
        }
        self.0 = self.0.and(&bytes[begin..]);
        None
    }
}

impl Line {
    fn and(self, bytes: &[u8]) -> Self {
        match (self, bytes) {
            (line, []) => line,
            (Self::Empty, [b'\r']) => Self::Return,
            _ => Self::Text,
        }
    }
}

/// Finds the end of a chunked body (RFC 9112, section 7.1).
#[derive(Debug)]
pub(super) enum Chunks {
    /// In the line that begins a chunk; whether its number is over.
    Size {
        size: u64,
        over: bool,
    },
    /// That many bytes of the chunk are to come.
    Data(u64),
    /// In the end of the line behind a chunk.
    DataEnd,
    Trailers(HeadEnd),
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Size { size: 0, over: false }
    }
}

impl Chunks {
    /// The length of what still belongs to the body, if these bytes end it.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self {
                Self::Data(left) => {
                    let here = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= here as u64;
                    at += here;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    continue;
                }
                Self::Trailers(end) => return end.find(&bytes[at..]).map(|length| at + length),
                Self::DataEnd if bytes[at] == b'\n' => *self = Self::default(),
                Self::DataEnd => {}
                Self::Size { size, over } => match char::from(bytes[at]).to_digit(16) {
                    _ if bytes[at] == b'\n' => {
                        *self = if *size == 0 { Self::Trailers(HeadEnd::default()) } else { Self::Data(*size) };
                    }
                    Some(digit) if !*over => *size = size.saturating_mul(16).saturating_add(digit.into()),
                    _ => *over = true,
                },
            }
            at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `find` says of all of `bytes` when they come in pieces of that size.
    fn in_pieces(bytes: &[u8], size: usize, mut find: impl FnMut(&[u8]) -> Option<usize>) -> Option<usize> {
        let pieces = bytes.chunks(size).enumerate();
        pieces.into_iter().find_map(|(number, piece)| find(piece).map(|length| number * size + length))
    }

    #[test]
    fn a_head_ends_at_its_empty_line() {
        for (head, rest) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "GET"),
            ("GET / HTTP/1.1\nhost: a\n\n", "\n"),
            ("GET / HTTP/1.1\r\nhost: a\n\r\n", "\r\n\r\n"),
            ("GET / HTTP/1.1\r\nx: \r\r\n\r\n", ""),
        ] {
            let bytes = format!("{head}{rest}");
            for size in 1..=bytes.len() {
                let mut end = HeadEnd::default();
                let found = in_pieces(bytes.as_bytes(), size, |piece| end.find(piece));
                assert_eq!(found, Some(head.len()), "{bytes:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_chunked_body_ends_behind_its_trailers() {
        for (body, rest) in [
            ("0\r\n\r\n", "GET"),
            ("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
            ("0A;name=\"0\"\r\n0123456789\r\n000\r\nx: y\r\n\r\n", "0\r\n\r\n"),
            ("1 \r\na\r\n1\r\nb\r\n0\r\n\r\n", ""),
        ] {
            let bytes = format!("{body}{rest}");
            for size in 1..=bytes.len() {
                let mut chunks = Chunks::default();
                let found = in_pieces(bytes.as_bytes(), size, |piece| chunks.find(piece));
                assert_eq!(found, Some(body.len()), "{bytes:?} in pieces of {size}");
            }
        }
    }
}
