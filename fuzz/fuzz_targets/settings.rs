//! Whatever the environment says, the settings are read or every fault in them is named, without a panic, and without
//! the password of the database.
#![no_main]

use libfuzzer_sys::fuzz_target;
use service::config::Config;

const PASSWORD: &str = "a-secret-of-the-database";

fuzz_target!(|text: &str| {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    // those name files of the machine
    let ours = lines.filter(|(name, _)| !name.ends_with("_FILE") && *name != "APP_CONFIG");
    let given = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let url = ("DATABASE_URL".to_owned(), format!("postgres://user:{PASSWORD}@host/database"));
    let said = match Config::from_env([url].into_iter().chain(given)) {
        Ok(config) => format!("{config:?}"),
        Err(faults) => format!("{faults} {faults:?}"),
    };
    assert!(text.contains(PASSWORD) || !said.contains(PASSWORD), "{said}");
});
