//! PID 1 of a container's guest: assembles the root, starts the process, relays its streams, reports its end.
//!
//! - [`guest`]: the life of the guest from the first connection to its end; everything below is called from there.
//! - [`control`]: the connection to the host.
//! - [`stage`]: what is done before the host says what the guest is to be.
//! - [`root`]: layers, overlay, switching to them. [`names`]: the files that tell a container who it is.
//! - [`settings`]: what a container has asked for besides.
//! - [`network`]: the interface of a guest; [`alone`]: a container that is not to see it.
//! - [`volumes`]: the host's directories in it.
//! - [`environment`]: what is added to the process's environment, and where its command is looked for.
//! - [`attend`]: everything from the process's start to its end.
//! - [`process`]: starting it; [`running`]: signals to it, its end. [`exec`]: the processes that join it.
//! - [`freeze`]: stopping all its processes, for a snapshot; [`restless`]: which of them do not stop.
//! - [`scarcity`]: whether memory ran out.
//! - [`contained`]: no guest at all, but a container of the host's own kernel.
//! - [`pod`]: a guest that several containers share, with a copy of init for each; [`beside`], [`filter`]: what keeps them apart.
//! - [`streams`]: its standard streams; [`relay`] moves their bytes.
//! - [`audit`]: not PID 1's work: what a process of a container can reach.
//! - [`heap`]: what of the program's memory is in use.
//! - [`sys`]: the few system calls that rustix does not have. The only `unsafe` code.
//!
//! # What it is made for
//! On some hosts the guest's kernel is emulated and a system call costs 0.2 ms, a page fault 2 ms. Hence few system calls, no
//! helper programs, no threads, small static data, and `clone(CLONE_VM | CLONE_VFORK)` instead of fork.
//!
//! # Decisions
//! - The process is PID 1 of a PID namespace of its own, as in other container systems: `$$` is 1, `ps` shows the container only,
//!   and its end is the end of all its processes, so its streams end with it. The kernel ignores signals to such a process
//!   where it has no handler; from outside that would make `kill -TERM` useless, so [`process`] ends it in the signal's name.
//! - Streams are pipes, so that a program can open /dev/stdout; init moves the bytes with splice.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod alone;
pub mod attend;
pub mod audit;
pub mod beside;
mod connections;
pub mod contained;
pub mod control;
pub mod environment;
pub mod exec;
pub mod failure;
pub mod filter;
pub mod freeze;
pub mod guest;
pub mod heap;
pub mod helper;
pub mod names;
pub mod network;
pub mod pod;
pub mod process;
pub mod relay;
pub mod restless;
pub mod root;
pub mod running;
pub mod scarcity;
pub mod settings;
pub mod signals;
pub mod stage;
pub mod streams;
pub mod sys;
pub mod volumes;
