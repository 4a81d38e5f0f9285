//! vCPU threads.
//!
//! Each vCPU has one thread, its own or the one that runs the machine, that alternates between KVM_RUN and its control
//! block ([`control`]):
//!
//! ```text
//!            resume                  pause
//!  Paused ──────────► Running ──────────────► Paused
//!     │                  │ guest ended, or failed
//!     └──── stop ────────┴──── stop ────► Stopped
//! ```
//!
//! A thread in KVM_RUN is brought out by a signal whose handler sets `immediate_exit` in that thread's `kvm_run` page:
//! a signal that arrives between the look at the control block and KVM_RUN is not lost (api.rst, `immediate_exit`).

mod control;
mod exits;
mod kick;
pub mod registers;
pub mod state;
mod thread;

pub use control::{Control, Order, Target, Task};
pub use exits::{Ended, VcpuError};
pub use state::SavedVcpu;
pub use thread::{Driver, OnEnd, Shared, Vcpu, VcpuThread};
