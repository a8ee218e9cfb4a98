//! What a client sees of a service whose instances come and go: every request is counted, and none is retried in secret.
//!
//! `rollout cluster` puts the service on the cluster that `kubectl` points at through restarts, scaling, deleted pods, a
//! broken rollout and the loss of its database (`make e2e`). `rollout local` stops one of two instances behind a TCP
//! balancer on this machine (`make rollout-local`). Both print a table and exit with 1 if a promise was broken.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]
#![allow(missing_docs, reason = "a program, not a library")]

mod audit;
mod balancer;
mod chart;
mod client;
mod cluster;
mod kubectl;
mod load;
mod local;
mod report;
mod requests;
mod streams;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;

#[derive(Debug, Parser)]
enum Arguments {
    /// One of two instances on this machine is stopped under load.
    Local {
        /// At least so many requests in all.
        #[arg(long, default_value_t = 100_000)]
        requests: usize,
    },
    /// The service on a cluster is restarted, scaled, broken and robbed of its database under load.
    Cluster {
        /// Where the service answers: the node's port, on the loopback.
        #[arg(long, default_value = "127.0.0.1:30080")]
        address: SocketAddr,
        #[arg(long, default_value = "local")]
        namespace: String,
        #[arg(long, default_value = "target/rollout.svg")]
        chart: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let kept = match Arguments::parse() {
        Arguments::Local { requests } => local::run(requests).await?,
        Arguments::Cluster { address, namespace, chart } => cluster::run(address, namespace, &chart).await?,
    };
    println!("{}", if kept { "every promise was kept" } else { "A PROMISE WAS BROKEN" });
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
