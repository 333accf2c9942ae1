//! `/dev/exitless`, and the same ioctls on a VM's descriptor: mechanisms shown and switched while guests run. `docs/control.md`.
//!
//! Who reads holds a VM for one call and no lock: counters and choices are their vCPUs' own, read while those run.

use crate::global;
use crate::stats::{self, Out};
use crate::user;
use crate::vcpu::VcpuObj;
use crate::vendor;
use crate::vm::Vm;
use core::fmt::{self, Write};
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use exitless_control_abi::*;
use exitless_host::mem::{KArc, KBox};
use exitless_host::{Errno, Result, pr_err, task, time};
use exitless_nospec::Guarded;
use exitless_vcpu::Request;
use exitless_vcpu::chooser::{Fallback, Mechanism, Reason, Row, Scope, Set, TABLE, Who, shown};
use exitless_vcpu::shared::{mode, mp};
use exitless_vcpu::stats::{self as st, Stats};
use exitless_vcpu::times::{Late, Spent, Times};

/// What VMs to come have on besides the table's column, because a parameter of its own asks for it (`avic`, `ipiv`).
static ASKED: AtomicU64 = AtomicU64::new(0);
/// What somebody has switched on for them, and off, by its name: by the parameter `mechanisms`, or the device.
static ON: AtomicU64 = AtomicU64::new(0);
static OFF: AtomicU64 = AtomicU64::new(0);

/// The switches of a new VM.
pub fn defaults() -> Set {
    let asked = Set::DEFAULT.0 | ASKED.load(Relaxed);
    Set(asked & !OFF.load(Relaxed) | ON.load(Relaxed))
}

/// VMs to come have this one on, unless somebody says otherwise by its name: at load, where another parameter asks for it.
pub fn want(m: Mechanism) {
    ASKED.fetch_or(Set::NONE.put(m, true).0, Relaxed);
}

/// ioctls on the device; `writable`: it was opened for writing.
pub fn ioctl(cmd: u32, arg: usize, writable: bool) -> Result<isize> {
    match cmd {
        EXITLESS_LIST_VMS => list(arg),
        EXITLESS_SWITCH if !writable => Err(Errno::EBADF),
        EXITLESS_SWITCH => switch(&user::get(arg)?),
        EXITLESS_MEASURE => {
            let asked: Measure = user::get(arg)?;
            let vm = find(asked.vm)?;
            if asked.set != measure::LOOK {
                if !writable {
                    return Err(Errno::EBADF);
                }
                may_control(&vm)?;
            }
            measures(&vm, asked, arg)
        }
        _ => look(cmd, arg, find),
    }
}

/// ioctls on a VM's descriptor, by its own process.
pub fn vm_ioctl(vm: &Vm, cmd: u32, arg: usize) -> Result<isize> {
    let own = |id: u64| if id == 0 || id == vm.id { Ok(()) } else { Err(Errno::ENOENT) };
    match cmd {
        EXITLESS_SWITCH => {
            let s: Switch = user::get(arg)?;
            own(s.vm)?;
            let (on, off) = masks(&s)?;
            move_switches(vm, on, off)
        }
        EXITLESS_MEASURE => {
            let asked: Measure = user::get(arg)?;
            own(asked.vm)?;
            measures(vm, asked, arg)
        }
        _ => look(cmd, arg, |id| own(id).map(|()| vm)),
    }
}

/// What is only looked at; `whose` finds the VM of an id.
fn look<V: Deref<Target = Vm>>(cmd: u32, arg: usize, whose: impl FnOnce(u64) -> Result<V>) -> Result<isize> {
    match cmd {
        EXITLESS_GET_STATES => {
            let asked: States = user::get(arg)?;
            states(&*whose(asked.vm)?, asked, arg)
        }
        EXITLESS_GET_COUNTERS => {
            let asked: Counters = user::get(arg)?;
            counters(&*whose(asked.vm)?, asked, arg)
        }
        EXITLESS_LIST_VCPUS => {
            let asked: Vcpus = user::get(arg)?;
            vcpus(&*whose(asked.vm)?, asked, arg, record_of)
        }
        EXITLESS_LIST_HEALTH => {
            let asked: Vcpus = user::get(arg)?;
            vcpus(&*whose(asked.vm)?, asked, arg, health_of)
        }
        _ => about(cmd, arg),
    }
}

