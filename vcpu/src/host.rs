//! What the hall needs from the operating system. `linux/module` implements it over C helpers, the tests with a fake.

use crate::clock::tsc::Rate;
use crate::times::Times;
use crate::traced::Trace;
use exitless_chooser::{Facts, Fallback, Set};
pub use exitless_ipi::{PlainIpi, To};
use exitless_x86::apic::InterruptMessage;

/// What a second-level fault turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// Mapped (or already mapped by another vCPU): re-enter.
    Fixed,
    /// No memory slot there: a device.
    Mmio,
    /// A write to a read-only slot: to user space as MMIO.
    ReadOnly,
    /// The host's page at this address of user space has a memory error: user space must hear of it, by a signal.
    Poisoned(u64),
    /// The page at this address of user space takes time, and the caller had none.
    Slow(u64),
    /// The host has no page there: `-EFAULT`, `-ENOMEM`.
    Error(i32),
}

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The host's monotonic clock, ns.
    pub ns: u64,
    /// The host's TSC, ticks.
    pub tsc: u64,
}

/// The VM's one clock pair: guest time `ns` at host TSC `tsc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasterClock {
    /// Host TSC of the pair, ticks.
    pub tsc: u64,
    /// Guest time (kvmclock) of the pair, ns.
    pub ns: u64,
    /// It is the same in all pages, and all vCPUs' TSCs agree: whichever page a vCPU reads, it finds the same time.
    pub stable: bool,
}

/// What a guest can use of the extended state besides the registers themselves; the rest may stay the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// XCR0, while CR4.OSXSAVE is set: without it the instructions that look at XCR0 are #UD.
    pub xcr0: Option<u64>,
    /// XSAVES executes: IA32_XSS must be the guest's, which is 0.
    pub xsaves: bool,
    /// PKRU, while CR4.PKE is set or XSAVE reaches it.
    pub pkru: Option<u32>,
}

/// What [`Host::unload_state`] found in the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// DR0 to DR3, if the guest had them for itself.
    pub dr: [u64; 4],
    /// PKRU, if the guest had one.
    pub pkru: Option<u32>,
}

/// Services for one vCPU's thread. Methods marked "atomic" may be called with interrupts off.
pub trait Host {
    /// The backend's per-CPU part.
    type Cpu;

    /// This CPU's part (atomic; preemption is off).
    fn cpu(&self) -> &Self::Cpu;

    // --- mechanisms ---
    /// Those whose switch is on in this VM.
    fn wanted(&self) -> Set;
    /// What stands against mechanisms in this VM and on this host, apart from what the vCPU itself knows.
    fn facts(&self) -> Facts;

    // --- guest memory: RAM slots only ---
    /// Reads guest-physical memory; may sleep for paging. `false`: no slot or no page there; if the page has a memory error, with
    /// [`Host::memory_error`].
    fn read_guest(&self, gpa: u64, buf: &mut [u8]) -> bool;
    /// Writes guest-physical memory and marks it dirty; may sleep. `false`: no slot, read-only or no page, as for
    /// [`Host::read_guest`].
    fn write_guest(&self, gpa: u64, data: &[u8]) -> bool;
    /// As [`Host::read_guest`], but never sleeps: `false` also when the page is not resident (atomic).
    fn read_guest_atomic(&self, gpa: u64, buf: &mut [u8]) -> bool;
    /// 8 bytes that lie in one page, otherwise as [`Host::read_guest_atomic`]: what page-table walks use.
    fn read_u64_atomic(&self, gpa: u64) -> Option<u64> {
        let mut b = [0; 8];
        self.read_guest_atomic(gpa, &mut b).then(|| u64::from_le_bytes(b))
    }
    /// Loads 8 aligned bytes that guest and host share, without sleeping: `None` also when the page is not resident (atomic).
    fn load_shared(&self, gpa: u64) -> Option<u64>;
    /// Stores such bytes and marks the page dirty; `false` also when it is not resident (atomic).
    fn store_shared(&self, gpa: u64, value: u64) -> bool;
    /// Compare-and-exchange of `size` (1, 2, 4, 8) aligned bytes; `None`: not writable memory.
    fn cmpxchg_guest(&self, gpa: u64, size: u8, old: u64, new: u64) -> Option<bool>;
    /// Whether a RAM slot (writable, if `write`) backs the address.
    fn is_ram(&self, gpa: u64, write: bool) -> bool;
    /// Resolves a second-level fault; may sleep. `waits`: however long the page takes; else [`FaultOutcome::Slow`] is an answer too.
    fn slat_fault(&self, gpa: u64, write: bool, fetch: bool, waits: bool) -> FaultOutcome;
    /// Somebody else waits for the page at `hva`, a [`FaultOutcome::Slow`], and tells [`crate::shared::Brought::end`] of it as this `place`. `false`:
    /// nobody.
    fn bring_page(&self, hva: u64, write: bool, place: u8) -> bool;

