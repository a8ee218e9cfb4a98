//! The start: what it waits for, what ends it, and that a stop never waits for it.

use std::net::TcpListener;

use rustix::process::Pid;
use tokio::net::TcpStream;

use crate::support::{Database, Launch, Proxy, Service, Signal, World, always, eventually, free_address, ms, s};

/// A stop that comes before anybody was sent here has nothing to wait for.
async fn stops_at_once(service: &Service) {
    let asked = std::time::Instant::now();
    service.signal(Signal::TERM);
    let exit = service.exit(s(10)).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    let took = exit.at - asked;
    assert!(took < s(1), "{took:?}");
}

/// The settings of a stop as they are in production: none of its budgets may be spent.
fn patient(launch: Launch) -> Launch {
    launch.unset("lifecycle.drain_delay").unset("lifecycle.drain_http").unset("readiness.interval")
}

#[tokio::test]
async fn it_lives_without_a_database_and_is_ready_once_there_is_one() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.refuse();
    let service = patient(world.service()).set("database.url", world.database.url_at(proxy.address)).spawn();
    let named = async || service.probe("/readyz").await.json()["checks"]["postgres"]["error"].is_string();
    eventually("the database is named", s(5), named).await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    assert_eq!(service.probe("/livez").await.status, 200);
    proxy.pass();
    service.ready_within(s(5)).await;
}

#[tokio::test]
async fn the_public_port_refuses_until_it_is_ready() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.refuse();
    let http = free_address();
    let launch = world.service().set("database.url", world.database.url_at(proxy.address)).set("http.address", http);
    let service = launch.spawn();
    service.admin().await;
    always("connections are refused", ms(500), async || TcpStream::connect(http).await.is_err()).await;
    proxy.pass();
    service.ready_within(s(5)).await;
    assert!(TcpStream::connect(http).await.is_ok());
}

#[tokio::test]
async fn an_older_schema_is_not_ready_and_says_what_to_run() {
    if !Database::has_migrations() {
        return println!("skipped: there are no migrations");
    }
    let world = World::new().await;
    let old = Database::empty().await;
    let service = world.service().set("database.url", old.url()).spawn();
    let error = async || {
        let report = service.probe("/readyz").await.json();
        report["checks"]["postgres"]["error"].as_str().filter(|error| error.contains("service migrate")).map(drop)
    };
    eventually("it says what to run", s(5), error).await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    assert_eq!(world.service().set("database.url", old.url()).args(["migrate"]).run().await.code, Some(0));
    service.ready_within(s(5)).await;
}

#[tokio::test]
async fn a_newer_schema_is_ready() {
    if !Database::has_migrations() {
        return println!("skipped: there are no migrations");
    }
    let world = World::new().await;
    world
        .database
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (99990101000000, 'tomorrow', true, '\\x00', 1)",
        )
        .await;
    world.service().ready().await;
}

#[tokio::test]
async fn migrations_are_applied_at_the_start_if_it_is_told_to() {
    let world = World::new().await;
    let empty = Database::empty().await;
    let launch = world.service().set("database.url", empty.url()).set("database.migrate_on_start", true);
    launch.ready().await;
}

#[tokio::test]
async fn a_taken_admin_port_is_an_error_that_names_it() {
    let world = World::new().await;
    names_the_taken_port(world.service(), "admin.address").await;
}

#[tokio::test]
async fn a_taken_public_port_is_an_error_that_names_it() {
    let world = World::new().await;
    names_the_taken_port(world.service(), "http.address").await;
}

async fn names_the_taken_port(launch: Launch, setting: &str) {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let failed = launch.set(setting, &address).run().await;
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    assert!(failed.took < s(2), "{failed:#?}");
    assert!(failed.stdout.contains(&address) || failed.stderr.contains(&address), "{failed:#?}");
}

#[tokio::test]
async fn sigterm_as_soon_as_it_can_be_handled_is_a_clean_exit() {
    let world = World::new().await;
    for _ in 0..10 {
        // without a database it is not ready before the signal comes
        let nowhere = world.database.url_at(free_address());
        let service = patient(world.service()).set("database.url", nowhere).spawn();
        eventually("it handles SIGTERM", s(5), async || handles(service.pid(), Signal::TERM)).await;
        stops_at_once(&service).await;
    }
}

#[tokio::test]
async fn sigterm_while_the_database_refuses_is_a_clean_exit() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.refuse();
    let service = patient(world.service()).set("database.url", world.database.url_at(proxy.address)).spawn();
    service.admin().await;
    stops_at_once(&service).await;
}

#[tokio::test]
async fn sigterm_while_it_connects_is_a_clean_exit() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.blackhole();
    let launch = patient(world.service()).set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.timeout", "30s").spawn();
    eventually("it connects", s(5), async || proxy.connections() > 0).await;
    stops_at_once(&service).await;
}

#[tokio::test]
async fn sigterm_while_it_migrates_over_a_dead_network_is_clean() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.blackhole();
    let launch = patient(world.service()).set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("database.migrate_on_start", true).spawn();
    eventually("it connects", s(5), async || proxy.connections() > 0).await;
    stops_at_once(&service).await;
}

#[tokio::test]
async fn sigterm_while_another_replica_migrates_is_a_clean_exit() {
    if !Database::has_migrations() {
        return println!("skipped: there are no migrations");
    }
    let world = World::new().await;
    let empty = Database::empty().await;
    let _held = crate::migrate::hold(&empty).await;
    let launch = || patient(world.service()).set("database.url", empty.url()).set("database.migrate_on_start", true);
    let (first, second) = (launch().spawn(), launch().spawn());
    eventually("one waits for the other", s(10), async || crate::migrate::waiting(&empty).await == 1).await;
    stops_at_once(&second).await;
    stops_at_once(&first).await;
}

/// Whether the process has a handler for a signal.
pub(crate) fn handles(process: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    caught & (1 << (signal.as_raw() - 1)) != 0
}
