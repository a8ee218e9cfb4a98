//! The catalog: `examples/catalog`, which cargo builds along with the tests.

use std::{net::SocketAddr, path::Path, process::Command};

use rustix::process::Signal;

use super::{Output, Process, eventually, process::example, s};

/// A running catalog. Its source says how a sku makes it slow or failing.
#[derive(Debug)]
pub(crate) struct Catalog {
    process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Catalog {
    /// Whether this service has a peer: `examples/catalog` may go.
    pub(crate) fn exists() -> bool {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/catalog").exists()
    }

    /// Starts one on a free port.
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    /// Starts one at an address, such as that of one that was killed.
    pub(crate) async fn start_at(address: &str) -> Self {
        let mut command = Command::new(example("catalog"));
        command.arg(address);
        let process = Process::spawn("the catalog", command, Output::Collected);
        let address = eventually("the catalog listens", s(10), async || {
            let listening = "catalog listening on ";
            process.lines().iter().find_map(|line| line.text.strip_prefix(listening)?.parse().ok())
        });
        let address = address.await;
        Self { process, address }
    }

    /// Its address as `catalog.endpoint` wants it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The lines it wrote about calls of `method` in which `field` (`order_id`, `sku`) is `value`.
    pub(crate) fn calls(&self, method: &str, field: &str, value: &str) -> Vec<String> {
        let field = format!(" {field}={value} ");
        let lines = self.process.lines().into_iter().map(|line| line.text);
        lines.filter(|line| line.starts_with(method) && line.contains(&field)).collect()
    }

    /// How often it was asked to reserve for an order.
    pub(crate) fn reserved(&self, order_id: &str) -> usize {
        self.calls("Reserve", "order_id", order_id).len()
    }

    /// Sends it a signal: SIGSTOP freezes it, SIGCONT thaws it.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it. [`Catalog::start_at`] with its address brings up another.
    pub(crate) async fn kill(&self) {
        self.process.signal(Signal::KILL);
        self.process.exit(s(5)).await;
    }
}
