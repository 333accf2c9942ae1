//! One virtual CPU: the vendor's part and everything vendors share. Only its own thread touches it.

pub mod breakpoints;
pub mod debug;
mod events;
pub mod msrs;
pub mod pv;
pub mod raw;
pub mod stores;
pub mod vapic;

use msrs::MsrState;
use pv::Pv;

use crate::backend::{Backend, Event, InGuest, Instructions, Opened};
use crate::cpuid::CpuidState;
use crate::host::{Extended, Host, Taken};
use crate::journal::Journal;
use crate::shared::{VcpuShared, mp};
use crate::traced::Asked;
use core::sync::atomic::Ordering::{Relaxed, Release};
use exitless_insn::{Mode, PagingMode};
use exitless_lapic::Lapic;
use exitless_policy::GuestCaps;
use exitless_x86::cpuid::xcr0;
use exitless_x86::exception::Exception;
use exitless_x86::regs::{SegReg, Segment, cr4, efer, rflags};

/// A port read that user space is answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingPort {
    /// Which.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// RIP behind the IN.
    pub next_rip: u64,
}

/// See the file's head. Built in place from zeroes; [`Vcpu::init`] makes it a CPU after power-up.
pub struct Vcpu<B> {
    /// The vendor's part.
    pub b: B,
    /// The local APIC's private half.
    pub lapic: Lapic,
    /// How early the CPU's timer runs out.
    pub advance: exitless_deadline::Advance,
    /// Whether the CPU's APIC timer is to be lent to the guest.
    pub passthrough: exitless_deadline::passthrough::Opening,
    /// What LVTT was when mechanisms were chosen: in TSC-deadline mode, not masked, of an APIC that is on.
    pub by_deadline: bool,
    /// When the host's timer is queued for.
    pub queue: exitless_deadline::Queue,
    /// Where the APIC's registers are.
    pub vapic: vapic::Vapic,
    /// [`VcpuShared::chosen`] follows from what holds now.
    pub chosen: bool,
    /// What the current instruction has done outside the registers.
    pub journal: Journal,
    /// Instructions that ring doorbells.
    pub stores: stores::Stores,
    /// Faults at marks that were resolved one exit after the other: the number of the last exit, and how many.
    pub resolved_marks: (u64, u8),
    /// An IN that user space answers.
    pub pending_port: Option<PendingPort>,
    /// The fast path has asked the chips for the port of this exit: it is none's.
    pub no_chip: bool,
    /// An event whose delivery an exit interrupted.
    pub reinject: Option<Event>,
    /// An exception to deliver.
    pub exception: Option<Exception>,
    /// An interrupt that user space queued: it has the 8259 pair, or the APIC too.
    pub user_interrupt: Option<u8>,
    /// The vector of an EOI that user space's I/O APIC has yet to hear of.
    pub user_eoi: Option<u8>,
    /// User space wants to know when an interrupt could be delivered. Never set while the 8259 pair is in the kernel.
    pub want_window: bool,
    /// NMIs waiting, at most 2.
    pub nmi_pending: u8,
    /// An event is programmed into the backend and no entry has happened since.
    pub injecting: Option<Event>,
    /// What to inject must be decided again before the next entry.
    pub event_dirty: bool,
    /// Guest-physical translations must be dropped with the next entry.
    pub flush: bool,
    /// `KVM_MP_STATE_*`.
    pub mp_state: u32,
    /// The bootstrap processor.
    pub bsp: bool,
    /// DR0 to DR3 while not loaded.
    pub dr: [u64; 4],
    /// The guest's debug registers are loaded in slices.
    pub dr_live: bool,
    /// User space's debugger.
    pub debug: debug::Debug,
    /// The guest's XCR0.
    pub xcr0: u64,
    /// The guest's PKRU, outside of slices.
    pub pkru: u32,
    /// How fast the TSC counts.
    pub rate: crate::clock::tsc::Rate,
    /// TSC offset in the guest's ticks.
    pub tsc_offset: u64,
    /// What the guest's CPUID says.
    pub cpuid: CpuidState,
    /// MSRs without a better home.
    pub msrs: MsrState,
    /// Paravirtual features.
    pub pv: Pv,
    /// Pages that others bring for it.
    pub async_pf: exitless_async_pf::Pages,
    /// What the guest does without an exit by its owner's wish.
    pub in_guest: InGuest,
    /// MSRs that the guest has for itself.
    pub opened: Opened,
    /// While somebody measures.
    pub stopwatch: crate::times::Stopwatch,
    /// The vCPU has entered the guest at least once.
    pub started: bool,
    /// The last exit, while somebody traces.
    pub asked: Option<Asked>,
    /// In a slice, while somebody traces: the host's state is loaded, and this was the guest's.
    pub outside: Option<Taken>,
    /// KVM's number of it: the APIC id.
    pub id: u32,
}

// SAFETY-free: `Zeroable` by derive is impossible for a generic with enums that have payloads; `init` overwrites
// every field instead, so the owner may start from any valid value.

impl<B: Backend> Vcpu<B> {
    /// The PAT after power-up (SDM vol. 3A, table 12-12).
    pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

