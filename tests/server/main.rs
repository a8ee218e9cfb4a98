//! What every service made from this has, whatever it is for: its command line, its settings, its probes, its start, its
//! server and its stop. No test here needs the example.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod command_line;
mod lifecycle;
mod log;
mod metrics;
mod migrate;
mod panic;
mod peer;
mod pid_1;
mod ports;
mod probes;
mod reload;
mod settings;
mod start;
mod traces;
