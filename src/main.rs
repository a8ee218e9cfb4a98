//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use service::config::Config;
use service::lifecycle::{Control, Exit};
use service::postgres::Postgres;
use service::telemetry::{Telemetry, chain};
use service::{admin, app};

/// musl's allocator takes one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Without a command it serves.
#[derive(Parser)]
#[command(name = env!("CARGO_PKG_NAME"), version, about, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

fn after_help() -> String {
    let settings = "Settings: config/default.toml lists them all; APP__SECTION__KEY in the environment sets one.";
    format!("{}\n{settings}", Exit::HELP)
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM, SIGINT or `pre-stop` (the default)
    Serve,
    /// Apply the database migrations that are missing; safe from many replicas at once
    Migrate,
    /// Begin the stop of the instance in this container; for preStop
    PreStop,
    /// Ask the instance in this container how it is: exit code 0 or 1
    Health {
        #[arg(default_value = "ready")]
        probe: Probe,
    },
    /// Print the settings in force, secrets redacted
    Config,
    /// Print the OpenAPI contract
    Openapi,
}

#[derive(Clone, Copy, ValueEnum)]
enum Probe {
    Live,
    Ready,
    Startup,
}

fn main() -> ExitCode {
    // first of all: the kernel discards a signal to PID 1 that has no handler
    let control = Control::new();
    let cli = Cli::parse();
    let result = control.map_err(anyhow::Error::from).and_then(|control| {
        if let Some(Command::Openapi) = cli.command {
            println!("{}", app::openapi().to_pretty_json()?);
            return Ok(Exit::Clean.into());
        }
        let config = Config::load().map_err(|error| BadConfiguration(error.to_string()))?;
        match cli.command.unwrap_or(Command::Serve) {
            Command::Serve => serve(&config, control),
            Command::Migrate => migrate(&config, control),
            Command::PreStop => ask("POST", "/drain", &config, control),
            Command::Health { probe: Probe::Live } => ask("GET", "/livez", &config, control),
            Command::Health { probe: Probe::Ready } => ask("GET", "/readyz", &config, control),
            Command::Health { probe: Probe::Startup } => ask("GET", "/startupz", &config, control),
            Command::Config | Command::Openapi => {
                print!("{}", toml::to_string(&config)?);
                Ok(Exit::Clean.into())
            }
        }
    });
    result.unwrap_or_else(|error| {
        eprintln!("{}: {}", env!("CARGO_PKG_NAME"), chain(&*error));
        ExitCode::from(if error.is::<BadConfiguration>() { Exit::BadConfiguration } else { Exit::Failure })
    })
}

/// The settings, or the environment, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadConfiguration(String);

fn telemetry(config: &Config, control: &Control) -> Result<Telemetry, BadConfiguration> {
    let _context = control.handle().enter();
    Telemetry::start(&config.telemetry).map_err(|error| BadConfiguration(error.to_string()))
}

fn serve(config: &Config, control: Control) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry(config, &control)?;
    app::serve(config, control, &telemetry)
}

fn migrate(config: &Config, control: Control) -> anyhow::Result<ExitCode> {
    let _telemetry = telemetry(config, &control)?;
    let postgres = {
        let _context = control.handle().enter();
        Postgres::new(&config.database)?
    };
    match control.run_command(async move { postgres.migrate().await }) {
        Some(migrated) => migrated?,
        // a signal asked for this, so it is no failure: if the pod goes on, its check says what is missing
        None => tracing::warn!("stopped by a signal: what was not finished was rolled back; run `migrate` again"),
    }
    Ok(Exit::Clean.into())
}

fn ask(method: &str, path: &str, config: &Config, control: Control) -> anyhow::Result<ExitCode> {
    let Some(answer) = control.run_command(admin::ask(method, path, config.admin.address)) else {
        return Ok(Exit::Failure.into());
    };
    let answer = answer?;
    println!("{}", answer.body);
    Ok(if answer.ok { Exit::Clean } else { Exit::Failure }.into())
}
