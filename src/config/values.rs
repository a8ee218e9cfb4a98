//! How values are written: choices, durations, limits, and a URL that keeps its password to itself.

use std::fmt::{self, Display};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A connection URL. What prints it shows no password; [`DatabaseUrl::reveal`] does.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL as it was given.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What a mounted file holds.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn from_file(file: &Path) -> io::Result<Self> {
        Ok(Self(std::fs::read_to_string(file)?.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// Whether it is a URL of PostgreSQL's.
    pub fn is_well_formed(&self) -> bool {
        let scheme = self.0.split_once("://").map(|(scheme, _)| scheme);
        matches!(scheme, Some("postgres" | "postgresql")) && sqlx::postgres::PgConnectOptions::from_str(&self.0).is_ok()
    }
}

impl Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str(if self.0.is_empty() { "" } else { "***" });
        };
        // The last @ ends the credentials, should one stand unescaped in the password; `?password=` is one more way in.
        let (credentials, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let place = place.split_once('?').map_or(place, |(place, _)| place);
        match credentials.map(|login| login.split_once(':').map_or(login, |(user, _)| user)) {
            Some(user) => write!(f, "{scheme}://{user}:***@{place}"),
            None => write!(f, "{scheme}://{place}"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a failing check means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum Policy {
    /// `/readyz` is 503 while the check fails.
    Required,
    /// `/readyz` is 503 until the check has passed once; after that the check is only reported.
    Startup,
    /// The check is only reported.
    Advisory,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// Coloured text, for people.
    Pretty,
}

impl Policy {
    /// The policy's name in settings, probes and on the status page.
    pub fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Startup => "startup",
            Self::Advisory => "advisory",
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "required" => Ok(Self::Required),
            "startup" => Ok(Self::Startup),
            "advisory" => Ok(Self::Advisory),
            _ => Err("allowed is required, startup or advisory"),
        }
    }
}

impl TryFrom<String> for LogFormat {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err("allowed is json or pretty"),
        }
    }
}

/// An address to listen on.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom("allowed is an address and a port such as [::]:8080"))
}

/// A size in bytes, with a unit.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom("allowed is a size such as 1MiB or 512KiB"))
}

/// Durations as people write them: `5s`, `250ms`, `1m30s`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn text(duration: Duration) -> String {
        humantime::format_duration(duration).to_string().replace(' ', "")
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime::parse_duration(&String::deserialize(deserializer)?)
            .map_err(|_| serde::de::Error::custom("allowed is a duration such as 5s, 250ms or 1m30s"))
    }
}

/// A duration, or `off`.
pub(super) mod duration_or_off {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::duration::serialize(duration, serializer),
            None => serializer.serialize_str("off"),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(None);
        }
        humantime::parse_duration(&text)
            .map(Some)
            .map_err(|_| serde::de::Error::custom("allowed is a duration such as 30m, or off"))
    }
}

/// A limit, or `off`.
pub(super) mod limit {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(limit: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(limit) => serializer.collect_str(limit),
            None => serializer.serialize_str("off"),
        }
    }

    pub(crate) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| serde::de::Error::custom("allowed is a limit such as 10000 or 512MiB, or off"))
    }
}
