//! The composition root: the parts in the order they start, and the stop in the order they end. What is to be closed in
//! order is on this page; the admin server answers until the exit, and background work ends with phase `stopping`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::admin::Admin;
use crate::config::{Change, Config};
use crate::grpc::Peer;
use crate::lifecycle::{self, Control, Lifecycle, Plan, Workers};
use crate::orders::Orders;
use crate::postgres::Postgres;
use crate::server::{self, Port, Server};
use crate::telemetry::Telemetry;

/// For a step that waits for nobody.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Runs the service until it is stopped; the exit code says how that went.
///
/// # Errors
/// What keeps it from starting: a taken address, a malformed URL.
pub fn serve(config: &Config, control: Control, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    serve_with(config, control, telemetry, |_, _, _| OpenApiRouter::new())
}

/// Routes beside those of the resources, and what they need.
pub type Routes = fn(&Postgres, &Lifecycle, &Workers) -> OpenApiRouter;

/// The same with more routes: the tests have their own, in `examples/stand`.
///
/// # Errors
/// As those of [`serve`].
pub fn serve_with(config: &Config, control: Control, telemetry: &Telemetry, more: Routes) -> anyhow::Result<ExitCode> {
    let main = lifecycle::main_runtime().context("cannot start the runtime")?;
    let lifecycle = Lifecycle::new(&config.lifecycle, &config.readiness);
    let (start, stop, reload) = {
        let _context = main.enter();
        compose(config, &lifecycle, telemetry, control.handle(), main.handle(), more)?
    };
    Ok(control.run(&lifecycle, main, start, stop, reload))
}

/// Settings that change while the service runs.
const LIVE: [&str; 2] = ["database.url", "telemetry.log_filter"];

/// What SIGHUP does: reads the settings again, and hands each part that can change while it runs what has changed.
fn reload(config: &Config, telemetry: &Telemetry, postgres: &Postgres) -> impl Fn() + Send + Sync + use<> {
    let (running, logs, postgres) = (Mutex::new(config.clone()), telemetry.logs(), postgres.clone());
    move || {
        let new = match Config::load() {
            Ok(new) => new,
            Err(error) => return tracing::error!(%error, "settings are not read again"),
        };
        let mut running = running.lock();
        for Change { setting, from, to } in running.changes(&new) {
            let effect = if LIVE.contains(&&*setting) { "now" } else { "at the next start" };
            tracing::info!(setting, from, to, effect, "setting has changed");
        }
        if let Err(error) = logs.set_filter(&new.telemetry.log_filter) {
            tracing::error!(%error, "the log's filter stays as it is");
        }
        if let Err(error) = Handle::current().block_on(postgres.reload(new.database.url.clone())) {
            tracing::error!(%error, "the database's URL stays as it is");
        }
        *running = new;
        tracing::info!("settings are read again");
    }
}

/// The contract of the public API.
pub fn openapi() -> OpenApi {
    server::docs::openapi([
        // every resource's
        Orders::api().into_openapi(),
    ])
}

/// Makes every part, and waits for nothing. Returns the start (migrations, the required checks, then listening), the
/// stop, and what SIGHUP does.
fn compose(
    config: &Config,
    lifecycle: &Lifecycle,
    telemetry: &Telemetry,
    control: &Handle,
    main: &Handle,
    more: Routes,
) -> anyhow::Result<(impl Future<Output = anyhow::Result<()>> + Send + use<>, Plan, impl Fn() + Send + Sync + use<>)> {
    // the two ports: admin answers from here on, the public one only when all that follows is ready
    let http = Server::bind(Port::Public, config, lifecycle)?;
    let admin = Server::bind(Port::Admin, config, lifecycle)?;

    // what the service depends on, each connected when first used
    let postgres = Postgres::new(&config.database)?;
    if config.database.url_file.is_some() {
        let postgres = postgres.clone();
        lifecycle.background("database URL", move || postgres.clone().follow());
    }
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
    let orders = Orders::new(&postgres, &catalog, lifecycle.in_flight());
    orders.start(config, lifecycle, &workers);
    let api = api.merge(Orders::api().with_state(orders));
    let api = api.merge(more(&postgres, lifecycle, &workers));
    let router = server::docs::documented(api);

    let metrics = telemetry.metrics();
    lifecycle.background("metrics", {
        let metrics = metrics.clone();
        move || metrics.clone().upkeep()
    });
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

    let reload = reload(config, telemetry, &postgres);
    let budget = &config.lifecycle;
    let unready = workers.clone();
    let plan = Plan::default()
        .step("unready", AT_ONCE, async move { unready.claim_nothing() })
        .step("drain_delay", budget.drain_delay, lifecycle.clone().drain_delay())
        .step("stop_accepting", AT_ONCE, http.clone().stop_accepting())
        .step("drain_http", budget.drain_http, http.clone().drain())
        .or_abort(move || http.abort())
        .step("drain_workers", budget.drain_workers, workers.clone().drain())
        .or_abort(move || workers.abort())
        .step("grpc_channel", budget.grpc_channel, catalog.close())
        .step("database_pool", budget.database_pool, postgres.close())
        .step("telemetry", budget.telemetry, telemetry.traces().close());
    Ok((start, plan, reload))
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
