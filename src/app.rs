//! The composition root: the parts in the order they start, and the stop in the order they end. What is to be closed in
//! order is on this page; the admin server answers until the exit, and background work ends with phase `stopping`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Handle, Runtime};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::grpc::Peer;
use crate::lifecycle::{Control, Lifecycle, Plan, Workers};
use crate::orders::Orders;
use crate::postgres::Postgres;
use crate::server::{self, Limits, Middleware, Server};
use crate::telemetry::Telemetry;

/// For a step that waits for nobody.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Runs the service until it is stopped; the exit code says how that went.
///
/// # Errors
/// What keeps it from starting: an address that is taken, a URL that is none.
pub fn serve(config: &Config, control: Control, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let main = Runtime::new().context("cannot start the runtime")?;
    let lifecycle = Lifecycle::new(&config.lifecycle, &config.readiness);
    let (start, stop) = {
        let _context = main.enter();
        compose(config, &lifecycle, telemetry, control.handle(), main.handle())?
    };
    Ok(control.run(&lifecycle, main, start, stop))
}

/// The contract of the public API.
pub fn openapi() -> OpenApi {
    server::docs::openapi([
        // every resource's
        Orders::api().into_openapi(),
    ])
}

/// Makes every part, and waits for nothing. Returns the start (migrations, the required checks, then listening) and the
/// stop.
fn compose(
    config: &Config,
    lifecycle: &Lifecycle,
    telemetry: &Telemetry,
    control: &Handle,
    main: &Handle,
) -> anyhow::Result<(impl Future<Output = anyhow::Result<()>> + Send + use<>, Plan)> {
    // the two ports: admin answers from here on, the public one only when all that follows is ready
    let http = Server::bind("http", config.http.address, Limits::from(&config.http), lifecycle)?;
    let limits = Limits { max_connections: admin::MAX_CONNECTIONS, ..Limits::from(&config.http) };
    let admin = Server::bind("admin", config.admin.address, limits, lifecycle)?;

    // what the service depends on, each connected when first used
    let postgres = Postgres::new(&config.database)?;
    lifecycle.background(postgres.clone().follow());
    let catalog = Peer::new(&config.catalog)?;
    lifecycle.check("postgres", config.readiness.postgres, {
        let postgres = postgres.clone();
        move || postgres.clone().check()
    });
    lifecycle.check("catalog", config.readiness.catalog, {
        let catalog = catalog.clone();
        move || catalog.clone().check()
    });

    // what it does: each resource begins its work in the background and adds its routes
    let workers = Workers::default();
    let api = OpenApiRouter::new();
    let orders = Orders::new(&postgres, &catalog, lifecycle.in_flight(), http.drain_signal());
    orders.start(config, lifecycle, &workers);
    let api = api.merge(Orders::api().with_state(orders));
    let router = Middleware::new(&config.http, lifecycle).around(server::docs::documented(api));

    let metrics = telemetry.metrics();
    lifecycle.background(metrics.clone().upkeep());
    let gauges = gauges(lifecycle, &http, &postgres, main);
    // a server runs where it is told to serve: this one on the control thread
    let context = control.enter();
    admin.serve(Admin::new(lifecycle, metrics, gauges).router())?;
    drop(context);

    let start = {
        let (postgres, http, lifecycle) = (postgres.clone(), http.clone(), lifecycle.clone());
        let migrate = config.database.migrate_on_start;
        async move {
            if migrate {
                postgres.migrate().await?;
            }
            lifecycle.readiness().passed().await;
            Ok(http.serve(router)?)
        }
    };

    let budget = &config.lifecycle;
    let unready = workers.clone();
    let plan = Plan::default()
        .step("unready", AT_ONCE, async move { unready.claim_nothing() })
        .step("drain_delay", budget.drain_delay, lifecycle.clone().drain_delay())
        .step("stop_accepting", AT_ONCE, http.clone().stop_accepting())
        .step("drain_http", budget.drain_timeout, http.clone().drain())
        .or_cut(move || http.cut())
        .step("drain_workers", budget.worker_timeout, workers.clone().drain())
        .or_cut(move || workers.cut())
        .step("grpc_channel", budget.grpc_timeout, catalog.close())
        .step("database_pool", budget.database_timeout, postgres.close())
        .step("telemetry", budget.telemetry_timeout, telemetry.traces().close());
    Ok((start, plan))
}

/// What `/metrics` reads when it is asked.
fn gauges(lifecycle: &Lifecycle, http: &Server, postgres: &Postgres, main: &Handle) -> impl Fn() + Send + Sync + use<> {
    let (lifecycle, http, postgres, main) = (lifecycle.clone(), http.clone(), postgres.clone(), main.clone());
    move || {
        crate::telemetry::metrics::report(&lifecycle, &main);
        http.report();
        postgres.report();
    }
}
