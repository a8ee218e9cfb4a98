//! Secrets that rotate while the pods run.

use serde_json::json;

use crate::{files::pod, migrate, serve};

#[test]
fn the_databases_url_is_a_mounted_file_that_rotates() {
    let pod = pod();
    let volumes = pod["volumes"].as_array().expect("volumes");
    assert!(volumes.contains(&json!({"name": "database", "secret": {"secretName": "database"}})), "{volumes:?}");
    for container in [serve(), migrate()] {
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let mount = mounts.iter().find(|mount| mount["name"] == "database").expect("the Secret is mounted");
        assert!(mount["subPath"].is_null(), "the kubelet never updates a subPath");
        let file = format!("{}/url", mount["mountPath"].as_str().expect("a path"));
        let variables = container["env"].as_array().expect("variables");
        assert!(variables.contains(&json!({"name": "APP__DATABASE__URL_FILE", "value": file})), "{variables:?}");
        assert!(variables.iter().all(|variable| variable["name"] != "DATABASE_URL"), "it would go before the file");
    }
}
