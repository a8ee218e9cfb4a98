//! Where settings come from, and how every fault in them is found at once.
//!
//! Three layers, the later over the earlier: `config/default.toml`, the file named by `APP_CONFIG`, the environment.
//! A variable `APP__SECTION__KEY` sets `section.key`; `APP__SECTION__KEY_FILE` names a file that holds the value.
//! The ecosystem's own `DATABASE_URL` is `database.url` and `RUST_LOG` is `telemetry.log_filter`; ours are more specific
//! and win.
//!
//! Serde stops at the first wrong value. So a wrong one is noted, put back to its default and the whole read again,
//! until nothing is wrong: the reader gets the full list in one go.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use config::{Environment, File, FileFormat, Source, Value, ValueKind};

use super::Config;

const DEFAULTS: &str = include_str!("../../config/default.toml");
const SECRETS: [&str; 1] = ["database.url"];

/// One thing wrong with the settings.
#[derive(Debug, Clone)]
pub struct Fault {
    /// `section.key`, or the variable or file where it is no setting.
    pub setting: String,
    /// The value given, with secrets redacted; `None` where the value is not what is wrong.
    pub given: Option<String>,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

impl Fault {
    fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), given: None, problem: problem.into() }
    }
}

/// The settings cannot be used; lists every reason.
#[derive(Debug, thiserror::Error)]
pub struct InvalidConfig {
    /// At least one, in the order they were found.
    pub faults: Vec<Fault>,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.len() {
            1 => writeln!(f, "one setting is wrong:")?,
            n => writeln!(f, "{n} settings are wrong:")?,
        }
        for Fault { setting, given, problem } in &self.faults {
            match given {
                Some(given) => writeln!(f, "  {setting} is {given}: {problem}")?,
                None => writeln!(f, "  {setting}: {problem}")?,
            }
        }
        write!(f, "every setting and its default is in config/default.toml")
    }
}

impl Config {
    /// Reads the settings from the process's environment and the file that it names.
    ///
    /// # Errors
    /// Every unknown key, wrong type, value out of range and impossible combination, together.
    pub fn load() -> Result<Self, InvalidConfig> {
        Self::from_env(
            std::env::vars_os()
                .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())),
        )
    }

    /// The same from another environment than the process's.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_env(env: impl Iterator<Item = (String, String)>) -> Result<Self, InvalidConfig> {
        let mut faults = Vec::new();
        let env = Env::read(env, &mut faults);

        let defaults =
            read(&File::from_str(DEFAULTS, FileFormat::Toml)).expect("the compiled-in defaults are valid TOML");
        let known: Vec<String> = flatten(&defaults).into_keys().collect();
        let mut settings = defaults.clone();
        for layer in [env.file_layer(&mut faults), env.variables_layer()].into_iter().flatten() {
            for (setting, value) in flatten(&layer) {
                match known.contains(&setting) {
                    true => put(&mut settings, &setting, value),
                    false => faults.push(unknown(&setting, &known)),
                }
            }
        }

        let mut config: Self = loop {
            match serde_path_to_error::deserialize(settings.clone()) {
                Ok(config) => break config,
                Err(error) => {
                    let setting = error.path().to_string();
                    let default =
                        get(&defaults, &setting).expect("each field of Config has its default in default.toml");
                    faults.push(wrong_type(&setting, get(&settings, &setting), error.inner()));
                    put(&mut settings, &setting, default.clone());
                }
            }
        };
        config.database.url_file = env.url_file;
        config.check(&mut faults);
        if faults.is_empty() { Ok(config) } else { Err(InvalidConfig { faults }) }
    }
}

/// The part of the environment that is ours.
struct Env {
    config_file: Option<String>,
    variables: HashMap<String, String>,
    /// Where `database.url` came from.
    url_file: Option<PathBuf>,
}

impl Env {
    fn read(env: impl Iterator<Item = (String, String)>, faults: &mut Vec<Fault>) -> Self {
        let mut config_file = None;
        let mut variables = HashMap::new();
        let mut ecosystem = Vec::new();
        let mut files = HashMap::new();
        for (name, value) in env {
            let (name, value) = match (is_ours(&name), name.strip_suffix("_FILE")) {
                (true, Some(setting)) => match std::fs::read_to_string(&value) {
                    Ok(content) => {
                        files.insert(setting.to_owned(), PathBuf::from(value));
                        (setting.to_owned(), content.trim_end_matches(['\r', '\n']).to_owned())
                    }
                    Err(error) => {
                        faults.push(Fault::new(name, format!("cannot read the file {value}: {error}")));
                        continue;
                    }
                },
                _ => (name, value),
            };
            match name.as_str() {
                "APP_CONFIG" => config_file = Some(value),
                "DATABASE_URL" => ecosystem.push(("APP__DATABASE__URL", value)),
                "RUST_LOG" if !value.is_empty() => ecosystem.push(("APP__TELEMETRY__LOG_FILTER", value)),
                "TOKIO_WORKER_THREADS" if value.parse::<std::num::NonZeroU16>().is_err() => {
                    faults.push(Fault {
                        setting: name,
                        given: Some(value),
                        problem: "allowed is 1 to 65535".to_owned(),
                    });
                }
                _ if name.starts_with("APP__") && variables.insert(name.clone(), value).is_some() => {
                    let problem = format!("set twice, here and by {name}_FILE: remove one");
                    faults.push(Fault::new(name, problem));
                }
                _ => {}
            }
        }
        let url = if variables.contains_key("APP__DATABASE__URL") { "APP__DATABASE__URL" } else { "DATABASE_URL" };
        let url_file = files.remove(url);
        for (ours, value) in ecosystem {
            variables.entry(ours.to_owned()).or_insert(value);
        }
        Self { config_file, variables, url_file }
    }

