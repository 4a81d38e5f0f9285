//! A container's record while somebody has the container.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Attached;
use crate::attend::Update;
use crate::containers::record::Cause;
use crate::containers::{Containers, Record, Status};
use crate::events;
use crate::supervisor::Report;

/// Longest text of the guest's that is kept.
const MOST_WORDS: usize = 200;

/// Whoever runs a container and whoever attends to its clients have it together.
pub type Shared = Rc<RefCell<Tracked>>;

/// The record, and who waits for it.
#[derive(Debug)]
pub struct Tracked {
    /// What is known.
    pub record: Record,
    /// The container's directory.
    pub dir: PathBuf,
    /// Who is to hear that the process has started.
    pub report: Option<Report>,
    /// Who is at its process.
    pub attached: Attached,
}

impl Tracked {
    /// Its process runs. A replacement of the VM there was goes on with the same process.
    pub fn started(&mut self) {
        self.attached.started();
        if self.record.state.pid == std::process::id() {
            return;
        }
        self.record.start();
        self.write();
        self.tell("start", &[]);
        if let Some(report) = self.report.take() {
            report.started();
        }
    }

    /// The guest's kernel has killed a process for lack of memory.
    pub fn out_of_memory(&mut self, which: &str) {
        self.record.state.out_of_memory = which.chars().take(MOST_WORDS).collect();
    }

    /// It is to be started so the next time.
    pub fn update(&mut self, to: Update) {
        to.apply(&mut self.record.flags);
        self.write();
    }

    /// It stands still, or goes on.
    pub fn paused(&mut self, paused: bool) {
        self.record.state.paused = paused;
        self.write();
        self.tell(if paused { "pause" } else { "unpause" }, &[]);
    }

    /// Its process has ended with this code, or could not be started.
    pub fn ended(&mut self, code: u8, cause: Cause, error: String) {
        let ran = self.record.state.status == Status::Running;
        self.record.end(code, cause, error);
        self.write();
        if ran && !self.record.state.out_of_memory.is_empty() {
            self.tell("oom", &[]);
        }
        if ran {
            self.tell("die", &[("exitCode", code.to_string())]);
        }
    }

    /// Has the journal say so.
    fn tell(&self, action: &str, more: &[(&str, String)]) {
        // It may have been renamed since it was taken.
        let store = self.dir.parent().and_then(Path::parent);
        let Some(containers) = store.and_then(|store| Containers::of(store).ok()) else { return };
        let name = containers.name_of(&self.record.id).unwrap_or_else(|| self.record.id.short().to_owned());
        events::tell_of(&containers, &self.record, &name, action, more);
    }

    /// What cannot be written now will be missing later, which is no reason to end what works.
    fn write(&self) {
        // That it runs is not true any more after a crash of the host.
        let durable = self.record.state.pid == 0 && !self.record.flags.rm;
        if let Err(error) = self.record.write(&self.dir, durable) {
            tracing::warn!("container {}: its record cannot be written: {error}", self.record.id.short());
        }
    }
}
