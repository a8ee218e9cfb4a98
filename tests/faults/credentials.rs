//! Credentials that change while the service runs: the file that the URL came from is swapped, as Kubernetes does it.

use std::{fs, os::unix::fs::symlink, path::Path, time::Instant};

use sqlx::PgConnection;

use crate::{
    cluster::Cluster,
    load::Load,
    support::{Catalog, Launch, Service, always, eventually, ms, s},
};

/// What a mounted Secret looks like: the file is a link into a folder that another link leads to.
pub(crate) fn mount(folder: &Path, version: u32, url: &str) {
    let data = format!("..data_{version}");
    fs::create_dir(folder.join(&data)).expect("it is new");
    fs::write(folder.join(&data).join("url"), format!("{url}\n")).expect("the folder is ours");
    symlink(&data, folder.join("..new")).expect("it is new");
    fs::rename(folder.join("..new"), folder.join("..data")).expect("the folder is ours");
    let _ = symlink("..data/url", folder.join("url"));
}

async fn sessions(owner: &mut PgConnection, role: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
    sqlx::query_scalar(sql).bind(role).fetch_one(owner).await.expect("it answers")
}

async fn execute(owner: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(owner).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// One with two roles that have passwords, and its owner's connection.
pub(crate) async fn with_roles() -> Option<(Cluster, PgConnection)> {
    let cluster = Cluster::start().await?;
    let rules = "host all,replication postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 password\n";
    fs::write(cluster.folder().join("data/pg_hba.conf"), rules).expect("the folder is ours");
    let mut owner = cluster.connect().await;
    let roles = "CREATE ROLE blue LOGIN PASSWORD 'one'; CREATE ROLE green LOGIN PASSWORD 'two';
                 GRANT ALL ON ALL TABLES IN SCHEMA public TO blue, green;
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO blue, green;
                 SELECT pg_reload_conf()";
    execute(&mut owner, roles).await;
    Some((cluster, owner))
}

async fn serve(file: &Path, catalog: &Catalog) -> Service {
    let launch =
        Launch::new().env("APP__DATABASE__URL_FILE", file.display()).set("catalog.endpoint", catalog.endpoint());
    let launch = launch.set("readiness.interval", "200ms").set("readiness.failures", 1);
    launch.set("catalog.timeout", "5s").ready().await
}

#[tokio::test]
async fn a_url_that_changes_under_load_fails_no_request() {
    let Some((cluster, mut owner)) = with_roles().await else { return };
    let catalog = Catalog::start().await;
    let secret = tempfile::tempdir().expect("a folder");
    let url = |login: &str| cluster.url().replace("postgres@", &format!("{login}@"));
    mount(secret.path(), 1, &url("blue:one"));
    let service = serve(&secret.path().join("url"), &catalog).await;
    let load = Load::on(&service).await;
    let begun = Instant::now();
    eventually("it serves", s(10), async || load.serves(begun)).await;

    // another role: both hold
    mount(secret.path(), 2, &url("green:two"));
    let all_green = async || sessions(&mut owner, "blue").await == 0 && sessions(&mut owner, "green").await > 0;
    eventually("everybody is green", s(10), all_green).await;
    let now = Instant::now();
    eventually("it serves", s(10), async || load.serves(now)).await;

    // another password, which the file has before the database
    mount(secret.path(), 3, &url("green:three"));
    let warned = async || !service.logged("the database's new URL is not used").is_empty();
    eventually("it is refused", s(10), warned).await;
    execute(&mut owner, "ALTER ROLE green PASSWORD 'three'").await;
    let changed = "the database's URL has changed: every connection is replaced";
    eventually("it is used", s(10), async || service.logged(changed).len() == 2).await;
    let now = Instant::now();
    eventually("it serves", s(10), async || load.serves(now)).await;

    load.went_well(begun);
    load.stop().await;
    assert!(!service.text(false).contains("three"), "a password is in the log");
}

#[tokio::test]
async fn a_url_that_is_malformed_is_logged_and_ignored() {
    let Some((cluster, mut owner)) = with_roles().await else { return };
    let catalog = Catalog::start().await;
    let secret = tempfile::tempdir().expect("a folder");
    mount(secret.path(), 1, &cluster.url().replace("postgres@", "blue:one@"));
    let service = serve(&secret.path().join("url"), &catalog).await;
    for (version, url) in [(2, ""), (3, "mysql://blue:hunter2@localhost/x")] {
        mount(secret.path(), version, url);
        let warned = async || {
            let lines = service.logged("the database's new URL is not used");
            lines.iter().any(|line| line["error"] == "the database's URL is malformed")
        };
        eventually("it is logged", s(5), warned).await;
        assert_eq!(service.get("/v1/orders").await.status, 200);
    }
    always("it is ready", ms(500), async || service.probe("/readyz").await.status == 200).await;
    assert!(sessions(&mut owner, "blue").await > 0);
    assert!(!service.text(false).contains("hunter2"), "a password is in the log");
}

#[tokio::test]
async fn ready_means_that_a_new_connection_can_be_had() {
    let Some((cluster, mut owner)) = with_roles().await else { return };
    let catalog = Catalog::start().await;
    let secret = tempfile::tempdir().expect("a folder");
    mount(secret.path(), 1, &cluster.url().replace("postgres@", "blue:one@"));
    let service = serve(&secret.path().join("url"), &catalog).await;
    execute(&mut owner, "ALTER ROLE blue NOLOGIN").await;
    // the check connects afresh every 30 s
    eventually("it is not ready", s(45), async || service.probe("/readyz").await.status == 503).await;
    assert_eq!(service.get("/v1/orders").await.status, 200, "with what it has it serves");
    execute(&mut owner, "ALTER ROLE blue LOGIN").await;
    eventually("it is ready", s(5), async || service.probe("/readyz").await.status == 200).await;
}