    /// Writes to some slot are logged by the CPU.
    fn logs_in_cpu(&self) -> bool;
    /// The guest wrote the page of `gpa`.
    fn mark_dirty(&self, gpa: u64);
    /// Somebody hears of any write to `gpa`, whatever its length and data (KVM_IOEVENTFD).
    fn is_doorbell(&self, gpa: u64) -> bool;
    /// A write to `gpa` is told to whom [`Host::is_doorbell`] means; `false`: nobody, or not in a slice (atomic).
    fn ring(&self, gpa: u64) -> bool;
    /// No memory is at `gpa`: faults there are marked from now on, if the tables can. May sleep.
    fn mark_device(&self, gpa: u64);

    /// User space wants to hear of every instruction that the emulator cannot do (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
    fn exits_on_failure(&self) -> bool;

    // --- devices in the kernel ---
    /// Reads `data.len()` bytes from a port; `false`: nobody in the kernel (atomic).
    fn pio_read(&self, port: u16, data: &mut [u8]) -> bool;
    /// Writes a port of a chip in the kernel; `false`: nobody there (atomic).
    fn pio_write(&self, port: u16, data: &[u8]) -> bool;
    /// A port write that needs no exit: it signals an eventfd or waits in the coalesced ring; `false`: it needs one, or cannot in
    /// a slice (atomic).
    fn pio_event(&self, port: u16, data: &[u8]) -> bool;
    /// Reads a chip's registers; `false`: nobody in the kernel.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool;
    /// As [`Host::pio_event`] for memory, and registers of chips; `false`: nobody in the kernel.
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool;
    /// Delivers an IPI sent by this vCPU.
    fn send_ipi(&self, msg: &InterruptMessage);
    /// The same, if whom it names can be looked up and is not more than 16 vCPUs, and `first` succeeds, which is done before (atomic).
    ///
    /// # Errors
    /// `first`'s, or [`Fallback::Targets`] without it: nothing was sent.
    fn send_ipi_to_few(
        &self,
        msg: &InterruptMessage,
        first: impl FnOnce() -> Result<(), Fallback>,
    ) -> Result<(), Fallback>;
    /// Sends what is nothing but an interrupt, to whoever can be looked up, behind `first`, if that succeeds. `false`: nothing was sent,
    /// [`Host::send_ipi_to_few`] knows more (atomic).
    fn send_plain(&self, plain: PlainIpi, first: impl FnOnce() -> bool) -> bool;
    /// Delivers a message to the vCPU whose APIC has the physical id `id`. `true`: it took it (atomic).
    fn send_to(&self, id: u32, msg: &InterruptMessage) -> bool;
    /// Ends the halt of the vCPU whose APIC has that id: of the present one, else of its next (atomic).
    fn unhalt(&self, id: u32);
    /// This vCPU ended an interrupt; `level`: it was level triggered. `true`: the I/O APIC that must hear of it is in
    /// user space.
    fn ioapic_eoi(&self, vector: u8, level: bool) -> bool;
    /// A chip, here or in user space, wants to hear of this vector's EOI (atomic).
    fn wants_eoi(&self, vector: u8) -> bool;
    /// All such vectors, 64 to a word (atomic).
    fn eoi_vectors(&self) -> [u64; 4];
    /// The 8259 pair asserts its output (atomic).
    fn pic_pending(&self) -> bool;
    /// Acknowledges the 8259 pair: the vector (atomic).
    fn pic_ack(&self) -> u8;
    /// Whether the VM has the local APICs in the kernel; the other controllers may be in user space all the same
    /// (KVM_CAP_SPLIT_IRQCHIP).
    fn irqchip(&self) -> bool;
    /// The guest changed its APIC's id, mode or logical id: whoever caches destinations must look again.
    fn apic_moved(&self);

