//! Why a vCPU came back from the guest, and what that means.

use crate::complete::CompleteError;
use crate::events::ExitReason;
use crate::sandbox::SandboxError;

/// How a vCPU thread's life ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// What the guest did ends the machine.
    Guest(ExitReason),
    /// It cannot go on.
    Failed(VcpuError),
}

/// A vCPU that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused to run it.
    #[error("vCPU {index}: KVM_RUN: {source}")]
    Run {
        /// Which vCPU.
        index: u8,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// An instruction that neither KVM nor we can do; `state` is many lines: instruction, registers, backtrace.
    #[error("vCPU {index}: {source}\n{state}")]
    Instruction {
        /// Which vCPU.
        index: u8,
        /// What stopped it.
        source: CompleteError,
        /// Registers and backtrace.
        state: String,
    },
    /// KVM gave up on the guest's state.
    #[error("vCPU {index}: KVM internal error {suberror} {data:x?}\n{state}")]
    Internal {
        /// Which vCPU.
        index: u8,
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// KVM's words on it.
        data: Vec<u64>,
        /// Registers and backtrace.
        state: String,
    },
    /// The hardware refused the guest's state.
    #[error("vCPU {index}: the processor refused to enter the guest: reason {reason:#x}")]
    FailEntry {
        /// Which vCPU.
        index: u8,
        /// Hardware entry failure reason.
        reason: u64,
    },
    /// Its thread cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A page of guest memory could not be had.
    #[error("{0}")]
    Memory(String),
    /// A mistake in this monitor.
    #[error("vCPU {index}: a mistake in the monitor stopped it (see the lines before)")]
    Panicked {
        /// Which vCPU.
        index: u8,
    },
    /// An exit that this monitor never asked KVM for.
    #[error("vCPU {index}: unexpected exit from the guest: {exit}")]
    Unexpected {
        /// Which vCPU.
        index: u8,
        /// What KVM said.
        exit: String,
    },
}
