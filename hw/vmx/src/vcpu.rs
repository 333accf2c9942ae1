//! One VMX virtual CPU: its registers, its caches and what must outlive an exit.

use crate::cache::{self, Cache};
use crate::machine::{Hardware, Machine};
use crate::pmu::MsrAreas;
use crate::residence::Residence;
use core::cell::Cell;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use exitless_vcpu::backend::{ApicPage, InGuest, Instructions, Opened};
use exitless_vcpu::clock::tsc::Scaling;
use exitless_x86::apic::reg::TPR;
use exitless_x86::regs::Gprs;
use exitless_x86::vmx::control::{exit, primary, secondary};
use exitless_x86::vmx::exit::ExitReason;
use exitless_x86::vmx::field as f;
use exitless_x86::vmx::{NO_LINK, activity};

/// What the world switch reads and writes in memory; `struct ex_vmx_run` in linux/c/vmx.c is the same.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Run {
    /// In encoding order; the switch leaves slot 4 (RSP, a VMCS field) alone.
    pub gprs: Gprs,
    /// CR2 is no VMCS field.
    pub cr2: u64,
    /// What HOST_RSP holds; the switch's own.
    pub host_rsp: u64,
    /// The guest's SPEC_CTRL.
    pub spec_ctrl: u64,
    /// The exit reason, after `Switched::Exit`.
    pub reason: u32,
    /// VM-exit interruption information; read for exceptions and NMIs only, 0 otherwise.
    pub interruption: u32,
    /// Not 0: the guest writes SPEC_CTRL without an exit, and `spec_ctrl` is read back behind each.
    pub spec_open: u64,
}

const _: () = {
    assert!(
        offset_of!(Run, cr2) == 128 && offset_of!(Run, host_rsp) == 136 && offset_of!(Run, spec_ctrl) == 144
    );
    assert!(
        offset_of!(Run, reason) == 152 && offset_of!(Run, interruption) == 156 && size_of::<Run>() == 168
    );
    assert!(offset_of!(Run, spec_open) == 160);
};

/// Physical addresses of MSR bitmaps: for each set of [`Opened`], those for an APIC of software's or in its page, those with the
/// x2APIC's MSRs open as far as hardware virtualises them, and the same again with self-IPIs that exit; then the first two once more, with
/// the deadline of the CPU's APIC timer open; and the second with an ICR that does not exit, without and with that deadline.
pub type MsrBitmaps = [[u64; 7]; Opened::SETS];

/// What the backend needs from its owner, who allocates and frees it.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// The VMCS region: one page, for this vCPU alone. [`Residence::init`] has its address and wrote its revision.
    pub residence: NonNull<Residence>,
    /// The virtual-APIC page: one zeroed page, for this vCPU alone.
    pub virtual_apic: NonNull<u8>,
    /// Its physical address.
    pub virtual_apic_pa: u64,
    /// The MSR-load areas: zeroed memory within one page, for this vCPU alone.
    pub msr_areas: NonNull<MsrAreas>,
    /// Their physical address.
    pub msr_areas_pa: u64,
    /// The log of page modifications: one zeroed page, for this vCPU alone; `None`: the CPU keeps none.
    pub log: Option<NonNull<u8>>,
    /// Its physical address.
    pub log_pa: u64,
    /// Physical address of the posted-interrupt descriptor, aligned to 64 bytes.
    pub descriptor_pa: u64,
    /// Physical address of the page whose accesses, through EPT, are those to the APIC's; shared by the VM's vCPUs.
    pub apic_access_pa: u64,
    /// Physical address of the VM's PID-pointer table, aligned to 8 bytes; 0: CPUs send no IPIs.
    pub pid_table_pa: u64,
    /// The highest APIC id that has an entry there.
    pub last_pid: u16,
}

/// The addresses among them.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub(crate) struct Addresses {
    pub(crate) virtual_apic_pa: u64,
    pub(crate) msr_areas_pa: u64,
    pub(crate) log_pa: u64,
    pub(crate) msr_bitmaps: MsrBitmaps,
    pub(crate) descriptor_pa: u64,
    pub(crate) apic_access_pa: u64,
    pub(crate) pid_table_pa: u64,
    pub(crate) last_pid: u16,
}

