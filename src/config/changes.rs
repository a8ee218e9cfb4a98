//! What differs between the settings in force and those that SIGHUP has read.

use std::collections::BTreeMap;

use super::Config;

/// A setting that two configurations differ in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub setting: String,
    /// The value before, with secrets redacted.
    pub from: String,
    /// The value after, with secrets redacted.
    pub to: String,
}

impl Config {
    /// What differs in `new`. A changed password is a change whose two values look the same.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let (before, after) = (self.redacted(), new.redacted());
        let secret = (self.database.url != new.database.url).then_some("database.url");
        let changed = |(setting, from): (&String, &String)| {
            let to = after.get(setting).cloned().unwrap_or_default();
            let differs = *from != to || secret == Some(setting);
            differs.then(|| Change { setting: setting.clone(), from: from.clone(), to })
        };
        before.iter().filter_map(changed).collect()
    }

    /// Every setting as text, secrets redacted.
    fn redacted(&self) -> BTreeMap<String, String> {
        let sections = toml::Table::try_from(self).expect("every setting can be printed");
        let keys = sections.into_iter().flat_map(|(section, keys)| {
            let toml::Value::Table(keys) = keys else { unreachable!("each field of Config is a section") };
            keys.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value))
        });
        let text = |value: toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        keys.map(|(setting, value)| (setting, text(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(url: &str, filter: &str) -> Config {
        let env = [("DATABASE_URL", url), ("RUST_LOG", filter)];
        Config::from_env(env.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter())
            .expect("they are valid")
    }

    #[test]
    fn a_changed_password_is_a_change_that_shows_no_password() {
        let (old, new) = (with("postgres://me:old@db/shop", "info"), with("postgres://me:new@db/shop", "debug"));
        let changes = old.changes(&new);
        let settings: Vec<_> = changes.iter().map(|change| change.setting.as_str()).collect();
        assert_eq!(settings, ["database.url", "telemetry.log_filter"]);
        assert_eq!(
            (changes[0].from.as_str(), changes[0].to.as_str()),
            ("postgres://me:***@db/shop", "postgres://me:***@db/shop")
        );
        assert_eq!((changes[1].from.as_str(), changes[1].to.as_str()), ("info", "debug"));
        assert_eq!(new.changes(&new), []);
    }
}
