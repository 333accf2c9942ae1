//! The configuration word of a test record; shared with the runner, which includes this file.
#![allow(dead_code)]

/// Start mode of CPU 0 (bits 0-3).
pub const MODE_MASK: u64 = 0xf;
/// 64-bit mode, identity map of 4 GiB with 2 MiB pages.
pub const MODE_LONG: u64 = 0;
/// 16-bit real mode, CS base 0.
pub const MODE_REAL: u64 = 1;
/// 32-bit protected mode, flat segments, paging off.
pub const MODE_PROT32: u64 = 2;
/// 32-bit protected mode, PAE paging on.
pub const MODE_PAE32: u64 = 3;
/// 32-bit protected mode, two-level paging with 4 MiB pages on.
pub const MODE_PSE32: u64 = 4;

/// vCPUs that a guest has room for.
pub const MAX_CPUS: usize = 9;
/// Number of vCPUs minus one (bits 4-7).
pub const CPUS_SHIFT: u64 = 4;
pub const fn cpus(n: u64) -> u64 {
    (n - 1) << CPUS_SHIFT
}

/// No in-kernel interrupt chips at all: HLT and interrupt windows come to user space.
pub const NO_IRQCHIP: u64 = 1 << 8;
/// No in-kernel PIT.
pub const NO_PIT: u64 = 1 << 9;
/// In-kernel local APICs only (KVM_CAP_SPLIT_IRQCHIP).
pub const SPLIT: u64 = 1 << 10;
/// Not a test: a measurement for `bench`.
pub const BENCH: u64 = 1 << 11;
/// Main memory asks for huge pages.
pub const HUGE: u64 = 1 << 12;
/// CPUID hides RDTSCP, RDPID, INVPCID, RDRAND and RDSEED.
pub const FEW: u64 = 1 << 13;
/// Something has to happen to the host meanwhile: run only if its whole name is asked for.
pub const BY_NAME: u64 = 1 << 14;

/// The guest idles without exits: all that KVM_CAP_X86_DISABLE_EXITS offers.
pub const IDLE: u64 = 1 << 15;

/// Time limit in seconds (bits 16-23), 0 for the default.
pub const TIMEOUT_SHIFT: u64 = 16;
pub const fn timeout(seconds: u64) -> u64 {
    seconds << TIMEOUT_SHIFT
}

// Ports of the runner.
/// Text for the report, one byte at a time.
pub const PORT_LOG: u16 = 0x3f0;
/// 32-bit result: see `EXIT_*`.
pub const PORT_EXIT: u16 = 0x3f4;
/// 32-bit physical address of a `Command`.
pub const PORT_CMD: u16 = 0x3f8;
/// 32-bit KVM_EXIT_* number: the test passes when this CPU's next exit is that one.
pub const PORT_EXPECT: u16 = 0x3fc;

/// Values written to `PORT_EXIT`; anything from 16 on is a failed check's number of an assembly guest.
pub const EXIT_PASS: u32 = 0;
pub const EXIT_FAIL: u32 = 1;
pub const EXIT_SKIP: u32 = 2;

// Memory map.
/// Size of the main RAM slots (0 to 640 KiB and 1 MiB to this).
pub const RAM_SIZE: u64 = 32 << 20;
pub const LOW_RAM_END: u64 = 0xa_0000;
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// The runner's page tables.
pub const PML4: u64 = 0x9_0000;
pub const PDPT: u64 = 0x9_1000;
pub const PD: u64 = 0x9_2000;
pub const PD32: u64 = 0x9_6000;
pub const PDPT_PAE: u64 = 0x9_7000;
/// The user-space MMIO device: storage that starts as `mmio_pattern(address)`.
pub const MMIO: u64 = 0xd000_0000;
pub const MMIO_SIZE: u64 = 0x1_0000;
/// One page of RAM directly below and one directly above the MMIO device.
pub const EDGE_LOW: u64 = MMIO - 0x1000;
pub const EDGE_HIGH: u64 = MMIO + MMIO_SIZE;
/// A second window of the same kind below 1 MiB, where real mode reaches it.
pub const MMIO_LOW: u64 = 0xa_0000;
pub const MMIO_LOW_SIZE: u64 = 0x2_0000;
/// First byte of the initial contents of the MMIO device at an address.
pub const fn mmio_pattern(gpa: u64) -> u8 {
    (gpa.wrapping_mul(7).wrapping_add(gpa >> 8) & 0xff) as u8 ^ 0x5a
}

