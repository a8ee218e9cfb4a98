//! PgBouncer between the service and the database, in transaction mode: each transaction may be another backend's.

use std::{fs, process::Command};

use futures_util::future::join_all;

use crate::{
    becomes,
    cluster::Cluster,
    order,
    support::{Catalog, Launch, Output, Process, free_address},
};

/// From 1.21 on it knows prepared statements, which every query is.
fn is_there() -> bool {
    let version = Command::new("pgbouncer").arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let is_new_enough = (parts.next(), parts.next()) >= (Some(1), Some(21));
    if !is_new_enough {
        eprintln!("skipped: PgBouncer 1.21 or later is not on this machine");
    }
    is_new_enough
}

#[tokio::test]
async fn by_way_of_a_pooler_in_transaction_mode_it_serves() {
    if !is_there() {
        return;
    }
    let Some(cluster) = Cluster::start().await else { return };
    let catalog = Catalog::start().await;
    let port = free_address().port();
    // as README.md says
    let settings = format!(
        "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n\
         ignore_startup_parameters = extra_float_digits, options\n",
        cluster.address().1
    );
    fs::write(cluster.folder().join("pgbouncer.ini"), settings).expect("the folder is ours");
    let mut command = cluster.command("pgbouncer");
    command.arg("pgbouncer.ini");
    let _pooler = Process::spawn("PgBouncer", command, Output::Collected);
    let launch = Launch::new().set("database.url", Cluster::url_at(port)).set("catalog.endpoint", catalog.endpoint());
    let launch = launch.set("catalog.timeout", "9s").set("database.acquire_timeout", "9s");
    let service = launch.set("worker.poll_interval", "100ms").ready().await;
    // by more connections of the service's than the pooler has to the server
    let placed = join_all((0..50).map(|_| order(&service, "SKU-1"))).await;
    for id in placed {
        becomes(&service, &id, "confirmed").await;
    }
    assert_eq!(service.stop().await.code, Some(0));
}
