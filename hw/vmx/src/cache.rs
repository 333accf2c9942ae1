//! The VMCS fields that the hall reads and writes, kept in memory: read at the first use after an exit, written back
//! before the next entry, and only what changed.
//!
//! Two bits per slot: *valid*, memory holds the field's value; *dirty*, the VMCS does not yet. Before the first entry all
//! slots are both, so a vCPU can be set up without its VMCS being loaded anywhere. An exit makes invalid what the guest or
//! hardware may have changed. Reading an invalid slot needs the VMCS to be current ([`crate::residence`]).

use crate::machine::Machine;
use core::cell::Cell;
use core::marker::PhantomData;
use exitless_x86::vmx::field::{self, Field, Natural, Rw, W16, W32, W64, Width};

/// One cached field.
pub(crate) struct Slot<W> {
    index: u8,
    is: PhantomData<W>,
}

impl<W> Clone for Slot<W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W> Copy for Slot<W> {}

impl<W: Width> Slot<W> {
    const fn new(index: Index, _: Field<W, Rw>) -> Self {
        Self { index: index as u8, is: PhantomData }
    }
    /// The slot `n` behind, of the same width: segment registers stand in a row.
    pub(crate) const fn nth(self, n: u8) -> Self {
        Self { index: self.index + n, is: PhantomData }
    }
}

const SLOTS: usize = 64;
/// Slots in use; the rest of the 64 bits stay clear.
const USED: u64 = u64::MAX >> (SLOTS as u32 - Index::End as u32);

macro_rules! slots {
    ($($name:ident: $width:ident = $field:ident $kept:ident;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy)]
        #[repr(u8)]
        enum Index { $($name,)* End }
        // Segments but the first are reached through `Slot::nth`.
        $(#[allow(dead_code)] pub(crate) const $name: Slot<$width> = Slot::new(Index::$name, field::$field);)*
        // Evaluated by the compiler: an index out of range does not build.
        #[allow(clippy::indexing_slicing)]
        static ENCODINGS: [u16; SLOTS] = {
            let mut all = [0; SLOTS];
            $(all[Index::$name as usize] = field::$field.encoding() as u16;)*
            all
        };
        const KEPT: u64 = 0 $(| kept::$kept << Index::$name as u64)*;
        const _: () = assert!((Index::End as usize) <= SLOTS);
    };
}

/// Whether an exit leaves the slot valid.
mod kept {
    /// The guest, or hardware while the guest runs, changes it.
    pub(super) const GUEST: u64 = 0;
    /// Only we change it.
    pub(super) const OURS: u64 = 1;
}

slots! {
    RIP: Natural = GUEST_RIP GUEST;
    RFLAGS: Natural = GUEST_RFLAGS GUEST;
    CR0: Natural = GUEST_CR0 GUEST;
    CR0_READ_SHADOW: Natural = CR0_SHADOW OURS;
    CR3: Natural = GUEST_CR3 GUEST;
    CR4: Natural = GUEST_CR4 GUEST;
    CR4_READ_SHADOW: Natural = CR4_SHADOW OURS;
    EFER: W64 = GUEST_EFER OURS;
    PAT: W64 = GUEST_PAT OURS;
    DEBUGCTL: W64 = GUEST_DEBUGCTL GUEST;
    DR7: Natural = GUEST_DR7 GUEST;
    PENDING_DEBUG: Natural = GUEST_PENDING_DEBUG GUEST;
    INTERRUPTIBILITY: W32 = GUEST_INTERRUPTIBILITY GUEST;
    SYSENTER_CS: W32 = GUEST_SYSENTER_CS GUEST;
    SYSENTER_ESP: Natural = GUEST_SYSENTER_ESP GUEST;
    SYSENTER_EIP: Natural = GUEST_SYSENTER_EIP GUEST;
    SELECTOR: W16 = GUEST_ES_SELECTOR GUEST;
    CS_SELECTOR: W16 = GUEST_CS_SELECTOR GUEST;
    SS_SELECTOR: W16 = GUEST_SS_SELECTOR GUEST;
    DS_SELECTOR: W16 = GUEST_DS_SELECTOR GUEST;
    FS_SELECTOR: W16 = GUEST_FS_SELECTOR GUEST;
    GS_SELECTOR: W16 = GUEST_GS_SELECTOR GUEST;
    LDTR_SELECTOR: W16 = GUEST_LDTR_SELECTOR GUEST;
    TR_SELECTOR: W16 = GUEST_TR_SELECTOR GUEST;
    BASE: Natural = GUEST_ES_BASE GUEST;
    CS_BASE: Natural = GUEST_CS_BASE GUEST;
    SS_BASE: Natural = GUEST_SS_BASE GUEST;
    DS_BASE: Natural = GUEST_DS_BASE GUEST;
    FS_BASE: Natural = GUEST_FS_BASE GUEST;
    GS_BASE: Natural = GUEST_GS_BASE GUEST;
    LDTR_BASE: Natural = GUEST_LDTR_BASE GUEST;
    TR_BASE: Natural = GUEST_TR_BASE GUEST;
    LIMIT: W32 = GUEST_ES_LIMIT GUEST;
    CS_LIMIT: W32 = GUEST_CS_LIMIT GUEST;
    SS_LIMIT: W32 = GUEST_SS_LIMIT GUEST;
    DS_LIMIT: W32 = GUEST_DS_LIMIT GUEST;
    FS_LIMIT: W32 = GUEST_FS_LIMIT GUEST;
    GS_LIMIT: W32 = GUEST_GS_LIMIT GUEST;
    LDTR_LIMIT: W32 = GUEST_LDTR_LIMIT GUEST;
    TR_LIMIT: W32 = GUEST_TR_LIMIT GUEST;
    ACCESS: W32 = GUEST_ES_ACCESS_RIGHTS GUEST;
    CS_ACCESS: W32 = GUEST_CS_ACCESS_RIGHTS GUEST;
    SS_ACCESS: W32 = GUEST_SS_ACCESS_RIGHTS GUEST;
    DS_ACCESS: W32 = GUEST_DS_ACCESS_RIGHTS GUEST;
    FS_ACCESS: W32 = GUEST_FS_ACCESS_RIGHTS GUEST;
    GS_ACCESS: W32 = GUEST_GS_ACCESS_RIGHTS GUEST;
    LDTR_ACCESS: W32 = GUEST_LDTR_ACCESS_RIGHTS GUEST;
    TR_ACCESS: W32 = GUEST_TR_ACCESS_RIGHTS GUEST;
    GDTR_BASE: Natural = GUEST_GDTR_BASE GUEST;
    GDTR_LIMIT: W32 = GUEST_GDTR_LIMIT GUEST;
    IDTR_BASE: Natural = GUEST_IDTR_BASE GUEST;
    IDTR_LIMIT: W32 = GUEST_IDTR_LIMIT GUEST;
    PDPTE0: W64 = GUEST_PDPTE0 GUEST;
    PDPTE1: W64 = GUEST_PDPTE1 GUEST;
    PDPTE2: W64 = GUEST_PDPTE2 GUEST;
    PDPTE3: W64 = GUEST_PDPTE3 GUEST;
    PRIMARY: W32 = PRIMARY_CONTROLS OURS;
    ENTRY: W32 = ENTRY_CONTROLS OURS;
    TSC_OFFSET: W64 = TSC_OFFSET OURS;
    TSC_MULTIPLIER: W64 = TSC_MULTIPLIER OURS;
    EPTP: W64 = EPT_POINTER OURS;
    // VM exits clear the valid bit; `Cache::left_guest` does the same here.
    EVENT: W32 = ENTRY_INTERRUPTION_INFO OURS;
    EVENT_CODE: W32 = ENTRY_EXCEPTION_ERROR_CODE OURS;
    EVENT_LENGTH: W32 = ENTRY_INSTRUCTION_LENGTH OURS;
}

