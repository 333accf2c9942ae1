//! One small VM: memory, vCPUs in their start mode, a thread each, and the loop around KVM_RUN.
//!
//! States of a test: *running* until the guest writes `PORT_EXIT`, an expected or an impossible exit comes, or the time
//! limit passes; then *ended*: the outcome is set once, all vCPUs are kicked out of KVM_RUN and joined.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use kvm_bindings::*;

use crate::config::*;
use crate::devices::Devices;
use crate::elf::{self, Test};
use crate::harness::Outcome;
use crate::kvm::{self, Errno, Fd, Map, nr};

/// One vCPU: descriptor, shared page and what other threads ask of its thread.
pub struct Vcpu {
    /// The vCPU descriptor.
    pub fd: Fd,
    /// The `kvm_run` mapping.
    pub map: Map,
    /// vCPU id.
    pub id: u32,
    pub(crate) thread: AtomicU64,
    expect: AtomicU32,
    /// KVM_NMI calls that the vCPU's thread owes.
    pub(crate) nmis: AtomicU32,
    /// Vector to inject when an interrupt window opens (only without in-kernel chips), or 0.
    pub(crate) window: AtomicU32,
    /// The guest moves where the vCPU stops for `STOP_AT`.
    pub(crate) moves_there: AtomicBool,
}

impl Vcpu {
    /// The shared page.
    pub fn run(&self) -> *mut kvm_run {
        self.map.ptr().cast()
    }

    fn immediate_exit(&self, v: u8) {
        // SAFETY: the field is one byte that the API shares between threads on purpose.
        unsafe { (&raw mut (*self.run()).immediate_exit).write_volatile(v) }
    }

    /// Makes the vCPU's thread leave KVM_RUN.
    pub fn kick(&self) {
        self.immediate_exit(1);
        self.signal();
    }

    /// Sends a signal to the vCPU's thread without asking it for anything.
    pub fn signal(&self) {
        let t = self.thread.load(Ordering::SeqCst);
        if t != 0 {
            // SAFETY: the thread is not joined while `thread` is nonzero.
            unsafe { libc::pthread_kill(t as libc::pthread_t, libc::SIGUSR1) };
        }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Operation.
    pub op: String,
    /// TSC ticks of all operations; `None` where only an emulator counts.
    pub ticks: Option<u64>,
    /// Number of operations.
    pub count: u64,
    /// Exits of the VM meanwhile, if the module has statistics.
    pub exits: Option<u64>,
    /// Mark of the fastest batch, by which an emulator's ledger has a line of it; without ticks of the first batch.
    pub mark: u64,
    /// Batches with marks from this one on.
    pub batches: u64,
}

/// The VM and everything that its threads share.
pub struct Machine {
    /// System descriptor.
    pub sys: Fd,
    /// VM descriptor.
    pub vm: Fd,
    /// Main memory, offset = guest-physical address.
    pub ram: Map,
    edges: Map,
    /// Memory for slots that tests make.
    pub pool: Map,
    /// The vCPUs.
    pub vcpus: Vec<Arc<Vcpu>>,
    pub(crate) devices: Mutex<Devices>,
    pub(crate) events: Mutex<Vec<Fd>>,
    pub(crate) uffd: Mutex<Option<Fd>>,
    pub(crate) slots: Mutex<HashMap<u32, kvm_userspace_memory_region>>,
    pub(crate) exit_counts: Mutex<HashMap<u32, u64>>,
    pub(crate) benches: Mutex<Vec<Measurement>>,
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
    over: AtomicBool,
    config: u64,
    pub(crate) device: String,
    /// The command that loads the other module while the guest moves.
    pub swap: OnceLock<String>,
    /// How often the guest has moved to another VM.
    pub(crate) moves: AtomicU64,
    stops: AtomicBool,
    stopped: AtomicU32,
}

/// A lock whose poisoning nobody cares about: a panicking thread has ended the test anyway.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

extern "C" fn ignore(_: libc::c_int) {}

fn install_kick_handler() {
    // SAFETY: an empty handler, without SA_RESTART so that KVM_RUN returns EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

const CODE: u8 = 0xb;
const DATA: u8 = 0x3;

fn segment(selector: u16, type_: u8, bits: u32) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: if bits == 16 { 0xffff } else { 0xffff_ffff },
        selector,
        type_,
        present: 1,
        db: u8::from(bits == 32),
        s: 1,
        l: u8::from(bits == 64),
        g: u8::from(bits != 16),
        ..Default::default()
    }
}

