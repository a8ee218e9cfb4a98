//! A gRPC peer: the channel to it, bounded and retried calls, its check, its close.
//!
//! One name may stand for many addresses: it is resolved again and again, calls are spread over what it resolves to,
//! and an address that is gone is called no more.

mod breaker;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backon::Retryable;
use futures_util::TryFutureExt;
use http::uri::InvalidUri;
use http::{HeaderMap, StatusCode, Uri};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::retry::budget::{Budget, TpsBudget};

use crate::config;
use crate::server::Problem;
use crate::telemetry::{chain, traces};
use breaker::Breaker;

/// Between two look-ups of the peer's name.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(2);

/// Changes of addresses that the channel has not yet taken up.
const CHANGES: usize = 64;

const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Retries may add a fifth to the calls, and ten a second where there are few.
const RETRY_SHARE: f32 = 0.2;
const RETRIES_PER_SECOND: u32 = 10;
const RETRIES_PER_CALL: usize = 3;

/// The peer. Cloning shares it.
#[derive(Clone)]
pub struct Peer(Arc<Shared>);

struct Shared {
    channel: Channel,
    /// How many addresses the name stands for.
    resolved: watch::Receiver<usize>,
    timeout: Duration,
    retries: TpsBudget,
    breaker: Breaker,
    tasks: Tasks,
}

/// Whether a call that may already have been carried out may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Retry {
    Idempotent,
    Never,
}

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("not called: it failed {} times in a row and is given a moment", breaker::FAILURES)]
    Open,
    #[error("{:?}: {}", .0.code(), status_text(.0))]
    Status(#[from] Status),
}

impl Peer {
    /// Connects when first used. To be called on the runtime that is to do the work.
    ///
    /// # Errors
    /// Where the endpoint is not a URI.
    pub fn new(settings: &config::Catalog) -> Result<Self, InvalidUri> {
        let uri: Uri = settings.endpoint.parse()?;
        let tasks = Tasks::default();
        let (channel, addresses) = Channel::balance_channel_with_executor(CHANGES, tasks.clone());
        let count = watch::Sender::new(0);
        let resolved = count.subscribe();
        let resolver =
            Resolver { uri, connect_timeout: settings.connect_timeout, tasks: tasks.clone(), addresses, count };
        tasks.spawn(resolver.run());
        Ok(Self(Arc::new(Shared {
            channel,
            resolved,
            timeout: settings.timeout,
            retries: TpsBudget::new(Duration::from_secs(10), RETRIES_PER_SECOND, RETRY_SHARE),
            breaker: Breaker::new(),
            tasks,
        })))
    }

    /// Where a generated client sends its calls.
    pub fn channel(&self) -> Channel {
        self.0.channel.clone()
    }

    /// Makes a unary call for at most the settings' timeout, or `remaining` if that is less: connection, retries and
    /// pauses included. The peer is told how much is left.
    ///
    /// # Errors
    /// No answer in time, the circuit breaker, or the peer's own status.
    pub async fn call<Req: Clone, Res, Call>(
        &self,
        remaining: Duration,
        retry: Retry,
        request: Req,
        call: impl Fn(Request<Req>) -> Call,
    ) -> Result<Res, Error>
    where
        Call: Future<Output = Result<Response<Res>, Status>>,
    {
        let shared = &*self.0;
        let permit = shared.breaker.permit().ok_or(Error::Open)?;
        let timeout = shared.timeout.min(remaining);
        let deadline = Instant::now() + timeout;
        shared.retries.deposit();
        let attempt = || {
            let mut request = Request::new(request.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let mut headers = HeaderMap::new();
            traces::pass_on(&mut headers);
            request.metadata_mut().as_mut().extend(headers);
            call(request).map_err(broken)
        };
        let pauses = backon::ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(20))
            .with_max_delay(Duration::from_millis(200))
            .with_max_times(RETRIES_PER_CALL)
            .with_jitter();
        let may_retry = |status: &Status| {
            retry == Retry::Idempotent && status.code() == Code::Unavailable && shared.retries.withdraw()
        };
        let attempts = attempt.retry(pauses).sleep(tokio::time::sleep).when(may_retry);
        let result = tokio::time::timeout_at(deadline, self.resolved_then(attempts)).await;
        let result = result.map_or_else(|_| Err(self.silent(timeout)), |result| Ok(result?.into_inner()));
        match &result {
            // its caller had less time than the peer is given
            Err(error) if remaining < shared.timeout && (error.is_timeout() || deadline <= Instant::now()) => {
                drop(permit);
            }
            Err(error) if error.is_absence() => permit.failed(),
            // what it refuses to one is no reason to keep it from the others
            _ => permit.succeeded(),
        }
        result
    }