/// Ports with storage semantics (16 of them).
pub const PIO_RAM: u16 = 0x5000;
/// Each element read takes the next bytes of a counter.
pub const PIO_IN: u16 = 0x5010;
/// Each element written is appended to a FIFO.
pub const PIO_OUT: u16 = 0x5020;

/// Size of the pool of host memory from which tests make their own slots.
pub const POOL_SIZE: u64 = 64 << 20;
/// First slot number a test may use.
pub const FREE_SLOT: u64 = 8;

/// Host services. Arguments and results are the words of `Command`.
pub mod op {
    /// a0 = capability; result = KVM_CHECK_EXTENSION on the VM.
    pub const QUERY_CAP: u64 = 1;
    /// a0 = GSI, a1 = level; result of KVM_IRQ_LINE_STATUS.
    pub const IRQ_LINE: u64 = 2;
    /// a0 = vCPU; KVM_NMI.
    pub const NMI: u64 = 3;
    /// a0 = address, a1 = data; KVM_SIGNAL_MSI.
    pub const MSI: u64 = 4;
    /// a0 = slot, a1 = GPA, a2 = size, a3 = offset in the pool, a4 = flags.
    pub const SLOT_SET: u64 = 6;
    /// a0 = pool offset, a1 = length; madvise(MADV_DONTNEED).
    pub const POOL_DONTNEED: u64 = 8;
    /// a0 = pool offset, a1 = length, a2 = PROT_*.
    pub const POOL_PROTECT: u64 = 9;
    /// a0 = pool offset, a1 = length: munmap, then map fresh zeroed memory at the same address.
    pub const POOL_REMAP: u64 = 10;
    /// a0 = pool offset; result = 64-bit word.
    pub const POOL_READ: u64 = 11;
    /// a0 = pool offset, a1 = value.
    pub const POOL_WRITE: u64 = 12;
    /// a0 = slot, a1 = GPA for the bitmap (one bit a page); KVM_GET_DIRTY_LOG.
    pub const DIRTY_LOG: u64 = 13;
    /// a0 = address, a1 = length, a2 = flags, a3 = datamatch; result = id.
    pub const IOEVENTFD: u64 = 14;
    /// a0 = id; result = counter, which is reset.
    pub const EVENT_READ: u64 = 15;
    /// a0 = address, a1 = length, a2 = flags, a3 = datamatch, a4 = id: deassign.
    pub const IOEVENTFD_OFF: u64 = 16;
    /// a0 = GSI, a1 = nonzero for a resample eventfd; result = id (the resample eventfd is id + 1).
    pub const IRQFD: u64 = 17;
    /// a0 = id: write 1 to that eventfd.
    pub const EVENT_SIGNAL: u64 = 18;
    /// a0 = GSI, a1 = id: deassign.
    pub const IRQFD_OFF: u64 = 19;
    /// Result = KVM_GET_TSC_KHZ.
    pub const TSC_KHZ: u64 = 20;
    /// a0 = GPA for up to 64 records of (address, length | write << 32, data); result = count. Clears the log.
    pub const MMIO_LOG: u64 = 22;
    /// a0 = GPA, a1 = room; result = bytes taken from the output FIFO. Resets the input counter too.
    pub const FIFO_READ: u64 = 23;
    /// a0 = vector; KVM_INTERRUPT on the calling vCPU.
    pub const INTERRUPT: u64 = 24;
    /// Result = exits of this VM so far (statistics), or !0.
    pub const EXITS: u64 = 25;
    /// a0 = microseconds that the calling vCPU stays in user space.
    pub const SLEEP_US: u64 = 27;
    /// a0 = vCPU, a1 = count, a2 = microseconds between: a thread sends signals to that vCPU's thread.
    pub const KICK: u64 = 28;
    /// a0 = GPA of (gsi, address, data) records, a1 = count: the default table plus these MSI routes.
    pub const ROUTE_MSI: u64 = 29;
    /// a0 = GPA of the name, a1 = its length, a2 = ticks, a3 = operations, a4 = exits, a5 = the fastest batch's mark: one
    /// measurement.
    pub const BENCH: u64 = 30;
    /// The host thread overwrites its own vector registers.
    pub const CLOBBER_FPU: u64 = 31;
    /// a0 = host CPU: the calling vCPU's thread moves there.
    pub const MIGRATE: u64 = 32;
    /// a0 = KVM_EXIT_* number; result = exits of that kind of this VM that reached user space.
    pub const USER_EXITS: u64 = 33;
    /// a0 = microseconds, then a1.. = op and arguments: run that service later from another thread.
    pub const AFTER: u64 = 35;
    /// Asks for an interrupt window exit of the calling vCPU; the runner injects vector a0 then.
    pub const WINDOW_INJECT: u64 = 36;
    /// GET and SET of all state of the calling vCPU (regs, sregs, xsave, xcrs, debugregs, events, lapic).
    pub const STATE_ROUND_TRIP: u64 = 38;
    /// a0 = index; result = value of the MSR by KVM_GET_MSRS of the calling vCPU.
    pub const GET_MSR: u64 = 39;
    /// a0 = index, a1 = value; result = KVM_SET_MSRS count.
    pub const SET_MSR: u64 = 40;
    /// a0 = vCPU; result = KVM_GET_MP_STATE.
    pub const MP_STATE: u64 = 41;
    /// a0 = pool offset, a1 = length; madvise(MADV_HUGEPAGE) and touch.
    pub const POOL_HUGE: u64 = 42;
    /// a0 = register offset; result = 32-bit word of KVM_GET_LAPIC of the calling vCPU.
    pub const GET_LAPIC: u64 = 43;
    /// Result = KVM_GET_CLOCK in nanoseconds.
    pub const GET_CLOCK: u64 = 44;
    /// a0 = slot, a1 = new GPA: the same slot, moved.
    pub const SLOT_MOVE: u64 = 45;
    /// Result = number of host CPUs.
    pub const HOST_CPUS: u64 = 46;
    /// a1 = channel; result = mode | gate << 8 | count << 16 by KVM_GET_PIT2.
    pub const GET_PIT: u64 = 47;
    /// a0 = slot: delete it and add it again unchanged, in one step as seen by the calling vCPU.
    pub const SLOT_ZAP: u64 = 48;
    /// Ends the test as passed (from another thread, with AFTER).
    pub const PASS: u64 = 49;
    /// a0 = kHz; KVM_SET_TSC_KHZ on the calling vCPU.
    pub const SET_TSC_KHZ: u64 = 50;
    /// Result = the runner's process: different for each test while the host is up.
    pub const PROCESS: u64 = 51;
    /// Result = instructions that the module emulated for this VM so far (statistics).
    pub const EMULATIONS: u64 = 52;
    /// Result = HLT exits of this VM so far (statistics).
    pub const HALTS: u64 = 65;
    /// a0 = GPA of the name, a1 = its length, a2 = operations of a batch, a3 = the first batch's mark, a4 = batches: one
    /// measurement of what an emulator counted.
    pub const BENCH_HOST: u64 = 53;
    /// Result = CPU time of the runner's process so far, all its vCPUs, in nanoseconds.
    pub const CPU_TIME: u64 = 54;
    /// a0 = how often: the guest moves to a new VM, with all its state, at random moments.
    pub const MOVE: u64 = 56;
    /// Result = how often it has.
    pub const MOVES: u64 = 57;
    /// a0 = pool offset, a1 = length: pages that are missing there come when PAGE_COMES says so (userfaultfd).
    pub const SLOW_PAGES: u64 = 58;
    /// a0 = pool offset: a page of zeroes comes.
    pub const PAGE_COMES: u64 = 59;
    /// a0 = linear address, a1 = nonzero: the calling vCPU comes to user space in front of the instruction there, once, and the guest moves
    /// to a new VM meanwhile if asked to.
    pub const STOP_AT: u64 = 70;
    /// a0 = GSI, a1 = id: an irqfd on an eventfd that is there.
    pub const IRQFD_OF: u64 = 55;
}
