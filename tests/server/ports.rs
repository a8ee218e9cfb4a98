//! The default addresses: both IP families on one port, or IPv4 alone on a host without IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::support::{Reply, Service, World, eventually, get, os::library, s, send};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

async fn ask(ip: IpAddr, port: u16, path: &str) -> Reply {
    send(SocketAddr::new(ip, port), get(path)).await.expect("it answers")
}

#[tokio::test]
async fn one_port_answers_over_ipv6_and_ipv4() {
    if std::net::TcpListener::bind((V6, 0)).is_err() {
        return println!("skipped: this machine has no IPv6");
    }
    let world = World::new().await;
    let service = world.service().set("http.address", "[::]:0").set("admin.address", "[::]:0").ready().await;
    let (http, admin) = (service.http().await.port(), service.admin().await.port());
    for ip in [V4, V6] {
        assert_eq!(ask(ip, http, "/nowhere").await.status, 404, "{ip}");
        assert_eq!(ask(ip, admin, "/livez").await.status, 200, "{ip}");
    }
    let peers = async || {
        let lines = service.logged("request");
        let peers: Vec<_> = lines.iter().map(|line| line["peer"].as_str().unwrap_or_default().to_owned()).collect();
        (peers.len() == 2).then_some(peers)
    };
    let peers = eventually("both requests are logged", s(5), peers).await;
    assert!(peers[0].starts_with("127.0.0.1:"), "as IPv4, without ::ffff: {peers:?}");
    assert!(peers[1].starts_with("[::1]:"), "{peers:?}");
    pre_stop_reaches(&world, &service).await;
}

#[tokio::test]
async fn on_a_host_without_ipv6_it_is_ipv4_alone() {
    let world = World::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    // as a kernel that was started with ipv6.disable=1
    let library = library(
        folder.path(),
        r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <sys/socket.h>
        int socket(int domain, int type, int protocol) {
            int (*real)(int, int, int) = dlsym(RTLD_NEXT, "socket");
            if (domain == AF_INET6) { errno = EAFNOSUPPORT; return -1; }
            return real(domain, type, protocol);
        }"#,
    );
    let launch = world.service().set("http.address", "[::]:0").set("admin.address", "[::]:0");
    let service = launch.env("LD_PRELOAD", library).ready().await;
    let (http, admin) = (service.http().await, service.admin().await);
    assert_eq!((http.ip(), admin.ip()), (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()));
    assert_eq!(ask(V4, http.port(), "/nowhere").await.status, 404);
    pre_stop_reaches(&world, &service).await;
}

/// The hook is given the same settings as the service.
async fn pre_stop_reaches(world: &World, service: &Service) {
    let address = format!("[::]:{}", service.admin().await.port());
    let pre_stop = world.service().set("admin.address", address).args(["pre-stop"]).run().await;
    assert_eq!(pre_stop.code, Some(0), "{pre_stop:#?}");
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn it_has_two_worker_threads_however_few_are_asked_for() {
    let world = World::new().await;
    let service = world.service().env("TOKIO_WORKER_THREADS", 1).ready().await;
    assert_eq!(service.metric("tokio_workers", &[]).await, Some(2.0));
    let service = world.service().env("TOKIO_WORKER_THREADS", 3).ready().await;
    assert_eq!(service.metric("tokio_workers", &[]).await, Some(3.0));
}
