//! KVM_GET_STATS_FD: a file of numbers that describes itself, for a VM or a vCPU, readable while the guest runs.
//!
//! ```text
//! header | id, NAME bytes | one descriptor and name for each row | the numbers of all rows, 8 bytes each
//! ```
//! Names, kinds and units are stock KVM's. What is not counted here has no row, for a number that stays 0 would say that nothing
//! happened: but for what never happens here, nested guests (`nested_run`, `guest_mode`).

use crate::stats::Out;
use crate::vcpu::VcpuObj;
use crate::vm::Vm;
use core::fmt::Write;
use core::mem::size_of;
use exitless_host::file::{FdKind, FdSlot};
use exitless_host::mem::KArc;
use exitless_host::{Errno, Result};
use exitless_kvm_abi::{
    KVM_STATS_BASE_POW10, KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT, KVM_STATS_TYPE_LOG_HIST,
    KVM_STATS_UNIT_BOOLEAN, KVM_STATS_UNIT_NONE, KVM_STATS_UNIT_SECONDS, kvm_stats_desc, kvm_stats_header,
};
use exitless_vcpu::stats::{Counter, Histogram, Stats};

/// Bytes of a name, and of the id: stock's.
const NAME: usize = 48;
const HEADER: usize = size_of::<kvm_stats_header>();
const DESCRIPTOR: usize = size_of::<kvm_stats_desc>() + NAME;

/// What a row's numbers are.
enum Numbers<T: 'static> {
    /// A count of events.
    Count(fn(&T) -> u64),
    /// Nanoseconds, added up.
    Ns(fn(&T) -> u64),
    /// How many there are now.
    Now(fn(&T) -> u64),
    /// Whether it is so now.
    Flag(fn(&T) -> u64),
    /// How many times of nanoseconds, by the powers of two.
    ByNs(fn(&T) -> &Histogram),
}

struct Row<T: 'static>(&'static str, Numbers<T>);

impl<T> Row<T> {
    fn size(&self) -> usize {
        match self.1 {
            Numbers::ByNs(_) => Histogram::SIZE,
            _ => 1,
        }
    }

    /// Flags and the exponent of the unit.
    fn kind(&self) -> (u32, i16) {
        const COUNTS: u32 = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_BASE_POW10;
        match self.1 {
            Numbers::Count(_) => (COUNTS | KVM_STATS_UNIT_NONE, 0),
            Numbers::Ns(_) => (COUNTS | KVM_STATS_UNIT_SECONDS, -9),
            Numbers::Now(_) => (KVM_STATS_TYPE_INSTANT | KVM_STATS_BASE_POW10 | KVM_STATS_UNIT_NONE, 0),
            Numbers::Flag(_) => (KVM_STATS_TYPE_INSTANT | KVM_STATS_BASE_POW10 | KVM_STATS_UNIT_BOOLEAN, 0),
            Numbers::ByNs(_) => (KVM_STATS_TYPE_LOG_HIST | KVM_STATS_BASE_POW10 | KVM_STATS_UNIT_SECONDS, -9),
        }
    }
}

static OF_VM: [Row<Vm>; 3] = [
    Row("pages_4k", Numbers::Now(|vm| vm.mmu.lock().counts().pages_4k)),
    Row("pages_2m", Numbers::Now(|vm| vm.mmu.lock().counts().pages_2m)),
    Row("pages_1g", Numbers::Now(|vm| vm.mmu.lock().counts().pages_1g)),
];

macro_rules! count {
    ($name:literal, $field:ident) => {
        Row($name, Numbers::Count(|s| s.$field.get()))
    };
}

static OF_VCPU: [Row<Stats>; 27] = [
    count!("halt_successful_poll", halt_polled),
    count!("halt_attempted_poll", halt_polls),
    count!("halt_wakeup", halt_wakeup),
    Row("halt_poll_success_ns", Numbers::Ns(|s| s.halt_poll_success_ns.get())),
    Row("halt_poll_fail_ns", Numbers::Ns(|s| s.halt_poll_fail_ns.get())),
    Row("halt_wait_ns", Numbers::Ns(|s| s.halt_wait_ns.get())),
    Row("halt_poll_success_hist", Numbers::ByNs(|s| &s.polls_won)),
    Row("halt_poll_fail_hist", Numbers::ByNs(|s| &s.polls_lost)),
    Row("halt_wait_hist", Numbers::ByNs(|s| &s.sleeps)),
    Row("blocking", Numbers::Flag(|s| s.blocking.get())),
    count!("pf_taken", pf_taken),
    count!("pf_fixed", pf_fixed),
    count!("tlb_flush", tlb_flush),
    count!("exits", exits),
    count!("io_exits", io_exits),
    count!("mmio_exits", mmio_exits),
    count!("signal_exits", signal_exits),
    count!("irq_window_exits", irq_window_exits),
    count!("halt_exits", halt_exits),
    count!("irq_exits", irq_exits),
    count!("insn_emulation", insn_emulation),
    count!("hypercalls", hypercalls),
    count!("irq_injections", irq_injections),
    count!("nmi_injections", nmi_injections),
    count!("req_event", req_event),
    // There is no nesting.
    Row("nested_run", Numbers::Count(|_| 0)),
    Row("guest_mode", Numbers::Flag(|_| 0)),
];

