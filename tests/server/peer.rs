//! The gRPC peer behind a certificate.

use tonic::transport::{Server, ServerTlsConfig, server::TcpIncoming};

use crate::{
    probes::check_is,
    support::{Authority, World},
};

#[tokio::test]
async fn a_peer_of_a_private_authority_is_reached_with_it_alone() {
    let Some(authority) = Authority::new() else { return };
    let world = World::new().await;
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("the loopback has free ports");
    let port = incoming.local_addr().expect("it is bound").port();
    let tls = ServerTlsConfig::new().identity(authority.identity());
    let mut server = Server::builder().tls_config(tls).expect("a certificate and its key");
    tokio::spawn(server.add_service(health).serve_with_incoming(incoming));

    let launch = world.service().set("catalog.endpoint", format!("https://localhost:{port}"));
    let trusting = launch.clone().env("SSL_CERT_FILE", authority.root().display()).spawn();
    check_is(&trusting, "catalog", "pass", "").await;
    check_is(&launch.spawn(), "catalog", "fail", "UnknownIssuer").await;
}
