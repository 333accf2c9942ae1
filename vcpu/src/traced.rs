//! The events of [`crate::trace`], in the words of Linux's `kvm:*`.

use crate::backend::{Exit, ExitInfo};
use exitless_x86::regs::Gprs;

/// How far an access to a device's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mmio {
    /// A read that user space is asked for.
    UnsatisfiedRead = 0,
    /// A read, with its data.
    Read = 1,
    /// A write.
    Write = 2,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are those of Linux's events.
pub enum Trace {
    Entry {
        rip: u64,
    },
    /// `fault`: the guest-physical address of a second-level fault.
    Exit {
        rip: u64,
        info: ExitInfo,
        fault: Option<u64>,
    },
    Cpuid {
        function: u32,
        index: u32,
        answer: [u64; 4],
        found: bool,
        used_max_basic: bool,
    },
    Msr {
        write: bool,
        index: u32,
        data: u64,
        refused: bool,
    },
    Apic {
        write: bool,
        register: u32,
        value: u64,
    },
    Hypercall {
        number: u64,
        operands: [u64; 4],
    },
    Pio {
        write: bool,
        port: u16,
        size: u8,
        count: u32,
        data: u32,
    },
    Mmio {
        kind: Mmio,
        len: u8,
        gpa: u64,
        data: u64,
    },
    FastMmio {
        gpa: u64,
    },
    Ipi {
        icr: u32,
        destination: u32,
    },
    Eoi {
        vector: u8,
    },
    PvEoi {
        vector: u8,
    },
    Interrupt {
        vector: u8,
        soft: bool,
        again: bool,
    },
    Exception {
        vector: u8,
        error_code: Option<u32>,
        again: bool,
    },
    Cr {
        write: bool,
        number: u8,
        value: u64,
    },
    TimerWait {
        late: i64,
    },
    Emulates {
        rip: u64,
        code: u32,
        bytes: [u8; 15],
        length: u8,
        flags: u8,
        failed: bool,
    },
}

/// An exit whose answer is not told yet.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Why.
    pub exit: Exit,
    /// Which of the vCPU's exits, so that one from before a pause of the tracing is not told.
    pub number: u64,
    /// The guest's registers then.
    pub gprs: Gprs,
    /// The vector that an EOI would end then, where software has the APIC.
    pub in_service: Option<u8>,
}
