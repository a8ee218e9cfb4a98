//! Settings: where they come from, and what a wrong one gets.

use std::{io::Write, net::TcpListener, path::Path};

use tempfile::NamedTempFile;
use toml::Table;

use crate::support::{Finished, Launch, s};

const URL: &str = "postgres://shop:hunter2@db.example:5433/shop";

/// `service config`, which needs no more than a database's URL.
fn config() -> Launch {
    Launch::new().unset("http.address").unset("admin.address").set("database.url", URL).args(["config"])
}

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(content.as_bytes()).expect("it can be written");
    file
}

fn settings(text: &str) -> Table {
    text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Settings that cannot be used end the process at once, and say so on standard error.
async fn faults(launch: Launch) -> String {
    let Finished { code, took, stderr, stdout } = launch.run().await;
    assert_eq!(code, Some(2), "{stdout}{stderr}");
    assert!(took < s(1), "{took:?}");
    assert!(!stderr.contains("hunter2"), "a secret: {stderr}");
    stderr
}

#[track_caller]
fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part} in: {text}");
    }
}

#[tokio::test]
async fn every_fault_is_named_at_once_with_what_is_allowed() {
    let wrong = config()
        .set("http.request_timeout", "soon")
        .set("http.max_in_flight", 0)
        .set("http.body_limit", "much")
        .set("readiness.catalog", "sometimes")
        .set("database.url", "mysql://shop:hunter2@db.example/shop")
        .set("http.adress", "0.0.0.0:80")
        .args(["serve"]);
    let faults = faults(wrong).await;
    assert_names(&faults, &["http.request_timeout", "soon", "5s"]);
    assert_names(&faults, &["http.max_in_flight", " 0", "1 to "]);
    assert_names(&faults, &["http.body_limit", "much"]);
    assert_names(&faults, &["readiness.catalog", "sometimes", "required", "advisory"]);
    assert_names(&faults, &["database.url", "postgres://"]);
    assert_names(&faults, &["http.adress", "http.address"]);
}

#[tokio::test]
async fn nothing_is_bound_before_the_settings_are_right() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound");
    let launch = config().args(["serve"]).set("admin.address", address).set("http.address", address);
    // An attempt to bind would be the exit code of a taken port.
    let faults = faults(launch.set("http.idle_timeout", "ages")).await;
    assert_names(&faults, &["http.idle_timeout", "ages"]);
}

#[tokio::test]
async fn every_command_that_reads_settings_refuses_wrong_ones() {
    for command in ["serve", "migrate", "health", "pre-stop", "config"] {
        let faults = faults(config().set("worker.concurency", 4).args([command])).await;
        assert_names(&faults, &["worker.concurency"]);
    }
}

#[tokio::test]
async fn budgets_over_the_deadline_name_the_numbers_to_change() {
    let faults = faults(config().set("lifecycle.drain_http", "20s")).await;
    assert_names(&faults, &["lifecycle.deadline", "25s", "33s", "lifecycle.drain_http"]);
}

#[tokio::test]
async fn a_deadline_over_the_grace_period_names_the_numbers() {
    let faults = faults(config().set("lifecycle.termination_grace_period", "26s")).await;
    assert_names(&faults, &["lifecycle.termination_grace_period", "26s", "27s", "lifecycle.deadline"]);
}

#[tokio::test]
async fn a_missing_database_url_says_how_to_give_one() {
    let faults = faults(config().unset("database.url")).await;
    assert_names(&faults, &["database.url", "DATABASE_URL"]);
}

#[tokio::test]
async fn config_prints_a_file_that_can_be_used() {
    let shown = config().set("http.idle_timeout", "90s").run().await;
    assert_eq!(shown.code, Some(0), "{shown:#?}");
    let file = file(&shown.stdout);
    let again = config().env("APP_CONFIG", file.path().display()).run().await;
    assert_eq!(settings(&again.stdout), settings(&shown.stdout));
    assert_eq!(settings(&shown.stdout)["http"]["idle_timeout"].as_str(), Some("1m30s"));
}

#[tokio::test]
async fn config_shows_every_default_that_the_file_documents() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml");
    let documented = settings(&std::fs::read_to_string(path).expect("it is there"));
    let shown = settings(&config().run().await.stdout);
    for (name, section) in &documented {
        let keys = |table: &Table| table.keys().cloned().collect::<Vec<_>>();
        let (documented, shown) = (section.as_table(), shown[name].as_table());
        assert_eq!(documented.map(keys), shown.map(keys), "{name}");
    }
}