/// # Invariants
/// After [`Vmx::init`], `residence`, `virtual_apic`, `msr_areas` and `log` point to memory that lives as long as `self`.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Vmx<M = Hardware> {
    pub(crate) run: Run,
    pub(crate) cache: Cache,
    pub(crate) caps: crate::Caps,
    residence: Option<NonNull<Residence>>,
    virtual_apic: Option<NonNull<u8>>,
    msr_areas: Option<NonNull<MsrAreas>>,
    pub(crate) log: Option<NonNull<u8>>,
    pub(crate) pages: Addresses,
    pub(crate) apic: crate::vapic::Apic,
    pub(crate) timer: crate::timer::Timer,
    pub(crate) pmu: crate::pmu::Pmu,
    pub(crate) dr6: u64,
    /// The exiting instruction's length, once it was asked for; 0: not yet.
    pub(crate) length: Cell<u32>,
    /// After how many ticks a loop of PAUSEs exits; and what the VMCS says of it.
    pub(crate) ple_window: u32,
    pub(crate) vmcs_ple_window: u32,
    /// What the VMCS says of RSP.
    pub(crate) vmcs_rsp: u64,
    /// What the VMCS says of the host.
    pub(crate) host_cr3: u64,
    pub(crate) host_cr4: u64,
    pub(crate) host_fs_base: u64,
    pub(crate) host_efer: u64,
    /// The host's IA32_DEBUGCTL in this slice; an exit clears the register.
    pub(crate) host_debugctl: u64,
    pub(crate) vpid_generation: u64,
    /// Exceptions that exit; and what the VMCS says of them.
    pub(crate) exceptions: u32,
    pub(crate) vmcs_exceptions: u32,
    /// Decided when the slice began.
    pub(crate) plan: u32,
    /// The guest ran (or its entry failed late): the exit fields are this exit's.
    pub(crate) left: bool,
    /// The interrupted event was given away.
    pub(crate) taken: bool,
    /// Controls and constants are in the VMCS.
    pub(crate) prepared: bool,
    /// DR accesses exit.
    pub(crate) dr_intercept: bool,
    /// TF was set by a debugger; `step_tf` is the guest's.
    pub(crate) planted: bool,
    pub(crate) step_tf: bool,
    /// Interrupt shadow, TF or BTF may have changed: the pending debug exceptions must follow.
    pub(crate) debug_touched: bool,
    /// Something that a guest could look for may be in the L1 data cache.
    pub(crate) l1d_dirty: Cell<bool>,
    /// Translations must be dropped: the EPT pointer changed, or the CPU.
    pub(crate) flush_due: bool,
    /// The hall wants to hear of the interrupt window.
    pub(crate) interrupt_window: bool,
    /// An NMI waits for the end of STI's shadow, which is an interrupt window.
    pub(crate) nmi_behind_sti: bool,
    /// The VMCS's bitmaps are those of a guest to which the CPU's APIC timer is lent.
    pub(crate) lends: bool,
    /// LVTT of this CPU was looked at since the thread came here.
    pub(crate) host_timer_known: bool,
    /// The timer's field holds the largest count.
    pub(crate) timer_idle: bool,
    /// An interrupt that the last exit acknowledged and the host has yet to hear of; 0: none (vectors below 16 are not
    /// interrupts').
    pub(crate) acknowledged: u8,
    /// The guest halts without an exit.
    pub(crate) halts: bool,
    /// The guest set CR4.UMIP, which the CPU does not have.
    pub(crate) umip: bool,
    /// Pages that the guest writes are logged.
    pub(crate) logging: bool,
    /// What the guest's CPUID shows.
    pub(crate) shown: Instructions,
    /// MSRs that the guest has for itself.
    pub(crate) opened: Opened,
    /// The guest's EFER is the host's: entries and exits leave the register alone.
    pub(crate) shares_efer: bool,
    /// The last exit was for a machine check that the host has yet to hear of.
    pub(crate) machine_check: bool,
    pub(crate) m: M,
}

// SAFETY: the residence and the page are owned by the vCPU; the pointers move with it.
unsafe impl<M> Send for Vmx<M> {}