    fn file_layer(&self, faults: &mut Vec<Fault>) -> Option<Value> {
        let path = self.config_file.as_ref()?;
        let fault = match std::fs::read_to_string(path) {
            Ok(content) => match read(&File::from_str(&content, FileFormat::Toml)) {
                Ok(layer) => return Some(layer),
                // the first line names the place; the next ones quote the file, secrets and all
                Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
            },
            Err(error) => format!("cannot read the file {path}: {error}"),
        };
        faults.push(Fault::new("APP_CONFIG", fault));
        None
    }

    fn variables_layer(&self) -> Option<Value> {
        let source =
            Environment::with_prefix("APP").prefix_separator("__").separator("__").source(Some(self.variables.clone()));
        read(&source).ok()
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("APP__") || name.starts_with("DATABASE_URL")
}

fn read<S: Source + Send + Sync + Clone + 'static>(source: &S) -> Result<Value, config::ConfigError> {
    Ok(config::Config::builder().add_source(source.clone()).build()?.cache)
}

/// Every value below `tree` that is not a table, by its dotted path.
fn flatten(tree: &Value) -> BTreeMap<String, Value> {
    let ValueKind::Table(table) = &tree.kind else {
        return BTreeMap::from([(String::new(), tree.clone())]);
    };
    let below = |(key, value): (&String, &Value)| {
        let key = key.clone();
        flatten(value).into_iter().map(move |(path, value)| match path.is_empty() {
            true => (key.clone(), value),
            false => (format!("{key}.{path}"), value),
        })
    };
    table.iter().flat_map(below).collect()
}

fn get<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(tree, |node, key| match &node.kind {
        ValueKind::Table(table) => table.get(key),
        _ => None,
    })
}

/// Sets the value at `path`, whose tables exist: only known settings are put.
fn put(tree: &mut Value, path: &str, value: Value) {
    let slot = path.split('.').try_fold(tree, |node, key| match &mut node.kind {
        ValueKind::Table(table) => table.get_mut(key),
        _ => None,
    });
    if let Some(slot) = slot {
        *slot = value;
    }
}

fn unknown(setting: &str, known: &[String]) -> Fault {
    let nearest =
        known.iter().map(|name| (strsim::jaro_winkler(name, setting), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.8 => {
            Fault::new(setting, format!("no such setting; did you mean {name}?"))
        }
        _ => Fault::new(setting, "no such setting"),
    }
}

fn wrong_type(setting: &str, given: Option<&Value>, error: &config::ConfigError) -> Fault {
    let given = match SECRETS.contains(&setting) {
        true => "***".to_owned(),
        false => given.map_or_else(String::new, |value| format!("{:?}", value.to_string())),
    };
    let problem = match error {
        config::ConfigError::Type { expected, .. } if expected.contains("integer") => {
            "allowed is a whole number".to_owned()
        }
        config::ConfigError::Type { expected: "a boolean", .. } => "allowed is true or false".to_owned(),
        config::ConfigError::Type { expected, .. } => format!("allowed is {expected}"),
        // what our own types say ends with config's " for key `…`"
        other => other.to_string().split(" for key `").next().unwrap_or_default().to_owned(),
    };
    Fault { setting: setting.to_owned(), given: Some(given), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(env: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
        let url = ("DATABASE_URL", "postgres://me:secret@db/shop");
        let env = env.iter().chain([&url]).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_env(env.collect::<Vec<_>>().into_iter())
    }

    #[test]
    fn defaults_need_only_a_database() {
        let config = load(&[]).expect("the defaults are valid");
        assert_eq!(config.database.url.reveal(), "postgres://me:secret@db/shop");
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn the_file_that_a_url_came_from_is_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("url");
        std::fs::write(&file, "postgres://file@db/shop\n").expect("the folder is ours");
        let path = file.display().to_string();
        let config = load(&[("APP__DATABASE__URL_FILE", &path)]).expect("it is valid");
        assert_eq!(config.database.url.reveal(), "postgres://file@db/shop");
        assert_eq!(config.database.url_file, Some(file));
        assert_eq!(load(&[]).expect("it is valid").database.url_file, None);
        let env = [("DATABASE_URL_FILE", path.as_str()), ("APP__DATABASE__URL", "postgres://other@db/shop")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::from_env(env.into_iter()).expect("it is valid");
        assert_eq!(config.database.url_file, None, "the more specific one wins, and is no file");
    }

    #[test]
    fn every_fault_is_reported_together() {
        let error = load(&[
            ("APP__HTTP__MAX_CONNECTIONS", "many"),
            ("APP__HTTP__IDLE_TIMEOUT", "soon"),
            ("APP__HTTP__ADRESS", "0.0.0.0:1"),
            ("APP__READINESS__POSTGRES", "maybe"),
            ("APP__LIFECYCLE__DEADLINE", "3s"),
        ])
        .expect_err("five settings are wrong");
        let settings: Vec<_> = error.faults.iter().map(|fault| fault.setting.as_str()).collect();
        for setting in
            ["http.max_connections", "http.idle_timeout", "http.adress", "readiness.postgres", "lifecycle.deadline"]
        {
            assert!(settings.contains(&setting), "{setting} is missing from {error}");
        }
        assert!(error.to_string().contains("did you mean http.address?"), "{error}");
    }
}
