//! What a service needs around it.

use super::{Catalog, Database, Launch};

/// A database and a catalogue, and services started on them.
#[derive(Debug)]
pub(crate) struct World {
    /// The database.
    pub(crate) database: Database,
    catalog: Option<Catalog>,
}

impl World {
    /// A migrated database, and the catalogue where there is one.
    pub(crate) async fn new() -> Self {
        let database = Database::migrated().await;
        let catalog = if Catalog::exists() { Some(Catalog::start().await) } else { None };
        Self { database, catalog }
    }

    /// The catalogue.
    pub(crate) fn catalog(&self) -> &Catalog {
        self.catalog.as_ref().expect("examples/catalog is there")
    }

    /// A service that uses both, with times that suit a test: checks and the worker look often, and a stop does not
    /// wait for anybody to notice it. Services of one world are replicas of each other.
    pub(crate) fn service(&self) -> Launch {
        let launch = Launch::new()
            .set("database.url", self.database.url())
            .set("database.max_connections", 4)
            .set("readiness.interval", "200ms")
            .set("catalog.timeout", "5s")
            .set("worker.poll_interval", "100ms")
            .set("lifecycle.drain_delay", "200ms")
            // Leaves room in the deadline for a test that wants a long delay.
            .set("lifecycle.drain_http", "5s");
        match &self.catalog {
            Some(catalog) => launch.set("catalog.endpoint", catalog.endpoint()),
            None => launch.set("readiness.catalog", "advisory"),
        }
    }

    /// Such a service, ready.
    pub(crate) async fn serve(&self) -> super::Service {
        self.service().ready().await
    }
}