/// #DB and #AC can loop for ever inside the CPU (CVE-2015-8104, CVE-2015-5307); #UD may be AMD's hypercall instruction;
/// #MC belongs to the host.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;
/// PAUSEs less than this many ticks apart are one loop.
const PLE_GAP: u32 = 128;
/// A loop that lasts this many ticks exits, the first time.
pub(crate) const PLE_WINDOW: u32 = 4096;

impl<M: Machine> Vmx<M> {
    /// Where the MSR bitmaps are, a page each, which all vCPUs may share: `pa` tells the physical address by set and place. In place, for
    /// together they are too big for a frame.
    pub fn use_msr_bitmaps(&mut self, pa: impl Fn(usize, usize) -> u64) {
        for (set, pages) in self.pages.msr_bitmaps.iter_mut().enumerate() {
            pages.iter_mut().enumerate().for_each(|(place, page)| *page = pa(set, place));
        }
    }

    /// Sets up everything in memory; the VMCS gets it with the first entry. Registers come later.
    pub fn init(&mut self, pages: Pages, caps: &crate::Caps, own: InGuest) {
        let caps = &caps.leaving(own);
        self.halts = own.hlt;
        self.residence = Some(pages.residence);
        self.virtual_apic = Some(pages.virtual_apic);
        self.msr_areas = Some(pages.msr_areas);
        self.log = pages.log;
        let to = &mut self.pages;
        to.virtual_apic_pa = pages.virtual_apic_pa;
        to.msr_areas_pa = pages.msr_areas_pa;
        to.log_pa = pages.log_pa;
        to.descriptor_pa = pages.descriptor_pa;
        to.apic_access_pa = pages.apic_access_pa;
        to.pid_table_pa = pages.pid_table_pa;
        to.last_pid = pages.last_pid;
        self.caps = *caps;
        self.ple_window = PLE_WINDOW;
        self.cache.init();
        self.cache.set(cache::PRIMARY, caps.primary | primary::MOV_DR_EXITING);
        self.cache.set(cache::ENTRY, caps.entry);
        self.cache.set(cache::PAT, 0x0007_0406_0007_0406);
        self.cache.set(cache::EPTP, 0);
        if caps.tsc_scaling().is_some() {
            self.cache.set(cache::TSC_MULTIPLIER, 1 << Scaling::VMX.fraction);
        } else {
            self.cache.without(cache::TSC_MULTIPLIER);
        }
        self.dr_intercept = true;
        self.exceptions = EXCEPTIONS;
        self.dr6 = 0xffff_0ff0;
        self.set_cr0_field(0);
        self.set_cr4_field(0);
    }

    /// A guest that halts without an exit is halted no more: an event goes in, or its registers are others (SDM vol. 3C, 27.3.1.5).
    pub(crate) fn awake(&mut self) {
        if self.halts && self.prepared {
            self.m.put(f::GUEST_ACTIVITY, activity::ACTIVE);
        }
    }

    /// Where the VMCS is.
    pub(crate) fn residence(&self) -> Option<&Residence> {
        // SAFETY: type invariant; a residence is all atomics.
        self.residence.map(|r| unsafe { r.as_ref() })
    }

    pub(crate) fn residence_ptr(&self) -> Option<NonNull<Residence>> {
        self.residence
    }

