//! A stage of a Dockerfile: its instructions, one after the other, each with docker's rules.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use guest_images::Draft;
use parse_dockerfile::{
    Command, FromInstruction, HealthcheckArguments, HealthcheckInstruction, Instruction, JsonOrStringArray,
    RunInstruction,
};
use serde_json::{Value, json};

use super::Builder;
use super::config::Config;
use super::dockerfile::{begin_of, flags, shown, words};
use super::plan::{Changed, Plan};
use super::progress::Step;
use super::run;
use super::words::{LookUp, expand, split};
use crate::args::Network;
use crate::net;

/// What a build's environment may give to each RUN without an ARG, as with docker: proxies change no image.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

/// Whether a variable is one of those.
pub fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
}

/// A stage that is being made.
pub struct Stage<'a, 'b> {
    pub(super) builder: &'b Builder<'a>,
    pub(super) draft: Draft,
    /// Stages before this one can be copied from.
    pub(super) index: usize,
    /// ARGs, with what they hold.
    args: BTreeMap<String, String>,
    /// CMD is this stage's own: ENTRYPOINT leaves it.
    has_cmd: bool,
    /// The text that its instructions stand in: the Dockerfile's, or that of a trigger.
    text: &'b str,
    escape: char,
}

/// The names and values of ENV and LABEL: `KEY=VALUE...`, or `KEY VALUE`.
fn pairs(text: &str, escape: char, look_up: LookUp<'_>) -> anyhow::Result<Vec<(String, String)>> {
    let list = split(text, escape);
    if list.first().is_some_and(|word| !word.contains('=')) {
        let (key, value) =
            text.trim().split_once(char::is_whitespace).ok_or_else(|| anyhow!("'{text}': it is KEY=VALUE"))?;
        return Ok(vec![(expand(key, escape, look_up)?, expand(value.trim(), escape, look_up)?)]);
    }
    let pair = |word: &String| {
        let (key, value) = word.split_once('=').ok_or_else(|| anyhow!("'{word}': it is KEY=VALUE"))?;
        let (key, value) = (expand(key, escape, look_up)?, expand(value, escape, look_up)?);
        if key.is_empty() { Err(anyhow!("'{word}': the name is missing")) } else { Ok((key, value)) }
    };
    list.iter().map(pair).collect()
}

/// The names of ARG, each with its default, if it has one. What comes first in a line may be in what follows.
pub fn arguments(text: &str, escape: char, look_up: LookUp<'_>) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    for word in split(text, escape) {
        let known = |name: &str| {
            let earlier = all.iter().rev().find(|(known, _)| known == name);
            earlier.and_then(|(_, value)| value.clone()).or_else(|| look_up(name))
        };
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(expand(default, escape, &known)?)),
            None => (word.as_str(), None),
        };
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(usual) {
            bail!("'{name}' is not a variable's name");
        }
        all.push((name.to_owned(), default));
    }
    Ok(all)
}

impl<'a> Builder<'a> {
    /// Makes a stage: what it is on, and all of its instructions.
    pub(super) fn make_stage(&self, index: usize) -> anyhow::Result<Draft> {
        let found = self.file.stages().nth(index).ok_or_else(|| anyhow!("there is no stage {index}"))?;
        let draft = self.base(found.from, index).map_err(|error| self.placed(found.from.from.span.start, error))?;
        let mut stage = Stage {
            builder: self,
            draft,
            index,
            args: BTreeMap::new(),
            has_cmd: false,
            text: self.text,
            escape: self.escape,
        };
        stage.pull_triggers()?;
        let name = found.from.as_.as_ref().map_or_else(|| format!("stage-{index}"), |(_, name)| name.value.to_string());
        let count = found.instructions.len();
        for (number, instruction) in found.instructions.iter().enumerate() {
            let title = format!("[{name} {}/{count}]", number + 1);
            stage.instruct(instruction, &title).map_err(|error| self.placed(begin_of(instruction), error))?;
        }
        Ok(stage.draft)
    }

    /// What FROM names.
    fn base(&self, from: &FromInstruction<'_>, index: usize) -> anyhow::Result<Draft> {
        let look_up = |name: &str| self.globals.get(name).cloned();
        let expanded = |text: &str| expand(text, self.escape, &look_up);
        for (name, value) in flags(&from.options) {
            match (name.as_str(), expanded(&value)?.as_str()) {
                ("platform", "linux/amd64") => {}
                ("platform", other) => bail!("--platform={other}: images here are for linux/amd64"),
                (other, _) => bail!("FROM has no flag --{other}"),
            }
        }
        let name = expanded(&from.image.value)?;
        if name.is_empty() {
            bail!("the name of the image is empty: an ARG before the first FROM has no value");
        }
        if name == "scratch" {
            return Ok(Draft::scratch());
        }
        Ok(match self.stage_called(&name, index).filter(|_| name.parse::<usize>().is_err()) {
            Some(stage) => self.stage(stage)?.draft.clone(),
            None => self.image(&name)?.draft.clone(),
        })
    }
}

