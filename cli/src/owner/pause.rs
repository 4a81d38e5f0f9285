//! A VM that stands still because a client wants it so: `pause` and `unpause`. Its devices are there, and so is its owner: what it is
//! told meanwhile, signals among it, it finds when it goes on.

use serde_json::{Value, json};

use super::Owner;
use crate::attend::server::Waiting;
use crate::control::Control;
use crate::failure::one_line;
use crate::session::Wish;
use crate::snapshots::What;

impl Owner {
    /// Has the VM's processors stand still, or go on.
    pub(super) fn pause(&mut self, pause: bool, client: Waiting) -> Option<Wish> {
        let name = &self.facts.name;
        let refused = match (&self.facts.what, self.paused) {
            (What::Machine { .. }, _) => Some(format!("microVM '{name}' was booted, not run: it is no container")),
            _ if !self.runs => Some(format!("container {name} does not run yet")),
            (_, true) if pause => Some(format!("container {name} is already paused")),
            (_, false) if !pause => Some(format!("container {name} is not paused")),
            _ => None,
        };
        if let Some(refused) = refused {
            client.refuse(&refused);
            return None;
        }
        match self.have_stand_still(pause) {
            Ok(()) => {
                self.paused = pause;
                if let Some(container) = &self.container {
                    container.borrow_mut().paused(pause);
                }
                client.done(Value::Null);
            }
            Err(error) => client.refuse(&one_line(&error)),
        }
        None
    }

    fn have_stand_still(&mut self, still: bool) -> anyhow::Result<()> {
        if let Some(runtime) = self.runtime() {
            return runtime.pause(still);
        }
        let state = json!({ "state": if still { "Paused" } else { "Resumed" } });
        Ok(Control::at(&self.control()).call("PATCH", "/vm", &state).map(drop)?)
    }

    /// What takes a guest that answers is not begun with one that stands still.
    pub(super) fn refuse_paused(&self, client: Waiting) -> Option<Wish> {
        client.refuse(&format!("container {0} is paused; `bulkhead unpause {0}` first", self.facts.name));
        None
    }
}
