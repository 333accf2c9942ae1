//! Tests of this crate, and the few helpers they run against, on the test program's own heap.

use crate::mem::{KArc, KBox, KSlice};
use crate::{Errno, errno, log};
use bytemuck::Zeroable;
use core::ffi::c_void;
use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

/// The block's size and alignment sit in front of it.
const HEADER: usize = 4096;

#[unsafe(no_mangle)]
unsafe extern "C" fn ex_kvzalloc(size: usize, align: usize) -> *mut c_void {
    let layout = Layout::from_size_align(size + HEADER, HEADER).expect("fits");
    assert!(size > 0 && align <= HEADER);
    // SAFETY: the layout has a size; the first word of the header is ours.
    unsafe {
        let block = alloc_zeroed(layout);
        block.cast::<usize>().write(size);
        block.add(HEADER).cast()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ex_kvfree(ptr: *mut c_void) {
    // SAFETY: ptr came from ex_kvzalloc above, whose header says the size.
    unsafe {
        let block = ptr.cast::<u8>().sub(HEADER);
        let size = block.cast::<usize>().read();
        dealloc(block, Layout::from_size_align(size + HEADER, HEADER).expect("fits"));
    }
}

/// Counts drops through a shared counter.
struct Noted(Option<&'static AtomicUsize>);

// SAFETY: a null reference inside Option is None.
unsafe impl Zeroable for Noted {}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(counter) = self.0 {
            counter.fetch_add(1, Relaxed);
        }
    }
}

fn counter() -> &'static AtomicUsize {
    Box::leak(Box::new(AtomicUsize::new(0)))
}

#[test]
fn boxes_and_slices_drop_their_values_once() {
    let drops = counter();
    let mut boxed = KBox::<Noted>::zeroed().expect("memory");
    boxed.0 = Some(drops);
    let raw = KBox::into_raw(boxed);
    assert_eq!(drops.load(Relaxed), 0);
    // SAFETY: raw came from into_raw.
    drop(unsafe { KBox::from_raw(raw) });
    assert_eq!(drops.load(Relaxed), 1);

    let mut slice = KSlice::<Noted>::zeroed(5).expect("memory");
    slice.iter_mut().for_each(|noted| noted.0 = Some(drops));
    drop(slice);
    assert_eq!(drops.load(Relaxed), 6);
}

#[test]
fn slices_may_be_empty_and_never_overflow() {
    assert!(KSlice::<u64>::zeroed(0).expect("no memory needed").is_empty());
    assert!(KSlice::<u64>::zeroed(usize::MAX / 4).is_none());
    let zeroed: KSlice<u64> = Zeroable::zeroed();
    assert!(zeroed.is_empty());
    let none: Option<KBox<u64>> = Zeroable::zeroed();
    assert!(none.is_none());
}

/// A list that does not own (all VMs of the machine) meets a VM that is being destroyed: it must not come back.
#[test]
fn a_dead_arc_is_not_revived() {
    let drops = counter();
    let mut first = KArc::<Noted>::zeroed().expect("memory");
    first.get_mut().expect("one owner").0 = Some(drops);
    let mut second = first.clone();
    assert!(second.get_mut().is_none());
    let raw = KArc::into_raw(first.clone());
    drop(first);
    drop(second);
    assert_eq!(drops.load(Relaxed), 0);
    // SAFETY: raw is the last owner's.
    drop(unsafe { KArc::from_raw(raw) });
    assert_eq!(drops.load(Relaxed), 1);
}

#[test]
fn owners_in_many_threads_drop_once() {
    let drops = counter();
    let mut arc = KArc::<Noted>::zeroed().expect("memory");
    arc.get_mut().expect("one owner").0 = Some(drops);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let arc = arc.clone();
            std::thread::spawn(move || (0..1000).for_each(|_| drop(arc.clone())))
        })
        .collect();
    drop(arc);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(drops.load(Relaxed), 1);
}

/// A guest can make us print long lines; they are cut, not written past the buffer.
#[test]
fn long_lines_are_cut() {
    let mut line = log::Line::new();
    for _ in 0..100 {
        line.write_str("0123456789").expect("never fails");
    }
    assert_eq!(line.bytes().len(), log::LINE_MAX);
    assert!(line.bytes().starts_with(b"01234567890"));
}

#[test]
fn error_numbers() {
    assert_eq!(errno::ret(Err(Errno::EINVAL)), -22);
    assert_eq!(errno::int(Ok(())), 0);
    assert_eq!(Errno::from_ret(-14), Errno::EFAULT);
    // A helper that fails without saying why must not look like success.
    assert_eq!(Errno::from_ret(0), Errno::EIO);
    assert_eq!(Errno::from_ret(i32::MIN), Errno::EIO);
}

/// The C list and ours are written by hand: same names, same order, same number of arguments.
#[test]
fn the_helper_lists_agree() {
    /// Name and number of arguments of each declaration that ends in a semicolon.
    fn names(text: &str) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for declaration in text.split(';') {
            let Some((head, args)) = declaration.rsplit_once('(') else { continue };
            let name =
                head.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            if !name.starts_with("ex_") {
                continue;
            }
            let args = args.split(')').next().unwrap_or_default();
            let args = args.split(',').map(str::trim).filter(|arg| !arg.is_empty() && *arg != "void");
            found.push((name.into(), args.count()));
        }
        found
    }
    let c = names(include_str!("../../c/helpers/helpers.h"));
    let rust = names(include_str!("ffi.rs"));
    assert!(c.len() > 100);
    assert_eq!(c, rust);
}

/// As a VM in the list of VMs, which it leaves when it drops: who finds it there then gets no owner, and before then one more.
struct Listed(Option<&'static AtomicUsize>);

// SAFETY: as for `Noted`.
unsafe impl Zeroable for Listed {}

impl Drop for Listed {
    fn drop(&mut self) {
        // SAFETY: the value is not freed before this returns.
        let found = unsafe { KArc::try_clone_raw(core::ptr::from_ref(self)) };
        if let Some(counter) = self.0 {
            counter.fetch_add(if found.is_none() { 1 } else { 100 }, Relaxed);
        }
        core::mem::forget(found);
    }
}

#[test]
fn nobody_owns_what_lost_its_last_owner() {
    let dropped = counter();
    let mut first = KArc::<Listed>::zeroed().expect("memory");
    KArc::get_mut(&mut first).expect("one owner").0 = Some(dropped);
    // SAFETY: `first` keeps it alive.
    let second = unsafe { KArc::try_clone_raw(KArc::as_ptr(&first)) }.expect("it has an owner");
    drop(first);
    assert_eq!(dropped.load(Relaxed), 0);
    drop(second);
    assert_eq!(dropped.load(Relaxed), 1);
}