/// What is the same everywhere.
fn about(cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        EXITLESS_GET_VERSION if arg == 0 => Ok(VERSION as isize),
        EXITLESS_GET_VERSION => Err(Errno::EINVAL),
        EXITLESS_GET_WORDS => {
            let asked: Words = user::get(arg)?;
            user::put(arg, &words(asked.kind, asked.number).ok_or(Errno::ENOENT)?)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn words(kind: u32, number: u32) -> Option<Words> {
    let n = number as usize;
    let (flags, name, text) = match kind {
        kind::MECHANISM => TABLE.guarded(n).map(|row| (flags(row), row.name, row.about))?,
        kind::REASON => Reason::ALL.iter().find(|r| **r as usize == n).map(|r| (0, "", r.words()))?,
        kind::FALLBACK => Fallback::ALL.guarded(n).map(|f| (0, f.name(), f.words()))?,
        kind::EXIT => (0, exit_name(u64::from(number))?, ""),
        kind::COUNTER => (0, stats::counter_name(n)?, ""),
        kind::SPENT => (0, Spent::ALL.guarded(n)?.name(), ""),
        kind::LATE => (0, Late::ALL.guarded(n)?.name(), ""),
        _ => return None,
    };
    Some(Words { kind, number, flags, reserved: 0, name: padded(name), text: padded(text) })
}

fn flags(row: &Row) -> u32 {
    let flag = |holds, flag| if holds { flag } else { 0 };
    flag(defaults().has(row.mechanism), about::DEFAULT)
        | flag(row.who == Who::Root, about::ROOT)
        | flag(row.scope == Scope::Vm, about::VM)
}

/// A test of `logic/chooser` holds that each fits, with a zero behind it.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(text.bytes()).for_each(|(o, b)| *o = b);
    out
}

/// The VM of that id, alive for the caller.
fn find(id: u64) -> Result<KArc<Vm>> {
    global::next_vm(id).filter(|vm| vm.id == id).ok_or(Errno::ENOENT)
}

fn list(arg: usize) -> Result<isize> {
    let mut asked: Vms = user::get(arg)?;
    let mut out = Records::new::<VmRecord>(asked.address, asked.record, asked.count)?;
    let mut from = asked.from;
    while let Some(vm) = global::next_vm(from) {
        let record = VmRecord {
            id: vm.id,
            wanted: vm.wanted.load(Relaxed),
            pid: vm.pid,
            uid: vm.uid,
            vcpus: vm.vcpu_count() as u32,
            reserved: 0,
        };
        from = vm.id + 1;
        if !out.put(&record)? {
            break;
        }
    }
    asked.count = out.written;
    user::put(arg, &asked)
}

fn states(vm: &Vm, mut asked: States, arg: usize) -> Result<isize> {
    if asked.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let mut out = Records::new::<State>(asked.address, asked.record, asked.count)?;
    let chosen = |v: &&VcpuObj| asked.vcpu == ALL_VCPUS || v.id == asked.vcpu;
    if asked.vcpu != ALL_VCPUS && vm.each_vcpu().find(chosen).is_none() {
        return Err(Errno::ENOENT);
    }
    for row in &TABLE {
        task::cond_resched();
        if !out.put(&state_of(vm, row.mechanism, vm.each_vcpu().filter(chosen)))? {
            break;
        }
    }
    asked.count = out.written;
    user::put(arg, &asked)
}

/// The name of an exit's number on this host. The number that is looked up is one of those that are counted, whatever a CPU predicts.
fn exit_name(number: u64) -> Option<&'static str> {
    let counted = (0..st::EXITS).map(st::number).find(|n| *n == number)?;
    vendor::exit_name(global::get()?.kind, counted)
}

