//! Who one is at a registry: what `docker login` and `podman login` have left. Nothing is written.
//!
//! In this order, and the first that knows the registry counts: `$REGISTRY_AUTH_FILE`, podman's
//! `$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json`, docker's `$DOCKER_CONFIG/config.json` or
//! `~/.docker/config.json`. Each may name a program that keeps what it does not (`credHelpers`, `credsStore`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::RegistryError;
use crate::name::shown;

/// What docker calls its own registry in these files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// How a helper says that it does not know a registry.
const UNKNOWN: &str = "credentials not found";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
}

/// Who one is at this registry; nobody, if no file knows it.
///
/// # Errors
/// A file is damaged, or a program that keeps credentials fails.
pub fn for_registry(registry: &str) -> Result<RegistryAuth, RegistryError> {
    for path in files(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)) {
        if let Some(auth) = in_file(&path, registry)? {
            return Ok(auth);
        }
    }
    Ok(RegistryAuth::Anonymous)
}

/// Where credentials may be, by the variables of the environment.
fn files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let home = |path: &str| variable("HOME").map(|home| home.join(path));
    let podman = variable("XDG_CONFIG_HOME").or_else(|| home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| home(".docker"));
    let all = [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        podman.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ];
    all.into_iter().flatten().collect()
}

/// What one file knows.
fn in_file(path: &Path, registry: &str) -> Result<Option<RegistryAuth>, RegistryError> {
    let wrong = |problem: String| RegistryError::Credentials {
        registry: registry.to_owned(),
        path: path.to_owned(),
        problem: shown(&problem),
    };
    let text = match std::fs::read_to_string(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(|error| wrong(error.to_string()))?,
    };
    let file: File = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let names = names(registry);
    if let Some(helper) = names.iter().find_map(|name| file.cred_helpers.get(*name)) {
        return ask(helper, registry, names[0]);
    }
    let kept = names.iter().find_map(|name| file.auths.get(*name));
    if let Some(auth) = kept.and_then(|entry| entry.auth.as_deref()).filter(|auth| !auth.is_empty()) {
        return decode(auth).map(Some).ok_or_else(|| wrong(format!("the entry for '{registry}' is damaged")));
    }
    match &file.creds_store {
        Some(helper) => ask(helper, registry, names[0]),
        None => Ok(None),
    }
}

/// What a registry may be called in these files.
fn names(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" => vec![DOCKER_HUB, "docker.io", "index.docker.io"],
        registry => vec![registry],
    }
}

/// `user:password`, in base64.
fn decode(auth: &str) -> Option<RegistryAuth> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Asks the program `docker-credential-HELPER`, by docker's protocol: the registry's name on stdin, JSON on stdout.
fn ask(helper: &str, registry: &str, server: &str) -> Result<Option<RegistryAuth>, RegistryError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    let wrong = |problem: String| RegistryError::Helper {
        registry: registry.to_owned(),
        program: shown(&program),
        problem: shown(problem.trim()),
    };
    // A name, and not a path to somewhere.
    if helper.contains('/') {
        return Err(wrong("not the name of a program".into()));
    }
    let started =
        Command::new(&program).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| wrong(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read is judged by what it answers.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| wrong(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if text.contains(UNKNOWN) {
            return Ok(None);
        }
        return Err(wrong(format!("{text} {}", String::from_utf8_lossy(&output.stderr))));
    }
    let answer: Answer = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(RegistryAuth::Basic(answer.username, answer.secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Option<RegistryAuth> {
        Some(RegistryAuth::Basic(user.into(), password.into()))
    }

    #[test]
    fn files_are_looked_for_where_docker_and_podman_have_them() {
        let with = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, PathBuf> = set.iter().map(|(k, v)| ((*k).to_owned(), v.into())).collect();
            let found = files(|name| set.get(name).cloned());
            found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(with(&[("HOME", "/h")]), ["/h/.config/containers/auth.json", "/h/.docker/config.json"]);
        let all = [("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a"), ("XDG_RUNTIME_DIR", "/r"), ("DOCKER_CONFIG", "/d")];
        let want = ["/a", "/r/containers/auth.json", "/h/.config/containers/auth.json", "/d/config.json"];
        assert_eq!(with(&all), want);
        assert!(with(&[]).is_empty());
    }

    #[test]
    fn a_file_knows_registries_by_name() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("config.json");
        let encoded = |text: &str| STANDARD.encode(text);
        let json = serde_json::json!({
            "auths": {
                DOCKER_HUB: { "auth": encoded("hub:a:b") }, "host.example:5000": { "auth": encoded("me:pw") },
                "empty.example": {}, "bad.example": { "auth": "%" }, "worse.example": { "auth": encoded("nocolon") },
            },
            "HttpHeaders": { "x": "y" },
        });
        std::fs::write(&path, json.to_string()).expect("writable");
        let ask = |registry: &str| in_file(&path, registry);
        assert_eq!(ask("docker.io").expect("good"), basic("hub", "a:b"));
        assert_eq!(ask("host.example:5000").expect("good"), basic("me", "pw"));
        assert_eq!(ask("host.example").expect("good"), None);
        assert_eq!(ask("empty.example").expect("good"), None);
        for bad in ["bad.example", "worse.example"] {
            assert!(ask(bad).expect_err("damaged").to_string().contains(bad));
        }
        assert_eq!(in_file(&dir.path().join("none"), "x").expect("no file"), None);
        std::fs::write(&path, "{").expect("writable");
        assert!(ask("docker.io").expect_err("damaged").to_string().contains("config.json"));
    }

    #[test]
    fn a_program_may_keep_them() {
        assert!(ask("../x", "r.example", "r.example").expect_err("a path").to_string().contains("not the name"));
        let text = ask("bulkhead-test-none", "r.example", "r.example").expect_err("no program").to_string();
        assert!(text.contains("docker-credential-bulkhead-test-none") && text.contains("login r.example"), "{text}");
    }
}