    /// Whether the peer serves, by `grpc.health.v1` where it has that, by answering at all where it has not.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(self) -> Result<(), Error> {
        let mut client = HealthClient::new(self.channel());
        let check = self.resolved_then(client.check(HealthCheckRequest { service: String::new() }));
        match tokio::time::timeout(self.0.timeout, check).await.map_err(|_| self.silent(self.0.timeout))? {
            Ok(response) if response.get_ref().status() == tonic_health::ServingStatus::Serving.into() => Ok(()),
            Ok(response) => {
                Err(Status::unavailable(format!("it says {}", response.get_ref().status().as_str_name())).into())
            }
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            Err(status) => Err(status.into()),
        }
    }

    /// Waits for an address before the call: with none the channel would wait without saying why.
    async fn resolved_then<T>(&self, call: impl Future<Output = T>) -> T {
        // an error would mean that the resolver is gone: then the channel is closed, and the call says so
        let _ = self.0.resolved.clone().wait_for(|addresses| *addresses > 0).await;
        call.await
    }

    fn silent(&self, timeout: Duration) -> Error {
        match *self.0.resolved.borrow() {
            0 => Status::unavailable("its name resolves to no address").into(),
            _ => Error::Timeout(timeout),
        }
    }

    /// Closes its connections. tonic has no close, so they are ended where they run: on tasks of ours.
    pub async fn close(self) {
        self.0.tasks.close().await;
    }
}

/// The addresses behind a name.
struct Resolver {
    uri: Uri,
    connect_timeout: Duration,
    tasks: Tasks,
    addresses: mpsc::Sender<Change<SocketAddr, Endpoint>>,
    count: watch::Sender<usize>,
}

impl Resolver {
    /// Keeps the channel's addresses those of the name, for ever. A look-up that fails leaves them as they are.
    async fn run(self) {
        let secure = self.uri.scheme_str() == Some("https");
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let mut known = HashSet::new();
        let mut ticks = tokio::time::interval(RESOLVE_INTERVAL);
        loop {
            ticks.tick().await;
            match tokio::net::lookup_host((host, port)).await {
                Ok(found) => {
                    let found = found.collect();
                    self.change(&known, &found).await;
                    known = found;
                }
                Err(error) => tracing::warn!(host, %error, "cannot resolve the peer's name"),
            }
        }
    }

    async fn change(&self, known: &HashSet<SocketAddr>, found: &HashSet<SocketAddr>) {
        for address in known.difference(found) {
            let _ = self.addresses.send(Change::Remove(*address)).await;
        }
        for address in found.difference(known) {
            match self.endpoint(*address) {
                Ok(endpoint) => drop(self.addresses.send(Change::Insert(*address, endpoint)).await),
                Err(error) => {
                    tracing::error!(%address, error = chain(&error), "cannot connect to the peer")
                }
            }
        }
        self.count.send_replace(found.len());
    }

    /// The address is where to connect; the name stays who to ask for.
    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
        let scheme = self.uri.scheme_str().unwrap_or("http");
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .origin(self.uri.clone())
            .executor(self.tasks.clone())
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if scheme != "https" {
            return Ok(endpoint);
        }
        endpoint.tls_config(ClientTlsConfig::new().with_native_roots().domain_name(self.uri.host().unwrap_or_default()))
    }
}

/// Where a channel's tasks run, so that they can be ended.
#[derive(Debug, Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    closed: CancellationToken,
}

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closed = self.closed.clone();
        self.tracker.spawn(async move { closed.run_until_cancelled(task).await });
    }

    async fn close(&self) {
        self.closed.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Tasks {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.spawn(task);
    }
}

impl Error {
    /// Whether time ran out, on this side or on the peer's, which is told how much there is.
    fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Open => false,
            Self::Status(status) => matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        }
    }

    /// Whether the peer is not there, or as good as that.
    fn is_absence(&self) -> bool {
        const AWAY: [Code; 4] = [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Cancelled];
        match self {
            Self::Timeout(_) | Self::Open => true,
            Self::Status(status) => AWAY.contains(&status.code()),
        }
    }

    /// Whether the peer has answered, and will not do what it was asked.
    pub fn is_refusal(&self) -> bool {
        !self.is_absence()
    }

    /// Whether the peer says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::NotFound)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = match &error {
            Error::Timeout(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, "a service this one depends on is too slow"),
            Error::Open => Self::unavailable("a service this one depends on is down; try again in a moment"),
            Error::Status(status) => match status.code() {
                Code::DeadlineExceeded | Code::Cancelled => {
                    Self::new(StatusCode::GATEWAY_TIMEOUT, "a service this one depends on is too slow")
                }
                Code::Unavailable | Code::ResourceExhausted => {
                    Self::unavailable("a service this one depends on is down; try again in a moment")
                }
                _ => Self::new(
                    StatusCode::BAD_GATEWAY,
                    "a service this one depends on gave an answer that cannot be used",
                ),
            },
        };
        tracing::warn!(%error, status = problem.status().as_u16(), "peer");
        problem
    }
}

/// A connection that breaks in the middle of a call is "unknown" or "internal" to tonic, and the peer's absence to us.
/// Only a status that was made on this side has a source.
fn broken(status: Status) -> Status {
    match std::error::Error::source(&status) {
        Some(source) if matches!(status.code(), Code::Unknown | Code::Internal) => Status::unavailable(chain(source)),
        _ => status,
    }
}

/// tonic says "transport error" and keeps the reason to itself.
fn status_text(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("timeout", &self.0.timeout).finish_non_exhaustive()
    }
}
