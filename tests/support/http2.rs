//! HTTP/2 by hand, frame by frame, for what no client library would send.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{End, bounded, s};

/// What a client begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The types of frame that tests speak of (RFC 9113, section 6).
#[allow(missing_docs, reason = "the names say it")]
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of a frame; ACK is END_STREAM's value on others.
pub(crate) const END_STREAM: u8 = 1;
/// See [`END_STREAM`].
pub(crate) const ACK: u8 = 1;
/// The head is complete.
pub(crate) const END_HEADERS: u8 = 4;
/// The setting that says how many bytes of a stream's body the peer takes before it is asked.
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Its type.
    pub(crate) kind: u8,
    /// Its flags.
    pub(crate) flags: u8,
    /// Its stream; 0 is the connection.
    pub(crate) stream: u32,
    /// What it carries.
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Whether it is the last of its stream.
    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }

    /// The status in a head, which is its first field.
    pub(crate) fn status(&self) -> u16 {
        const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        match *self.payload {
            [index @ 0x88..=0x8e, ..] => INDEXED[usize::from(index - 0x88)],
            [0x48 | 0x08, 3, ref digits @ ..] => {
                digits[..3].iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))
            }
            [0x48 | 0x08, length, ref code @ ..] if length & 0x80 != 0 => digits(&code[..usize::from(length & 0x7f)]),
            ref other => panic!("no status: {other:x?}"),
        }
    }

    /// The 32-bit number at this place, such as a GOAWAY's last stream at 0 and its reason at 4.
    pub(crate) fn number(&self, place: usize) -> u32 {
        let bytes = self.payload[place..place + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes)
    }
}

/// A connection that does nothing by itself: whether a PING is answered is the test's to say.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// The socket.
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Http2 {
    /// Connects, and sends the preface and these settings.
    pub(crate) async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::over(stream, settings).await
    }

    /// The same on a connection that is there already.
    pub(crate) async fn over(stream: TcpStream, settings: &[(u16, u32)]) -> Self {
        stream.set_nodelay(true).expect("it is connected");
        let mut this = Self { stream, buffer: Vec::new() };
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        this.raw(PREFACE).await;
        this.write(kind::SETTINGS, 0, 0, &settings).await;
        this
    }

    /// Writes a frame.
    pub(crate) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.raw(&frame(kind, flags, stream, payload)).await;
    }

    /// Writes bytes as they are; a connection that is gone already is the reader's to find out.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Asks for something on a new stream.
    pub(crate) async fn get(&mut self, stream: u32, path: &str) {
        self.write(kind::HEADERS, END_STREAM | END_HEADERS, stream, &get_head(path)).await;
    }

    /// Sends JSON on a new stream.
    pub(crate) async fn post(&mut self, stream: u32, path: &str, body: &str) {
        self.post_head(stream, path).await;
        self.write(kind::DATA, END_STREAM, stream, body.as_bytes()).await;
    }

    /// The same up to the body.
    pub(crate) async fn post_head(&mut self, stream: u32, path: &str) {
        let mut head = get_head(path);
        head[0] = 0x83;
        head.extend(field("content-type", "application/json"));
        self.write(kind::HEADERS, END_HEADERS, stream, &head).await;
    }

    /// Lets the server send so many bytes more, on this stream and on the connection.
    pub(crate) async fn widen(&mut self, stream: u32, bytes: usize) {
        let bytes = u32::try_from(bytes).expect("a frame is short").to_be_bytes();
        if bytes != [0; 4] {
            self.write(kind::WINDOW_UPDATE, 0, stream, &bytes).await;
            self.write(kind::WINDOW_UPDATE, 0, 0, &bytes).await;
        }
    }

    /// The next frame, or how the connection ended.
    pub(crate) async fn frame(&mut self) -> Result<Frame, End> {
        loop {
            if let Some(frame) = self.buffered() {
                return Ok(frame);
            }
            match bounded("a frame", s(30), self.stream.read_buf(&mut self.buffer)).await {
                Ok(0) => return Err(End::Clean),
                Ok(_) => {}
                Err(_) => return Err(End::Reset),
            }
        }
    }

    /// The next frame that `wanted` accepts. Those before it are dropped, PINGs and SETTINGS acknowledged.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Result<Frame, End> {
        loop {
            let frame = self.frame().await?;
            if wanted(&frame) {
                return Ok(frame);
            }
            self.acknowledge(&frame).await;
        }
    }

    /// Answers what is to be answered.
    pub(crate) async fn acknowledge(&mut self, frame: &Frame) {
        if matches!(frame.kind, kind::PING | kind::SETTINGS) && frame.flags & ACK == 0 {
            let payload = if frame.kind == kind::PING { &frame.payload[..] } else { &[] };
            self.write(frame.kind, ACK, 0, payload).await;
        }
    }

    /// Reads to the end of the connection: the frames before it, and how it ended.
    pub(crate) async fn rest(&mut self) -> (Vec<Frame>, End) {
        let mut frames = Vec::new();
        loop {
            match self.frame().await {
                Ok(frame) => {
                    self.acknowledge(&frame).await;
                    frames.push(frame);
                }
                Err(end) => return (frames, end),
            }
        }
    }

    fn buffered(&mut self) -> Option<Frame> {
        let head = self.buffer.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        if self.buffer.len() < 9 + length {
            return None;
        }
        let payload = self.buffer.drain(..9 + length).skip(9).collect();
        Some(Frame { kind, flags, stream, payload })
    }
}

/// A frame's bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's head in HPACK: `GET`, `http`, and a path and an authority that go into no table.
pub(crate) fn get_head(path: &str) -> Vec<u8> {
    let mut head = vec![0x82, 0x86];
    for (index, value) in [(4, path), (1, "test")] {
        head.push(index);
        head.push(u8::try_from(value.len()).ok().filter(|length| *length < 127).expect("a short value"));
        head.extend(value.as_bytes());
    }
    head
}

/// One more field in HPACK, its name and its value of up to 126 bytes, which goes into no table.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// Three digits in HPACK's Huffman code, in which 0 to 2 take five bits and 3 to 9 six.
fn digits(code: &[u8]) -> u16 {
    let mut bits = code.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut take = |count| bits.by_ref().take(count).fold(0, |number, bit| number << 1 | bit);
    let mut digit = || match take(5) {
        small @ 0..=2 => small,
        prefix => (prefix << 1 | take(1)) - 0b011001 + 3,
    };
    digit() * 100 + digit() * 10 + digit()
}
