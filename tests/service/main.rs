//! What every service made from this has, whatever it is for: its command line, its settings, its probes, its start and
//! its stop. The domain's own tests are crates beside this one.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod command_line;
mod drain;
mod log;
mod metrics;
mod migrate;
mod panic;
mod peer;
mod pid_1;
mod ports;
mod probes;
mod settings;
mod start;
mod stop;
mod traces;
