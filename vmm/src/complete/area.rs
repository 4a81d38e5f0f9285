//! A stretch of guest-virtual memory that an instruction works on.
//!
//! Two steps, so that an instruction that faults has changed nothing: [`Area::touch`] translates the pages, then
//! [`Area::read`] and [`Area::write`] copy. Memory may change in between: that is the guest racing with itself.

use devices::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::error::{CompleteError, Fault, Stop};
use super::walk::{Access, Paging, WalkError};

const PAGE_SIZE: usize = 4096;
/// Pages that one operand may reach into: XSAVE areas are the longest, 11 KiB with AMX tiles.
const MAX_PAGES: usize = 5;

/// Memory at a linear address, and the physical pages it was found in.
pub(super) struct Area<'a> {
    ram: &'a GuestRam,
    paging: &'a Paging,
    base: u64,
    access: Access,
    /// The operand's segment is SS, so that an address that is not canonical is #SS.
    stack: bool,
    pages: [Option<GuestAddress>; MAX_PAGES],
}

impl<'a> Area<'a> {
    pub fn new(ram: &'a GuestRam, paging: &'a Paging, base: u64, access: Access) -> Self {
        Area { ram, paging, base, access, stack: false, pages: [None; MAX_PAGES] }
    }

    /// The same, addressed through SS.
    pub fn on_stack(self, stack: bool) -> Self {
        Area { stack, ..self }
    }

    /// The linear address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Makes `len` bytes at `offset` accessible, or says which fault the first page that is not gives.
    pub fn touch(&mut self, offset: usize, len: usize) -> Result<(), Stop> {
        let mut done = 0;
        while done < len {
            let (index, in_page) = self.locate(offset + done);
            let address = self.base.wrapping_add((offset + done) as u64);
            let page = self.pages.get_mut(index).ok_or(CompleteError::AreaTooLong { address: self.base })?;
            if page.is_none() {
                let physical =
                    self.paging.translate(self.ram, address, self.access).map_err(|e| stop(e, address, self.stack))?;
                *page = Some(GuestAddress(physical.0 - in_page as u64));
            }
            done += PAGE_SIZE - in_page;
        }
        Ok(())
    }

    /// Copies out of what has been touched.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < data.len() {
            let (from, len) = self.chunk(offset + done, data.len() - done)?;
            self.ram.read_slice(&mut data[done..done + len], from).map_err(|_| self.lost(from))?;
            done += len;
        }
        Ok(())
    }

    /// Copies into what has been touched.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < data.len() {
            let (to, len) = self.chunk(offset + done, data.len() - done)?;
            self.ram.write_slice(&data[done..done + len], to).map_err(|_| self.lost(to))?;
            done += len;
        }
        Ok(())
    }

    /// Touches and reads a little-endian integer of `len` bytes, at most 8.
    pub fn read_int(&mut self, offset: usize, len: usize) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        let len = len.min(bytes.len());
        self.touch(offset, len)?;
        self.read(offset, &mut bytes[..len])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The physical address of the byte at `offset`, which has been touched.
    pub fn physical(&self, offset: usize) -> Result<GuestAddress, Stop> {
        self.chunk(offset, 1).map(|(address, _)| address)
    }

    /// Index of the page and offset in it.
    fn locate(&self, offset: usize) -> (usize, usize) {
        let from_page = (self.base as usize & (PAGE_SIZE - 1)) + offset;
        (from_page / PAGE_SIZE, from_page % PAGE_SIZE)
    }

    /// Where the byte at `offset` is, and how many of `wanted` bytes its page holds.
    fn chunk(&self, offset: usize, wanted: usize) -> Result<(GuestAddress, usize), Stop> {
        let (index, in_page) = self.locate(offset);
        let page = self.pages.get(index).copied().flatten().ok_or(CompleteError::AreaTooLong { address: self.base })?;
        Ok((GuestAddress(page.0 + in_page as u64), wanted.min(PAGE_SIZE - in_page)))
    }

    fn lost(&self, physical: GuestAddress) -> Stop {
        CompleteError::OutsideRam { address: self.base, physical: physical.0 }.into()
    }
}

/// What a failed walk means for the instruction.
fn stop(error: WalkError, address: u64, stack: bool) -> Stop {
    match error {
        WalkError::Fault(code) => Fault::Page { address, code }.into(),
        WalkError::NotCanonical if stack => Fault::Stack.into(),
        WalkError::NotCanonical => Fault::Protection.into(),
        WalkError::OutsideRam(physical) => CompleteError::OutsideRam { address, physical }.into(),
        WalkError::Contended => CompleteError::Contended { address }.into(),
    }
}