impl Machine {
    /// Builds the VM of a test on the device at `path`.
    pub fn new(path: &str, test: &Test) -> Result<Arc<Machine>, String> {
        let at = |what: &'static str| move |e: Errno| format!("{what}: {e}");
        let sys = kvm::open(path).map_err(|e| format!("{path}: {e}"))?;
        let version = sys.call(nr::GET_API_VERSION, 0).map_err(at("KVM_GET_API_VERSION"))?;
        if version != 12 {
            return Err(format!("API version {version}"));
        }
        let config = test.config;
        let vm = create(&sys, config)?;
        let ram = Map::anon(RAM_SIZE as usize).map_err(at("guest memory"))?;
        let edges = Map::anon(0x2000).map_err(at("guest memory"))?;
        let pool = Map::anon(POOL_SIZE as usize).map_err(at("guest memory"))?;
        if config & HUGE != 0 {
            // SAFETY: our own mapping.
            unsafe { libc::madvise(ram.ptr().cast(), ram.size(), libc::MADV_HUGEPAGE) };
        }
        map_memory(&vm, &ram, &edges)?;
        load(&ram);

        let count = (config >> CPUS_SHIFT & 0xf) as u32 + 1;
        let size = sys.call(nr::GET_VCPU_MMAP_SIZE, 0).map_err(at("KVM_GET_VCPU_MMAP_SIZE"))? as usize;
        let mut vcpus = Vec::new();
        for id in 0..count {
            let fd = create_vcpu(&sys, &vm, id, config)?;
            let map = Map::fd(fd.raw(), size, 0).map_err(at("mmap of the vCPU"))?;
            if id == 0 {
                start_state(&fd, test).map_err(at("start state"))?;
            }
            vcpus.push(Arc::new(Vcpu {
                fd,
                map,
                id,
                thread: AtomicU64::new(0),
                expect: AtomicU32::new(0),
                nmis: AtomicU32::new(0),
                window: AtomicU32::new(0),
                moves_there: AtomicBool::new(false),
            }));
        }
        Ok(Arc::new(Machine {
            sys,
            vm,
            ram,
            edges,
            pool,
            vcpus,
            devices: Mutex::new(Devices::new()),
            events: Mutex::new(Vec::new()),
            uffd: Mutex::new(None),
            slots: Mutex::new(HashMap::new()),
            exit_counts: Mutex::new(HashMap::new()),
            benches: Mutex::new(Vec::new()),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
            over: AtomicBool::new(false),
            config,
            device: path.into(),
            swap: OnceLock::new(),
            moves: AtomicU64::new(0),
            stops: AtomicBool::new(false),
            stopped: AtomicU32::new(0),
        }))
    }

    /// A VM like this one, with its memory and no vCPUs.
    pub(crate) fn new_vm(&self) -> Result<Fd, String> {
        let vm = create(&self.sys, self.config)?;
        map_memory(&vm, &self.ram, &self.edges)?;
        for slot in lock(&self.slots).values() {
            vm.set(nr::SET_USER_MEMORY_REGION, slot)
                .map_err(|e| format!("KVM_SET_USER_MEMORY_REGION: {e}"))?;
        }
        Ok(vm)
    }

