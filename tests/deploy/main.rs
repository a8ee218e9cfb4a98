//! `k8s/` and the Dockerfile say what the binary says: one number, one port, one path, one user, wherever it stands.
//!
//! What only the cluster's own tools can tell is asked of them: `kubectl` renders the trees, PyPI's `kubernetes-validate`
//! carries the schemas. Where a machine lacks one, its test says so and passes.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

mod binary;
mod files;
mod secrets;
mod tools;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use binary::Service;
use files::{deployment, dockerfile, kustomization, manifest, pod, read, seconds, setting, settings};
use serde_json::{Value, json};
use service::config::Config;

/// The container that serves.
fn serve() -> Value {
    pod().pointer("/containers/0").cloned().expect("one container")
}

/// The container that migrates first.
fn migrate() -> Value {
    pod().pointer("/initContainers/0").cloned().expect("one init container")
}

fn container_port(name: &str) -> u64 {
    let ports = serve()["ports"].as_array().cloned().expect("ports");
    let found = ports.iter().find(|port| port["name"] == name);
    found.and_then(|port| port["containerPort"].as_u64()).unwrap_or_else(|| panic!("no port is named {name}"))
}

/// The port at the end of a default such as `[::]:8080` or `http://127.0.0.1:50051`.
fn default_port(key: &str) -> u64 {
    let value = setting(key);
    value
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .unwrap_or_else(|| panic!("{key} = {value:?} ends in no port"))
}

#[test]
fn the_grace_period_is_one_number() {
    let pod = pod()["terminationGracePeriodSeconds"].as_u64().map(Duration::from_secs);
    assert_eq!(pod, Some(seconds("lifecycle.termination_grace_period")), "k8s/ and config/default.toml");
    let told = humantime::parse_duration(&settings("base")["APP__LIFECYCLE__TERMINATION_GRACE_PERIOD"]);
    assert_eq!(pod, told.ok(), "the Deployment and the settings beside it");
}

#[test]
fn every_budget_of_the_stop_fits() {
    let url = ("DATABASE_URL".to_owned(), "postgres://localhost/none".to_owned());
    let lifecycle = Config::from_env([url].into_iter()).expect("the defaults are valid").lifecycle;
    let sum: Duration = lifecycle.budgets().iter().map(|(_, budget)| *budget).sum();
    assert!(sum <= lifecycle.deadline, "the steps take {sum:?}, the deadline is {:?}", lifecycle.deadline);
    assert!(lifecycle.deadline + Duration::from_secs(2) <= lifecycle.termination_grace_period);
}

#[test]
fn the_ports_are_the_services_own() {
    let (http, admin) = (container_port("http"), container_port("admin"));
    assert_eq!((http, admin), (default_port("http.address"), default_port("admin.address")));
    assert_eq!(deployment()["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"], admin.to_string());
    assert_eq!(dockerfile("EXPOSE"), format!("{http} {admin}"));
}

#[test]
fn the_service_leads_to_the_public_port_alone() {
    assert_eq!(
        manifest("service.yaml", "Service")["spec"]["ports"],
        json!([{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}])
    );
}

#[test]
fn the_network_lets_out_what_the_service_calls() {
    let policy = manifest("network.yaml", "NetworkPolicy");
    let rules = policy["spec"]["egress"].as_array().expect("egress").iter();
    let open: Vec<u64> = rules
        .flat_map(|rule| rule["ports"].as_array().cloned().unwrap_or_default())
        .filter_map(|port| port["port"].as_u64())
        .collect();
    for port in [53, 5432, default_port("catalog.endpoint")] {
        assert!(open.contains(&port), "port {port} is not among {open:?}");
    }
}

