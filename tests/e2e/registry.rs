//! Images from and to a registry: Debian's `docker-registry`, on this host's loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::{Lab, Running};

use crate::lab;

/// A registry, for as long as this lives.
struct Registry {
    _process: Running,
    address: String,
    files: PathBuf,
}

/// Whom the registry knows: `me`, `secret` (bcrypt).
const USERS: &str = "me:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

/// The program: what tests/install has fetched (tests/run says where that is), or one from PATH.
fn program() -> Option<PathBuf> {
    if let Some(fetched) = std::env::var_os("BULKHEAD_TEST_REGISTRY") {
        return Some(fetched.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("docker-registry")).find(|path| path.is_file())
}

impl Registry {
    fn start(lab: &Lab, name: &str, users: Option<&str>) -> Option<Registry> {
        let Some(program) = program() else {
            tests::lab::skip(name, "no docker-registry here; `tests/install test` brings it");
            return None;
        };
        let (files, config) = (lab.path("registry"), lab.path("registry.yml"));
        let mut text = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            files.display()
        );
        if let Some(users) = users {
            let path = lab.path("users");
            fs::write(&path, users).unwrap();
            text += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display());
        }
        fs::write(&config, text).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" serve \"$1\" 2>&1"]).arg(program).arg(&config);
        command.env("OTEL_TRACES_EXPORTER", "none");
        let mut process = Running::start(command);
        // It says on which port it listens.
        let address = loop {
            let line = process.line(lab.patience(1));
            let said: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = said["msg"].as_str().and_then(|text| text.strip_prefix("listening on ")) {
                break address.to_owned();
            }
        };
        Some(Registry { _process: process, address, files })
    }
}

/// A store and a home of somebody else's.
fn elsewhere(lab: &Lab, home: &str, arguments: &[&str]) -> tests::Ended {
    let mut command = lab.keeping(arguments);
    let home = lab.path(home);
    fs::create_dir_all(&home).unwrap();
    for variable in ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"] {
        command.env_remove(variable);
    }
    command.env("BULKHEAD_STORE", home.join("store")).env("HOME", home);
    Running::start(command).end(lab.patience(1))
}

/// push, and pull into another store: the same digests; a blob that is there is not brought again; what is wrong is said in one line.
#[test]
fn an_image_goes_to_a_registry_and_comes_back_as_it_was() {
    const NAME: &str = "an_image_goes_to_a_registry_and_comes_back_as_it_was";
    let lab = lab!(NAME);
    let Some(registry) = Registry::start(&lab, NAME, None) else { return };
    let here = |arguments: &[&str]| elsewhere(&lab, "here", arguments);
    let there = |arguments: &[&str]| elsewhere(&lab, "there", arguments);
    let archive = lab.images("debian.tar").display().to_string();
    let remote = format!("{}/team/debian:12", registry.address);
    assert_eq!(here(&["load", "--name", &remote, &archive]).code, Some(0));
    let pushed = here(&["push", &remote]);
    let told = pushed.text().strip_prefix("12: digest: ").and_then(|text| text.split_once(" size: "));
    let digest = told.unwrap_or_else(|| panic!("{pushed:?}")).0.to_owned();
    assert_eq!((pushed.code, pushed.stderr.as_str()), (Some(0), ""));

    let pulled = there(&["pull", &remote]);
    let want = format!(
        "12: Pulling from {0}/team/debian\nDigest: {digest}\nStatus: Downloaded newer image for {remote}\n{remote}\n",
        registry.address
    );
    assert_eq!((pulled.code, pulled.text()), (Some(0), want.as_str()), "{pulled:?}");
    let image = |ended: tests::Ended| -> Value { serde_json::from_slice(&ended.stdout).unwrap() };
    assert_eq!(image(here(&["inspect", &remote])), image(there(&["inspect", &remote])));
    let again = there(&["pull", &remote]);
    assert!(again.text().contains("Status: Image is up to date"), "{again:?}");
    assert_eq!(there(&["pull", "-q", &format!("{remote}@{digest}")]).text(), format!("{remote}\n"));

    // Whoever has the blobs needs the registry for the manifest alone, and no more once the name is known; a damaged blob is refused.
    let layers = fs::read_dir(lab.path("there/store/blobs/sha256")).unwrap().count();
    assert_eq!(layers, 5, "three layers, a configuration, a manifest");
    assert_eq!(there(&["rmi", &remote]).code, Some(0));
    damage_largest(&registry.files);
    let damaged = there(&["pull", &remote]);
    damaged.assert_failed(1, &[&registry.address, "igest"]);
    assert_eq!(there(&["images", "-q"]).text(), "");
    // What came whole before it is still there, and nothing of what did not.
    assert_eq!(fs::read_dir(lab.path("there/store/tmp")).unwrap().count(), 0);

    let unknown = format!("{}/nobody/nothing", registry.address);
    there(&["pull", &unknown]).assert_failed(1, &["nobody/nothing", "check the name"]);
    there(&["push", &unknown]).assert_failed(1, &["nobody/nothing", "in the store"]);
    there(&["pull", "127.0.0.1:1/x"]).assert_failed(1, &["127.0.0.1:1", "refused"]);
    there(&["pull", "UPPER"]).assert_failed(1, &["UPPER", "NAME[:TAG]"]);
}

/// Changes a byte in the middle of the largest blob of a registry.
fn damage_largest(files: &Path) {
    let mut found = Vec::new();
    let mut dirs = vec![files.join("docker/registry/v2/blobs")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => found.push((entry.metadata().unwrap().len(), entry.path())),
            }
        }
    }
    let (_, path) = found.into_iter().max().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A registry that asks who one is: docker's file and podman's are read.
#[test]
fn a_registry_that_asks_who_one_is() {
    const NAME: &str = "a_registry_that_asks_who_one_is";
    let lab = lab!(NAME);
    let Some(registry) = Registry::start(&lab, NAME, Some(USERS)) else { return };
    let archive = lab.images("debian.tar").display().to_string();
    let remote = format!("{}/debian", registry.address);
    let login = |home: &str, file: &str, auth: &str| {
        let path = lab.path(home).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let json = serde_json::json!({ "auths": { &registry.address: { "auth": auth } } });
        fs::write(path, json.to_string()).unwrap();
    };
    assert_eq!(elsewhere(&lab, "docker", &["load", "--name", &remote, &archive]).code, Some(0));
    elsewhere(&lab, "docker", &["push", &remote]).assert_failed(1, &["refuses", "docker login"]);
    // me:wrong, me:secret
    login("docker", ".docker/config.json", "bWU6d3Jvbmc=");
    elsewhere(&lab, "docker", &["push", &remote]).assert_failed(1, &["refuses"]);
    login("docker", ".docker/config.json", "bWU6c2VjcmV0");
    let pushed = elsewhere(&lab, "docker", &["push", "-q", &remote]);
    assert_eq!(pushed.text(), format!("{remote}:latest\n"), "{pushed:?}");
    elsewhere(&lab, "podman", &["pull", &remote]).assert_failed(1, &["refuses"]);
    login("podman", ".config/containers/auth.json", "bWU6c2VjcmV0");
    let pulled = elsewhere(&lab, "podman", &["pull", "-q", &remote]);
    assert_eq!(pulled.text(), format!("{remote}:latest\n"), "{pulled:?}");
}
