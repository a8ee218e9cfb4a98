//! A running service, seen from outside: its two servers, its log, its metrics, its end.

use std::{
    fmt::{self, Display, Formatter},
    net::SocketAddr,
    ops::Index,
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::{
    Exit, Process, Reply, eventually,
    http::{self, Failure, Outgoing},
    metrics::{self, Sample},
    ms, s,
};

/// A service that was started. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Service {
    process: Process,
    http: OnceLock<SocketAddr>,
    admin: OnceLock<SocketAddr>,
}

/// A line of its log.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// When it was read.
    pub(crate) at: Instant,
    fields: Value,
}

/// A step of its stop, from the log.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// When it was logged, which is when it ended.
    pub(crate) at: Instant,
    /// Its name.
    pub(crate) name: String,
    /// `done`, `timeout` or `failed`.
    pub(crate) outcome: String,
    /// How long it took.
    pub(crate) took: Duration,
    /// How long it was allowed to take.
    pub(crate) budget: Duration,
}

/// The steps of a stop, in their order.
pub(crate) const STEPS: [&str; 8] = [
    "unready",
    "drain_delay",
    "stop_accepting",
    "drain_http",
    "drain_workers",
    "grpc_channel",
    "database_pool",
    "telemetry",
];

impl Service {
    /// A service whose addresses may be known beforehand; else its log will tell them.
    pub(super) fn new(process: Process, http: Option<SocketAddr>, admin: Option<SocketAddr>) -> Self {
        let known = |address: Option<SocketAddr>| address.map_or_else(OnceLock::new, OnceLock::from);
        Self { process, http: known(http), admin: known(admin) }
    }

    /// Waits until it is ready for requests.
    pub(crate) async fn ready(&self) {
        self.ready_within(s(15)).await;
    }

    /// Waits until it is ready for requests, but no longer.
    pub(crate) async fn ready_within(&self, time: Duration) {
        let ready = async || {
            assert!(self.ended().is_none(), "the service has ended: {:?}", self.ended());
            match self.try_probe("/readyz").await {
                Ok(reply) if reply.status == 200 => Ok(()),
                Ok(reply) => Err(reply.text()),
                // Where its addresses were given, it may not listen there yet.
                Err(error) => Err(error.to_string()),
            }
        };
        eventually("the service is ready", time, ready).await;
        self.http().await;
    }

    /// Where its public server listens, once it does.
    pub(crate) async fn http(&self) -> SocketAddr {
        self.address("http", &self.http).await
    }

    /// Where its admin server listens.
    pub(crate) async fn admin(&self) -> SocketAddr {
        self.address("admin", &self.admin).await
    }

    async fn address(&self, server: &str, known: &OnceLock<SocketAddr>) -> SocketAddr {
        if let Some(address) = known.get() {
            return *address;
        }
        // Not `eventually`: a future with an async closure in it cannot be spawned, and requests are.
        let deadline = Instant::now() + s(10);
        let address = loop {
            let ended = self.ended();
            let line = self.logged("listening").into_iter().find(|line| line["server"] == server);
            if let Some(address) = line.and_then(|line| line["address"].as_str()?.parse().ok()) {
                break address;
            }
            assert!(ended.is_none(), "before {server} listened: {ended:?}");
            assert!(Instant::now() < deadline, "{server} does not listen");
            tokio::time::sleep(ms(5)).await;
        };
        *known.get_or_init(|| address)
    }

    /// One request to the public server, on a connection of its own.
    pub(crate) async fn send(&self, request: Outgoing) -> Reply {
        let what = format!("{} {}", request.method(), request.uri());
        let reply = self.try_send(request).await;
        reply.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The same where there may be no answer.
    pub(crate) async fn try_send(&self, request: Outgoing) -> Result<Reply, Failure> {
        http::send(self.http().await, request).await
    }

    /// `GET path` from the public server.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(http::get(path)).await
    }

