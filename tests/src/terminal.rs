//! A program under test on a pseudo-terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::process::Running;

/// A terminal, seen from the keyboard and the screen.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    /// Kept open, so that what the program leaves on the screen can be read after its end.
    slave: File,
    screen: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Terminal {
    /// A terminal of 24 lines of 80 characters.
    ///
    /// # Panics
    /// There is none to be had.
    #[expect(clippy::new_without_default, reason = "it opens devices")]
    pub fn new() -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("the terminal's name");
        let name = name.to_str().expect("the terminal's name").to_owned();
        let slave = open_slave(&name);
        let master = File::from(master);
        let mut reader = master.try_clone().expect("the terminal");
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let terminal = Terminal { master, slave, screen, seen: Vec::new() };
        terminal.resize(24, 80);
        terminal
    }

    /// Starts a program whose controlling terminal this is.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(&self, command: &Command) -> Running {
        // setsid runs the program in its own place, so that its process id is the one started here.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("-c").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        let stream = || OwnedFd::from(self.slave.try_clone().expect("the terminal"));
        on_terminal.stdin(stream()).stdout(stream()).stderr(stream());
        Running::start_as_is(on_terminal)
    }

    /// Sets the size.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.master.as_fd(), size).expect("window size");
    }

    /// Types.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn type_in(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("keys");
    }

    /// Waits until `text` has appeared on the screen; what stood there up to it does not count again.
    ///
    /// # Panics
    /// It has not, within that time.
    pub fn wait_for(&mut self, text: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(e) => panic!("no '{text}' ({e}) on the screen: {:?}", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    /// Keys are collected into lines and shown, as a shell finds them: nobody left raw mode on.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn is_usual(&self) -> bool {
        let modes = tcgetattr(self.slave.as_fd()).expect("terminal modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

fn open_slave(name: &str) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(name).expect("the terminal's other side")
}