    // --- where the CPU is told where to send IPIs (AVIC) ---
    /// The APIC id of this CPU (atomic; preemption is off).
    fn apic_id(&self) -> u32;
    /// From now on hardware senders find this vCPU's APIC, or not any more.
    fn found_by_hardware(&self, found: bool);
    /// The guest finds the window to its descriptors.
    fn open_window(&self);
    /// All vCPUs of the VM look at what was posted to them.
    fn all_look(&self);
    /// They find every APIC of the VM, and what they send is not lost (atomic).
    fn hardware_sends(&self) -> bool;
    /// Hardware has made this vCPU's IPI pending everywhere: tells those that it names.
    fn tell_ipi(&self, msg: &InterruptMessage);
    /// Somebody wants to hear of the EOIs of edge-triggered interrupts (atomic).
    fn edge_eois(&self) -> bool;

    // --- time ---
    /// Where time is counted, while somebody measures (atomic).
    fn times(&self) -> Option<&Times>;
    /// Now (atomic).
    fn now(&self) -> Moment;
    /// The host TSC's rate, kHz.
    fn tsc_khz(&self) -> u32;
    /// IA32_ARCH_CAPABILITIES of a new vCPU.
    fn arch_capabilities(&self) -> u64;
    /// The host's TSC (atomic).
    fn tsc(&self) -> u64;
    /// How early the CPU's timer shall run out, ns, the rest is waited awake; `None`: as experience tells.
    fn timer_advance_ns(&self) -> Option<u32>;
    /// Arms the vCPU's timer for an absolute time in ns (atomic).
    fn arm_timer(&self, ns: u64);
    /// The same, to fire on a CPU that keeps house for others; it is queued there in a moment (atomic).
    fn arm_timer_elsewhere(&self, ns: u64);
    /// Stops the vCPU's timer, without waiting for one that is firing: that one finds by [`crate::VcpuShared::timer`] that it is not
    /// meant (atomic).
    fn cancel_timer(&self);
    /// This thread came to another CPU. Timers that interrupt it fire on this one from now on: the vCPU's, if it is armed, and
    /// those of the VM's chips.
    fn bring_timers(&self, armed: bool);
    /// The VM's clock pair.
    fn master_clock(&self) -> MasterClock;
    /// The host's wall clock, ns since the epoch, and its TSC at that moment; `None`: the host does not count by its TSC.
    fn wall_clock_pair(&self) -> Option<(u64, u64)>;
    /// Wall-clock time of guest time zero, ns since the epoch.
    fn wall_clock_base(&self) -> u64;
    /// The host's TSC counts the same on all CPUs, as far as the host knows (atomic).
    fn steady_tsc(&self) -> bool;
    /// Offset for a TSC write of user space at that rate, matched with its writes to the other vCPUs.
    fn match_tsc(&self, value: u64, rate: &Rate) -> u64;
    /// This vCPU's TSC in [`crate::VcpuShared::tsc`] is another: do all still agree?
    fn tsc_moved(&self);
    /// By how many ticks this CPU's TSC is behind where this vCPU left its last one's and time has gone since, suspends apart;
    /// negative: before. Told once.
    fn take_tsc_jump(&self) -> i64;
    /// How long this thread waited runnable, ns since it began.
    fn run_delay(&self) -> u64;