    /// A vCPU of such a VM.
    pub(crate) fn new_vcpu(&self, vm: &Fd, id: u32) -> Result<Fd, String> {
        create_vcpu(&self.sys, vm, id, self.config)
    }

    /// A bit of the test's configuration.
    pub(crate) fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// All vCPUs come out of KVM_RUN, with nothing half done, and wait. `false`: the test is over.
    pub(crate) fn stop(&self) -> bool {
        self.stops.store(true, Ordering::SeqCst);
        while self.stopped.load(Ordering::SeqCst) != self.vcpus.len() as u32 {
            if self.is_over() {
                return false;
            }
            self.vcpus.iter().for_each(|v| v.kick());
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// They go on.
    pub(crate) fn go_on(&self) {
        self.stops.store(false, Ordering::SeqCst);
        while self.stopped.load(Ordering::SeqCst) != 0 && !self.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// A vCPU's thread waits as long as somebody wants it to.
    fn stand_still(&self) {
        self.stopped.fetch_add(1, Ordering::SeqCst);
        while self.stops.load(Ordering::SeqCst) && !self.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.stopped.fetch_sub(1, Ordering::SeqCst);
    }

    /// Sets the outcome unless there is one already.
    pub fn end(&self, outcome: Outcome) {
        let mut o = lock(&self.outcome);
        if o.is_none() {
            let text = lock(&self.devices).text.clone();
            *o = Some(match outcome {
                Outcome::Failed(t) if !text.is_empty() => Outcome::Failed(format!("{text} {t}")),
                o => o,
            });
        }
        self.over.store(true, Ordering::SeqCst);
        self.ended.notify_all();
    }

    /// True once the outcome is known.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Number of measurements and other results after the run.
    pub fn measurements(&self) -> Vec<Measurement> {
        lock(&self.benches).clone()
    }

    /// One file of the VM's statistics in debugfs.
    pub fn statistics(&self, file: &str) -> std::io::Result<String> {
        let vm = self.vm.raw();
        std::fs::read_to_string(format!("/sys/kernel/debug/kvm/{}-{vm}/{file}", std::process::id()))
    }

    /// True when the VM has in-kernel local APICs.
    pub fn has_irqchip(&self) -> bool {
        self.config & NO_IRQCHIP == 0
    }

    /// Text that the guest wrote, with the code's meaning.
    fn guest_exit(&self, code: u32) {
        let text = lock(&self.devices).text.clone();
        self.end(match code {
            EXIT_PASS => Outcome::Passed,
            EXIT_SKIP if text.is_empty() => Outcome::Skipped("not on this CPU".into()),
            EXIT_SKIP => Outcome::Skipped(text),
            EXIT_FAIL => Outcome::Failed(String::new()),
            n => Outcome::Failed(format!("check {n:#x}")),
        });
    }

    /// Host address of guest memory, when one of the fixed slots holds the whole range.
    pub fn guest(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        if gpa.checked_add(len)? <= RAM_SIZE {
            return Some(self.ram.ptr().wrapping_add(gpa as usize));
        }
        for (start, offset) in [(EDGE_LOW, 0), (EDGE_HIGH, 0x1000)] {
            if gpa >= start && gpa + len <= start + 0x1000 {
                return Some(self.edges.ptr().wrapping_add((gpa - start) as usize + offset));
            }
        }
        None
    }

    /// Runs all vCPUs until the test ends or the limit passes.
    pub fn execute(self: &Arc<Machine>, limit: Duration) -> Outcome {
        install_kick_handler();
        let threads: Vec<_> = self
            .vcpus
            .iter()
            .map(|vcpu| {
                let (machine, vcpu) = (self.clone(), vcpu.clone());
                std::thread::spawn(move || {
                    // SAFETY: no preconditions.
                    vcpu.thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
                    machine.run_vcpu(&vcpu);
                    vcpu.thread.store(0, Ordering::SeqCst);
                })
            })
            .collect();
        let end = Instant::now() + limit;
        let mut outcome = lock(&self.outcome);
        while outcome.is_none() {
            let now = Instant::now();
            if now >= end {
                break;
            }
            outcome = match self.ended.wait_timeout(outcome, end - now) {
                Ok((o, _)) => o,
                Err(e) => e.into_inner().0,
            };
        }
        let timed_out = outcome.is_none();
        drop(outcome);
        self.over.store(true, Ordering::SeqCst);
        let patience = Instant::now() + Duration::from_secs(20);
        while threads.iter().any(|t| !t.is_finished()) && Instant::now() < patience {
            for v in &self.vcpus {
                v.kick();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for (t, v) in threads.into_iter().zip(&self.vcpus) {
            if !t.is_finished() {
                return Outcome::Failed(format!("vCPU {} cannot be kicked out of KVM_RUN", v.id));
            }
            if t.join().is_err() {
                return Outcome::Failed(format!("the thread of vCPU {} panicked", v.id));
            }
        }
        if timed_out {
            self.end(Outcome::Failed(format!(
                "no end after {} s;{}",
                limit.as_secs(),
                self.where_are_they()
            )));
        }
        lock(&self.outcome).clone().unwrap_or(Outcome::Failed("no outcome".into()))
    }

    fn where_are_they(&self) -> String {
        let mut text = String::new();
        for v in &self.vcpus {
            if let (Ok(r), Ok(s)) = (v.fd.get::<kvm_regs>(nr::GET_REGS), v.fd.get::<kvm_sregs>(nr::GET_SREGS))
            {
                text += &format!(
                    " cpu{} rip={:#x} cs={:#x} rsp={:#x} flags={:#x} cr0={:#x} rax={:#x}",
                    v.id, r.rip, s.cs.selector, r.rsp, r.rflags, s.cr0, r.rax
                );
            }
        }
        text
    }

    fn run_vcpu(self: &Arc<Machine>, v: &Arc<Vcpu>) {
        let mut halts = 0;
        while !self.is_over() {
            let stops = self.stops.load(Ordering::SeqCst);
            v.immediate_exit(stops.into());
            while v.nmis.load(Ordering::SeqCst) > 0 {
                v.nmis.fetch_sub(1, Ordering::SeqCst);
                if let Err(e) = v.fd.call(nr::NMI, 0) {
                    return self.end(Outcome::Failed(format!("KVM_NMI: {e}")));
                }
            }
            let window = v.window.load(Ordering::SeqCst) != 0;
            // SAFETY: this thread owns the page between two KVM_RUN calls.
            unsafe { (*v.run()).request_interrupt_window = u8::from(window) };
            if self.is_over() {
                return;
            }
            match v.fd.call(nr::RUN, 0) {
                Err(Errno(libc::EINTR)) if stops => {
                    self.stand_still();
                    continue;
                }
                Err(Errno(libc::EINTR | libc::EAGAIN)) => continue,
                Err(e) => return self.end(Outcome::Failed(format!("KVM_RUN on vCPU {}: {e}", v.id))),
                Ok(_) => {}
            }
            // SAFETY: as above.
            let run = unsafe { &mut *v.run() };
            let reason = run.exit_reason;
            *lock(&self.exit_counts).entry(reason).or_default() += 1;
            if v.expect.load(Ordering::SeqCst) == reason
                && !(reason == KVM_EXIT_IO || reason == KVM_EXIT_MMIO)
            {
                return self.end(Outcome::Passed);
            }
            match reason {
                KVM_EXIT_IO => self.io(v, run),
                KVM_EXIT_MMIO => self.mmio(run),
                KVM_EXIT_DEBUG => self.stopped_at(v),
                KVM_EXIT_IRQ_WINDOW_OPEN => self.window(v),
                KVM_EXIT_HLT if !self.has_irqchip() => {
                    self.window(v);
                    halts += 1;
                    if halts > 2000 {
                        self.end(Outcome::Failed("HLT without anything to wake it".into()));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => self.unexpected(v, run),
            }
        }
    }

    /// In front of the instruction that the guest named.
    fn stopped_at(self: &Arc<Machine>, v: &Vcpu) {
        if let Err(e) = v.fd.set(nr::SET_GUEST_DEBUG, &kvm_guest_debug::default()) {
            return self.end(Outcome::Failed(format!("KVM_SET_GUEST_DEBUG: {e}")));
        }
        if v.moves_there.swap(false, Ordering::SeqCst) {
            crate::moves::start_now(self);
            while !self.stops.load(Ordering::SeqCst) && !self.is_over() {
                std::thread::yield_now();
            }
        }
    }

    fn window(&self, v: &Vcpu) {
        // SAFETY: called by the vCPU's thread between two KVM_RUN calls.
        if unsafe { (*v.run()).ready_for_interrupt_injection } == 0 {
            return;
        }
        let vector = v.window.swap(0, Ordering::SeqCst);
        if vector != 0
            && let Err(e) = v.fd.set(nr::INTERRUPT, &vector)
        {
            self.end(Outcome::Failed(format!("KVM_INTERRUPT: {e}")));
        }
    }

    fn unexpected(&self, v: &Vcpu, run: &kvm_run) {
        // SAFETY: all members of the union are integers.
        let detail = unsafe {
            match run.exit_reason {
                KVM_EXIT_FAIL_ENTRY => {
                    format!("FAIL_ENTRY {:#x}", run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason)
                }
                KVM_EXIT_INTERNAL_ERROR => {
                    let i = &run.__bindgen_anon_1.internal;
                    format!("INTERNAL_ERROR {} data {:x?}", i.suberror, &i.data[..(i.ndata as usize).min(4)])
                }
                KVM_EXIT_SHUTDOWN => "SHUTDOWN".into(),
                n => format!("exit {n}"),
            }
        };
        self.end(Outcome::Failed(format!("vCPU {}: {detail};{}", v.id, self.where_are_they_of(v))));
    }

    fn where_are_they_of(&self, v: &Vcpu) -> String {
        match (v.fd.get::<kvm_regs>(nr::GET_REGS), v.fd.get::<kvm_sregs>(nr::GET_SREGS)) {
            (Ok(r), Ok(s)) => format!(" rip={:#x} cs={:#x} flags={:#x}", r.rip, s.cs.base, r.rflags),
            _ => String::new(),
        }
    }

    fn mmio(&self, run: &mut kvm_run) {
        // SAFETY: the exit reason says which member is valid.
        let m = unsafe { &mut run.__bindgen_anon_1.mmio };
        let len = (m.len as usize).min(8);
        lock(&self.devices).mmio(m.phys_addr, &mut m.data[..len], m.is_write != 0);
    }

    fn io(self: &Arc<Machine>, v: &Arc<Vcpu>, run: &mut kvm_run) {
        // SAFETY: the exit reason says which member is valid.
        let io = unsafe { run.__bindgen_anon_1.io };
        let (size, count) = (usize::from(io.size), io.count as usize);
        let start = io.data_offset as usize;
        if size == 0 || start + size * count > v.map.size() {
            return self.end(Outcome::Failed(format!("IO exit outside of the mapping: {io:?}")));
        }
        // SAFETY: inside the mapping, which only this thread uses now.
        let data = unsafe { std::slice::from_raw_parts_mut(v.map.ptr().add(start), size * count) };
        if io.direction == 0 {
            let mut devices = lock(&self.devices);
            data.chunks_exact_mut(size).for_each(|e| devices.input(io.port, e));
            return;
        }
        for element in data.chunks_exact(size) {
            let mut word = [0; 4];
            word[..size].copy_from_slice(element);
            let value = u32::from_le_bytes(word);
            match io.port {
                PORT_LOG => lock(&self.devices).text.push(value as u8 as char),
                PORT_EXIT => self.guest_exit(value),
                PORT_CMD => crate::service::run(self, v, value.into()),
                PORT_EXPECT => v.expect.store(value, Ordering::SeqCst),
                port => lock(&self.devices).output(port, element),
            }
        }
    }
}

/// A VM with the chips that the test wants.
fn create(sys: &Fd, config: u64) -> Result<Fd, String> {
    let at = |what: &'static str| move |e: Errno| format!("{what}: {e}");
    let vm = kvm::create_vm(sys).map_err(at("KVM_CREATE_VM"))?;
    vm.call(nr::SET_TSS_ADDR, 0xfffb_d000).map_err(at("KVM_SET_TSS_ADDR"))?;
    if config & IDLE != 0 {
        let offered = vm.cap(KVM_CAP_X86_DISABLE_EXITS).max(0) as u64;
        vm.enable_cap(KVM_CAP_X86_DISABLE_EXITS, 0, [offered, 0, 0, 0])
            .map_err(at("KVM_CAP_X86_DISABLE_EXITS"))?;
    }
    if config & SPLIT != 0 {
        vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 0, [24, 0, 0, 0]).map_err(at("KVM_CAP_SPLIT_IRQCHIP"))?;
    } else if config & NO_IRQCHIP == 0 {
        vm.call(nr::CREATE_IRQCHIP, 0).map_err(at("KVM_CREATE_IRQCHIP"))?;
        if config & NO_PIT == 0 {
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.set(nr::CREATE_PIT2, &pit).map_err(at("KVM_CREATE_PIT2"))?;
        }
    }
    Ok(vm)
}

/// The slots that every test has.
fn map_memory(vm: &Fd, ram: &Map, edges: &Map) -> Result<(), String> {
    let slots = [
        (0, 0, LOW_RAM_END, ram.addr()),
        (1, HIGH_RAM_START, RAM_SIZE - HIGH_RAM_START, ram.addr() + HIGH_RAM_START),
        (2, EDGE_LOW, 0x1000, edges.addr()),
        (3, EDGE_HIGH, 0x1000, edges.addr() + 0x1000),
    ];
    for (slot, gpa, size, host) in slots {
        kvm::set_slot(vm, slot, 0, gpa, size, host)
            .map_err(|e| format!("KVM_SET_USER_MEMORY_REGION: {e}"))?;
    }
    Ok(())
}

fn create_vcpu(sys: &Fd, vm: &Fd, id: u32, config: u64) -> Result<Fd, String> {
    let fd = vm.call(nr::CREATE_VCPU, id.into()).map_err(|e| format!("KVM_CREATE_VCPU: {e}"))?;
    // SAFETY: a new descriptor.
    let fd = unsafe { Fd::from_raw(fd) };
    set_cpuid_of(sys, &fd, id, config & FEW != 0).map_err(|e| format!("KVM_SET_CPUID2: {e}"))?;
    Ok(fd)
}

/// Copies the image and the first page tables into guest memory.
fn load(ram: &Map) {
    for (gpa, bytes) in elf::segments() {
        ram.write(gpa, bytes);
    }
    ram.set_word(PML4, PDPT | 3);
    for i in 0..4 {
        ram.set_word(PDPT + 8 * i, (PD + 0x1000 * i) | 3);
        ram.set_word(PDPT_PAE + 8 * i, (PD + 0x1000 * i) | 1);
    }
    for i in 0..2048 {
        ram.set_word(PD + 8 * i, (i << 21) | 0x83);
    }
    for i in 0..1024u32 {
        ram.write(PD32 + 4 * u64::from(i), &((i << 22) | 0x83).to_le_bytes());
    }
}

/// CPUID.1:ECX.
const RDRAND: u32 = 1 << 30;
/// CPUID.7:EBX.
const INVPCID: u32 = 1 << 10;
const RDSEED: u32 = 1 << 18;
/// CPUID.7:ECX.
const RDPID: u32 = 1 << 22;
/// CPUID.8000_0001:EDX.
const RDTSCP: u32 = 1 << 27;

/// The supported CPUID with two leaves of our own that the guests look for, this vCPU's APIC id, the hypervisor bit and the TSC-deadline bit.
pub fn set_cpuid(sys: &Fd, vcpu: &Fd, id: u32) -> kvm::Result<()> {
    set_cpuid_of(sys, vcpu, id, false)
}

/// `few`: without the instructions of [`FEW`].
fn set_cpuid_of(sys: &Fd, vcpu: &Fd, id: u32, few: bool) -> kvm::Result<()> {
    let mut c = kvm::supported_cpuid(sys)?;
    let deadline = sys.cap(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    let n = c.head[0] as usize;
    for e in c.entries[..n].iter_mut() {
        match e.function {
            1 => {
                e.ebx = e.ebx & 0x00ff_ffff | id << 24;
                e.ecx |= 1 << 31 | u32::from(deadline) << 24;
            }
            0xb | 0x1f => e.edx = id,
            _ => {}
        }
        match e.function {
            1 if few => e.ecx &= !RDRAND,
            7 if few && e.index == 0 => {
                e.ebx &= !(INVPCID | RDSEED);
                e.ecx &= !RDPID;
            }
            0x8000_0001 if few => e.edx &= !RDTSCP,
            _ => {}
        }
    }
    let own = |function, index, flags, v: [u32; 4]| kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax: v[0],
        ebx: v[1],
        ecx: v[2],
        edx: v[3],
        ..Default::default()
    };
    c.entries[n] = own(0x4000_0100, 0, 0, [0x1111_1111, 0x2222_2222, 0x3333_3333, 0x4444_4444]);
    c.entries[n + 1] = own(0x4000_0101, 5, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, [1, 0x5555_0005, 0, 0]);
    c.head[0] += 2;
    vcpu.with(nr::SET_CPUID2, &mut *c).map(drop)
}

fn start_state(fd: &Fd, test: &Test) -> kvm::Result<()> {
    let mut s: kvm_sregs = fd.get(nr::GET_SREGS)?;
    let mode = test.config & MODE_MASK;
    let (bits, code) = match mode {
        MODE_REAL => (16, 0),
        MODE_LONG => (64, 0x08),
        _ => (32, 0x18),
    };
    let data = if mode == MODE_REAL { 0 } else { 0x10 };
    s.cs = segment(code, CODE, bits);
    let d = segment(data, DATA, if bits == 64 { 32 } else { bits });
    (s.ds, s.es, s.ss, s.fs, s.gs) = (d, d, d, d, d);
    if mode == MODE_REAL {
        s.cs.type_ = DATA;
    }
    match mode {
        MODE_REAL => {
            s.cr0 = 0x6000_0010;
            s.idt.base = 0;
            s.idt.limit = 0x3ff;
        }
        MODE_PROT32 => s.cr0 = 0x11,
        MODE_PAE32 => (s.cr0, s.cr3, s.cr4) = (0x8000_0011, PDPT_PAE, 0x20),
        MODE_PSE32 => (s.cr0, s.cr3, s.cr4) = (0x8000_0011, PD32, 0x10),
        _ => {
            (s.cr0, s.cr3, s.cr4) = (0x8001_0033, PML4, 0x6a0);
            s.efer = 0xd01; // SCE, LME, LMA, NXE
        }
    }
    fd.set(nr::SET_SREGS, &s)?;
    let entry = if mode == MODE_LONG { elf::start64() } else { test.entry };
    let r = kvm_regs { rip: entry, rdi: test.entry, rsp: 0x1ff0, rflags: 2, ..Default::default() };
    fd.set(nr::SET_REGS, &r)?;
    Ok(())
}
