//! `bulkhead commit`: an image of a container's files.

use std::io::Write;

use anyhow::{Context, anyhow};
use guest_images::{Said, Store};
use guest_protocol::files::Helper;
use serde_json::{Map, Value, json};

use super::inspect::find;
use crate::args::Commit;
use crate::clock;
use crate::containers::Record;
use crate::containers::record::now_ns;
use crate::copying::archive;
use crate::events::{self, Event};
use crate::failure::{Failure, Outcome};
use crate::helping::Helping;
use crate::output;
use crate::paths;
use crate::visit;

/// Makes it and prints its id.
pub fn commit(args: &Commit) -> Outcome {
    let id = make(args).map_err(Failure::refused)?;
    Ok(output::print(&format!("{id}\n")).map(|()| 0)?)
}

fn make(args: &Commit) -> anyhow::Result<String> {
    let entry = find(&args.vm)?;
    let record = &entry.record;
    let changes = args.change.iter().map(|text| Change::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let store = Store::open(paths::store())?;
    // Looked for first: without it all else would be for nothing.
    store.original_of(&record.image_id).map_err(|error| {
        let loaded = format!(
            "container {}: its image '{}' is not a loaded one, and so there is nothing for a layer to be on: `bulkhead load` or `pull` \
             it, and run that",
            entry.name,
            record.image()
        );
        anyhow::Error::from(error).context(loaded)
    })?;
    let (args, record) = (args.clone(), record.clone());
    let work = move |mut helping: Helping| {
        let created = clock::rfc3339(now_ns());
        let by = record.process.args.join(" ");
        let said = Said { created: &created, created_by: &by, author: &args.author, comment: &args.message };
        let write = |out: &mut dyn Write| archive::write(&mut || helping.hear_file(), "", out);
        let edit = |config: &mut Value| {
            as_the_container(config, &record);
            changes.iter().for_each(|change| change.apply(config));
        };
        store.commit(&record.image_id, &args.name, said, write, edit).context("commit")
    };
    let info = visit::helped(entry.record.id.as_str(), Helper::Changes { content: true }, false, work)?;
    events::tell(&paths::store(), Event::of_container(&entry.record, &entry.name, "commit", &[]));
    Ok(info.id.to_string())
}

/// What the container was given is the image's, as with docker.
fn as_the_container(config: &mut Value, record: &Record) {
    let args = &record.process.args;
    match record.flags.entrypoint.as_deref() {
        Some("") => config["Entrypoint"] = Value::Null,
        Some(program) => config["Entrypoint"] = json!([program]),
        None => {}
    }
    // Its process is the entrypoint, and then the command.
    let entrypoint = config["Entrypoint"].as_array().map_or(0, Vec::len);
    config["Cmd"] = json!(args.get(entrypoint..).unwrap_or_default());
    config["Env"] = json!(record.process.env);
    config["WorkingDir"] = json!(record.process.cwd);
    config["User"] = json!(record.process.user);
    for volume in record.flags.volume.iter().filter(|volume| volume.is_anonymous()) {
        config["Volumes"][volume.target()] = json!({});
    }
    if !record.labels.is_empty() {
        config["Labels"] = json!(record.labels);
    }
}

/// An instruction of a Dockerfile, as far as it is about an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// A field takes this value.
    Set(&'static str, Value),
    /// A field that is an object gets these members.
    Add(&'static str, Vec<(String, Value)>),
    /// A variable of the environment.
    Env(String, String),
}

impl Change {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (word, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        let bad = |what: &str| anyhow!("--change '{text}': {what}");
        if rest.is_empty() {
            return Err(bad("there is nothing behind the instruction"));
        }
        let members = || -> Vec<(String, Value)> { words(rest).iter().map(|name| (name.clone(), json!({}))).collect() };
        Ok(match word.to_ascii_uppercase().as_str() {
            "CMD" => Change::Set("Cmd", command(rest)),
            "ENTRYPOINT" => Change::Set("Entrypoint", command(rest)),
            "USER" => Change::Set("User", rest.into()),
            "WORKDIR" => Change::Set("WorkingDir", rest.into()),
            "STOPSIGNAL" => Change::Set("StopSignal", rest.into()),
            "EXPOSE" => Change::Add(
                "ExposedPorts",
                members().into_iter().map(|(port, value)| (with_protocol(port), value)).collect(),
            ),
            "VOLUME" => Change::Add("Volumes", members()),
            "LABEL" => {
                let (key, value) = pair(rest).ok_or_else(|| bad("it is KEY=VALUE"))?;
                Change::Add("Labels", vec![(key, value.into())])
            }
            "ENV" => {
                let (key, value) = pair(rest).ok_or_else(|| bad("it is KEY=VALUE"))?;
                Change::Env(key, value)
            }
            _ => {
                return Err(bad(
                    "the instruction is none of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR",
                ));
            }
        })
    }

    fn apply(&self, config: &mut Value) {
        match self {
            Change::Set(field, value) => config[*field] = value.clone(),
            Change::Add(field, members) => {
                if !config[*field].is_object() {
                    config[*field] = Value::Object(Map::new());
                }
                members.iter().for_each(|(key, value)| config[*field][key] = value.clone());
            }
            Change::Env(key, value) => {
                let begin = format!("{key}=");
                let mut env: Vec<Value> = config["Env"].as_array().cloned().unwrap_or_default();
                env.retain(|entry| !entry.as_str().is_some_and(|entry| entry.starts_with(&begin)));
                env.push(format!("{key}={value}").into());
                config["Env"] = env.into();
            }
        }
    }
}

/// A list in JSON's form, or a line for the shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(words) => json!(words),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

/// A list in JSON's form, or words.
fn words(text: &str) -> Vec<String> {
    let plain = || text.split_whitespace().map(str::to_owned).collect();
    serde_json::from_str::<Vec<String>>(text).unwrap_or_else(|_| plain())
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=').or_else(|| text.split_once(char::is_whitespace))?;
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (!key.is_empty()).then(|| (key.to_owned(), unquoted.to_owned()))
}

fn with_protocol(port: String) -> String {
    if port.contains('/') { port } else { port + "/tcp" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Id;

    #[test]
    fn the_image_runs_what_the_container_ran() {
        let image = json!({ "Entrypoint": ["/entry", "-x"], "Cmd": ["default"] });
        for (flag, args, entrypoint, cmd) in [
            (None, vec!["/entry", "-x", "default"], json!(["/entry", "-x"]), json!(["default"])),
            (None, vec!["/entry", "-x", "a", "b"], json!(["/entry", "-x"]), json!(["a", "b"])),
            (Some("sh"), vec!["sh", "-c", "x"], json!(["sh"]), json!(["-c", "x"])),
            (Some("sh"), vec!["sh"], json!(["sh"]), json!([])),
            (Some(""), vec!["ls", "/"], Value::Null, json!(["ls", "/"])),
        ] {
            let mut record = crate::containers::record::tests::record(&Id::random().unwrap());
            record.flags.entrypoint = flag.map(str::to_owned);
            record.process.args = args.into_iter().map(str::to_owned).collect();
            let mut config = image.clone();
            as_the_container(&mut config, &record);
            assert_eq!((&config["Entrypoint"], &config["Cmd"]), (&entrypoint, &cmd));
        }
        // One without an entrypoint.
        let mut record = crate::containers::record::tests::record(&Id::random().unwrap());
        record.process.args = vec!["cat".into(), "/x".into()];
        let mut config = json!({ "Cmd": ["bash"] });
        as_the_container(&mut config, &record);
        assert_eq!(config["Cmd"], json!(["cat", "/x"]));
    }

    #[test]
    fn instructions_change_the_configuration() {
        let mut config = json!({ "Env": ["A=1", "AB=2"], "Cmd": ["old"] });
        for text in [
            "CMD [\"a\", \"b\"]",
            "entrypoint run me",
            "ENV A=3",
            "ENV NEW \"a b\"",
            "EXPOSE 80 53/udp",
            "LABEL tier=web",
            "USER www",
            "VOLUME [\"/data\"]",
            "WORKDIR /srv",
            "STOPSIGNAL SIGQUIT",
        ] {
            Change::parse(text).unwrap().apply(&mut config);
        }
        let wanted = json!({
            "Env": ["AB=2", "A=3", "NEW=a b"], "Cmd": ["a", "b"], "Entrypoint": ["/bin/sh", "-c", "run me"],
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} }, "Labels": { "tier": "web" }, "User": "www",
            "Volumes": { "/data": {} }, "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
        });
        assert_eq!(config, wanted);
        for bad in ["", "CMD", "RUN x", "ENV x", "LABEL =x"] {
            assert!(Change::parse(bad).is_err(), "{bad}");
        }
    }
}