    // --- this thread ---
    /// Disables interrupts and preemption for one slice of guest running.
    fn slice_begin(&self);
    /// Re-enables them.
    fn slice_end(&self);
    /// A signal, a reschedule or other return-to-user work waits (atomic).
    fn work_pending(&self) -> bool;
    /// Somebody may want to hear of [`Host::trace`]'s events (atomic).
    fn tracing(&self) -> bool;
    /// Tells an event of this vCPU, in the host's state (atomic).
    fn trace(&self, event: &Trace);
    /// Does that work; `false`: a signal must be taken, leave for user space.
    fn do_work(&self) -> bool;
    /// Makes the guest's FPU state live (atomic, in a slice).
    fn fpu_live(&self);
    /// Switches what the guest can use of the extended state, and DR0 to DR3 if given, to the guest's (atomic, in a slice, after
    /// [`Host::fpu_live`]).
    fn load_state(&self, state: &Extended, debug: Option<[u64; 4]>);
    /// Switches them back, after the same `state` was loaded; `debug`: the guest had DR0 to DR3 for itself (atomic).
    fn unload_state(&self, state: &Extended, debug: bool) -> Taken;
    /// The guest asked for an indirect branch prediction barrier: for it alone, so what the host does for itself plays no part.
    /// `false`: the CPU has none.
    fn branch_barrier(&self) -> bool;
    /// From now on the guest makes such barriers without an exit: they count wherever the vCPU ran before.
    fn barriers_unseen(&self);
    /// The guest flushes the L1 data cache, on a CPU that can.
    fn flush_l1d(&self);
    /// The guest wrote TSC_AUX: load the new value.
    fn reload_tsc_aux(&self, value: u64);
    /// Gives up and retakes the lock on slots and routes, so that an update may finish.
    fn quiesce(&self);
    /// This vCPU spins: lets one run for which it may wait. `false`: it found none.
    fn spin(&self) -> bool;
    /// No other thread waits for this CPU (atomic).
    fn alone(&self) -> bool;
    /// Lets the vCPU whose APIC has that id run in this one's place, if it is ready. `false`: it did not.
    fn yield_to(&self, id: u32) -> bool;
    /// Waits awake for a moment, at most until `until` (ns on the host's monotonic clock), because sleeping and waking up cost
    /// more; `true`: the vCPU has something to do. Never waits while another thread or a signal does.
    fn poll(&self, until: u64) -> bool;
    /// Sends this thread the signal that the hardware's error would bring if it read `hva` itself.
    fn memory_error(&self, hva: u64);
    /// Sleeps until the vCPU has something to do or a signal waits; `false`: a signal.
    fn block(&self) -> bool;
    /// User space asked for an immediate exit (`kvm_run.immediate_exit`).
    fn immediate_exit(&self) -> bool;
    /// Reads from the I/O data page of `kvm_run`.
    fn io_page_read(&self, offset: usize, buf: &mut [u8]);
    /// Writes the I/O data page of `kvm_run`.
    fn io_page_write(&self, offset: usize, data: &[u8]);
    /// The bytes user space answered an MMIO read with.
    fn mmio_answer(&self) -> [u8; 8];
    /// Extended state: reads XMM register `i`.
    fn xmm(&self, i: usize) -> [u8; 16];
    /// Extended state: writes XMM register `i`.
    fn set_xmm(&self, i: usize, v: [u8; 16]);
    /// MMX register `i`, as MOVQ reads it: the x87 registers are MMX registers afterwards.
    fn mmx(&self, i: usize) -> u64;
    /// Writes MMX register `i`, as MOVQ does.
    fn set_mmx(&self, i: usize, v: u64);
    /// The x87 control word.
    fn x87_control(&self) -> u16;
    /// The x87 status word; bit 7: an unmasked exception waits, and MMX registers are out of reach.
    fn x87_status(&self) -> u16;
}