#[test]
fn every_path_that_is_probed_is_served() {
    let service = Service::start_without_database();
    let container = serve();
    let answer = |probe: &str| {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], "admin", "{probe}");
        service.get(get["path"].as_str().expect("a path"))
    };
    // The database is away: the process is well, and nobody should be sent here.
    let patience = Instant::now() + Duration::from_secs(10);
    while answer("startupProbe") != 200 {
        assert!(Instant::now() < patience, "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((answer("livenessProbe"), answer("readinessProbe")), (200, 503));
    let metrics = &deployment()["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"];
    assert_eq!(service.get(metrics.as_str().expect("a path")), 200);
}

#[test]
fn the_probes_are_patient_and_quick() {
    for probe in ["livenessProbe", "readinessProbe"] {
        let probe = &serve()[probe];
        assert_eq!(probe["failureThreshold"], 3);
        assert!((1..=3).contains(&probe["timeoutSeconds"].as_u64().expect("a timeout")), "{probe}");
    }
    let period = serve()["readinessProbe"]["periodSeconds"].as_u64().map(Duration::from_secs);
    assert_eq!(period, Some(seconds("readiness.interval")), "asked as often as the answer changes");
}

#[test]
fn every_command_in_the_manifests_is_one_of_the_binary() {
    let pod = pod();
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let pre_stop = strings(&serve()["lifecycle"]["preStop"]["exec"]["command"]);
    let health = dockerfile("HEALTHCHECK");
    let health: Vec<String> =
        serde_json::from_str(&health[health.find('[').expect("the exec form")..]).expect("the exec form");
    for command in [&pre_stop, &health] {
        assert_eq!(
            format!("[\"{}\"]", command[0]),
            dockerfile("ENTRYPOINT"),
            "an image without a shell has one file to run"
        );
    }
    for arguments in [
        &strings(&pod["initContainers"][0]["args"]),
        &strings(&serve()["args"]),
        &pre_stop[1..].to_vec(),
        &health[1..].to_vec(),
    ] {
        assert!(binary::knows(arguments), "{arguments:?}");
    }
}

#[test]
fn the_binary_accepts_the_settings_of_both_trees() {
    for tree in ["base", "overlays/local"] {
        let mut environment: BTreeMap<_, _> = settings("base");
        environment.extend(settings(tree));
        environment.insert("DATABASE_URL".to_owned(), "postgres://service:service@localhost/service".to_owned());
        binary::accepts(&environment).unwrap_or_else(|why| panic!("{tree}: {why}"));
    }
}

#[test]
fn the_user_is_one_number() {
    let uid = pod()["securityContext"]["runAsUser"].as_u64().expect("a number");
    assert_eq!(dockerfile("USER"), format!("{uid}:{uid}"));
    assert!(read("Dockerfile").contains(&format!("service:x:{uid}:{uid}::/:")), "/etc/passwd in the image");
}

#[test]
fn the_pod_is_restricted() {
    let pod = pod();
    assert_eq!(pod["automountServiceAccountToken"], false);
    let account = manifest("account.yaml", "ServiceAccount");
    assert_eq!(account["automountServiceAccountToken"], false);
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"], "an account of its own");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        let expected = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true});
        assert_eq!(container["securityContext"], expected);
        assert!(
            container["resources"]["limits"]["cpu"].is_null() && container["resources"]["limits"]["memory"].is_string()
        );
    }
}

#[test]
fn both_containers_are_one_image_in_one_environment() {
    let (serve, migrate) = (serve(), migrate());
    for field in ["image", "envFrom", "resources", "securityContext", "terminationMessagePolicy"] {
        assert_eq!(serve[field], migrate[field], "{field}");
    }
    let serve = serve["env"].as_array().expect("variables");
    for variable in migrate["env"].as_array().expect("variables") {
        assert!(serve.contains(variable), "{variable}");
    }
}

#[test]
fn unready_pods_do_not_keep_a_node_from_being_drained() {
    let budget = manifest("availability.yaml", "PodDisruptionBudget");
    assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
}

#[test]
fn a_rollouts_own_pods_are_spread_over_zones_and_nodes() {
    let pod = pod();
    let spread = pod["topologySpreadConstraints"].as_array().expect("constraints");
    let keys: Vec<_> = spread.iter().map(|constraint| constraint["topologyKey"].as_str()).collect();
    assert_eq!(keys, [Some("topology.kubernetes.io/zone"), Some("kubernetes.io/hostname")]);
    for constraint in spread {
        assert_eq!(constraint["matchLabelKeys"], json!(["pod-template-hash"]), "{constraint}");
    }
}

#[test]
fn the_service_has_every_ip_family_of_the_cluster() {
    assert_eq!(manifest("service.yaml", "Service")["spec"]["ipFamilyPolicy"], "PreferDualStack");
    for address in ["http.address", "admin.address"] {
        assert!(setting(address).starts_with("[::]:"), "{address}");
    }
}

#[test]
fn a_rollout_never_has_fewer_pods_than_wanted() {
    let rollout = &deployment()["spec"]["strategy"]["rollingUpdate"];
    assert_eq!((&rollout["maxUnavailable"], &rollout["maxSurge"]), (&json!(0), &json!(1)));
    assert_eq!(deployment()["spec"]["replicas"], 3);
}

#[test]
fn all_pods_together_leave_the_database_connections() {
    let autoscaler = manifest("availability.yaml", "HorizontalPodAutoscaler");
    let pods = autoscaler["spec"]["maxReplicas"].as_u64().expect("a number") + 1;
    let each = setting("database.max_connections").parse::<u64>().expect("a number") + 1;
    // PostgreSQL's own default is 100, three of them the superuser's.
    assert!(pods * each <= 97, "{pods} pods with {each} connections each");
}

#[test]
fn the_name_is_the_packages() {
    let name = env!("CARGO_PKG_NAME");
    let base = kustomization("base");
    assert_eq!(base["namePrefix"], format!("{name}-"));
    assert_eq!(base["labels"][0]["pairs"]["app.kubernetes.io/name"], name);
}

#[test]
fn the_image_is_built_with_the_crates_compiler() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("Cargo.toml");
    assert_eq!(dockerfile("ARG"), format!("RUST={}", manifest["package"]["rust-version"].as_str().expect("a version")));
}

#[test]
fn both_trees_render_and_fit_the_schemas_of_kubernetes() {
    for tree in ["k8s", "k8s/overlays/local"] {
        let Some(rendered) = tools::render(tree) else {
            return;
        };
        tools::validate(tree, &rendered);
    }
}
