//! A database for each test, in the cluster that `DATABASE_URL` names.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::OsString,
    fs,
    hash::{Hash, Hasher},
    path::Path,
    process,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::{Launch, s};

/// So many databases are in use at a time: a cluster has 100 connections, and a test with two replicas takes a dozen.
static PLACES: Semaphore = Semaphore::const_new(6);
/// The migrated database that others are copies of, once it is there.
static TEMPLATE: OnceCell<String> = OnceCell::const_new();
/// Numbers the databases of this process.
static NUMBER: AtomicUsize = AtomicUsize::new(0);
/// The key of the advisory lock under which the template is made; any number that is nobody else's.
const TEMPLATE_LOCK: i64 = 7_461_001;

/// A database of the test's own. Dropping it removes it, whoever is still connected.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
    options: PgConnectOptions,
    pool: PgPool,
    _place: SemaphorePermit<'static>,
}

impl Database {
    /// One with every migration applied.
    pub(crate) async fn migrated() -> Self {
        let template = TEMPLATE.get_or_init(template).await;
        Self::copy_of(template).await
    }

    /// One with nothing in it.
    pub(crate) async fn empty() -> Self {
        Self::copy_of("template0").await
    }

    async fn copy_of(template: &str) -> Self {
        let place = PLACES.acquire().await.expect("it is never closed");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}", process::id());
        let mut cluster = cluster().connect().await.expect("the cluster of DATABASE_URL answers");
        // A run that was killed may have left one of that name.
        run(&mut cluster, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        run(&mut cluster, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        let options = cluster_of(&name);
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(s(10)).connect_lazy_with(options.clone());
        Self { name, options, pool, _place: place }
    }

    /// How many migrations there are.
    pub(crate) fn migrations() -> usize {
        migrations().len()
    }

    /// Whether there is any: the example domain's go with it.
    pub(crate) fn has_migrations() -> bool {
        Self::migrations() > 0
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        self.options.to_url_lossy().into()
    }

    /// Its URL with another address in it, such as a proxy's.
    pub(crate) fn url_at(&self, address: std::net::SocketAddr) -> String {
        self.options.clone().host(&address.ip().to_string()).port(address.port()).to_url_lossy().into()
    }

    /// Where the cluster listens; a test with a proxy before it needs one that does so on TCP.
    pub(crate) fn address(&self) -> (String, u16) {
        assert!(self.options.get_socket().is_none(), "DATABASE_URL must name a host, not a socket");
        (self.options.get_host().to_owned(), self.options.get_port())
    }

    /// Connections of the test's own, which `backends` does not count.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How many backends others than the test have here.
    pub(crate) async fn backends(&self) -> i64 {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> '(test)'";
        self.one(sql).await
    }

    /// The first column of the first row.
    pub(crate) async fn one<T>(&self, sql: &'static str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// A statement, or several.
    pub(crate) async fn execute(&self, sql: &'static str) {
        self.pool.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A thread, since the test's runtime may be the one that is dropping this.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { cluster().connect().await?.execute(AssertSqlSafe(drop)).await })?;
            Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("{} is left behind: {error}", self.name);
        }
    }
}

/// Makes the template, unless an earlier run with the same migrations did.
async fn template() -> String {
    let mut hasher = DefaultHasher::new();
    migrations().hash(&mut hasher);
    let name = format!("template_{:016x}", hasher.finish());
    let mut cluster = cluster().connect().await.expect("the cluster of DATABASE_URL answers");
    // Held until the connection closes, so by one test process at a time.
    run(&mut cluster, format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})")).await;
    let made = sqlx::query_scalar::<_, bool>("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)");
    if !made.bind(&name).fetch_one(&mut cluster).await.expect("pg_database is there") {
        let unfinished = format!("{name}_unfinished");
        run(&mut cluster, format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)")).await;
        run(&mut cluster, format!("CREATE DATABASE {unfinished} TEMPLATE template0")).await;
        let migrate = Launch::new().args(["migrate"]).set("database.url", cluster_of(&unfinished).to_url_lossy());
        let migrated = migrate.run().await;
        assert_eq!(migrated.code, Some(0), "service migrate: {migrated:#?}");
        run(&mut cluster, format!("ALTER DATABASE {unfinished} RENAME TO {name}")).await;
    }
    let _ = cluster.close().await;
    name
}

/// The name and the content of every migration.
fn migrations() -> Vec<(OsString, Option<Vec<u8>>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let sql = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "sql"));
    let mut files: Vec<_> = sql.map(|file| (file.file_name(), fs::read(file.path()).ok())).collect();
    files.sort();
    files
}

async fn run(connection: &mut PgConnection, sql: String) {
    let done = connection.execute(AssertSqlSafe(sql.clone())).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn cluster() -> PgConnectOptions {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| {
        panic!("DATABASE_URL is not set: run the tests through scripts/with-postgres, as make test does")
    });
    let options = PgConnectOptions::from_str(&url).expect("DATABASE_URL is a PostgreSQL URL");
    options.application_name("(test)")
}

fn cluster_of(database: &str) -> PgConnectOptions {
    cluster().database(database)
}
