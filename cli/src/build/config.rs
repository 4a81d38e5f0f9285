//! What instructions make of an image's configuration (OCI image-spec, config.md, and docker's own fields beside it).

use anyhow::{anyhow, bail};
use serde_json::{Value, json};

use crate::clock;
use crate::signals;

/// What shells run lines where no SHELL says otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Most ports that one range may have.
const MOST_PORTS: u32 = 65_536;

/// The part of a configuration that is about the process.
#[derive(Debug)]
pub struct Config<'a>(pub &'a mut Value);

impl Config<'_> {
    /// Of the whole document.
    pub fn of(document: &mut Value) -> Config<'_> {
        if !document["config"].is_object() {
            document["config"] = json!({});
        }
        Config(&mut document["config"])
    }

    /// A member of a field that is an object.
    fn add(&mut self, field: &str, member: &str, value: Value) {
        if !self.0[field].is_object() {
            self.0[field] = json!({});
        }
        self.0[field][member] = value;
    }

    /// A variable, in the place of one of this name.
    pub fn set_env(&mut self, key: &str, value: &str) {
        let entry = Value::from(format!("{key}={value}"));
        let begin = format!("{key}=");
        let Some(list) = self.0["Env"].as_array_mut() else {
            self.0["Env"] = json!([entry]);
            return;
        };
        match list.iter_mut().find(|entry| entry.as_str().is_some_and(|entry| entry.starts_with(&begin))) {
            Some(known) => *known = entry,
            None => list.push(entry),
        }
    }

    /// What LABEL says.
    pub fn set_label(&mut self, key: &str, value: &str) {
        self.add("Labels", key, value.into());
    }

    /// What EXPOSE says in one word: a port or a range of them, each with a protocol.
    pub fn expose(&mut self, word: &str) -> anyhow::Result<()> {
        let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        let port = |text: &str| text.parse::<u16>().map_err(|_| anyhow!("'{word}' is not a port"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (port(first)?, port(last)?);
        if first > last || u32::from(last - first) >= MOST_PORTS || !["tcp", "udp", "sctp"].contains(&&*protocol) {
            bail!("'{word}' is not a port: write 80, 80/udp or 8000-8010");
        }
        for port in first..=last {
            self.add("ExposedPorts", &format!("{port}/{protocol}"), json!({}));
        }
        Ok(())
    }

    /// A directory that wants a volume.
    pub fn add_volume(&mut self, path: &str) -> anyhow::Result<()> {
        if path.is_empty() {
            bail!("a volume without a path");
        }
        self.add("Volumes", path, json!({}));
        Ok(())
    }

    /// The signal that asks the process to stop.
    pub fn stop_signal(&mut self, signal: &str) -> anyhow::Result<()> {
        signals::number(signal).map_err(|error| anyhow!(error))?;
        self.0["StopSignal"] = signal.into();
        Ok(())
    }

    /// Where the process starts, from now on: absolute, or below where it would have.
    pub fn work_in(&mut self, path: &str) -> String {
        let whole = self.below_workdir(path);
        self.0["WorkingDir"] = whole.as_str().into();
        whole
    }

    /// A path as seen from the working directory, without `.` and `..`.
    pub fn below_workdir(&self, path: &str) -> String {
        let base = self.0["WorkingDir"].as_str().filter(|_| !path.starts_with('/')).unwrap_or("/");
        let mut names: Vec<&str> = Vec::new();
        for name in base.split('/').chain(path.split('/')) {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        format!("/{}", names.join("/"))
    }

    /// What runs a line.
    pub fn shell(&self) -> Vec<String> {
        let own: Option<Vec<String>> = serde_json::from_value(self.0["Shell"].clone()).ok();
        own.filter(|words| !words.is_empty()).unwrap_or_else(|| SHELL.map(str::to_owned).to_vec())
    }

    /// The variables, `KEY=value`.
    pub fn env(&self) -> Vec<String> {
        serde_json::from_value(self.0["Env"].clone()).unwrap_or_default()
    }

    /// What a variable holds.
    pub fn variable(&self, name: &str) -> Option<String> {
        let env = self.0["Env"].as_array()?;
        let pairs = env.iter().filter_map(|entry| entry.as_str()?.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next_back()
    }

    /// What becomes of images that are built on this one.
    pub fn on_build(&mut self, instruction: &str) {
        match self.0["OnBuild"].as_array_mut() {
            Some(list) => list.push(instruction.into()),
            None => self.0["OnBuild"] = json!([instruction]),
        }
    }

    /// Takes what was left for images that are built on this one.
    pub fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.0.as_object_mut().and_then(|config| config.remove("OnBuild"));
        triggers.and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default()
    }

    /// How to tell that the process does its work: `test` as docker has it, and the options.
    pub fn healthcheck(&mut self, test: Vec<String>, options: &[(String, String)]) -> anyhow::Result<()> {
        let mut check = json!({ "Test": test });
        for (name, value) in options {
            let (field, value): (&str, Value) = match name.as_str() {
                "interval" => ("Interval", nanoseconds(value)?.into()),
                "timeout" => ("Timeout", nanoseconds(value)?.into()),
                "start-period" => ("StartPeriod", nanoseconds(value)?.into()),
                "start-interval" => ("StartInterval", nanoseconds(value)?.into()),
                "retries" => {
                    let number = value.parse::<u32>().map_err(|_| anyhow!("--retries={value}: not a number"))?;
                    ("Retries", number.into())
                }
                other => bail!("HEALTHCHECK has no flag --{other}"),
            };
            check[field] = value;
        }
        self.0["Healthcheck"] = check;
        Ok(())
    }
}

/// A span of time as docker writes it.
fn nanoseconds(text: &str) -> anyhow::Result<u64> {
    let span = clock::span(text).filter(|span| !span.is_zero());
    let span = span.ok_or_else(|| anyhow!("'{text}' is not a span of time: write it like 30s or 1m30s"))?;
    u64::try_from(span.as_nanos()).map_err(|_| anyhow!("'{text}' is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_the_configuration() {
        let mut document = json!({ "config": { "Env": ["A=1", "AB=2"], "WorkingDir": "/srv" } });
        let mut config = Config::of(&mut document);
        config.set_env("A", "3");
        config.set_env("NEW", "a b");
        config.set_label("tier", "web");
        for word in ["80", "53/UDP", "8000-8002"] {
            config.expose(word).unwrap();
        }
        for bad in ["", "x", "80/x", "2-1", "70000", "1-"] {
            assert!(config.expose(bad).is_err(), "{bad}");
        }
        assert_eq!(config.work_in("a/../b"), "/srv/b");
        assert_eq!(config.work_in("/x/"), "/x");
        assert_eq!((config.below_workdir("../../y/."), config.below_workdir("/")), ("/y".into(), "/".into()));
        config.stop_signal("SIGQUIT").unwrap();
        assert!(config.stop_signal("SIGNOPE").is_err() && config.add_volume("").is_err());
        config.add_volume("/data").unwrap();
        config
            .healthcheck(
                vec!["CMD".into(), "x".into()],
                &[("interval".into(), "1m30s".into()), ("retries".into(), "3".into())],
            )
            .unwrap();
        for (name, value) in [("interval", "x"), ("interval", "0s"), ("retries", "-1"), ("nope", "1s")] {
            assert!(config.healthcheck(vec![], &[(name.into(), value.into())]).is_err(), "{name}");
        }
        config.on_build("RUN a");
        config.on_build("RUN b");
        assert_eq!((config.variable("A"), config.variable("B")), (Some("3".into()), None));
        assert_eq!(config.take_triggers(), ["RUN a", "RUN b"]);
        assert_eq!(config.shell(), SHELL);
        let wanted = json!({
            "Env": ["A=3", "AB=2", "NEW=a b"], "Labels": { "tier": "web" }, "StopSignal": "SIGQUIT", "Volumes": { "/data": {} },
            "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {} }, "WorkingDir": "/x",
            "Healthcheck": { "Test": ["CMD", "x"], "Interval": 90_000_000_000_u64, "Retries": 3 },
        });
        assert_eq!(document["config"], wanted);
    }
}
