//! Every setting at its smallest and its largest allowed value: the service starts and serves.

use futures_util::{StreamExt, stream};

use crate::support::{Launch, World, eventually, s};

/// The setting, its smallest and its largest value; where one has to go with it, what that is.
const EXTREMES: [(&str, [&str; 2]); 37] = [
    ("http.request_timeout", ["100ms", "1h"]),
    ("http.header_timeout", ["100ms", "1h"]),
    ("http.idle_timeout", ["100ms", "1h"]),
    ("http.body_limit", ["1B", "1GiB"]),
    ("http.max_connections", ["1", "1000000"]),
    ("http.max_in_flight", ["1", "1000000"]),
    ("lifecycle.drain_delay", ["0s", "3598s"]),
    ("lifecycle.drain_timeout", ["0s", "3598s"]),
    ("lifecycle.worker_timeout", ["0s", "3598s"]),
    ("lifecycle.grpc_timeout", ["0s", "3598s"]),
    ("lifecycle.database_timeout", ["0s", "3598s"]),
    ("lifecycle.telemetry_timeout", ["0s", "3598s"]),
    ("lifecycle.deadline", ["1ms", "3598s"]),
    ("lifecycle.termination_grace_period", ["2s1ms", "1h"]),
    ("lifecycle.stall_threshold", ["1s", "1h"]),
    ("lifecycle.max_tasks", ["100", "100000000"]),
    ("lifecycle.max_memory", ["16MiB", "1TiB"]),
    ("readiness.interval", ["10ms", "1h"]),
    ("readiness.timeout", ["100ms", "1h"]),
    ("readiness.failures", ["1", "1000"]),
    ("readiness.postgres", ["required", "advisory"]),
    ("readiness.catalog", ["required", "advisory"]),
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
    ("telemetry.log_format", ["json", "json"]),
    ("http.address", ["127.0.0.1:0", "[::]:0"]),
    ("admin.address", ["127.0.0.1:0", "0.0.0.0:0"]),
];

const BUDGETS: [&str; 6] =
    ["drain_delay", "drain_timeout", "worker_timeout", "grpc_timeout", "database_timeout", "telemetry_timeout"];

/// With the settings that this one must agree with.
fn with(launch: Launch, setting: &str, value: &str) -> Launch {
    let none =
        |launch: Launch| BUDGETS.iter().fold(launch, |launch, budget| launch.set(&format!("lifecycle.{budget}"), "0s"));
    let longest =
        |launch: Launch| launch.set("lifecycle.deadline", "3598s").set("lifecycle.termination_grace_period", "1h");
    let launch = match setting.strip_prefix("lifecycle.") {
        Some(own) if BUDGETS.contains(&own) => longest(none(launch)),
        Some("deadline") => longest(none(launch)),
        Some("termination_grace_period") => none(launch).set("lifecycle.deadline", "1ms"),
        _ => launch,
    };
    launch.set(setting, value)
}

#[tokio::test]
async fn with_every_setting_at_its_smallest_and_at_its_largest_it_starts_and_serves() {
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
