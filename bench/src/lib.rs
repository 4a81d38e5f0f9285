//! The benchmark as a library that the CLI calls.
//!
//! | module | what it does |
//! |---|---|
//! | [`null`] | the cost of a machine that does nothing: process start, one port write, process exit |
//! | [`restore`] | a machine that goes on from a snapshot: process start to the guest's first instruction, and to an answer |
//! | [`clones`] | many machines from one snapshot, all running at once |
//! | [`snapshot`] | taking a snapshot, beside a plain write of the same bytes |
//! | [`blk`] | a disk's random reads, beside fio |
//! | [`layers`] | a layer of an image as a disk, and as memory that all machines share |
//! | [`net`] | TCP through a tap interface, beside the same without a device |
//! | [`vsock`] | bytes through a vsock, each way, beside those from process to process |
//! | [`replay`] | what Linux has asked of each device, asked again without a guest |
//! | [`neighbours`] | what a machine notices of others that take all they can get |
//! | [`compare`] | one image's command as a process, in containers and in microVMs, side by side |
//! | [`mover`] | what is run in those to move data to files and through a network |
//! | [`report`] | what that comes down to: estimates, differences, conditions, a page |
//! | [`host`] | what a host is, as far as it bears on figures |
//! | [`run`] | `bulkhead run`, booting and from a template |
//! | `calls` | how many system calls those make, by perf |
//! | `threads` | what this process's own threads have used |
//! | `place` | a directory for files that does not outlive it for long |
//! | [`process`] | monitor processes, started and timed |
//! | [`machine`] | machines in this process, to be saved or measured |
//! | [`answer`] | the guest that answers over vsock, and its host's side |
//! | [`container`] | `runc run` of a container that does nothing |
//! | [`memory`] | what of a monitor's memory is its own, and what its guest's |
//! | [`stats`] | percentiles |
//! | [`guest`] | the guest programs it boots |
//!
//! Every figure stands beside a floor from the same run. It does not print: the CLI does.
#![forbid(unsafe_code)]

pub mod answer;
pub mod blk;
mod calls;
pub mod clones;
pub mod compare;
pub mod container;
pub mod disturb;
pub mod guest;
pub mod host;
pub mod layers;
pub mod machine;
pub mod memory;
pub mod mover;
pub mod neighbours;
pub mod net;
pub mod null;
mod place;
pub mod process;
pub mod replay;
pub mod report;
pub mod restore;
pub mod run;
pub mod snapshot;
pub mod stats;
mod threads;
pub mod vsock;
