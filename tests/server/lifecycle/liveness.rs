//! `/livez` is about the process alone: it answers however busy that is, accuses nobody falsely, and notices when nothing
//! runs any more. And whatever does not run, the process ends by its deadline.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    CHEAP, serves,
    support::{
        Connection, Launch, Service, Signal, World, always, eventually, get, ms,
        os::{Halted, library},
        s,
    },
};

/// Its workers, as tokio names them.
const WORKERS: &str = "tokio-rt-worker";

/// Asks as a kubelet does, on a connection of its own: the status, and how long that took.
fn probe(admin: SocketAddr, path: &str) -> (u16, Duration) {
    let asked = Instant::now();
    let mut stream = TcpStream::connect(admin).expect("admin accepts");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").expect("it is connected");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    (answer[9..12].parse().expect("a status"), asked.elapsed())
}

/// A service that is thought dead after a second.
async fn serve(world: &World) -> Service {
    world.stand().set("lifecycle.stall_threshold", "1s").ready().await
}

/// Asks so often while 64 clients ask the public side for all they are worth: how long each took, in ascending order.
async fn probes_under_load(count: usize) -> Vec<Duration> {
    let world = World::alone().await;
    let service = serve(&world).await;
    let (address, admin) = (service.http().await, service.admin().await);
    let load: Vec<_> = (0..64)
        .map(|_| {
            tokio::spawn(async move {
                let mut connection = Connection::h1(address).await.expect("it accepts");
                while connection.send(get(CHEAP)).await.is_ok() {}
            })
        })
        .collect();
    let probing = tokio::task::spawn_blocking(move || {
        let look = |_| {
            std::thread::sleep(ms(5));
            let (status, took) = probe(admin, "/livez");
            assert_eq!(status, 200);
            took
        };
        (0..count).map(look).collect::<Vec<_>>()
    });
    let mut probes = probing.await.expect("every probe is answered");
    load.iter().for_each(tokio::task::JoinHandle::abort);
    probes.sort_unstable();
    probes
}

