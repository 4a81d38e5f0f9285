//! The size of the user's terminal, which a guest's virtio console has as well.

use std::io;

use rustix::termios::tcgetwinsize;
use serde_json::json;
use signal_hook::consts::signal::SIGWINCH;
use signal_hook::iterator::{Handle, Signals};

use crate::control::Control;

/// Columns and rows of the terminal that output goes to; none if it goes elsewhere.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some((size.ws_col, size.ws_row))
}

/// Tells a microVM of the size.
#[derive(Debug, Clone)]
pub struct Window {
    control: Control,
}

impl Window {
    /// For the microVM behind this socket, which has a virtio console.
    pub fn of(control: Control) -> Self {
        Window { control }
    }

    /// Tells it the size that there is now. A machine that ends meanwhile misses nothing.
    pub fn tell(&self) {
        let Some((columns, rows)) = size() else { return };
        let told = self.control.call("PATCH", "/console", &json!({ "columns": columns, "rows": rows }));
        if let Err(error) = told {
            tracing::debug!("the console's size: {error}");
        }
    }

    /// Tells it now, and from a thread whenever it changes, until the result is dropped.
    pub fn follow(&self) -> io::Result<Following> {
        let mut signals = Signals::new([SIGWINCH])?;
        let handle = signals.handle();
        let window = self.clone();
        let work = move || {
            window.tell();
            signals.forever().for_each(|_| window.tell());
        };
        std::thread::Builder::new().name("window".into()).spawn(work)?;
        Ok(Following(handle))
    }
}

/// A window that is followed.
#[derive(Debug)]
pub struct Following(Handle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.close();
    }
}
