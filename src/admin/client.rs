//! The admin port's client, for commands within its own container: an image without a shell has no curl.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Shorter than a probe's own timeout in k8s/, so that the reason is told.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Whether the status was 2xx.
    pub ok: bool,
    /// The body.
    pub body: String,
}

/// Nobody answered.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AskError {
    #[error("no answer from {0} within {TIMEOUT:?}")]
    Timeout(SocketAddr),
    #[error("nobody answers on {0}: {1}")]
    Io(SocketAddr, io::Error),
    #[error("what answers on {0} does not speak HTTP")]
    NotHttp(SocketAddr),
}

/// Asks the instance whose admin server listens on `admin`, by the loopback.
///
/// # Errors
/// If nobody answers within a second.
pub async fn ask(method: &str, path: &str, admin: SocketAddr) -> Result<Answer, AskError> {
    let exchange = async {
        let mut stream = connect(admin).await?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| AskError::Timeout(admin))?;
    let answer = answer.map_err(|error| AskError::Io(admin, error))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(AskError::NotHttp(admin))?;
    let status = head.split(' ').nth(1).ok_or(AskError::NotHttp(admin))?;
    Ok(Answer { ok: status.starts_with('2'), body: body.to_owned() })
}

/// Connects to a server that listens on `address`. One that listens on every address is on the loopback: `[::]` is IPv6
/// first, and IPv4 on a host without it.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let at = |ip| TcpStream::connect(SocketAddr::new(ip, address.port()));
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    match address.ip() {
        ip if !ip.is_unspecified() => at(ip).await,
        IpAddr::V4(_) => at(v4).await,
        IpAddr::V6(_) => match at(v6).await {
            Ok(stream) => Ok(stream),
            Err(_no_ipv6) => at(v4).await,
        },
    }
}
