//! The admin port's other answers: metrics, the status page, and who may do what.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use hyper::Method;
use socket2::{Domain, Socket, Type};

use crate::support::{Service, With, World, request, s, send};

/// Every metric that dashboards and alerts may rely on, but for those that count what has not happened yet.
const METRICS: [&str; 14] = [
    "build_info",
    "db_client_connections",
    "db_client_connections_max",
    "http_server_connections",
    "http_server_request_duration_seconds_count",
    "in_flight",
    "lifecycle_phase",
    "log_lines_dropped_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "readiness_check_passing",
    "tokio_alive_tasks",
    "tokio_global_queue_depth",
    "tokio_workers",
];

#[tokio::test]
async fn metrics_are_there() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(service.get("/nowhere").await.status, 404);
    let metrics = service.metrics().await;
    for name in METRICS {
        assert!(metrics.iter().any(|sample| sample.name == name), "no {name}");
    }
    let value = async |name, labels| service.metric(name, labels).await;
    assert_eq!(value("lifecycle_phase", &[("phase", "ready")]).await, Some(1.0));
    assert_eq!(value("lifecycle_phase", &[("phase", "starting")]).await, Some(0.0));
    assert_eq!(value("readiness_check_passing", &[("check", "postgres")]).await, Some(1.0));
    assert_eq!(value("build_info", &[("name", env!("CARGO_PKG_NAME"))]).await, Some(1.0));
    assert_eq!(value("db_client_connections_max", &[]).await, Some(4.0));
}

#[tokio::test]
async fn a_request_is_counted_by_method_route_and_status() {
    let world = World::new().await;
    let service = world.serve().await;
    for _ in 0..3 {
        service.get("/openapi.json").await;
    }
    let labels =
        [("http_request_method", "GET"), ("http_route", "/openapi.json"), ("http_response_status_code", "200")];
    let count = service.metric("http_server_request_duration_seconds_count", &labels).await;
    assert_eq!(count, Some(3.0));
}

#[tokio::test]
async fn an_unknown_path_makes_no_series_of_its_own() {
    let world = World::new().await;
    let service = world.serve().await;
    for path in ["/nowhere-1", "/nowhere-2", "/nowhere-3"] {
        service.get(path).await;
    }
    let metrics = service.probe("/metrics").await.text();
    assert!(!metrics.contains("nowhere"), "a caller could make as many as it likes: {metrics}");
}

#[tokio::test]
async fn the_status_page_shows_people_what_is_going_on() {
    let world = World::new().await;
    let service = world.serve().await;
    let page = service.probe("/").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"), "{page:?}");
    shows(&page.text(), &["ready", "postgres", "drain_http", "database_pool", "websocket", "job"]);
    shows(&page.text(), &[env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")]);
}

#[tokio::test]
async fn the_status_page_refreshes_itself_and_fetches_nothing_else() {
    let world = World::new().await;
    let service = world.serve().await;
    let page = service.probe("/").await.text();
    assert!(page.contains("refresh") || page.contains("setTimeout") || page.contains("setInterval"), "{page}");
    for asset in ["src=\"http", "src=\"/", "href=\"http", "@import", "url("] {
        assert!(!page.contains(asset), "{asset} in {page}");
    }
}

#[tokio::test]
async fn the_status_page_answers_while_the_service_drains() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "5s").ready().await;
    service.drain().await;
    service.phase("draining").await;
    shows(&service.probe("/").await.text(), &["draining", "unready"]);
}

#[tokio::test]
async fn the_admin_port_answers_get_alone_save_for_drain() {
    let world = World::new().await;
    let service = world.serve().await;
    for path in ["/livez", "/readyz", "/startupz", "/metrics", "/"] {
        assert_eq!(ask(&service, Method::POST, path).await, 405, "POST {path}");
    }
    assert_eq!(ask(&service, Method::GET, "/drain").await, 405);
    assert_eq!(ask(&service, Method::GET, "/nowhere").await, 404);
    service.phase("ready").await;
    assert_eq!(service.phases().last().map(String::as_str), Some("ready"));
}

#[tokio::test]
async fn drain_is_refused_from_another_address() {
    let Some(outside) = own_address() else {
        return println!("skipped: this machine has no address but the loopback");
    };
    let world = World::new().await;
    let service = world.service().set("admin.address", "0.0.0.0:0").ready().await;
    let outside = SocketAddr::new(outside, service.admin().await.port());
    let refused = send(outside, request(Method::POST, "/drain")).await.expect("it answers");
    assert_eq!(refused.status, 403);
    assert_eq!(service.probe("/readyz").await.status, 200);
    let allowed = SocketAddr::from(([127, 0, 0, 1], outside.port()));
    assert_eq!(send(allowed, request(Method::POST, "/drain")).await.expect("it answers").status, 200);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn drain_is_refused_from_a_sidecars_loopback_address() {
    let world = World::new().await;
    let service = world.service().set("admin.address", "0.0.0.0:0").ready().await;
    let port = service.admin().await.port();
    // Istio's proxy speaks from 127.0.0.6; or the other end is an address that the network leads to
    for (from, to) in [([127, 0, 0, 6], [127, 0, 0, 1]), ([127, 0, 0, 1], [127, 0, 0, 2])] {
        let mut stream = from_to((from, 0).into(), (to, port).into());
        write!(stream, "POST /drain HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .expect("it is connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 403"), "from {from:?} to {to:?}: {answer}");
    }
    assert_eq!(service.probe("/readyz").await.status, 200);
}

#[tokio::test]
async fn drain_is_refused_to_a_browser() {
    let world = World::new().await;
    let service = world.serve().await;
    for (header, value) in [("origin", "http://localhost:3000"), ("origin", "null"), ("sec-fetch-site", "none")] {
        let browsers = request(Method::POST, "/drain").with(header, value);
        let refused = send(service.admin().await, browsers).await.expect("it answers");
        assert_eq!(refused.status, 403, "{header}: {value}");
    }
    assert_eq!(service.probe("/readyz").await.status, 200);
}

/// A connection between these two ends.
fn from_to(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None).expect("a socket");
    socket.bind(&from.into()).expect("it is of the loopback");
    socket.connect(&to.into()).expect("it accepts");
    socket.into()
}

async fn ask(service: &Service, method: Method, path: &str) -> u16 {
    send(service.admin().await, request(method, path)).await.expect("it answers").status
}

/// The address that this machine would use towards others. Asking sends nothing.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[track_caller]
fn shows(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "no {part} in {page}");
    }
}
