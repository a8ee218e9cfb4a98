//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use service::config::Config;
use service::lifecycle::Control;
use service::postgres::Postgres;
use service::telemetry::{Telemetry, chain};
use service::{app, probe};

/// musl's allocator takes one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUNTIME_FAILURE: u8 = 1;
const BAD_CONFIGURATION: u8 = 2;

/// Without a command it serves.
#[derive(Parser)]
#[command(name = env!("CARGO_PKG_NAME"), version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str =
    "Exit codes: 0 clean, 1 runtime failure, 2 bad configuration, 3 a deadline passed, 128+N a second signal.
Settings: config/default.toml lists them all; APP__SECTION__KEY in the environment sets one.";

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
    // first of all: as PID 1, a process is not given a signal that it has no handler for
    let control = Control::new();
    let cli = Cli::parse();
    let result = control.map_err(anyhow::Error::from).and_then(|control| {
        if let Some(Command::Openapi) = cli.command {
            println!("{}", app::openapi().to_pretty_json()?);
            return Ok(ExitCode::SUCCESS);
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
                Ok(ExitCode::SUCCESS)
            }
        }
    });
    result.unwrap_or_else(|error| {
        eprintln!("{}: {}", env!("CARGO_PKG_NAME"), chain(&*error));
        ExitCode::from(if error.is::<BadConfiguration>() { BAD_CONFIGURATION } else { RUNTIME_FAILURE })
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
        // whoever asked it to stop got what was asked for: where the pod goes on, its check says what is missing
        None => tracing::warn!("stopped by a signal: what was not finished was rolled back; run `migrate` again"),
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(method: &str, path: &str, config: &Config, control: Control) -> anyhow::Result<ExitCode> {
    let Some(answer) = control.run_command(probe::ask(method, path, config.admin.address)) else {
        return Ok(ExitCode::from(RUNTIME_FAILURE));
    };
    let answer = answer?;
    println!("{}", answer.body);
    Ok(if answer.ok { ExitCode::SUCCESS } else { ExitCode::from(RUNTIME_FAILURE) })
}