impl Stage<'_, '_> {
    /// What the image that this is built on has left to be done (ONBUILD).
    fn pull_triggers(&mut self) -> anyhow::Result<()> {
        for trigger in Config::of(&mut self.draft.config).take_triggers() {
            let text = format!("FROM scratch\n{trigger}");
            let parsed = parse_dockerfile::parse(&text).map_err(|error| anyhow!("ONBUILD {trigger}: {error}"))?;
            let mut inner = Stage {
                builder: self.builder,
                draft: self.draft.clone(),
                index: self.index,
                args: self.args.clone(),
                has_cmd: self.has_cmd,
                text: &text,
                escape: '\\',
            };
            for instruction in parsed.instructions.iter().skip(1) {
                if matches!(instruction, Instruction::From(_) | Instruction::Onbuild(_) | Instruction::Maintainer(_)) {
                    bail!("ONBUILD {trigger}: this instruction cannot be left for others");
                }
                inner.instruct(instruction, "[ONBUILD]").with_context(|| format!("ONBUILD {trigger}"))?;
            }
            let Stage { draft, args, has_cmd, .. } = inner;
            (self.draft, self.args, self.has_cmd) = (draft, args, has_cmd);
        }
        Ok(())
    }

    fn config(&mut self) -> Config<'_> {
        Config::of(&mut self.draft.config)
    }

    /// What a text becomes with the variables that there are: those of the image before ARGs.
    pub(super) fn expand(&mut self, text: &str) -> anyhow::Result<String> {
        let (args, escape) = (self.args.clone(), self.escape);
        let config = self.config();
        expand(text, escape, &|name| config.variable(name).or_else(|| args.get(name).cloned()))
    }

    fn pairs(&mut self, text: &str) -> anyhow::Result<Vec<(String, String)>> {
        let (args, escape) = (self.args.clone(), self.escape);
        let config = self.config();
        pairs(text, escape, &|name| config.variable(name).or_else(|| args.get(name).cloned()))
    }

    fn instruct(&mut self, instruction: &Instruction<'_>, title: &str) -> anyhow::Result<()> {
        let line = shown(self.text, begin_of(instruction), self.escape);
        match instruction {
            Instruction::Run(run) => return self.run(run, &line, title),
            Instruction::Copy(copy) => {
                return self.copy(&copy.options, &copy.src, &copy.dest.value, false, &line, title);
            }
            Instruction::Add(add) => return self.copy(&add.options, &add.src, &add.dest.value, true, &line, title),
            Instruction::Workdir(dir) => return self.work_in(&dir.arguments.value, &line, title),
            Instruction::Arg(arg) => self.declare(&arg.arguments.value)?,
            Instruction::Env(env) => {
                for (key, value) in self.pairs(&env.arguments.value)? {
                    self.config().set_env(&key, &value);
                }
            }
            Instruction::Label(label) => {
                for (key, value) in self.pairs(&label.arguments.value)? {
                    self.config().set_label(&key, &value);
                }
            }
            Instruction::Expose(expose) => {
                for word in &expose.arguments {
                    let expanded = self.expand(&word.value)?;
                    expanded.split_whitespace().try_for_each(|port| self.config().expose(port))?;
                }
            }
            Instruction::Volume(volume) => {
                let list = match &volume.arguments {
                    JsonOrStringArray::Json(list) => list.value.iter().collect::<Vec<_>>(),
                    JsonOrStringArray::String(list) => list.iter().collect(),
                };
                for path in list {
                    let path = self.expand(&path.value)?;
                    self.config().add_volume(&path)?;
                }
            }
            Instruction::User(user) => {
                let user = self.expand(&user.arguments.value)?;
                self.config().0["User"] = user.into();
            }
            Instruction::Stopsignal(signal) => {
                let signal = self.expand(&signal.arguments.value)?;
                self.config().stop_signal(&signal)?;
            }
            Instruction::Cmd(cmd) => {
                self.has_cmd = true;
                let command = self.words(&cmd.arguments);
                self.config().0["Cmd"] = json!(command);
            }
            Instruction::Entrypoint(entry) => {
                let command = self.words(&entry.arguments);
                self.config().0["Entrypoint"] = json!(command);
                // That of the image below was for its own.
                if !self.has_cmd {
                    self.config().0["Cmd"] = Value::Null;
                }
            }
            Instruction::Shell(shell) => {
                let list: Vec<&str> = shell.arguments.iter().map(|word| &*word.value).collect();
                self.config().0["Shell"] = json!(list);
            }
            Instruction::Healthcheck(check) => self.healthcheck(check)?,
            Instruction::Onbuild(trigger) => {
                if matches!(*trigger.instruction, Instruction::From(_) | Instruction::Maintainer(_)) {
                    bail!("ONBUILD cannot leave this instruction for others");
                }
                let text = line.split_once(' ').map_or("", |(_, rest)| rest).to_owned();
                self.config().on_build(&text);
            }
            Instruction::Maintainer(maintainer) => {
                let name = self.expand(&maintainer.name.value)?;
                self.draft.config["author"] = name.into();
            }
            _ => bail!("this instruction is not supported"),
        }
        self.record(&line, None);
        Ok(())
    }

    /// A step of the history, and the layer that it has made.
    pub(super) fn record(&mut self, line: &str, layer: Option<guest_images::DraftLayer>) {
        // A step without a layer has no time of its own: the same steps on the same layers are the same image.
        if let Some(layer) = layer.as_ref().filter(|layer| !layer.created().is_empty()) {
            self.draft.config["created"] = layer.created().into();
        }
        let created = match &self.draft.config["created"] {
            created if created.is_null() || self.builder.clamp => self.builder.created.as_str().into(),
            created => created.clone(),
        };
        self.draft.add(json!({ "created": created, "created_by": line, "comment": "bulkhead" }), layer);
    }

    fn words(&mut self, command: &Command<'_>) -> Vec<String> {
        let shell = self.config().shell();
        words(command, shell, self.escape)
    }

    fn declare(&mut self, text: &str) -> anyhow::Result<()> {
        let (args, escape) = (self.args.clone(), self.escape);
        let config = self.config();
        let declared = arguments(text, escape, &|name| config.variable(name).or_else(|| args.get(name).cloned()))?;
        for (name, default) in declared {
            let global = || self.builder.globals.get(&name).cloned();
            if let Some(value) = self.builder.given(&name).or(default).or_else(global) {
                self.args.insert(name, value);
            }
        }
        Ok(())
    }

    fn healthcheck(&mut self, check: &HealthcheckInstruction<'_>) -> anyhow::Result<()> {
        let options = flags(&check.options);
        let test = match &check.arguments {
            HealthcheckArguments::Cmd { arguments: Command::Shell(_), .. } => {
                let HealthcheckArguments::Cmd { arguments, .. } = &check.arguments else { return Ok(()) };
                std::iter::once("CMD-SHELL".to_owned()).chain(words(arguments, Vec::new(), self.escape)).collect()
            }
            HealthcheckArguments::Cmd { arguments, .. } => {
                std::iter::once("CMD".to_owned()).chain(words(arguments, Vec::new(), self.escape)).collect()
            }
            _ if !options.is_empty() => bail!("HEALTHCHECK NONE takes no flags"),
            _ => vec!["NONE".to_owned()],
        };
        self.config().healthcheck(test, &options)
    }

    fn work_in(&mut self, text: &str, line: &str, title: &str) -> anyhow::Result<()> {
        let path = self.expand(text)?;
        if path.is_empty() {
            bail!("the path is empty");
        }
        let whole = self.config().work_in(&path);
        let contents = self.builder.contents_of(&self.draft)?;
        let changed = Changed { made: self.builder.made, ..Changed::default() };
        let mut plan = Plan::new(&contents, changed);
        plan.make_directory(whole.as_bytes())?;
        let layer = match plan.is_empty() {
            true => None,
            false => {
                let step = self.builder.progress.step(&format!("{title} {line}"));
                Some(self.finish(step, |stage| stage.builder.planned_layer(&stage.draft, &plan))?)
            }
        };
        self.record(line, layer);
        Ok(())
    }

    /// A step that makes a layer, or finds it.
    pub(super) fn finish(
        &mut self,
        step: Step<'_>,
        make: impl FnOnce(&Self) -> anyhow::Result<(guest_images::DraftLayer, bool)>,
    ) -> anyhow::Result<guest_images::DraftLayer> {
        match make(self) {
            Ok((layer, true)) => {
                step.cached();
                Ok(layer)
            }
            Ok((layer, false)) => {
                step.done();
                Ok(layer)
            }
            Err(error) => {
                step.failed(&crate::failure::one_line(&error));
                Err(error)
            }
        }
    }

    fn run(&mut self, instruction: &RunInstruction<'_>, line: &str, title: &str) -> anyhow::Result<()> {
        let mut network = match &self.builder.args.network {
            Some(network) => network.clone(),
            None => net::usual(&[], &[])?,
        };
        for (name, value) in flags(&instruction.options) {
            match (name.as_str(), self.expand(&value)?.as_str()) {
                ("network", "default") => {}
                ("network", "none") => network = Network::None,
                ("network", other) => bail!("--network={other}: of RUN it is default or none"),
                ("mount", _) => {
                    bail!("RUN --mount is not supported: COPY what is needed, and remove it in the same RUN")
                }
                (other, _) => bail!("RUN has no flag --{other}"),
            }
        }
        let list = match (&instruction.here_docs[..], &instruction.arguments) {
            ([], arguments) => self.words(arguments),
            ([document], Command::Shell(rest)) if rest.value.trim().is_empty() => {
                if document.value.starts_with("#!") {
                    bail!("a here-document with an interpreter of its own is not supported: COPY it, and run that");
                }
                self.config().shell().into_iter().chain([document.value.to_string()]).collect()
            }
            _ => bail!("a here-document is supported as all of a RUN: RUN <<EOF"),
        };
        let visible: Vec<String> = self.visible_args();
        let count = visible.len();
        let by = match count {
            0 => format!("RUN {}", list.join(" ")),
            _ => format!("RUN |{count} {} {}", visible.join(" "), list.join(" ")),
        };
        let config = Config::of(&mut self.draft.config);
        let of = json!({ "v": 1, "run": list, "args": visible, "env": config.env(), "user": config.0["User"],
                         "dir": config.0["WorkingDir"], "hosts": self.builder.args.add_host, "network": network.to_string() });
        let proxies = self.builder.given.iter().filter(|(name, _)| is_proxy(name));
        let proxies = proxies.map(|(name, value)| format!("{name}={value}"));
        let env: Vec<String> = proxies.chain(visible).collect();
        let step = self.builder.progress.step(&format!("{title} {line}"));
        let builder = self.builder;
        let key = builder.key(&self.draft, &of);
        let made = match builder.cached(&key) {
            Ok(Some(layer)) => Ok((layer, true)),
            Ok(None) => {
                let command = run::Command { words: list, env, network };
                let layer = builder.run(&self.draft, command, &step);
                layer.and_then(|layer| Ok(builder.store.remember(&key, &layer).map(|()| (layer, false))?))
            }
            Err(error) => Err(error),
        };
        let layer = self.finish(step, |_| made)?;
        self.record(&by, Some(layer));
        Ok(())
    }

    /// The ARGs that a command sees: not those that the image has a variable of that name for.
    fn visible_args(&mut self) -> Vec<String> {
        let args = self.args.clone();
        let config = self.config();
        let seen = args.iter().filter(|(name, _)| config.variable(name).is_none());
        seen.map(|(name, value)| format!("{name}={value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn variables_are_set_in_either_form() {
        let look_up = |name: &str| (name == "X").then(|| "x y".to_owned());
        let all = pairs(r#"A=1 B="two words" C=$X D='$X' E=a\ b"#, '\\', &look_up).unwrap();
        let wanted = [("A", "1"), ("B", "two words"), ("C", "x y"), ("D", "$X"), ("E", "a b")];
        assert_eq!(all, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(pairs("ONE TWO= THREE=world", '\\', &none).unwrap(), [("ONE".into(), "TWO= THREE=world".into())]);
        for bad in ["A", "A=1 B", "=x", "A="] {
            assert_eq!(pairs(bad, '\\', &none).is_err(), bad != "A=", "{bad}");
        }
    }

    #[test]
    fn arguments_have_defaults_of_those_before_them() {
        let all = arguments("A=1 B=${A}2 C", '\\', &none).unwrap();
        assert_eq!(all, [("A".into(), Some("1".into())), ("B".into(), Some("12".into())), ("C".into(), None)]);
        for bad in ["A-B=1", "=1", "a$b"] {
            assert!(arguments(bad, '\\', &none).is_err(), "{bad}");
        }
        assert!(is_proxy("HTTP_PROXY") && is_proxy("no_proxy") && !is_proxy("PROXY"));
    }
}
