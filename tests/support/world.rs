//! What a service needs around it.

use std::any::Any;

use tokio::sync::RwLock;

use super::{Catalog, Database, Launch};

/// Held by every test of a crate: shared by most, alone by those that measure.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// A database and a catalog, and services started on them.
#[derive(Debug)]
pub(crate) struct World {
    /// The database.
    pub(crate) database: Database,
    catalog: Option<Catalog>,
    _turn: Box<dyn Any + Send + Sync>,
}

impl World {
    /// A migrated database, and the catalog where there is one.
    pub(crate) async fn new() -> Self {
        Self::during(MACHINE.read().await).await
    }

    /// The same while no other test of this crate runs, for those that measure time or memory.
    pub(crate) async fn alone() -> Self {
        Self::during(MACHINE.write().await).await
    }

    async fn during(turn: impl Any + Send + Sync) -> Self {
        let database = Database::migrated().await;
        let catalog = if Catalog::exists() { Some(Catalog::start().await) } else { None };
        Self { database, catalog, _turn: Box::new(turn) }
    }

    /// The catalog.
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

    /// The same with the routes of `examples/stand`.
    pub(crate) fn stand(&self) -> Launch {
        self.service().stand()
    }

    /// Such a service, ready.
    pub(crate) async fn serve(&self) -> super::Service {
        self.service().ready().await
    }
}
