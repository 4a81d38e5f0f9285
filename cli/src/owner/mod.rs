//! Whoever has a VM, seen from its attendance socket: orders in, snapshots and answers out.
//!
//! ```text
//! client ─ order ─► wish: freeze ─► frozen: snapshot ─► over: answer        (the VM's processes, if it has any, go on)
//!                   another VM is started, and alive ─► wish: leave ─► the verb's loop: succeed ─► arrived: answer
//! ```
//!
//! It ends no VM but one that it has started itself and that does not work; it talks to the control sockets of those there are.
//!
//! - this file: orders;
//! - [`jobs`]: snapshots and rollbacks;
//! - [`pause`]: the VM standing still because a client wants it so;
//! - [`pod`]: a VM that several containers share;
//! - [`update`]: what the VM may take, changed while it runs;
//! - [`execs`]: processes that have joined the container's main one;
//! - [`attached`]: clients at the streams of the container's own process;
//! - [`tracked`]: the container's record, which follows what becomes of the VM;
//! - [`history`]: where the VM came from, and what the next snapshot can be a change to.

mod attached;
mod execs;
mod history;
mod jobs;
mod pause;
mod pod;
mod tracked;
mod update;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use guest_images::LayerKey;
use rustix::event::epoll;
use serde_json::{Value, json};

use crate::attend::server::{Attendance, Waiting};
use crate::attend::{Attach, Exec, Order, SOCKET};
use crate::failure::one_line;
use crate::rundir::RunDir;
use crate::session::{Attendant, FreezeError, Heard, Wish};
use crate::snapshots::making::Wanted;
use crate::snapshots::{Held, What};
use crate::successor::{Arrived, Succession, Successor};
pub use attached::{Attached, First};
use execs::Execs;
pub use history::History;
use pod::Sharing;
pub use tracked::{Shared, Tracked};
pub use update::{BALLOON, balloon};

/// What is known of a VM as long as its owner lives, whatever it is replaced by.
#[derive(Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: What,
    /// Number of its vCPUs.
    pub vcpus: u8,
    /// Its memory.
    pub memory_mib: u64,
    /// What its disk is made of, if that is in the store.
    pub layers: Vec<LayerKey>,
}

/// Attends to the clients of a VM.
#[derive(Debug)]
pub struct Owner {
    attendance: Attendance,
    facts: Facts,
    history: History,
    succession: Succession,
    /// Its record, if it has one.
    container: Option<Shared>,
    /// Its process runs.
    runs: bool,
    /// Its processors stand still, by a client's order.
    paused: bool,
    job: Option<Job>,
    execs: Execs,
    /// Whether it is one container's.
    sharing: Sharing,
    /// Readable if there is something of clients, or of a VM that is being tried out.
    any: OwnedFd,
}

/// The one order that is being carried out.
#[derive(Debug)]
enum Job {
    Snapshot {
        wanted: Wanted,
        client: Waiting,
        result: Option<anyhow::Result<Value>>,
    },
    /// Another VM is being tried out.
    Trial {
        successor: Box<Successor>,
        client: Waiting,
    },
    /// It works; none once it is the verb's.
    Rollback {
        successor: Option<Box<Successor>>,
        client: Waiting,
    },
}

impl Owner {
    /// Listens in the run directory of a VM, whose control socket is there as well.
    pub fn listen(directory: &RunDir, facts: Facts, history: History, succession: Succession) -> anyhow::Result<Self> {
        let path = directory.file(SOCKET);
        let listen = || -> io::Result<_> {
            let (attendance, any) = (Attendance::listen(&path)?, epoll::create(epoll::CreateFlags::CLOEXEC)?);
            epoll::add(&any, &attendance, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            Ok((attendance, any))
        };
        let (attendance, any) = listen().with_context(|| format!("attendance socket {}", path.display()))?;
        Ok(Owner {
            attendance,
            facts,
            history,
            succession,
            container: None,
            runs: false,
            paused: false,
            job: None,
            execs: Execs::default(),
            sharing: Sharing::None,
            any,
        })
    }

    /// From now on a container's record follows what becomes of the VM.
    pub fn track(&mut self, container: Shared) -> io::Result<()> {
        container.borrow().attached.listen(&self.attendance)?;
        self.container = Some(container);
        Ok(())
    }

    /// What the container's process has changed, which its guest was asked for, is for this client.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn tell_changes_to(&mut self, client: UnixStream) -> io::Result<()> {
        self.execs.expect_changes(self.attendance.admit(client)?);
        Ok(())
    }