    /// Controls and constants that never change, once, when the VMCS is current for the first time.
    pub(crate) fn prepare(&mut self) {
        let (m, caps) = (&self.m, &self.caps);
        self.put_exit_controls();
        m.put(f::EXCEPTION_BITMAP, self.exceptions);
        self.vmcs_exceptions = self.exceptions;
        // Page faults do not exit: bit 14 above is clear, and mask and match agree always (SDM vol. 3C, 25.6.3).
        m.put(f::PF_ERROR_CODE_MASK, 0);
        m.put(f::PF_ERROR_CODE_MATCH, 0);
        m.put(f::CR3_TARGET_COUNT, 0);
        m.put(f::EXIT_MSR_STORE_COUNT, 0);
        m.put(f::EXIT_MSR_LOAD_COUNT, 0);
        m.put(f::ENTRY_MSR_LOAD_COUNT, 0);
        m.put(f::ENTRY_MSR_LOAD_ADDRESS, self.pages.msr_areas_pa);
        m.put(f::EXIT_MSR_LOAD_ADDRESS, self.pages.msr_areas_pa + MsrAreas::EXIT);
        m.put(f::VMCS_LINK_POINTER, NO_LINK);
        m.put(f::GUEST_ACTIVITY, activity::ACTIVE);
        m.put(f::CR0_MASK, !crate::state::CR0_GUEST_OWNED);
        m.put(f::CR4_MASK, !crate::state::CR4_GUEST_OWNED);
        m.put(f::VIRTUAL_APIC_ADDRESS, self.pages.virtual_apic_pa);
        m.put(f::TPR_THRESHOLD, 0);
        if caps.pause_loop() {
            m.put(f::PLE_GAP, PLE_GAP);
        }
        if caps.xsaves() {
            // No component of IA32_XSS exits: guests have none.
            m.put(f::XSS_EXITING_BITMAP, 0);
        }
        if caps.secondary & secondary::ENABLE_ENCLS_EXITING != 0 {
            m.put(f::ENCLS_EXITING_BITMAP, u64::MAX);
        }
        self.prepare_log();
        self.prepare_apic();
        self.prepared = true;
    }

    /// The VM-exit controls, of which two come and go.
    pub(crate) fn put_exit_controls(&self) {
        let efer = if self.shares_efer { exit::LOAD_EFER } else { 0 };
        let global = if self.switches_global_ctrl() { exit::LOAD_PERF_GLOBAL_CTRL } else { 0 };
        self.m.put(f::EXIT_CONTROLS, self.caps.exit & !efer | global);
    }

    pub(crate) fn show_instructions(&mut self, shown: Instructions) {
        self.shown = shown;
        self.controls_due();
    }

    /// Secondary controls, but for those of the APIC. RDTSCP and RDPID have one control.
    pub(crate) fn guest_controls(&self) -> u32 {
        use secondary as s;
        let (shown, bit) = (&self.shown, |on: bool, bit: u32| if on { bit } else { 0 });
        let refused = bit(!shown.rdtscp && !shown.rdpid, s::ENABLE_RDTSCP)
            | bit(!shown.invpcid, s::ENABLE_INVPCID)
            | bit(!shown.xsaves, s::ENABLE_XSAVES);
        let exiting = bit(!shown.rdrand, s::RDRAND_EXITING)
            | bit(!shown.rdseed, s::RDSEED_EXITING)
            | bit(self.umip, s::DESCRIPTOR_TABLE_EXITING)
            | bit(self.logging, s::ENABLE_PML);
        self.caps.secondary & !refused | exiting & self.caps.optional
    }

    /// The last exit's reason.
    pub(crate) fn exit_reason(&self) -> ExitReason {
        ExitReason(self.run.reason)
    }

    /// The EPT pointer for a root: four levels, as `exitless_slat` builds them.
    pub(crate) fn set_ept_root(&mut self, hpa: u64) {
        let eptp = self.caps.ept_format().eptp(hpa, 4);
        self.cache.set(cache::EPTP, eptp);
        self.flush_due = true;
    }

    /// The virtual-APIC page.
    pub(crate) fn page(&self) -> Option<&ApicPage> {
        // SAFETY: type invariant: the page is ours and lives as long as `self`; the type is atomics of a page's size and
        // alignment.
        self.virtual_apic.map(|p| unsafe { p.cast::<ApicPage>().as_ref() })
    }

    /// The MSR-load areas.
    pub(crate) fn msr_areas(&self) -> Option<&MsrAreas> {
        // SAFETY: type invariant; they are all atomics.
        self.msr_areas.map(|p| unsafe { p.as_ref() })
    }

    /// MOV CR8 reads and writes the page's task priority (SDM vol. 3C, 30.1.1).
    pub(crate) fn read_cr8(&self) -> u8 {
        self.page().map_or(0, |p| (p.read(TPR) >> 4 & 15) as u8)
    }

    pub(crate) fn write_cr8(&mut self, v: u8) {
        if let Some(p) = self.page() {
            p.write(TPR, u32::from(v & 15) << 4);
        }
    }

    /// Reads every register that is still in the VMCS, which must be current: afterwards they can be read, and written,
    /// while it is loaded nowhere.
    pub fn sync(&mut self) {
        self.cache.fill_all(&self.m);
    }
}