/// See the file's head. All-zero: nothing valid, nothing dirty.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Cache {
    values: [Cell<u64>; SLOTS],
    valid: Cell<u64>,
    dirty: Cell<u64>,
}

#[allow(clippy::indexing_slicing)]
fn at<T>(row: &[T; SLOTS], index: u8) -> &T {
    // PANIC: never; the index has six bits and the row 64 entries, the compiler drops the check.
    &row[usize::from(index) & (SLOTS - 1)]
}

impl Cache {
    /// Before the first entry: all slots hold 0, and all are to be written.
    pub(crate) fn init(&mut self) {
        for v in &self.values {
            v.set(0);
        }
        self.valid.set(USED);
        self.dirty.set(USED);
    }

    /// The CPU does not have the field.
    pub(crate) fn without<W: Width>(&self, slot: Slot<W>) {
        self.dirty.set(self.dirty.get() & !(1 << slot.index));
    }

    fn fill<M: Machine>(&self, m: &M, index: u8) {
        at(&self.values, index).set(m.vmread(u32::from(*at(&ENCODINGS, index))));
        self.valid.set(self.valid.get() | 1 << index);
    }

    pub(crate) fn get<M: Machine, W: Width>(&self, m: &M, slot: Slot<W>) -> W::Value {
        if self.valid.get() & 1 << slot.index == 0 {
            self.fill(m, slot.index);
        }
        W::value(at(&self.values, slot.index).get())
    }

    pub(crate) fn set<W: Width>(&self, slot: Slot<W>, v: W::Value) {
        let (bit, v) = (1 << slot.index, W::raw(v));
        let value = at(&self.values, slot.index);
        if self.valid.get() & bit != 0 && value.get() == v {
            return;
        }
        value.set(v);
        self.valid.set(self.valid.get() | bit);
        self.dirty.set(self.dirty.get() | bit);
    }

    /// Something waits to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.get() != 0
    }

    /// The VMCS was written past the cache, which had nothing to write.
    pub(crate) fn forget<W: Width>(&self, slot: Slot<W>) {
        self.valid.set(self.valid.get() & !(1 << slot.index));
    }

    /// Writes what the VMCS does not have yet.
    pub(crate) fn write_back<M: Machine>(&self, m: &M) {
        let mut dirty = self.dirty.get();
        while dirty != 0 {
            let index = dirty.trailing_zeros() as u8;
            m.vmwrite(u32::from(*at(&ENCODINGS, index)), at(&self.values, index).get());
            dirty &= dirty - 1;
        }
        self.dirty.set(0);
    }

    /// The guest ran.
    pub(crate) fn left_guest(&self) {
        self.valid.set(self.valid.get() & KEPT);
        at(&self.values, EVENT.index).set(0);
    }

    /// Reads everything, so that the registers can be looked at while the VMCS is not loaded.
    pub(crate) fn fill_all<M: Machine>(&self, m: &M) {
        let mut missing = !self.valid.get() & USED;
        while missing != 0 {
            self.fill(m, missing.trailing_zeros() as u8);
            missing &= missing - 1;
        }
    }
}
