//! Questions to a running instance's admin port, from within its own container: an image without a shell has no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Less than a probe's own timeout in k8s/, so that the reason is told.
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
pub enum ProbeError {
    #[error("no answer from {0} within {TIMEOUT:?}")]
    Timeout(SocketAddr),
    #[error("nobody answers on {0}: {1}")]
    Io(SocketAddr, std::io::Error),
    #[error("what answers on {0} does not speak HTTP")]
    NotHttp(SocketAddr),
}

/// Asks the instance that listens on `admin`, by the loopback.
///
/// # Errors
/// Where nobody answers within a second.
pub async fn ask(method: &str, path: &str, admin: SocketAddr) -> Result<Answer, ProbeError> {
    let address = loopback(admin);
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| ProbeError::Timeout(address))?;
    let answer = answer.map_err(|error| ProbeError::Io(address, error))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(ProbeError::NotHttp(address))?;
    let status = head.split(' ').nth(1).ok_or(ProbeError::NotHttp(address))?;
    Ok(Answer { ok: status.starts_with('2'), body: body.to_owned() })
}

/// An address to listen on, as one to connect to.
fn loopback(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
