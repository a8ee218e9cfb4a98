//! Every setting at its smallest and its largest allowed value: the service starts and serves.

use futures_util::{StreamExt, stream};

use service::config::Config;

use crate::support::{Launch, World, eventually, s};

/// The setting, its smallest and its largest value; where one has to go with it, what that is.
const EXTREMES: [(&str, [&str; 2]); 45] = [
    ("http.request_timeout", ["100ms", "1h"]),
    ("http.header_timeout", ["100ms", "1h"]),
    ("http.idle_timeout", ["100ms", "1h"]),
    ("http.body_limit", ["1B", "1GiB"]),
    ("http.max_buffered", ["1MiB", "1TiB"]),
    ("http.max_connections", ["1", "1000000"]),
    ("http.max_connection_age", ["1s", "7days"]),
    ("http.max_in_flight", ["1", "1000000"]),
    ("lifecycle.drain_delay", ["0s", "3598s"]),
    ("lifecycle.drain_http", ["0s", "3598s"]),
    ("lifecycle.drain_workers", ["0s", "3598s"]),
    ("lifecycle.grpc_channel", ["0s", "3598s"]),
    ("lifecycle.database_pool", ["0s", "3598s"]),
    ("lifecycle.telemetry", ["0s", "3598s"]),
    ("lifecycle.deadline", ["1ms", "3598s"]),
    ("lifecycle.termination_grace_period", ["2s1ms", "1h"]),
    ("lifecycle.stall_threshold", ["1s", "1h"]),
    ("lifecycle.max_tasks", ["100", "100000000"]),
    ("lifecycle.max_memory", ["16MiB", "1TiB"]),
    ("readiness.interval", ["10ms", "1h"]),
    ("readiness.timeout", ["100ms", "1h"]),
    ("readiness.failures", ["1", "1000"]),
    ("readiness.postgres", ["required", "advisory"]),
    ("readiness.catalog", ["startup", "advisory"]),
    ("database.max_connections", ["1", "10000"]),
    ("database.max_waiting", ["1", "1000000"]),
    ("database.statement_cache", ["0", "10000"]),
    ("database.startup_options", ["false", "true"]),
    ("database.acquire_timeout", ["100ms", "1h"]),
    ("database.statement_timeout", ["100ms", "1h"]),
    ("database.migrate_on_start", ["false", "true"]),
    ("catalog.connect_timeout", ["100ms", "1h"]),
    ("catalog.timeout", ["100ms", "1h"]),
    ("catalog.refresh_interval", ["10ms", "1h"]),
    ("worker.concurrency", ["1", "1000"]),
    ("worker.poll_interval", ["1ms", "1h"]),
    ("telemetry.log_filter", ["info", "info,service=trace"]),
    ("telemetry.log_format", ["json", "json"]),
    ("http.address", ["127.0.0.1:0", "[::]:0"]),
    ("admin.address", ["127.0.0.1:0", "0.0.0.0:0"]),
    ("products.timeout", ["100ms", "1h"]),
    ("products.max_count", ["100", "100000000"]),
    ("products.max_size", ["64KiB", "64GiB"]),
    ("retention.events", ["1s", "off"]),
    ("retention.idempotency_keys", ["1s", "off"]),
];

/// With the settings that this one must agree with.
fn with(launch: Launch, setting: &str, value: &str) -> Launch {
    let url = ("DATABASE_URL".to_owned(), "postgres://localhost/none".to_owned());
    let defaults = Config::from_env([url].into_iter()).expect("the defaults are valid");
    let budgets = defaults.lifecycle.budgets().map(|(budget, _)| budget);
    let none = |launch: Launch| budgets.iter().fold(launch, |launch, budget| launch.set(budget, "0s"));
    let longest =
        |launch: Launch| launch.set("lifecycle.deadline", "3598s").set("lifecycle.termination_grace_period", "1h");
    let launch = match setting {
        "lifecycle.deadline" => longest(none(launch)),
        "lifecycle.termination_grace_period" => none(launch).set("lifecycle.deadline", "1ms"),
        "http.body_limit" => launch.set("http.max_buffered", "1GiB"),
        budget if budgets.contains(&budget) => longest(none(launch)),
        _ => launch,
    };
    launch.set(setting, value)
}

#[tokio::test]
async fn it_serves_with_every_setting_at_its_smallest_or_largest() {
    let world = World::new().await;
    let cases = EXTREMES.iter().flat_map(|(setting, [least, most])| [(setting, least), (setting, most)]);
    let run = stream::iter(cases).for_each_concurrent(3, async |(setting, value)| {
        let service = with(world.service(), setting, value).spawn();
        let what = |what: &str| format!("{setting} = {value}: {what}");
        let started = async || {
            assert!(service.ended().is_none(), "{}: {}", what("it ends"), service.text(true));
            service.try_probe("/startupz").await.is_ok_and(|reply| reply.status == 200)
        };
        eventually(&what("it starts"), s(20), started).await;
        for path in ["/v1/products/SKU-1", "/v1/orders"] {
            let serves = async || {
                service
                    .try_send(crate::support::get(path))
                    .await
                    .map(|reply| if reply.status == 200 { Ok(()) } else { Err(format!("{reply:?}")) })
            };
            let serves = async || match serves().await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(reply)) => Err(reply),
                Err(error) => Err(error.to_string()),
            };
            eventually(&what(path), s(30), serves).await;
        }
        service.kill().await;
    });
    run.await;
}