/// Records that go to user space one behind the other, as many as it has room for.
struct Records {
    at: usize,
    room: u32,
    written: u32,
}

impl Records {
    fn new<T>(address: u64, record: u32, room: u32) -> Result<Self> {
        if record as usize != size_of::<T>() {
            return Err(Errno::EINVAL);
        }
        Ok(Self { at: address as usize, room, written: 0 })
    }

    /// `false`: there is no room for another.
    fn put<T: bytemuck::Pod>(&mut self, record: &T) -> Result<bool> {
        if self.written == self.room {
            return Ok(false);
        }
        user::put(self.at, record)?;
        self.at = user::at(self.at, size_of::<T>())?;
        self.written += 1;
        Ok(self.written < self.room)
    }
}

fn counters(vm: &Vm, mut asked: Counters, arg: usize) -> Result<isize> {
    let mut out = Records::new::<Counter>(asked.address, asked.record, asked.count)?;
    let one = vm.each_vcpu().find(|v| v.id == asked.vcpu);
    match (asked.what, one) {
        (kind::EXIT | kind::COUNTER, None) if asked.vcpu == ALL_VCPUS => {
            rows(asked.what, || vm.each_vcpu(), &mut out)?;
        }
        (kind::EXIT | kind::COUNTER, Some(v)) => rows(asked.what, || core::iter::once(v), &mut out)?,
        (kind::MSR | kind::PORT, None) if asked.vcpu == ALL_VCPUS => {
            let sums = stats::sums(vm, table_of(asked.what)).ok_or(Errno::ENOMEM)?;
            keyed(sums.rows(), sums.other, &mut out)?;
        }
        (kind::MSR | kind::PORT, Some(v)) => {
            let table = table_of(asked.what)(&v.shared.stats);
            keyed(table.rows(), table.other.get(), &mut out)?;
        }
        (kind::SPENT, _) if asked.vcpu == ALL_VCPUS => spent(vm.each_vcpu(), &mut out)?,
        (kind::SPENT, Some(v)) => spent(core::iter::once(v), &mut out)?,
        (kind::TIME | kind::LATE, None) if asked.vcpu == ALL_VCPUS => {
            let sum = KBox::<Times>::zeroed().ok_or(Errno::ENOMEM)?;
            vm.each_vcpu().filter_map(VcpuObj::times).for_each(|t| {
                task::cond_resched();
                sum.merge(t);
            });
            times(asked.what, &sum, &mut out)?;
        }
        (kind::TIME | kind::LATE, Some(v)) => {
            if let Some(t) = v.times() {
                times(asked.what, t, &mut out)?;
            }
        }
        (kind::EXIT..=kind::LATE, None) => return Err(Errno::ENOENT),
        _ => return Err(Errno::EINVAL),
    }
    asked.count = out.written;
    user::put(arg, &asked)
}

