//! KVM_GET_STATS_FD: a file of numbers that describes itself.

use crate::env::*;
use crate::run::Alarm;
use exitless_runner::kvm::{Fd, nr};
use kvm_bindings::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("stats/names_kinds_and_units", names),
    ("stats/counts", counts),
    ("stats/read_in_pieces", pieces),
    ("stats/file_outlives_the_vm", outlives),
    ("stats/read_while_the_vcpu_runs", running),
];

const COUNT: (u32, i16, usize) = (0, 0, 1);
const NOW: (u32, i16, usize) = (1, 0, 1);
const PEAK: (u32, i16, usize) = (2, 0, 1);
const FLAG: (u32, i16, usize) = (0x41, 0, 1);
const NS: (u32, i16, usize) = (0x20, -9, 1);
const BY_NS: (u32, i16, usize) = (0x24, -9, 32);

/// What stock KVM of 6.1 tells of a VM and of a vCPU: flags, exponent, size.
const OF_VM: &[(&str, (u32, i16, usize))] = &[
    ("remote_tlb_flush", COUNT),
    ("remote_tlb_flush_requests", COUNT),
    ("mmu_shadow_zapped", COUNT),
    ("mmu_pte_write", COUNT),
    ("mmu_pde_zapped", COUNT),
    ("mmu_flooded", COUNT),
    ("mmu_recycled", COUNT),
    ("mmu_cache_miss", COUNT),
    ("mmu_unsync", NOW),
    ("pages_4k", NOW),
    ("pages_2m", NOW),
    ("pages_1g", NOW),
    ("nx_lpage_splits", NOW),
    ("max_mmu_rmap_size", PEAK),
    ("max_mmu_page_hash_collisions", PEAK),
];
const OF_VCPU: &[(&str, (u32, i16, usize))] = &[
    ("halt_successful_poll", COUNT),
    ("halt_attempted_poll", COUNT),
    ("halt_poll_invalid", COUNT),
    ("halt_wakeup", COUNT),
    ("halt_poll_success_ns", NS),
    ("halt_poll_fail_ns", NS),
    ("halt_wait_ns", NS),
    ("halt_poll_success_hist", BY_NS),
    ("halt_poll_fail_hist", BY_NS),
    ("halt_wait_hist", BY_NS),
    ("blocking", FLAG),
    ("pf_taken", COUNT),
    ("pf_fixed", COUNT),
    ("pf_emulate", COUNT),
    ("pf_spurious", COUNT),
    ("pf_fast", COUNT),
    ("pf_mmio_spte_created", COUNT),
    ("pf_guest", COUNT),
    ("tlb_flush", COUNT),
    ("invlpg", COUNT),
    ("exits", COUNT),
    ("io_exits", COUNT),
    ("mmio_exits", COUNT),
    ("signal_exits", COUNT),
    ("irq_window_exits", COUNT),
    ("nmi_window_exits", COUNT),
    ("l1d_flush", COUNT),
    ("halt_exits", COUNT),
    ("request_irq_exits", COUNT),
    ("irq_exits", COUNT),
    ("host_state_reload", COUNT),
    ("fpu_reload", COUNT),
    ("insn_emulation", COUNT),
    ("insn_emulation_fail", COUNT),
    ("hypercalls", COUNT),
    ("irq_injections", COUNT),
    ("nmi_injections", COUNT),
    ("req_event", COUNT),
    ("nested_run", COUNT),
    ("directed_yield_attempted", COUNT),
    ("directed_yield_successful", COUNT),
    ("preemption_reported", COUNT),
    ("preemption_other", COUNT),
    ("guest_mode", FLAG),
    ("notify_window_exits", COUNT),
];

/// One statistic.
#[derive(Debug)]
struct Stat {
    name: String,
    flags: u32,
    exponent: i16,
    bucket: u32,
    values: Vec<u64>,
}

fn file(fd: &Fd) -> Result<File, Stop> {
    let raw = fd.call(nr::GET_STATS_FD, 0)?;
    // SAFETY: the call made the descriptor, and it is ours alone.
    Ok(unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(raw) })
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn read(f: &File) -> Result<(String, Vec<Stat>), Stop> {
    let mut all = vec![0; 1 << 16];
    let n = f.read_at(&mut all, 0)?;
    all.truncate(n);
    let [flags, name_size, num, id, desc, data] = [0, 4, 8, 12, 16, 20].map(|at| word(&all, at) as usize);
    same!(flags, 0, "flags");
    let text =
        |at: usize| String::from_utf8_lossy(&all[at..at + name_size]).trim_end_matches('\0').to_string();
    let stat = |i: usize| {
        let at = desc + i * (16 + name_size);
        let size = u16::from_le_bytes([all[at + 6], all[at + 7]]) as usize;
        let from = data + word(&all, at + 8) as usize;
        Stat {
            name: text(at + 16),
            flags: word(&all, at),
            exponent: i16::from_le_bytes([all[at + 4], all[at + 5]]),
            bucket: word(&all, at + 12),
            values: (0..size)
                .map(|k| u64::from_le_bytes(all[from + 8 * k..from + 8 * k + 8].try_into().unwrap()))
                .collect(),
        }
    };
    Ok((text(id), (0..num).map(stat).collect()))
}