    /// The first `len` entries of CPUID count from now on; `host` bounds what reaches registers.
    pub fn commit_cpuid(&mut self, len: usize, host: &GuestCaps) {
        self.cpuid.commit(len, host, self.in_guest.hlt);
        self.chosen = false;
        let c = self.cpuid.caps();
        let GuestCaps { rdtscp, rdpid, invpcid, rdrand, rdseed, xsaves, .. } = *c;
        self.b.set_instructions(Instructions { rdtscp, rdpid, invpcid, rdrand, rdseed, xsaves });
        let spec_ctrl =
            c.spec_ctrl != 0 && (self.opened.has(Opened::SPEC_CTRL) || self.b.switches_spec_ctrl());
        let pred_cmd = c.ibpb && self.opened.has(Opened::PRED_CMD);
        let opened = Opened::NONE.put(Opened::CSTATES, self.in_guest.cstates);
        let opened = opened.put(Opened::SPEC_CTRL, spec_ctrl).put(Opened::PRED_CMD, pred_cmd);
        self.open(opened.put(Opened::FLUSH_CMD, c.flush_l1d));
    }

    /// The guest has these MSRs for itself from now on.
    pub(crate) fn open(&mut self, opened: Opened) {
        self.opened = opened;
        self.b.set_opened(opened);
    }

    /// [`Host::read_guest`] outside of the emulator. The page may have to be brought from anywhere, and what that touches is not
    /// the guest's.
    pub(crate) fn read_guest<H: Host>(&self, host: &H, gpa: u64, buf: &mut [u8]) -> bool {
        self.b.dirty_l1d();
        host.read_guest(gpa, buf)
    }

    /// [`Host::write_guest`], likewise.
    pub(crate) fn write_guest<H: Host>(&self, host: &H, gpa: u64, data: &[u8]) -> bool {
        self.b.dirty_l1d();
        host.write_guest(gpa, data)
    }

    /// RIP's mode.
    pub fn mode(&self) -> Mode {
        let cs = Segment { attrib: self.b.code_attributes(), ..Segment::default() };
        Mode::of(&cs, self.b.efer())
    }

    /// The registers a page walk needs, for accesses at privilege level `cpl`.
    pub fn paging(&self, cpl: u8) -> PagingMode {
        PagingMode {
            cr0: self.b.cr0(),
            cr3: self.b.cr3(),
            cr4: self.b.cr4(),
            efer: self.b.efer(),
            rflags_ac: self.b.rflags() & rflags::AC != 0,
            // In a slice the CPU may have another; only code is looked for there, for which keys do not count.
            pkru: self.pkru,
            cpl,
            max_phys_bits: self.cpuid.caps().maxphyaddr(),
        }
    }

    /// What the next slice has to bring into the CPU. It holds for all of the slice: changes of these registers exit.
    pub fn extended(&self) -> Extended {
        let cr4 = self.b.cr4_watched();
        let xsave = cr4 & cr4::OSXSAVE != 0;
        let keys = cr4 & cr4::PKE != 0 || self.xcr0 & xcr0::PKRU != 0;
        Extended {
            xcr0: xsave.then_some(self.xcr0),
            xsaves: xsave && self.b.executes_xsaves(),
            pkru: keys.then_some(self.pkru),
        }
    }

    /// Guest TSC for a host TSC, ticks.
    pub fn guest_tsc(&self, host_tsc: u64) -> u64 {
        self.rate.guest_ticks(host_tsc).wrapping_add(self.tsc_offset)
    }

    /// Changes the activity state. Whoever runs needs nobody to end its halt.
    pub fn set_mp(&mut self, sh: &VcpuShared, state: u32) {
        if state == mp::RUNNABLE && sh.unhalted.load(Relaxed) {
            sh.unhalted.store(false, Relaxed);
        }
        self.mp_state = state;
        sh.mp_state.store(state, Release);
    }

    /// Moves RIP behind an instruction: clears the interrupt shadow and RF, honours single-stepping, the debugger's too.
    pub fn finish_skip(&mut self, next_rip: u64) {
        self.b.set_rip(next_rip);
        let f = self.b.rflags();
        if f & rflags::RF != 0 {
            self.b.set_rflags(f & !rflags::RF);
        }
        if self.b.interrupt_shadow() {
            self.b.set_interrupt_shadow(false);
        }
        self.trap(f, self.b.stepping());
    }

    /// Forgets what an unfinished instruction did: user space replaced the registers.
    pub fn forget_instruction(&mut self) {
        self.journal.forget();
        self.pending_port = None;
        self.forget_software();
        self.debug.forget_stop();
        // Memory may be another system's by now.
        self.stores = Default::default();
        self.debug.forget_hits();
    }

    /// Neither halted, nor waiting for INIT, SIPI or a page?
    pub fn runs(&self) -> bool {
        self.mp_state == mp::RUNNABLE && !self.async_pf.waits()
    }

    /// An instruction is under way, which goes on where it was stopped: RIP is not to be moved.
    pub(crate) fn mid_instruction(&self) -> bool {
        self.journal.source().is_some() || self.pending_port.is_some()
    }

    /// In the kernel, and in 64-bit mode: where restartable sequences are.
    pub(crate) fn in_kernel(&self) -> bool {
        self.b.cpl() == 0 && self.b.efer() & efer::LMA != 0 && self.b.segment(SegReg::Cs).long()
    }
}
