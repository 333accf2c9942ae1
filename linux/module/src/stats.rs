//! Counters in debugfs: `/sys/kernel/debug/kvm/<pid>-<fd>/`, readable while the guest runs.
//!
//! `exits_by_reason`, `exits_by_msr`, `exits_by_port`: lines of a name and a sum over all vCPUs. `vcpus`: a line for
//! each. `lazy_deadline`: a line for each vCPU; a write to it makes them look. The other files carry KVM's own names, so that tools that look for those find them.

use crate::vm::Vm;
use crate::{global, vendor};
use core::ffi::CStr;
use core::fmt::{self, Write};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use exitless_host::mem::{KArc, KBox};
use exitless_host::task;
use exitless_nospec::Guarded;
use exitless_vcpu::Request;
use exitless_vcpu::chooser::Mechanism;
use exitless_vcpu::stats::{self as st, Counter, Stats, waker};

/// Counters of the VM itself, written by anyone.
#[derive(bytemuck::Zeroable)]
pub struct VmStats {
    /// The timer of a vCPU in the guest fired on another CPU than that one's.
    pub foreign_timers: AtomicU64,
}

/// Kinds of text files.
mod kind {
    pub(super) const REASON: u32 = 0;
    pub(super) const MSR: u32 = 1;
    pub(super) const PORT: u32 = 2;
    pub(super) const VCPUS: u32 = 3;
    pub(super) const MEMORY: u32 = 4;
    pub(super) const LAZY: u32 = 5;
    /// And above: the counter of [`super::NAMES`] with that index.
    pub(super) const COUNTER: u32 = 16;
    /// And above: of [`super::OF_VM`].
    pub(super) const OF_VM: u32 = 64;
}

type Pick = fn(&Stats) -> &Counter;

/// Files that hold one number. In the ABI of /dev/exitless they have numbers: new ones go behind the last.
static NAMES: [(&CStr, Pick); 29] = [
    (c"exits", |s| &s.exits),
    (c"fast_exits", |s| &s.fast),
    (c"io_exits", |s| &s.io_exits),
    (c"mmio_exits", |s| &s.mmio_exits),
    (c"halt_exits", |s| &s.halt_exits),
    (c"halt_wakeup", |s| &s.halt_wakeup),
    (c"halt_successful_poll", |s| &s.halt_polled),
    (c"irq_exits", |s| &s.irq_exits),
    (c"irq_injections", |s| &s.irq_injections),
    (c"nmi_injections", |s| &s.nmi_injections),
    (c"irq_window_exits", |s| &s.irq_window_exits),
    (c"signal_exits", |s| &s.signal_exits),
    (c"insn_emulation", |s| &s.insn_emulation),
    (c"hypercalls", |s| &s.hypercalls),
    (c"pf_taken", |s| &s.pf_taken),
    (c"pf_fixed", |s| &s.pf_fixed),
    (c"tlb_flush", |s| &s.tlb_flush),
    (c"req_event", |s| &s.req_event),
    (c"user_exits", |s| &s.user),
    (c"halt_attempted_poll", |s| &s.halt_polls),
    (c"halt_poll_success_ns", |s| &s.halt_poll_success_ns),
    (c"halt_poll_fail_ns", |s| &s.halt_poll_fail_ns),
    (c"halt_wait_ns", |s| &s.halt_wait_ns),
    (c"wake_other", |s| woken(s, waker::OTHER)),
    (c"wake_timer", |s| woken(s, waker::TIMER)),
    (c"wake_ipi", |s| woken(s, waker::IPI)),
    (c"wake_device", |s| woken(s, waker::DEVICE)),
    (c"wake_sibling", |s| woken(s, waker::SIBLING)),
    (c"steal_ns", |s| &s.steal_ns),
];

fn woken(s: &Stats, by: u8) -> &Counter {
    let [other, ..] = &s.wakes;
    s.wakes.get(usize::from(by)).unwrap_or(other)
}

/// The name of one of KVM's counters, by its number in the ABI of /dev/exitless.
pub fn counter_name(n: usize) -> Option<&'static str> {
    NAMES.guarded(n).and_then(|(name, _)| name.to_str().ok())
}

/// One of KVM's counters of a vCPU, by that number.
pub fn counter_of(s: &Stats, n: usize) -> Option<&Counter> {
    NAMES.guarded(n).map(|(_, pick)| pick(s))
}

type PickOfVm = fn(&VmStats) -> &AtomicU64;

/// Of the VM, not of its vCPUs.
const OF_VM: [(&CStr, PickOfVm); 1] = [(c"foreign_timers", |s| &s.foreign_timers)];

/// Text into a buffer; what does not fit is cut.
pub struct Out<'a> {
    buf: &'a mut [u8],
    at: usize,
}

impl<'a> Out<'a> {
    /// Nothing written yet.
    pub fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, at: 0 }
    }

    /// Bytes written.
    pub fn written(&self) -> usize {
        self.at
    }
}

impl Write for Out<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let Some(room) = self.buf.get_mut(self.at..) else { return Ok(()) };
        let n = s.len().min(room.len());
        for (d, b) in room.iter_mut().zip(s.bytes().take(n)) {
            *d = b;
        }
        self.at += n;
        Ok(())
    }
}

