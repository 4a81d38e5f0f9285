//! A microVM for a container: one that goes on from a template, or one that boots and leaves a template behind.
//!
//! ```text
//! template there ─► restore ─► guest arrives ─────────────────────────────────────────► start
//!    ▲  │              └── it does not: away with the template ┐
//!    │  └── not there ─────────────────────────────────────────┴► boot ─► prepare ─► snapshot ─► start
//!    └──────┴ somebody makes it: wait
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use vmm::VmConfig;

use crate::cgroup::Limits;
use crate::control::Control;
use crate::monitor::{Console, Monitor};
use crate::net;
use crate::session::io::Io;
use crate::session::{Attendant, Ended, Session, SessionError};
use crate::templates::{Ingredients, Making, Template, Templates};

/// How long a run waits for a template that another one makes. A boot takes less, unless whoever sees to it was stopped.
const OTHERS: Duration = Duration::from_secs(30);

/// A run that broke, with the VM it broke in, if that is still to be looked at.
pub struct Broken {
    /// What broke.
    pub error: SessionError,
    /// Where.
    pub monitor: Box<Monitor>,
}

/// How a run went.
pub struct Ran {
    /// The VM, of no more use.
    pub monitor: Monitor,
    /// How it ended, or that the VM is to be replaced.
    pub ended: Ended,
    /// It went on from a template.
    pub warm: bool,
}

/// What is needed for either way.
pub struct Launch<'a> {
    /// The machine, complete, as it boots.
    pub config: VmConfig,
    /// Where to look for templates; nowhere if only booting will do.
    pub templates: Option<&'a Templates>,
    /// Where the VM's control socket is to be.
    pub control: PathBuf,
    /// Where the guest will connect.
    pub session: &'a Session,
    /// What the VM's process may take of the host.
    pub limits: Limits,
    /// The VM's process may talk on stderr.
    pub verbose: bool,
}

impl Launch<'_> {
    /// Runs one process in a VM. `booting` is called before a VM boots, to make what it boots from; `started` whenever a
    /// VM's process is there and signals have become the session's business; `attendant` has its say while the process runs.
    ///
    /// # Errors
    /// The outer one: there is no VM.
    pub fn run(
        &self,
        start: guest_protocol::Start,
        io: Io,
        booting: &dyn Fn() -> anyhow::Result<()>,
        started: &dyn Fn(),
        attendant: &mut dyn Attendant,
    ) -> anyhow::Result<Result<Ran, Broken>> {
        let ingredients = Ingredients::of(&self.config);
        let mut template = self.templates.zip(ingredients).and_then(|(templates, of)| templates.find(&of));
        let mut making = self.make(&mut template, OTHERS);
        if let Some(source) = template.as_ref().and_then(Template::source) {
            let config = VmConfig { boot_source: None, snapshot: Some(source), ..self.config.clone() };
            let monitor = self.monitor(&config)?;
            // Signals are the conversation's before nobody else attends to them: none is lost in between.
            let mut conversation = self.session.begin(monitor.ended())?;
            started();
            match conversation.arrive() {
                Ok(()) => {
                    monitor.confined()?;
                    let result = conversation.start(start, io, attendant);
                    return Ok(conclude(monitor, result, true));
                }
                Err(SessionError::VmEnded(_)) => {
                    drop(conversation);
                    let why = monitor.wait().err().map_or_else(|| "it ended".into(), |error| error.to_string());
                    tracing::warn!("the template does not work here, so this microVM boots: {why}");
                    template.iter_mut().for_each(Template::doubt);
                    // Signals are nobody's while somebody else is waited for here.
                    making = self.make(&mut template, Duration::ZERO);
                }
                Err(error) => {
                    drop(conversation);
                    return Ok(Err(Broken { error, monitor: Box::new(monitor) }));
                }
            }
        }
        booting()?;
        let monitor = self.monitor(&self.config)?;
        let mut conversation = self.session.begin(monitor.ended())?;
        started();
        if let Some(making) = making {
            // What most have, whatever this one has. On a network, nobody is heard in another's name.
            let mac = start.network.as_ref().map_or(net::NOBODY, |own| own.mac);
            if let Err(error) = conversation.prepare(Some(net::guest_of_passt(mac))) {
                drop(conversation);
                return Ok(Err(Broken { error, monitor: Box::new(monitor) }));
            }
            template.iter().for_each(Template::make_room);
            self.leave(&making);
        }
        monitor.confined()?;
        let result = conversation.start(start, io, attendant);
        Ok(conclude(monitor, result, false))
    }

    fn monitor(&self, config: &VmConfig) -> anyhow::Result<Monitor> {
        let config = serde_json::to_string(config)?;
        Ok(Monitor::start(&config, Console::None, &self.control, self.limits, self.verbose)?)
    }

    /// The right to leave `template` behind, unless it is there, if need be since somebody else has made it meanwhile.
    fn make(&self, template: &mut Option<Template>, patience: Duration) -> Option<Making> {
        let (template, templates) = template.as_mut().zip(self.templates)?;
        templates.make(template, patience)
    }

    /// Makes the template of a VM whose init is ready. This run does without it if that fails.
    fn leave(&self, making: &Making) {
        let request = json!({ "snapshot_type": "Full", "snapshot_path": making.target() });
        let control: &Path = &self.control;
        match Control::at(control).call("PUT", "/snapshot/create", &request) {
            Ok(_) => tracing::info!("template {}", making.target().display()),
            Err(error) => tracing::warn!("no template for later runs: {error}"),
        }
        if let Some(Err(error)) = self.templates.map(Templates::trim) {
            tracing::warn!("templates: {error}");
        }
    }
}

/// Puts a VM and what came of its conversation together.
pub fn conclude(monitor: Monitor, result: Result<Ended, SessionError>, warm: bool) -> Result<Ran, Broken> {
    match result {
        Ok(ended) => Ok(Ran { monitor, ended, warm }),
        Err(error) => Err(Broken { error, monitor: Box::new(monitor) }),
    }
}