/// A part of the file, as it is asked for.
struct Window<'a> {
    out: &'a mut [u8],
    from: usize,
    /// Where the next bytes of the file lie.
    at: usize,
    /// Bytes of `out` that are filled.
    filled: usize,
}

impl Window<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let skip = self.from.saturating_sub(self.at);
        let rest = bytes.get(skip..).unwrap_or(&[]);
        if let Some(room) = self.out.get_mut(self.filled..) {
            room.iter_mut().zip(rest).for_each(|(to, b)| *to = *b);
            self.filled += rest.len().min(room.len());
        }
        self.at += bytes.len();
    }

    /// Text in a field of [`NAME`] bytes that ends in a NUL.
    fn put_name(&mut self, text: &str) {
        let mut field = [0; NAME];
        let room = field.get_mut(..NAME - 1).unwrap_or(&mut []);
        room.iter_mut().zip(text.bytes()).for_each(|(to, b)| *to = b);
        self.put(&field);
    }

    fn put_value(&mut self, n: u64) {
        self.put(&n.to_ne_bytes());
    }

    fn put_row<T>(&mut self, row: &Row<T>, of: &T) {
        match row.1 {
            Numbers::Count(f) | Numbers::Ns(f) | Numbers::Now(f) | Numbers::Flag(f) => self.put_value(f(of)),
            Numbers::ByNs(f) => f(of).0.iter().for_each(|c| self.put_value(Counter::get(c))),
        }
    }
}

/// Fills `out` with what lies in the file from `from` on; how many bytes.
fn fill<T>(rows: &[Row<T>], of: &T, id: &str, from: usize, out: &mut [u8]) -> usize {
    let desc_offset = HEADER + NAME;
    let data_offset = desc_offset + rows.len() * DESCRIPTOR;
    let mut w = Window { out, from, at: 0, filled: 0 };
    let header = kvm_stats_header {
        flags: 0,
        name_size: NAME as u32,
        num_desc: rows.len() as u32,
        id_offset: HEADER as u32,
        desc_offset: desc_offset as u32,
        data_offset: data_offset as u32,
    };
    w.put(bytemuck::bytes_of(&header));
    w.put_name(id);
    let mut offset = 0;
    for row in rows {
        let (flags, exponent) = row.kind();
        let size = row.size();
        let one = kvm_stats_desc { flags, exponent, size: size as u16, offset, bucket_size: 0 };
        w.put(bytemuck::bytes_of(&one));
        w.put_name(row.0);
        offset += 8 * size as u32;
    }
    for row in rows {
        // Numbers before the window are not looked at.
        let size = 8 * row.size();
        if w.at + size <= from {
            w.at += size;
        } else if w.filled < w.out.len() {
            w.put_row(row, of);
        }
    }
    w.filled
}

/// The VM's file is read.
pub fn read_vm(vm: &Vm, from: usize, out: &mut [u8]) -> usize {
    let mut id = [0; NAME];
    fill(&OF_VM, vm, name(&mut id, vm, None), from, out)
}

/// A vCPU's file is read.
pub fn read_vcpu(v: &VcpuObj, from: usize, out: &mut [u8]) -> usize {
    let mut id = [0; NAME];
    fill(&OF_VCPU, &v.shared.stats, name(&mut id, v.vm(), Some(v.id)), from, out)
}

/// As stock KVM calls them: the process that made the VM, and the vCPU.
fn name<'a>(buf: &'a mut [u8; NAME], vm: &Vm, vcpu: Option<u32>) -> &'a str {
    let mut out = Out::new(buf);
    let _ = write!(out, "kvm-{}", vm.pid);
    if let Some(id) = vcpu {
        let _ = write!(out, "/vcpu-{id}");
    }
    let n = out.written();
    buf.get(..n).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or_default()
}

/// Opens the file of the VM, or of its vCPU `v`; the descriptor.
pub fn open(vm: &Vm, v: Option<&VcpuObj>) -> Result<isize> {
    let slot = FdSlot::reserve()?;
    // SAFETY: `vm` is the object behind a KArc: this reference is the file's own.
    let raw = KArc::into_raw(unsafe { KArc::clone_raw(core::ptr::from_ref(vm)) }.ok_or(Errno::EINVAL)?);
    let (kind, title, object) = match v {
        None => (FdKind::VmStats, c"kvm-vm-stats", raw.cast_mut().cast()),
        Some(v) => (FdKind::VcpuStats, c"kvm-vcpu-stats", core::ptr::from_ref(v).cast_mut().cast()),
    };
    // SAFETY: the file owns `raw`, and its release callback takes it back; a vCPU lives as long as its VM.
    match unsafe { slot.open(kind, title, object) } {
        Ok(fd) => Ok(fd.install() as isize),
        Err(e) => {
            // SAFETY: no file was made: the reference is ours again.
            drop(unsafe { KArc::from_raw(raw) });
            Err(e)
        }
    }
}
