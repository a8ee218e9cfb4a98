//! An HTTP client, on hyper, for tests that do not care for the wire; [`Raw`](super::Raw) is for those that do.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    header::{CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

/// What a test sends.
pub(crate) type Outgoing = Request<Full<Bytes>>;
/// Why there was no answer.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An answer takes no longer, whatever the test is about.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request without a body.
pub(crate) fn request(method: Method, path: &str) -> Outgoing {
    let request = Request::builder().method(method).uri(path);
    request.body(Full::default()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `GET path`.
pub(crate) fn get(path: &str) -> Outgoing {
    request(Method::GET, path)
}

/// `POST path` with a JSON body.
pub(crate) fn post(path: &str, body: &Value) -> Outgoing {
    request(Method::POST, path).with("content-type", "application/json").carrying(body.to_string())
}

/// Adds to a request.
pub(crate) trait With {
    /// Sets a header.
    fn with(self, name: &'static str, value: &str) -> Self;
    /// Sets the body.
    fn carrying(self, body: impl Into<Bytes>) -> Self;
}

impl With for Outgoing {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers_mut().insert(name, HeaderValue::from_str(value).expect("it is a header's value"));
        self
    }

    fn carrying(self, body: impl Into<Bytes>) -> Self {
        self.map(|_| Full::new(body.into()))
    }
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Its status.
    pub(crate) status: u16,
    /// Its version of HTTP.
    pub(crate) version: Version,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Reply {
    /// A header's value; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics where it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body as a problem (RFC 9457), after a look at whether it is one.
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(self.header(CONTENT_TYPE.as_str()), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        problem
    }
}

/// A connection that is kept.
#[derive(Debug)]
pub(crate) struct Connection {
    address: SocketAddr,
    sender: Sender,
    driver: JoinHandle<Result<(), hyper::Error>>,
}

#[derive(Debug)]
enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// One that speaks HTTP/1.1.
    pub(crate) async fn h1(address: SocketAddr) -> Result<Self, Failure> {
        let (sender, connection) = http1::handshake(TokioIo::new(open(address).await?)).await?;
        Ok(Self { address, sender: Sender::H1(sender), driver: tokio::spawn(connection) })
    }

    /// One that speaks HTTP/2, by prior knowledge.
    pub(crate) async fn h2(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TokioIo::new(open(address).await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        Ok(Self { address, sender: Sender::H2(sender), driver: tokio::spawn(connection) })
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&mut self, request: Outgoing) -> Result<Reply, Failure> {
        let whole = async {
            let (head, body) = self.open(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Reply { status: head.status.as_u16(), version: head.version, headers: head.headers, body })
        };
        timeout(PATIENCE, whole).await?
    }

    /// Sends a request and reads the answer's head.
    pub(crate) async fn open(&mut self, mut request: Outgoing) -> Result<hyper::Response<Incoming>, Failure> {
        let authority = self.address.to_string();
        match &mut self.sender {
            Sender::H1(sender) => {
                request.headers_mut().entry(HOST).or_insert(HeaderValue::from_str(&authority)?);
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Sender::H2(sender) => {
                *request.uri_mut() = format!("http://{authority}{}", request.uri()).parse()?;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    /// Whether the server has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.driver.is_finished()
    }

    /// Waits until the server closes it, and says how that went.
    pub(crate) async fn closed(self) -> Result<(), Failure> {
        // The sender is kept: without one, hyper's client would do the closing.
        let Self { driver, sender, .. } = self;
        let ended = timeout(PATIENCE, driver).await??;
        drop(sender);
        Ok(ended?)
    }
}

/// One request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Outgoing) -> Result<Reply, Failure> {
    let mut connection = timeout(PATIENCE, Connection::h1(address)).await??;
    connection.send(request).await
}

async fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
