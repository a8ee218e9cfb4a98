//! Several addresses behind one name, which change; and a name that does not resolve.
//!
//! The service gets a file of hosts of its own, by way of a mount that only it sees: the names are real, and can be
//! changed under way. It takes root, which tests in a container usually are.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::{
    all_settled, order, place,
    support::{Catalog, Launch, World, eventually, free_address, ms, s},
};

const NAME: &str = "catalog.test";

/// A file of hosts.
struct Hosts(TempDir);

impl Hosts {
    /// `None`, and a line that says so, where it cannot be put before a process.
    fn new() -> Option<Self> {
        let mount = std::process::Command::new("unshare").args(["--mount", "true"]).output();
        if !mount.is_ok_and(|mount| mount.status.success()) {
            eprintln!("skipped: unshare --mount does not work here, which takes root");
            return None;
        }
        let hosts = Self(tempfile::tempdir().expect("a folder"));
        hosts.name_is(&[]);
        Some(hosts)
    }

    fn path(&self) -> String {
        self.0.path().join("hosts").to_str().expect("it is text").to_owned()
    }

    /// From now on these are the name's addresses. Written in place: a mount is of the file, not of its name.
    fn name_is(&self, addresses: &[&str]) {
        let lines = addresses.iter().map(|address| format!("{address} {NAME}\n"));
        let text: String = ["127.0.0.1 localhost\n".to_owned()].into_iter().chain(lines).collect();
        fs::write(Path::new(&self.path()), text).expect("it is ours");
    }

    fn before(&self, launch: Launch) -> Launch {
        let mount = format!("mount --bind '{}' /etc/hosts && exec \"$0\" \"$@\"", self.path());
        launch.under(["unshare", "--mount", "sh", "-c", &mount])
    }
}

/// How many products a catalog was asked for.
fn asked(catalog: &Catalog) -> usize {
    catalog.calls("GetProduct", "sku", "SKU-1").len()
}

async fn place_orders(service: &crate::Service, number: usize) {
    for _ in 0..number {
        order(service, "SKU-1").await;
    }
}

#[tokio::test]
async fn calls_are_spread_over_a_names_addresses_and_follow_changes() {
    let Some(hosts) = Hosts::new() else { return };
    let world = World::new().await;
    let port = free_address().port();
    let start = async |address: &str| Catalog::start_at(&format!("{address}:{port}")).await;
    let (one, two) = (start("127.0.0.2").await, start("127.0.0.3").await);
    hosts.name_is(&["127.0.0.2", "127.0.0.3"]);
    let launch = world.service().set("catalog.endpoint", format!("http://{NAME}:{port}"));
    let service = hosts.before(launch).ready().await;

    place_orders(&service, 40).await;
    assert!(asked(&one) >= 5 && asked(&two) >= 5, "{} and {}", asked(&one), asked(&two));

    // one leaves the name, and still answers whoever asks it
    hosts.name_is(&["127.0.0.3"]);
    eventually("it is called no more", s(10), async || {
        let before = asked(&one);
        place_orders(&service, 10).await;
        asked(&one) == before
    })
    .await;
    one.kill().await;

    let three = start("127.0.0.4").await;
    hosts.name_is(&["127.0.0.3", "127.0.0.4"]);
    eventually("the new one is called", s(10), async || {
        place_orders(&service, 5).await;
        asked(&three) > 0
    })
    .await;

    // one dies before the name is told
    two.kill().await;
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(place(&service, "SKU-1").await.status != 201);
        tokio::time::sleep(ms(10)).await;
    }
    assert!(failed <= 2, "the other is asked instead: {failed} of 40 failed");
    all_settled(&world).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_503_until_it_does() {
    let Some(hosts) = Hosts::new() else { return };
    let world = World::new().await;
    hosts.name_is(&[]);
    let port = world.catalog().address.port();
    let launch = world.service().set("catalog.endpoint", format!("http://{NAME}:{port}"));
    let service = hosts.before(launch.set("readiness.catalog", "advisory")).ready().await;
    let reply = place(&service, "SKU-1").await;
    assert!(matches!(reply.status, 503 | 504), "{reply:?}");
    assert_eq!(service.probe("/livez").await.status, 200);
    hosts.name_is(&["127.0.0.1"]);
    eventually("it takes orders", s(20), async || place(&service, "SKU-1").await.status == 201).await;
    // a resolver that fails takes nothing away
    hosts.name_is(&[]);
    tokio::time::sleep(s(3)).await;
    place_orders(&service, 5).await;
}