    /// The VM's control socket.
    pub fn control(&self) -> PathBuf {
        self.succession.control()
    }

    /// What the VM is to be replaced by, after [`Wish::Leave`], once the old one has ended.
    ///
    /// # Errors
    /// There is none, or it cannot take its place.
    pub fn succeed(&mut self) -> anyhow::Result<Arrived> {
        let successor = match &mut self.job {
            Some(Job::Rollback { successor, .. }) => successor.take(),
            _ => None,
        };
        let successor = successor.ok_or_else(|| anyhow!("the microVM was given up for nothing"))?;
        self.succession.next += 1;
        successor.take_place().context("cannot put the new microVM into its place")
    }

    /// What the VM was replaced by goes on as `to`. Or it does not, and there is no VM any more.
    pub fn arrived(&mut self, result: Result<Held, String>) {
        match self.job.take() {
            Some(Job::Rollback { client, .. }) => match result {
                Ok(to) => {
                    self.history.came_from(to);
                    client.done(Value::Null);
                }
                Err(reason) => client.refuse(&format!("the microVM has ended: {reason}")),
            },
            other => self.job = other,
        }
    }

    fn attend(&mut self, order: Order, client: Waiting) -> Option<Wish> {
        if let Some(why) = self.refused_for_sharing(&order) {
            client.refuse(&why);
            return None;
        }
        match order {
            Order::About {} => {
                client.done(self.about());
                return None;
            }
            Order::End {} => {
                client.done(Value::Null);
                return Some(Wish::End);
            }
            Order::Signal { signal } => return self.signal(signal, client),
            Order::Update(to) => {
                self.update(to, client);
                return None;
            }
            Order::Exec(_) | Order::Attach(_) | Order::Snapshot { .. } | Order::Rollback { .. } if self.paused => {
                return self.refuse_paused(client);
            }
            Order::Exec(exec) => return self.exec(exec, client),
            Order::Attach(attach) => return self.attach(attach, client),
            Order::Snapshot { .. } | Order::Rollback { .. } | Order::Pause {} | Order::Unpause {} => {}
        }
        if self.job.is_some() {
            client.refuse("the microVM is being snapshotted or rolled back; try again when that is done");
            return None;
        }
        match order {
            Order::Snapshot { name } => match self.wanted(name) {
                Ok(wanted) => {
                    self.job = Some(Job::Snapshot { wanted, client, result: None });
                    Some(Wish::Freeze)
                }
                Err(error) => refuse(client, &error),
            },
            Order::Rollback { to } => match self.try_out(&to) {
                Ok(successor) => self.judge(successor, client),
                Err(error) => refuse(client, &error),
            },
            Order::Pause {} => self.pause(true, client),
            Order::Unpause {} => self.pause(false, client),
            Order::About {}
            | Order::End {}
            | Order::Signal { .. }
            | Order::Exec(_)
            | Order::Attach(_)
            | Order::Update(_) => None,
        }
    }

    fn signal(&self, signal: u8, client: Waiting) -> Option<Wish> {
        let refused = match (&self.facts.what, signal) {
            (What::Machine { .. }, _) => "it was booted, not run: there is no process to send a signal to",
            (_, 0 | 32..) => "there is no such signal",
            _ if !self.runs => "its process does not run yet",
            _ => {
                if let Some(container) = &self.container {
                    container.borrow_mut().record.signalled(signal);
                }
                client.done(Value::Null);
                return Some(Wish::Signal(signal));
            }
        };
        client.refuse(refused);
        None
    }

