//! PgBouncer between the service and the database, in transaction mode: each transaction may be another backend's.

use std::{fs, process::Command};

use futures_util::future::join_all;

use crate::{
    becomes,
    cluster::Cluster,
    order,
    support::{Catalog, Launch, Output, Process, free_address},
};

/// A running PgBouncer in transaction mode, before a cluster; `None`, and a line that says so, if there is none of this
/// version or later.
fn pooler(cluster: &Cluster, version: (u32, u32), settings: &str) -> Option<(Process, u16)> {
    let output = Command::new("pgbouncer").arg("--version").output().ok();
    let output = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let number = output.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    if (parts.next(), parts.next()) < (Some(version.0), Some(version.1)) {
        eprintln!("skipped: PgBouncer {}.{} or later is not on this machine", version.0, version.1);
        return None;
    }
    let port = free_address().port();
    let settings = format!(
        "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n\
         {settings}\n",
        cluster.address().1
    );
    fs::write(cluster.folder().join("pgbouncer.ini"), settings).expect("the folder is ours");
    let mut command = cluster.command("pgbouncer");
    command.arg("pgbouncer.ini");
    Some((Process::spawn("PgBouncer", command, Output::Collected), port))
}

/// Orders by more connections of the service's than the pooler has to the server.
async fn it_serves(port: u16, settings: &[(&str, &str)]) {
    let catalog = Catalog::start().await;
    let launch = Launch::new().set("database.url", Cluster::url_at(port)).set("catalog.endpoint", catalog.endpoint());
    let launch = launch.set("catalog.timeout", "9s").set("database.acquire_timeout", "9s");
    let launch = settings.iter().fold(launch, |launch, (key, value)| launch.set(key, value));
    let service = launch.set("worker.poll_interval", "100ms").ready().await;
    let placed = join_all((0..50).map(|_| order(&service, "SKU-1"))).await;
    for id in placed {
        becomes(&service, &id, "confirmed").await;
    }
    assert_eq!(service.stop().await.code, Some(0));
}

#[tokio::test]
async fn by_way_of_a_pooler_in_transaction_mode_it_serves() {
    let Some(cluster) = Cluster::start().await else { return };
    // as README.md says
    let settings = "ignore_startup_parameters = options";
    let Some((_pooler, port)) = pooler(&cluster, (1, 21), settings) else { return };
    it_serves(port, &[]).await;
}

#[tokio::test]
async fn by_way_of_a_pooler_without_options_or_statements_it_serves() {
    let Some(cluster) = Cluster::start().await else { return };
    let Some((_pooler, port)) = pooler(&cluster, (1, 0), "") else { return };
    it_serves(port, &[("database.startup_options", "false"), ("database.statement_cache", "0")]).await;
}