/// Makes the VM's folder. Failure costs only the folder.
pub fn publish(vm: &KArc<Vm>, pid: i32, fd: i32) {
    let mut name = [0u8; 32];
    let mut out = Out::new(name.get_mut(..31).unwrap_or(&mut []));
    let _ = write!(out, "{pid}-{fd}");
    let Ok(name) = CStr::from_bytes_until_nul(&name) else { return };
    let cookie = KArc::as_ptr(vm).cast_mut().cast();
    let mut dir = vm.debugfs.lock();
    if dir.init(name).is_err() {
        return;
    }
    let texts = [
        (c"exits_by_reason", kind::REASON),
        (c"exits_by_msr", kind::MSR),
        (c"exits_by_port", kind::PORT),
        (c"vcpus", kind::VCPUS),
        (c"memory", kind::MEMORY),
    ];
    for (file, k) in texts {
        let _ = dir.text(file, cookie, k);
    }
    let _ = dir.knocked_text(c"lazy_deadline", cookie, kind::LAZY);
    for (i, (file, _)) in NAMES.iter().enumerate() {
        let _ = dir.text(file, cookie, kind::COUNTER + i as u32);
    }
    for (i, (file, _)) in OF_VM.iter().enumerate() {
        let _ = dir.text(file, cookie, kind::OF_VM + i as u32);
    }
}

/// A file is read.
pub fn show(vm: &Vm, k: u32, buf: &mut [u8]) -> usize {
    let mut out = Out::new(buf);
    let _ = match k {
        kind::REASON => by_reason(vm, &mut out),
        kind::MSR => keyed(vm, &mut out, |s| &s.by_msr, 8),
        kind::PORT => keyed(vm, &mut out, |s| &s.by_port, 4),
        kind::VCPUS => vcpus(vm, &mut out),
        kind::MEMORY => memory(vm, &mut out),
        kind::LAZY => lazy(vm, &mut out),
        kind::OF_VM.. => of_vm(vm, &mut out, k),
        _ => counter(vm, &mut out, k),
    };
    out.written()
}

/// Root wrote to a file: the vCPUs look at their guests' lazy deadlines.
pub fn knock(vm: &Vm, k: u32) {
    if k == kind::LAZY {
        vm.request_all(Request::LAZY);
    }
}

/// The MSR, what is attended, deadlines that the guest wrote to it, those that it need not, and exits that came in their place.
fn lazy(vm: &Vm, out: &mut Out<'_>) -> fmt::Result {
    writeln!(out, "id msr armed written saved added")?;
    for v in vm.each_vcpu() {
        let (msr, armed) = (v.shared.lazy_page.load(Relaxed), v.shared.lazy_armed.load(Relaxed));
        let d = v.shared.stats.deeds(Mechanism::LazyDeadline);
        writeln!(out, "{} {msr:#x} {armed} {} {} {}", v.id, d.hits.get(), d.saved.get(), d.added.get())?;
    }
    Ok(())
}

fn counter(vm: &Vm, out: &mut Out<'_>, k: u32) -> fmt::Result {
    let Some((_, pick)) = NAMES.get(k.wrapping_sub(kind::COUNTER) as usize) else { return Ok(()) };
    let sum = vm.each_vcpu().fold(0u64, |n, v| n.wrapping_add(pick(&v.shared.stats).get()));
    writeln!(out, "{sum}")
}

fn of_vm(vm: &Vm, out: &mut Out<'_>, k: u32) -> fmt::Result {
    let Some((_, pick)) = OF_VM.get(k.wrapping_sub(kind::OF_VM) as usize) else { return Ok(()) };
    writeln!(out, "{}", pick(&vm.stats).load(Relaxed))
}

fn by_reason(vm: &Vm, out: &mut Out<'_>) -> fmt::Result {
    for row in 0..st::EXITS {
        let sum = vm
            .each_vcpu()
            .filter_map(|v| v.shared.stats.by_exit.get(row))
            .fold(0u64, |n, c| n.wrapping_add(c.get()));
        if sum != 0 {
            let number = st::number(row);
            match global::get().and_then(|g| vendor::exit_name(g.kind, number)) {
                Some(name) => writeln!(out, "{name} {sum}")?,
                None => writeln!(out, "exit_{number:#x} {sum}")?,
            }
        }
    }
    Ok(())
}

/// A keyed table of all vCPUs, added up. `None`: no memory for it.
pub fn sums(vm: &Vm, pick: fn(&Stats) -> &st::Keyed) -> Option<KBox<st::Sums>> {
    let mut sums = KBox::<st::Sums>::zeroed()?;
    for v in vm.each_vcpu() {
        task::cond_resched();
        sums.add(pick(&v.shared.stats));
    }
    Some(sums)
}

fn keyed(vm: &Vm, out: &mut Out<'_>, pick: fn(&Stats) -> &st::Keyed, width: usize) -> fmt::Result {
    let Some(sums) = sums(vm, pick) else { return Ok(()) };
    for (key, sum) in sums.rows() {
        writeln!(out, "{key:#0w$x} {sum}", w = width + 2)?;
    }
    if sums.other != 0 { writeln!(out, "other {}", sums.other) } else { Ok(()) }
}

fn vcpus(vm: &Vm, out: &mut Out<'_>) -> fmt::Result {
    writeln!(out, "id cpu mp_state exits fast irq_injections requests")?;
    for v in vm.each_vcpu() {
        let (s, x) = (&v.shared, &v.shared.stats);
        let (cpu, mp) = (s.cpu.load(Relaxed), s.mp_state.load(Relaxed));
        let (exits, fast, irqs) = (x.exits.get(), x.fast.get(), x.irq_injections.get());
        writeln!(out, "{} {cpu} {mp} {exits} {fast} {irqs} {:#x}", v.id, s.requests.load(Relaxed))?;
    }
    Ok(())
}

fn memory(vm: &Vm, out: &mut Out<'_>) -> fmt::Result {
    let c = vm.mmu.lock().counts();
    writeln!(
        out,
        "tables {}\npages_4k {}\npages_2m {}\npages_1g {}",
        c.tables, c.pages_4k, c.pages_2m, c.pages_1g
    )
}