    fn exec(&mut self, exec: Exec, client: Waiting) -> Option<Wish> {
        if let What::Machine { .. } = self.facts.what {
            client.refuse(&format!("microVM '{}' has no container: it was booted, not run", self.facts.name));
            return None;
        }
        self.execs.order(exec, client, &self.attendance)
    }

    fn attach(&mut self, attach: Attach, client: Waiting) -> Option<Wish> {
        let name = &self.facts.name;
        match &self.container {
            None => client.refuse(&format!(
                "microVM '{name}' is no container: it was restored or booted, and is where that was done"
            )),
            Some(_) if !self.runs => client.refuse(&format!("container {name} does not run yet")),
            Some(container) => return container.borrow_mut().attached.order(attach, client, &self.attendance),
        }
        None
    }

    fn about(&self) -> Value {
        let Facts { name, what, vcpus, memory_mib, layers } = &self.facts;
        let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
        json!({ "name": name, "what": what, "vcpus": vcpus, "memory_mib": memory_mib, "pid": std::process::id(), "layers": layers,
                "came_from": self.history.parent().map(|held| held.record.id) })
    }
}

/// What clients are told whose process ends with the microVM.
pub const ENDED: &str = "the microVM has ended";

fn refuse(client: Waiting, error: &anyhow::Error) -> Option<Wish> {
    client.refuse(&one_line(error));
    None
}

impl Attendant for Owner {
    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.any.as_fd())
    }

    fn wish(&mut self) -> Option<Wish> {
        if let Some(Job::Snapshot { client, result: None, .. }) = &self.job
            && client.is_gone()
        {
            self.job = None;
            return Some(Wish::GiveUp);
        }
        if self.is_empty() {
            return Some(Wish::End);
        }
        if let Some(wish) = self.container.as_ref().and_then(|container| container.borrow_mut().attached.wish()) {
            return Some(wish);
        }
        if let Some(wish) = self.execs.wish() {
            return Some(wish);
        }
        match self.job.take() {
            // Nobody waits for it: the VM there is goes on.
            Some(Job::Trial { client, .. }) if client.is_gone() => {}
            Some(Job::Trial { successor, client }) => {
                if let Some(wish) = self.judge(successor, client) {
                    return Some(wish);
                }
            }
            other => self.job = other,
        }
        while let Some((order, client)) = self.attendance.take() {
            if let Some(wish) = self.attend(order, client) {
                return Some(wish);
            }
        }
        None
    }

    fn started(&mut self) {
        self.runs = true;
        if let Some(container) = &self.container {
            container.borrow_mut().started();
        }
    }

    fn frozen(&mut self) {
        match self.job.take() {
            Some(Job::Snapshot { wanted, client, .. }) => {
                client.progress("it stands still");
                let result = Some(self.take(&wanted));
                self.job = Some(Job::Snapshot { wanted, client, result });
            }
            other => self.job = other,
        }
    }

    fn over(&mut self, frozen: Result<(), FreezeError>) {
        match self.job.take() {
            Some(Job::Snapshot { client, result, .. }) => match (result, frozen) {
                (Some(Ok(report)), _) => client.done(report),
                (Some(Err(error)), _) => client.refuse(&one_line(&error)),
                (None, Err(error)) => client.refuse(&one_line(&error.into())),
                (None, Ok(())) => client.refuse("the microVM was not frozen"),
            },
            other => self.job = other,
        }
    }

    fn heard(&mut self, heard: Heard) {
        if let Some(left) = self.execs.heard(heard) {
            self.left(left);
        }
    }

    fn out_of_memory(&mut self, which: &str) {
        if let Some(container) = &self.container {
            container.borrow_mut().out_of_memory(which);
        }
    }

    fn ended(&mut self) {
        self.execs.end(match self.job {
            Some(Job::Rollback { .. }) => "the microVM goes on from a snapshot, without what had joined it",
            _ => ENDED,
        });
    }
}