#[tokio::test(flavor = "multi_thread")]
async fn livez_under_load_answers_every_probe() {
    probes_under_load(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn livez_under_load_answers_within_50_ms_at_p99() {
    let probes = probes_under_load(400).await;
    println!("p50 {:?}, p99 {:?}, worst {:?}", probes[199], probes[395], probes[399]);
    assert!(probes[395] < ms(50), "p99 {:?}", probes[395]);
}

#[tokio::test]
async fn a_process_that_was_stopped_and_continued_is_alive_at_once() {
    let world = World::new().await;
    let service = serve(&world).await;
    for _ in 0..2 {
        service.signal(Signal::STOP);
        tokio::time::sleep(ms(1500)).await;
        service.signal(Signal::CONT);
        always("it is alive", ms(700), async || service.probe("/livez").await.status == 200).await;
    }
    assert!(service.logged("the main runtime has stalled").is_empty());
}

#[tokio::test]
async fn time_in_which_the_whole_process_is_stopped_is_no_stall() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.stall_threshold", "2s").ready().await;
    let halted = Halted::threads(service.pid(), WORKERS);
    // past the watchdog's next look: it waits for a heartbeat when all stands still
    tokio::time::sleep(ms(700)).await;
    service.signal(Signal::STOP);
    tokio::time::sleep(ms(2500)).await;
    service.signal(Signal::CONT);
    always("it is alive", ms(500), async || service.probe("/livez").await.status == 200).await;
    drop(halted);
    serves(&service).await;
}

#[tokio::test]
async fn a_process_that_gets_hardly_any_time_is_alive() {
    let world = World::new().await;
    let service = serve(&world).await;
    // As a machine that has too much to do: it runs for 20 ms of every 320.
    for _ in 0..12 {
        service.signal(Signal::STOP);
        tokio::time::sleep(ms(300)).await;
        service.signal(Signal::CONT);
        tokio::time::sleep(ms(20)).await;
    }
    always("it is alive", ms(500), async || service.probe("/livez").await.status == 200).await;
    assert!(service.logged("the main runtime has stalled").is_empty());
}

#[tokio::test]
async fn with_every_worker_blocked_livez_is_503_and_recovers() {
    let world = World::new().await;
    let service = serve(&world).await;
    let (halted, began) = (Halted::threads(service.pid(), WORKERS), Instant::now());
    assert_eq!(service.probe("/livez").await.status, 200, "not yet");
    eventually("it is 503", s(5), async || service.probe("/livez").await.status == 503).await;
    assert!((ms(900)..s(3)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(service.probe("/readyz").await.status, 503, "nor is it any use to callers");
    drop(halted);
    eventually("it has recovered", s(2), async || service.probe("/livez").await.status == 200).await;
    serves(&service).await;
}

/// A stop of at most three seconds.
fn brief(launch: Launch) -> Launch {
    let launch = launch.set("lifecycle.deadline", "3s").set("lifecycle.drain_delay", "200ms");
    let steps = ["drain_http", "drain_workers", "grpc_channel", "database_pool", "telemetry"];
    steps.into_iter().fold(launch, |launch, step| launch.set(&format!("lifecycle.{step}"), "500ms"))
}

#[tokio::test]
async fn with_every_worker_blocked_the_stop_ends_by_the_deadline() {
    let world = World::new().await;
    let service = brief(world.stand()).ready().await;
    let _halted = Halted::threads(service.pid(), WORKERS);
    let asked = Instant::now();
    let exit = service.stop().await;
    assert_eq!(exit.code, Some(3));
    assert!(exit.at - asked < ms(3700), "{:?}", exit.at - asked);
}

#[tokio::test]
async fn with_its_control_thread_stuck_it_ends_by_the_deadline() {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let stuck = folder.path().join("stuck");
    // the first thread is the one whose id is the process's
    let library = library(
        folder.path(),
        r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdlib.h>
        #include <sys/epoll.h>
        #include <unistd.h>
        int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout) {
            int (*real)(int, struct epoll_event *, int, int) = dlsym(RTLD_NEXT, "epoll_wait");
            if (gettid() == getpid() && access(getenv("STUCK"), F_OK) == 0) sleep(60);
            return real(epoll, events, count, timeout);
        }"#,
    );
    let launch = brief(world.stand()).env("LD_PRELOAD", library).env("STUCK", stuck.display());
    let service = launch.set("lifecycle.deadline", "5s").set("lifecycle.drain_delay", "2500ms").ready().await;
    let asked = Instant::now();
    service.signal(Signal::TERM);
    service.phase("draining").await;
    std::fs::write(&stuck, "").expect("the folder is ours");
    let exit = service.exit(s(10)).await;
    assert_eq!(exit.code, Some(3));
    assert!(exit.at - asked < ms(5700), "{:?}", exit.at - asked);
}

/// Makes the lookup of `hung.invalid` take a minute.
fn hung_resolver(folder: &Path) -> String {
    let code = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <netdb.h>
        #include <string.h>
        #include <unistd.h>
        int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
            int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
            if (node && strcmp(node, "hung.invalid") == 0) sleep(60);
            return real(node, service, hints, found);
        }"#;
    library(folder, code)
}

#[tokio::test]
async fn a_hung_dns_lookup_does_not_outlast_the_deadline() {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let launch = brief(world.stand()).env("LD_PRELOAD", hung_resolver(folder.path()));
    let launch = launch.set("readiness.catalog", "advisory").set("catalog.endpoint", "http://hung.invalid:1");
    let service = launch.ready().await;
    let check = async || service.probe("/readyz").await.json()["checks"]["catalog"].to_string();
    eventually("the check has asked", s(5), async || Some(check().await).filter(|is| is.contains("fail"))).await;
    let asked = Instant::now();
    let exit = service.stop().await;
    assert!([Some(0), Some(3)].contains(&exit.code), "{exit:?}");
    assert!(exit.at - asked < ms(3700), "{:?}", exit.at - asked);
}

#[tokio::test]
async fn a_hung_dns_lookup_at_the_start_does_not_outlast_it() {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let launch = brief(world.stand()).env("LD_PRELOAD", hung_resolver(folder.path()));
    let service = launch.set("database.url", "postgres://postgres@hung.invalid/none").spawn();
    eventually("it is up", s(5), async || service.try_probe("/startupz").await.is_ok_and(|up| up.status == 200)).await;
    let asked = Instant::now();
    let exit = service.stop().await;
    assert!([Some(0), Some(3)].contains(&exit.code), "{exit:?}");
    assert!(exit.at - asked < ms(3700), "{:?}", exit.at - asked);
}
