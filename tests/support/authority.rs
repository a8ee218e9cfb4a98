//! Certificates, for connections that are encrypted.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;
use tonic::transport::Identity;

/// A certificate authority of the test's own, and a certificate of it for `localhost`.
#[derive(Debug)]
pub(crate) struct Authority(TempDir);

impl Authority {
    /// Makes both; `None`, said on standard error, where openssl is not on this machine.
    pub(crate) fn new() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca \
                        -addext basicConstraints=critical,CA:TRUE &&
                      openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost &&
                      printf 'subjectAltName=DNS:localhost\\n' >names &&
                      openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                        -extfile names -out server.pem && chmod 644 *.pem";
        let made = Command::new("sh").args(["-c", script]).current_dir(&folder).output();
        if made.is_ok_and(|made| made.status.success()) {
            return Some(Self(folder));
        }
        eprintln!("skipped: openssl is not on this machine");
        None
    }

    /// The authority's own certificate.
    pub(crate) fn root(&self) -> PathBuf {
        self.0.path().join("ca.pem")
    }

    /// The key for `localhost`.
    pub(crate) fn key(&self) -> PathBuf {
        self.0.path().join("server.key")
    }

    /// The certificate for `localhost`.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.0.path().join("server.pem")
    }

    /// Both, for a gRPC server.
    pub(crate) fn identity(&self) -> Identity {
        let read = |path| fs::read(path).expect("it has been made");
        Identity::from_pem(read(self.certificate()), read(self.key()))
    }
}