/// Each statistic is one of stock's, of its kind and unit; the id names the process and the vCPU. Exitless leaves out what it does not
/// count.
fn names(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    same!(g.sys.cap(KVM_CAP_BINARY_STATS_FD), 1, "KVM_CAP_BINARY_STATS_FD");
    let pid = std::process::id();
    let files = [(&g.vm, OF_VM, format!("kvm-{pid}")), (&g.vcpu.fd, OF_VCPU, format!("kvm-{pid}/vcpu-0"))];
    for (fd, known, named) in files {
        let (id, stats) = read(&file(fd)?)?;
        same!(id, named, "id");
        for s in &stats {
            let Some((_, kind)) = known.iter().find(|(name, _)| *name == s.name) else {
                // A later kernel's.
                ensure!(!exitless(), "{} is none of stock's", s.name);
                continue;
            };
            same!((s.flags, s.exponent, s.values.len()), *kind, "{}", s.name);
            same!(s.bucket, 0, "bucket size");
            same!(stats.iter().filter(|o| o.name == s.name).count(), 1, "{}", s.name);
        }
        ensure!(stats.len() >= 3, "{} statistics", stats.len());
    }
    Ok(())
}

fn value(f: &File, name: &str) -> Result<u64, Stop> {
    let (_, stats) = read(f)?;
    stats.iter().find(|s| s.name == name).map(|s| s.values[0]).ok_or_else(|| Stop::Fail(format!("no {name}")))
}

/// Two writes to a port and a halt are two and one more; memory that the guest touched is mapped.
fn counts(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xe6, 0x10, 0xe6, 0x11, 0xf4])?;
    let (vm, vcpu) = (file(&g.vm)?, file(&g.vcpu.fd)?);
    let before = ["exits", "io_exits", "halt_exits"].map(|name| value(&vcpu, name));
    g.vcpu.run_to(KVM_EXIT_IO)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    let [exits, io, halts] = before;
    ensure!(value(&vcpu, "exits")? >= exits? + 3, "too few exits");
    same!(value(&vcpu, "io_exits")?, io? + 2, "io_exits");
    same!(value(&vcpu, "halt_exits")?, halts? + 1, "halt_exits");
    let pages = value(&vm, "pages_4k")? + value(&vm, "pages_2m")?;
    ensure!(pages >= 1, "no page is mapped");
    same!(value(&vcpu, "blocking")?, 0, "blocking");
    Ok(())
}

/// Whatever the offset and the length, the same bytes come; behind the end none. The position moves with reads that have none.
fn pieces(e: &Env) -> R {
    use std::io::Read;
    let g = e.idle(Chips::Full)?;
    for fd in [&g.vm, &g.vcpu.fd] {
        let mut f = file(fd)?;
        let mut whole = vec![0; 1 << 16];
        let n = f.read_at(&mut whole, 0)?;
        for step in [1, 13, 64, 1000] {
            let mut all = Vec::new();
            loop {
                let mut part = vec![0; step];
                let got = f.read_at(&mut part, all.len() as u64)?;
                all.extend_from_slice(&part[..got]);
                if got == 0 {
                    break;
                }
            }
            ensure!(all == whole[..n], "read in pieces of {step}");
        }
        same!(f.read_at(&mut [0; 8], 1 << 40)?, 0, "far behind the end");
        let mut all = Vec::new();
        f.read_to_end(&mut all)?;
        ensure!(all == whole[..n], "read from its start to its end");
        use std::io::Write;
        same!(f.write(&[0]).err().and_then(|e| e.raw_os_error()), Some(libc::EBADF), "a write");
    }
    Ok(())
}

fn outlives(e: &Env) -> R {
    let g = e.guest(Chips::Full, &[0xe6, 0x10])?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let (vm, vcpu) = (file(&g.vm)?, file(&g.vcpu.fd)?);
    drop(g);
    read(&vm)?;
    ensure!(value(&vcpu, "io_exits")? >= 1, "no exit");
    Ok(())
}

/// A guest that spins: whoever has the file reads on while KVM_RUN lasts.
fn running(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xeb, 0xfe])?;
    let f = file(&g.vcpu.fd)?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut reads = 0u32;
            while !ended.load(Ordering::SeqCst) {
                reads += u32::from(value(&f, "exits").is_ok_and(|n| n != 0));
            }
            reads
        });
        let done = {
            let _alarm = Alarm::new(Duration::from_millis(200));
            g.vcpu.run()
        };
        ended.store(true, Ordering::SeqCst);
        errno!(done, libc::EINTR, "KVM_RUN");
        ensure!(reader.join().is_ok_and(|reads| reads > 0), "nobody could read meanwhile");
        Ok(())
    })
}