/// Rows that every vCPU has, summed.
fn rows<'a, I>(what: u32, vcpus: impl Fn() -> I, out: &mut Records) -> Result<()>
where
    I: Iterator<Item = &'a VcpuObj>,
{
    let sum = |pick: &dyn Fn(&'a Stats) -> Option<&'a st::Counter>| {
        let each = vcpus().filter_map(|v| pick(&v.shared.stats));
        each.fold(0u64, |n, c| n.wrapping_add(c.get()))
    };
    let mut row = 0;
    loop {
        let record = match what {
            kind::EXIT if row < st::EXITS => {
                Counter { key: st::number(row), count: sum(&|s| s.by_exit.get(row)) }
            }
            kind::COUNTER if stats::counter_name(row).is_some() => {
                Counter { key: row as u64, count: sum(&|s| stats::counter_of(s, row)) }
            }
            _ => return Ok(()),
        };
        row += 1;
        task::cond_resched();
        if (what == kind::COUNTER || record.count != 0) && !out.put(&record)? {
            return Ok(());
        }
    }
}

fn table_of(what: u32) -> fn(&Stats) -> &st::Keyed {
    match what {
        kind::MSR => |s| &s.by_msr,
        _ => |s| &s.by_port,
    }
}

fn keyed(rows: impl Iterator<Item = (u32, u64)>, others: u64, out: &mut Records) -> Result<()> {
    let others = Counter { key: OTHERS, count: others };
    let rows = rows.map(|(key, count)| Counter { key: u64::from(key), count });
    for record in rows.chain(core::iter::once(others)).filter(|r| r.count != 0) {
        if !out.put(&record)? {
            break;
        }
    }
    Ok(())
}

/// What each of these vCPUs spent its time on.
fn spent<'a>(vcpus: impl Iterator<Item = &'a VcpuObj>, out: &mut Records) -> Result<()> {
    for v in vcpus {
        let Some(t) = v.times() else { continue };
        for (n, ticks) in t.spent.iter().enumerate() {
            if !out.put(&Counter { key: times::spent_key(v.id, n as u32), count: ticks.get() })? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Times of exits, or how late things were; fields that are zero are left out.
fn times(what: u32, t: &Times, out: &mut Records) -> Result<()> {
    let mut put = |row: u32, fields: &mut dyn Iterator<Item = (u32, u64)>| {
        let more = fields.filter(|(_, n)| *n != 0);
        for (field, count) in more {
            if !out.put(&Counter { key: times::key(row, field), count })? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    if what == kind::LATE {
        for (late, h) in t.late() {
            if !put(late as u32, &mut h.fields())? {
                break;
            }
        }
        return Ok(());
    }
    for row in t.rows() {
        if !put(st::number(row.place()) as u32, &mut row.fields())? {
            return Ok(());
        }
    }
    put(OTHERS as u32, &mut t.others().fields()).map(drop)
}

/// Starts, ends or only tells whether the VM's time is measured. The caller may.
fn measures(vm: &Vm, mut asked: Measure, arg: usize) -> Result<isize> {
    if asked.reserved != 0 || asked.set > measure::OFF {
        return Err(Errno::EINVAL);
    }
    if asked.set != measure::LOOK {
        // vCPUs that are made meanwhile wait, and find it.
        let _config = vm.lock.lock();
        let on = asked.set == measure::ON;
        if on {
            // All of them, or none is measured.
            vm.each_vcpu().try_for_each(VcpuObj::make_times)?;
        }
        vm.each_vcpu().for_each(|v| v.measure(on));
        vm.measured.store(on, Relaxed);
    }
    asked.on = u32::from(vm.measured.load(Relaxed));
    asked.khz = time::tsc_khz();
    user::put(arg, &asked)
}

fn vcpus<T: bytemuck::Pod>(vm: &Vm, mut asked: Vcpus, arg: usize, of: fn(&VcpuObj) -> T) -> Result<isize> {
    if asked.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    let mut out = Records::new::<T>(asked.address, asked.record, asked.count)?;
    for v in vm.each_vcpu().skip(asked.from as usize) {
        if !out.put(&of(v))? {
            break;
        }
    }
    asked.count = out.written;
    user::put(arg, &asked)
}

fn record_of(v: &VcpuObj) -> VcpuRecord {
    let (s, n) = (&v.shared, &v.shared.stats);
    VcpuRecord {
        id: v.id,
        cpu: s.cpu.load(Relaxed),
        mp_state: s.mp_state.load(Relaxed),
        in_guest: u32::from(s.mode.load(Relaxed) == mode::IN_GUEST),
        exits: n.exits.get(),
        fast: n.fast.get(),
        user: n.user.get(),
    }
}

fn health_of(v: &VcpuObj) -> HealthRecord {
    let s = &v.shared;
    let halted = s.mp_state.load(Relaxed) == mp::HALTED;
    let pending = s.apic.has_irr() || s.apic.posted().outstanding();
    let flag = |holds, flag| if holds { flag } else { 0 };
    let (tsc_ratio, tsc_offset) = s.tsc.get();
    HealthRecord {
        id: v.id,
        flags: flag(halted, health::HALTED)
            | flag(halted && s.halted_open.load(Relaxed), health::OPEN)
            | flag(pending, health::PENDING)
            | flag(s.mode.load(Relaxed) == mode::IN_GUEST, health::IN_GUEST),
        exits: s.stats.exits.get(),
        halts: s.stats.halt_exits.get(),
        asleep: s.asleep.load(Relaxed),
        wakes_at: s.wakes_at.load(Relaxed),
        tsc_ratio,
        tsc_offset,
        requests: s.requests.load(Relaxed) & Request::WAKING.0,
    }
}

/// A mechanism in these vCPUs of the VM.
fn state_of<'a>(vm: &Vm, m: Mechanism, vcpus: impl Iterator<Item = &'a VcpuObj>) -> State {
    let wanted = Set(vm.wanted.load(Relaxed));
    let mut s = State { mechanism: m as u32, ..bytemuck::Zeroable::zeroed() };
    let mut first = None;
    for v in vcpus {
        let chosen = &v.shared.chosen;
        let (active, reason) = shown(m, wanted, chosen.facts().map(|facts| (chosen.active(), facts)));
        s.active += u32::from(active);
        first = first.or((!active).then_some(reason));
        let deeds = v.shared.stats.deeds(m);
        s.hits = s.hits.wrapping_add(deeds.hits.get());
        s.saved = s.saved.wrapping_add(deeds.saved.get());
        s.added = s.added.wrapping_add(deeds.added.get());
        for (sum, n) in s.fallbacks.iter_mut().zip(&deeds.fallbacks) {
            *sum = sum.wrapping_add(n.get());
        }
    }
    let none = if s.active == 0 { shown(m, wanted, None).1 } else { Reason::Active };
    s.reason = first.unwrap_or(none) as u32;
    s.flags = if wanted.has(m) { state::WANTED } else { 0 } | if s.active != 0 { state::ACTIVE } else { 0 };
    s
}

/// The sets of a [`Switch`], on and off.
fn masks(s: &Switch) -> Result<(Set, Set)> {
    let known = (s.on | s.off) & !Set::ALL.0 == 0;
    if !known || s.on & s.off != 0 || s.reserved != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((Set(s.on), Set(s.off)))
}

fn switch(s: &Switch) -> Result<isize> {
    let (on, off) = masks(s)?;
    match s.vm {
        0 => move_defaults(on, off),
        id => {
            let vm = find(id)?;
            may_control(&vm)?;
            move_switches(&vm, on, off)
        }
    }
}

/// The VM is the caller's user's, or the caller may do anything.
fn may_control(vm: &Vm) -> Result<()> {
    if task::current_euid() == vm.uid || task::is_admin() { Ok(()) } else { Err(Errno::EPERM) }
}

fn moved(word: &AtomicU64, on: Set, off: Set) {
    word.fetch_or(on.0, Relaxed);
    word.fetch_and(!off.0, Relaxed);
}

/// The caller may control the VM.
fn move_switches(vm: &Vm, on: Set, off: Set) -> Result<isize> {
    let roots = Set(on.0 | off.0).iter().any(|m| m.row().who == Who::Root);
    if roots && !task::is_admin() {
        return Err(Errno::EPERM);
    }
    moved(&vm.wanted, on, off);
    vm.request_all(Request::MECHANISMS);
    Ok(0)
}

fn move_defaults(on: Set, off: Set) -> Result<isize> {
    if !task::is_admin() {
        return Err(Errno::EPERM);
    }
    moved(&ON, on, off);
    moved(&OFF, off, on);
    Ok(0)
}

/// What is written to the device: a VM's id, or 0 for VMs to come, and changes as [`Set::changed`] reads them.
pub fn written(text: &[u8]) -> Result<()> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?.trim_start();
    let (id, changes) = text.split_once([' ', '\t']).ok_or(Errno::EINVAL)?;
    let vm = match id.parse().map_err(|_| Errno::EINVAL)? {
        0 => None,
        id => Some(find(id)?),
    };
    let before = vm.as_ref().map_or(defaults(), |vm| Set(vm.wanted.load(Relaxed)));
    let after = before.changed(changes).map_err(|_| Errno::EINVAL)?;
    let (on, off) = (Set(after.0 & !before.0), Set(before.0 & !after.0));
    match vm {
        None => move_defaults(on, off)?,
        Some(vm) => {
            may_control(&vm)?;
            move_switches(&vm, on, off)?
        }
    };
    Ok(())
}

/// The module's parameter is set: changes to the table's column, and to what other parameters ask for. At load, or by who may write the file in sysfs.
pub fn set_defaults(text: &[u8]) -> Result<()> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    // What the words make of nothing, and of all, is what they name.
    match Set::NONE.changed(text).and_then(|on| Ok((on, Set::ALL.changed(text)?))) {
        Ok((on, rest)) => {
            ON.store(on.0, Relaxed);
            OFF.store(Set::ALL.0 & !rest.0, Relaxed);
            Ok(())
        }
        Err(bad) => {
            pr_err!("mechanisms: {} is no mechanism with + or - before it", bad.0);
            Err(Errno::EINVAL)
        }
    }
}

/// The parameter's value, which written back changes nothing.
pub fn show_defaults(buf: &mut [u8]) -> usize {
    let mut out = Out::new(buf);
    let _ = signed(&mut out, defaults());
    out.written()
}

fn signed(out: &mut Out<'_>, set: Set) -> fmt::Result {
    for (i, row) in TABLE.iter().enumerate() {
        let sign = if set.has(row.mechanism) { '+' } else { '-' };
        write!(out, "{}{sign}{}", if i == 0 { "" } else { "," }, row.name)?;
    }
    out.write_char('\n')
}

/// The text form. `buf` is full if it did not fit.
pub fn text(buf: &mut [u8]) -> usize {
    let mut out = Out::new(buf);
    let _ = all(&mut out);
    out.written()
}

fn all(out: &mut Out<'_>) -> fmt::Result {
    write!(out, "exitless {VERSION}\ndefaults ")?;
    signed(out, defaults())?;
    let mut from = 0;
    while let Some(vm) = global::next_vm(from) {
        writeln!(out, "vm {} pid {} uid {} vcpus {}", vm.id, vm.pid, vm.uid, vm.vcpu_count())?;
        TABLE.iter().try_for_each(|row| line(out, &vm, row))?;
        from = vm.id + 1;
    }
    Ok(())
}

fn line(out: &mut Out<'_>, vm: &Vm, row: &Row) -> fmt::Result {
    // A line looks at each vCPU, and there may be a thousand.
    task::cond_resched();
    let s = state_of(vm, row.mechanism, vm.each_vcpu());
    let switch = if s.flags & state::WANTED != 0 { "on" } else { "off" };
    write!(out, "  {} {switch} active {}/{}", row.name, s.active, vm.vcpu_count())?;
    write!(out, " hits {} saved {} added {}", s.hits, s.saved, s.added)?;
    for (f, n) in Fallback::ALL.iter().zip(s.fallbacks).filter(|(_, n)| *n != 0) {
        write!(out, " {} {n}", f.name())?;
    }
    match Reason::ALL.iter().find(|r| **r as u32 == s.reason) {
        Some(r) => writeln!(out, ": {}", r.words()),
        None => out.write_char('\n'),
    }
}