#[tokio::test]
async fn config_shows_no_secret() {
    let shown = config().run().await;
    assert_names(&shown.stdout, &["db.example:5433", "/shop"]);
    assert!(!shown.stdout.contains("hunter2"), "{}", shown.stdout);
    let hidden = config().set("database.url", "postgres://db.example/shop?user=shop&password=hunter2").run().await;
    assert!(!hidden.stdout.contains("hunter2"), "{}", hidden.stdout);
}

#[tokio::test]
async fn the_environment_overrides_the_file_and_that_the_defaults() {
    let file = file("[http]\nmax_in_flight = 7\nidle_timeout = \"80s\"\n");
    let shown = config().env("APP_CONFIG", file.path().display()).set("http.idle_timeout", "2m").run().await;
    let shown = settings(&shown.stdout);
    assert_eq!(shown["http"]["max_in_flight"].as_integer(), Some(7));
    assert_eq!(shown["http"]["idle_timeout"].as_str(), Some("2m"));
    assert_eq!(shown["http"]["request_timeout"].as_str(), Some("10s"));
}

#[tokio::test]
async fn a_secret_may_come_from_a_mounted_file() {
    let file = file(&format!("{URL}\n"));
    let shown = config().unset("database.url").env("APP__DATABASE__URL_FILE", file.path().display()).run().await;
    assert_eq!(shown.code, Some(0), "{shown:#?}");
    assert_names(&shown.stdout, &["db.example:5433"]);
}

#[tokio::test]
async fn any_setting_may_come_from_a_mounted_file() {
    let file = file("33\n");
    let shown = config().env("APP__WORKER__CONCURRENCY_FILE", file.path().display()).run().await;
    assert_eq!(settings(&shown.stdout)["worker"]["concurrency"].as_integer(), Some(33), "{shown:#?}");
}

#[tokio::test]
async fn a_mounted_file_that_is_missing_is_named() {
    let faults = faults(config().unset("database.url").env("APP__DATABASE__URL_FILE", "/nowhere/url")).await;
    assert_names(&faults, &["APP__DATABASE__URL_FILE", "/nowhere/url"]);
}

#[tokio::test]
async fn a_setting_given_twice_is_a_fault() {
    let file = file(URL);
    let faults = faults(config().env("APP__DATABASE__URL_FILE", file.path().display())).await;
    assert_names(&faults, &["APP__DATABASE__URL", "APP__DATABASE__URL_FILE"]);
}

#[tokio::test]
async fn the_ecosystems_database_url_is_enough_and_ours_goes_over_it() {
    let shown = config().unset("database.url").env("DATABASE_URL", URL).run().await;
    assert_names(&shown.stdout, &["db.example:5433"]);
    let shown = config().env("DATABASE_URL", "postgres://elsewhere/other").run().await;
    assert_names(&shown.stdout, &["db.example:5433"]);
}

#[tokio::test]
async fn an_unknown_key_in_the_file_is_named() {
    let file = file("[http]\nmax_inflight = 7\n\n[htp]\nport = 1\n");
    let faults = faults(config().env("APP_CONFIG", file.path().display())).await;
    assert_names(&faults, &["http.max_inflight", "max_in_flight", "htp.port"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_and_not_quoted() {
    let faults_of = async |path: &str| faults(config().env("APP_CONFIG", path)).await;
    assert_names(&faults_of("/nowhere/settings.toml").await, &["/nowhere/settings.toml"]);
    let broken = file(&format!("[database]\nurl = \"{URL}\n"));
    let path = broken.path().display().to_string();
    assert_names(&faults_of(&path).await, &["APP_CONFIG"]);
}

#[tokio::test]
async fn the_log_filter_is_rust_logs_and_ours_goes_over_it() {
    let filter = async |launch: Launch| settings(&launch.run().await.stdout)["telemetry"]["log_filter"].to_string();
    assert_eq!(filter(config()).await, "\"info\"");
    assert_eq!(filter(config().env("RUST_LOG", "")).await, "\"info\"", "as if it were not set");
    assert_eq!(filter(config().env("RUST_LOG", "warn")).await, "\"warn\"");
    let file = file("[telemetry]\nlog_filter = \"debug\"\n");
    assert_eq!(filter(config().env("APP_CONFIG", file.path().display())).await, "\"debug\"");
    assert_eq!(filter(config().env("RUST_LOG", "warn").set("telemetry.log_filter", "error")).await, "\"error\"");
    let faults = faults(config().env("RUST_LOG", "service=loud")).await;
    assert_names(&faults, &["telemetry.log_filter", "service=loud", "RUST_LOG"]);
}

#[tokio::test]
async fn a_body_that_could_never_be_held_is_a_fault() {
    let faults = faults(config().set("http.body_limit", "64MiB")).await;
    assert_names(&faults, &["http.max_buffered", "32.0 MiB", "64.0 MiB", "http.body_limit"]);
}
