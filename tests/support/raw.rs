//! HTTP/1 by hand, for tests in which every byte and every end of a connection counts.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use hyper::{HeaderMap, Version, body::Bytes, header::HeaderName, http::HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{Reply, bounded, s};

/// A socket, and what was read from it but not yet looked at.
#[derive(Debug)]
pub(crate) struct Raw {
    /// The socket, for whoever wants to set options or write what is not HTTP.
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// With FIN: everything the server had to say has arrived.
    Clean,
    /// With RST.
    Reset,
}

/// No read takes longer, whatever the test is about.
const PATIENCE: Duration = s(30);

impl Raw {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = bounded("a connection", PATIENCE, TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::over(stream)
    }

    /// Takes a connection that is there already.
    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("it is connected");
        Self { stream, buffer: Vec::new() }
    }

    /// Writes bytes as they are; a connection that is gone already is the reader's to find out.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Writes `GET path` with no more than a Host.
    pub(crate) async fn get(&mut self, path: &str) {
        self.write(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// Reads an answer: its head, and a body by its length or in chunks.
    pub(crate) async fn reply(&mut self) -> Reply {
        let mut reply = self.head().await;
        let mut body = Vec::new();
        if reply.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
        } else if let Ok(length) = reply.header("content-length").parse() {
            body = self.take(length).await;
        }
        reply.body = body.into();
        reply
    }

    /// Reads an answer whose body has a length, or how the connection ended before that was whole.
    pub(crate) async fn try_reply(&mut self) -> Result<Reply, End> {
        while !self.has_reply() {
            if let Some(end) = self.more().await {
                return Err(end);
            }
        }
        Ok(self.reply().await)
    }

    fn has_reply(&self) -> bool {
        let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            return false;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]);
        let length = parse(&head).and_then(|reply| reply.header("content-length").parse().ok());
        self.buffer.len() >= end + 4 + length.unwrap_or(0_usize)
    }

    /// Reads an answer's head, such as `100 Continue` or the start of a stream.
    pub(crate) async fn head(&mut self) -> Reply {
        let head = self.until(b"\r\n\r\n").await;
        let head = String::from_utf8(head).expect("a head is ASCII");
        parse(&head).unwrap_or_else(|| panic!("not an answer: {head:?}"))
    }

    /// Reads a chunk of a chunked body; an empty one is its end.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let line = self.until(b"\r\n").await;
        let size = String::from_utf8_lossy(&line);
        let size = size.trim().split(';').next().and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.unwrap_or_else(|| panic!("not a chunk's size: {line:?}"));
        let mut chunk = self.take(size + 2).await;
        chunk.truncate(size);
        chunk
    }

    /// Reads everything up to the connection's end.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Some(end) = self.more().await {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }

    /// Expects the connection to end with nothing more said.
    pub(crate) async fn ends(&mut self) -> End {
        let (rest, end) = self.rest().await;
        assert!(rest.is_empty(), "before its end: {:?}", String::from_utf8_lossy(&rest));
        end
    }

    async fn until(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(start) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return self.buffer.drain(..start + mark.len()).collect();
            }
            self.expect_more().await;
        }
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            self.expect_more().await;
        }
        self.buffer.drain(..length).collect()
    }

    async fn expect_more(&mut self) {
        if let Some(end) = self.more().await {
            panic!("{end:?} end after {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Reads what there is, or how it ended.
    async fn more(&mut self) -> Option<End> {
        match bounded("bytes from the service", PATIENCE, self.stream.read_buf(&mut self.buffer)).await {
            Ok(0) => Some(End::Clean),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(End::Reset),
            Err(error) => panic!("{error}"),
        }
    }
}

fn parse(head: &str) -> Option<Reply> {
    let mut lines = head.trim_end().split("\r\n");
    let mut status = lines.next()?.splitn(3, ' ');
    let version = match status.next()? {
        "HTTP/1.1" => Version::HTTP_11,
        "HTTP/1.0" => Version::HTTP_10,
        _ => return None,
    };
    let status = status.next()?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_str(value.trim()).ok()?);
    }
    Some(Reply { status, version, headers, body: Bytes::new() })
}

/// A connection whose kernel takes no more than a few kilobytes that nobody reads.
pub(crate) async fn narrow(address: SocketAddr) -> Raw {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("it is new");
    Raw::over(socket.connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}")))
}
