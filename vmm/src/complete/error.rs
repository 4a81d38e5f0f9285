//! How the completion of an instruction can end other than well.

use std::io;

/// Why an instruction was not completed. Each of these ends the VM.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// Neither KVM nor we know how to do it.
    #[error("instruction `{instruction}` at {rip:#x} is one that neither KVM nor this monitor can emulate")]
    Unsupported {
        /// As the GNU assembler writes it.
        instruction: String,
        /// Where it is.
        rip: u64,
    },
    /// The bytes are no instruction.
    #[error("bytes at {rip:#x} are no instruction that this monitor knows: {bytes:02x?}")]
    Undecodable {
        /// Where they are.
        rip: u64,
        /// What they are.
        bytes: Vec<u8>,
    },
    /// KVM did not tell the instruction, and it is not in guest memory either.
    #[error("instruction at {rip:#x} cannot be read from guest memory")]
    Fetch {
        /// Where it should be.
        rip: u64,
    },
    /// Only 64-bit mode is completed.
    #[error("instruction at {rip:#x}: the vCPU is not in 64-bit mode, where alone instructions are completed")]
    NotLongMode {
        /// Where it is.
        rip: u64,
    },
    /// An operand, or a page table on the way to it, is not in RAM.
    #[error("memory operand at {address:#x} is at physical address {physical:#x}, which is not RAM")]
    OutsideRam {
        /// Linear address.
        address: u64,
        /// Guest-physical address.
        physical: u64,
    },
    /// The page tables changed under every one of many walks.
    #[error("memory operand at {address:#x}: the guest keeps changing the page tables for it")]
    Contended {
        /// Linear address.
        address: u64,
    },
    /// An operand longer than any instruction here has.
    #[error("memory operand at {address:#x} is longer than any state this monitor knows")]
    AreaTooLong {
        /// Linear address.
        address: u64,
    },
    /// The guest restores state that KVM lets nobody set.
    #[error("state components {components:#x}: KVM has no way to restore supervisor state")]
    SupervisorState {
        /// A bit for each component.
        components: u64,
    },
    /// The hypervisor would not give or take state.
    #[error("vCPU state: {what}: {source}")]
    State {
        /// Which state.
        what: &'static str,
        /// The hypervisor's answer.
        source: io::Error,
    },
}

/// An exception for the guest, found before anything was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// #UD.
    Undefined,
    /// #NM.
    NoDevice,
    /// #SS(0).
    Stack,
    /// #GP(0).
    Protection,
    /// #PF.
    Page { address: u64, code: u32 },
    /// #MF.
    FloatingPoint,
}

impl Fault {
    /// Vector and error code.
    pub fn vector(self) -> (u8, Option<u32>) {
        match self {
            Fault::Undefined => (6, None),
            Fault::NoDevice => (7, None),
            Fault::Stack => (12, Some(0)),
            Fault::Protection => (13, Some(0)),
            Fault::Page { code, .. } => (14, Some(code)),
            Fault::FloatingPoint => (16, None),
        }
    }
}

/// Why an instruction did not run to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// It faults.
    Fault(Fault),
    /// It is a breakpoint: #BP after it.
    Breakpoint,
    /// It cannot be completed.
    Failed(CompleteError),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<CompleteError> for Stop {
    fn from(error: CompleteError) -> Self {
        Stop::Failed(error)
    }
}

/// Names the state in the error of a [`super::VcpuState`] call.
pub(super) trait Naming<T> {
    /// Says that it was `what`.
    fn state(self, what: &'static str) -> Result<T, CompleteError>;
}

impl<T> Naming<T> for io::Result<T> {
    fn state(self, what: &'static str) -> Result<T, CompleteError> {
        self.map_err(|source| CompleteError::State { what, source })
    }
}