    /// `POST path` with a JSON body to the public server.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(http::post(path, body)).await
    }

    /// `GET path` from the admin server.
    pub(crate) async fn probe(&self, path: &str) -> Reply {
        let reply = self.try_probe(path).await;
        reply.unwrap_or_else(|error| panic!("admin {path}: {error}"))
    }

    /// The same where there may be no answer.
    pub(crate) async fn try_probe(&self, path: &str) -> Result<Reply, Failure> {
        http::send(self.admin().await, http::get(path)).await
    }

    /// `POST /drain`, as the preStop hook does.
    pub(crate) async fn drain(&self) -> Reply {
        let drain = http::request(hyper::Method::POST, "/drain");
        http::send(self.admin().await, drain).await.expect("the admin server answers")
    }

    /// The value of the one series that has this name and at least these labels; `None` where there is none yet.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let samples = self.metrics().await.into_iter().filter(|sample| sample.is(name, labels));
        let values: Vec<_> = samples.map(|sample| sample.value).collect();
        assert!(values.len() <= 1, "{name}{labels:?} is {} series", values.len());
        values.first().copied()
    }

    /// Everything `/metrics` says.
    pub(crate) async fn metrics(&self) -> Vec<Sample> {
        metrics::parse(&self.probe("/metrics").await.text())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// When it was started.
    pub(crate) fn started(&self) -> Instant {
        self.process.started
    }

    /// Sends it a signal: SIGSTOP freezes it, SIGCONT thaws it, SIGKILL is a crash.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Exit> {
        self.process.ended()
    }

    /// Waits for its end.
    pub(crate) async fn exit(&self, within: Duration) -> Exit {
        self.process.exit(within).await
    }

    /// SIGTERM, and its end.
    pub(crate) async fn stop(&self) -> Exit {
        self.signal(Signal::TERM);
        self.exit(s(30)).await
    }

    /// SIGKILL, and its end.
    pub(crate) async fn kill(&self) {
        self.signal(Signal::KILL);
        self.exit(s(5)).await;
    }

    /// Its log so far: every line of its standard output that is a JSON object.
    pub(crate) fn log(&self) -> Vec<Entry> {
        let lines = self.process.lines().into_iter().filter(|line| !line.stderr);
        let entry = |line: super::process::Line| {
            let fields: Value = serde_json::from_str(&line.text).ok()?;
            fields.is_object().then_some(Entry { at: line.at, fields })
        };
        lines.filter_map(entry).collect()
    }

    /// The lines of its log with this message.
    pub(crate) fn logged(&self, message: &str) -> Vec<Entry> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// The steps of its stop so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.logged("step").iter().map(Step::from_log).collect()
    }

    /// One of those steps.
    pub(crate) fn step(&self, name: &str) -> Step {
        let steps = self.steps();
        let step = steps.iter().find(|step| step.name == name);
        step.unwrap_or_else(|| panic!("no step {name} in {steps:#?}")).clone()
    }

    /// The phases it has gone through so far.
    pub(crate) fn phases(&self) -> Vec<String> {
        let lines = self.logged("phase");
        lines.iter().map(|line| line["phase"].as_str().unwrap_or("?").to_owned()).collect()
    }

    /// Waits for a phase, as the log tells it.
    pub(crate) async fn phase(&self, phase: &str) {
        let what = format!("the phase is {phase}");
        eventually(&what, s(10), async || self.phases().iter().any(|passed| passed == phase)).await;
    }

    /// Everything it wrote to standard output, or to standard error.
    pub(crate) fn text(&self, stderr: bool) -> String {
        self.process.text(stderr)
    }

    /// What stands in its pipe, where nobody read that.
    pub(crate) fn unread(&mut self) -> String {
        self.process.drain()
    }
}

impl Display for Entry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.fields.fmt(f)
    }
}

impl Index<&str> for Entry {
    type Output = Value;
    fn index(&self, field: &str) -> &Value {
        &self.fields[field]
    }
}

impl Step {
    fn from_log(line: &Entry) -> Self {
        let text = |field| line[field].as_str().unwrap_or_else(|| panic!("no {field}: {line:?}")).to_owned();
        let time = |field| {
            let seconds = line[field].as_f64().unwrap_or_else(|| panic!("no {field}: {line:?}"));
            Duration::from_secs_f64(seconds)
        };
        Self { at: line.at, name: text("step"), outcome: text("outcome"), took: time("took"), budget: time("budget") }
    }
}
