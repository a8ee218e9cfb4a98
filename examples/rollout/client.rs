//! One connection of a client, and all that can become of a request on it.
//!
//! Nothing is retried in secret. A request that never left, because the connection was closed before a byte was written,
//! and an HTTP/2 stream that the server refused or left out of its GOAWAY come back as such: any client sends these again,
//! and whoever called here counts them.

use std::{error::Error, fmt, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::{TrySendError, http1, http2},
    header::HOST,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

/// How long a client waits for an answer. Longer than any budget of the service, so that what gives up is never the client.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Why a request is counted as lost.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Failure {
    /// No connection was to be had.
    Connect,
    /// The connection ended before the answer did.
    Cut,
    /// No answer in [`PATIENCE`].
    Timeout,
    /// An answer that refuses.
    Status(u16),
    /// An answer that is not the one to this request.
    Wrong,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("no connection"),
            Self::Cut => f.write_str("cut"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Wrong => f.write_str("wrong answer"),
        }
    }
}

/// A failure and what the library said of it.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) Failure, pub(crate) String);

impl Lost {
    pub(crate) fn new(failure: Failure, why: impl fmt::Display) -> Self {
        Self(failure, why.to_string())
    }

    /// An error of the connection, its causes included.
    pub(crate) fn cut(error: &dyn Error) -> Self {
        let (mut text, mut cause) = (error.to_string(), error.source());
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self(Failure::Cut, text)
    }
}

/// What became of a request that has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The connection was closed before a byte of it was written.
    Unsent,
    /// HTTP/2: the server said that it has not begun with it, and never will.
    Refused,
    Lost(Lost),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// A method, a path and a body, made into a request for whichever connection takes it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), headers: Vec::new(), body: String::new() }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn request(&self, version: Version) -> Request<Full<Bytes>> {
        let builder = match version {
            Version::Http1 => Request::builder().uri(&self.path).header(HOST, "service"),
            Version::Http2 => Request::builder().uri(format!("http://service{}", self.path)),
        };
        let builder = self
            .headers
            .iter()
            .fold(builder.method(self.method), |builder, (name, value)| builder.header(*name, value));
        builder.body(Full::from(self.body.clone())).expect("a well-formed request")
    }
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// An open connection. It ends by itself once nobody holds it.
#[derive(Debug)]
pub(crate) struct Connection(Sender);

impl Connection {
    pub(crate) async fn open(address: SocketAddr, version: Version) -> Result<Self, Lost> {
        let opened = async {
            let stream = TcpStream::connect(address).await.map_err(|error| Lost::new(Failure::Connect, error))?;
            stream.set_nodelay(true).map_err(|error| Lost::new(Failure::Connect, error))?;
            let io = TokioIo::new(stream);
            match version {
                Version::Http1 => {
                    let (sender, connection) = http1::handshake(io).await.map_err(|error| Lost::cut(&error))?;
                    tokio::spawn(connection);
                    Ok(Self(Sender::Http1(sender)))
                }
                Version::Http2 => {
                    let (sender, connection) =
                        http2::handshake(TokioExecutor::new(), io).await.map_err(|error| Lost::cut(&error))?;
                    tokio::spawn(connection);
                    Ok(Self(Sender::Http2(sender)))
                }
            }
        };
        timeout(PATIENCE, opened).await.unwrap_or_else(|late| Err(Lost::new(Failure::Timeout, late)))
    }

    /// Another handle on an HTTP/2 connection, which carries many requests at once; none on an HTTP/1 one.
    pub(crate) fn share(&self) -> Option<Self> {
        match &self.0 {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => Some(Self(Sender::Http2(sender.clone()))),
        }
    }

    /// Whether it can take another request: the server has not closed it, nor said `Connection: close` or GOAWAY.
    pub(crate) async fn usable(&mut self) -> bool {
        match &mut self.0 {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends a request and returns the head of its answer, whose body may be a stream without end.
    pub(crate) async fn send(&mut self, call: &Call) -> Result<Response<Incoming>, Unanswered> {
        let answer = async {
            match &mut self.0 {
                Sender::Http1(sender) => sender.try_send_request(call.request(Version::Http1)).await,
                Sender::Http2(sender) => sender.try_send_request(call.request(Version::Http2)).await,
            }
        };
        match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|error| Unanswered::from(&error)),
            Err(late) => Err(Unanswered::Lost(Lost::new(Failure::Timeout, late))),
        }
    }

    /// Sends a request and returns its whole answer as JSON. Every status but 200 and 201 is a failure.
    pub(crate) async fn ask(&mut self, call: &Call) -> Result<Value, Unanswered> {
        let answer = self.send(call).await?;
        let status = answer.status();
        let body = timeout(PATIENCE, answer.into_body().collect()).await;
        let body = body.map_err(|late| Unanswered::Lost(Lost::new(Failure::Timeout, late)))?;
        let body = body.map_err(|error| Unanswered::lost(&error))?.to_bytes();
        if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
            let text = String::from_utf8_lossy(&body);
            return Err(Unanswered::Lost(Lost::new(Failure::Status(status.as_u16()), text)));
        }
        serde_json::from_slice(&body).map_err(|error| Unanswered::Lost(Lost::new(Failure::Wrong, error)))
    }
}

impl<T> From<&TrySendError<T>> for Unanswered {
    fn from(error: &TrySendError<T>) -> Self {
        if error.message().is_some() { Self::Unsent } else { Self::lost(error.error()) }
    }
}

impl Unanswered {
    fn lost(error: &hyper::Error) -> Self {
        let http2 = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
        let refused = http2.is_some_and(|error| {
            let orderly_goaway = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            error.is_remote() && (orderly_goaway || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
        if refused { Self::Refused } else { Self::Lost(Lost::cut(error)) }
    }
}
