//! Work for Linux guests, run by `lab/hosts/guest/init`. Who runs where is `taskset`'s business.
//!
//!     exitless-load serve PORT          answers one connection, byte by byte, until it ends
//!     exitless-load ask ADDRESS:PORT N  N requests of a byte, each sent when the one before is answered, which is waited for with a
//!                                       time limit of a millisecond, again and again: a timer for each, which hardly ever comes
//!     exitless-load ask_patiently ADDRESS:PORT N   the same without the limit
//!     exitless-load wake WORKERS N      N times a message to each of so many threads, and their answers: two wake-ups for each
//!     exitless-load map THREADS N       each thread N times gets 64 KiB of memory, touches it, and gives it back
//!     exitless-load disk FILE N         N reads of 4 KiB at random places of the first 16 MiB, past the page cache
//!     exitless-load timers MICROSECONDS FILE   a timer at each such time, until the file is gone; none may be early
//!     exitless-load sleep MICROSECONDS N   N sleeps; none may be early

use std::{
    fs::File,
    io::{Error, Read, Result, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

fn serve(port: u16) -> Result<()> {
    let (mut peer, _) = TcpListener::bind(("127.0.0.1", port))?.accept()?;
    peer.set_nodelay(true)?;
    let mut byte = [0];
    while peer.read(&mut byte)? == 1 {
        peer.write_all(&byte)?;
    }
    Ok(())
}

/// The server may still be on its way.
fn connect(to: &str) -> Result<TcpStream> {
    for _ in 0..500 {
        if let Ok(peer) = TcpStream::connect(to) {
            return Ok(peer);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    TcpStream::connect(to)
}

/// Until there is something to read: asked again each millisecond.
fn wait(peer: &TcpStream) -> Result<()> {
    const MILLISECOND: i32 = 1;
    loop {
        let mut fd = libc::pollfd { fd: peer.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, of a descriptor that is open.
        match unsafe { libc::poll(&mut fd, 1, MILLISECOND) } {
            0 => {}
            1.. => return Ok(()),
            _ => return Err(Error::last_os_error()),
        }
    }
}

fn ask(to: &str, count: u64, patiently: bool) -> Result<()> {
    let mut peer = connect(to)?;
    peer.set_nodelay(true)?;
    for n in 0..count {
        let sent = [n as u8];
        let mut got = [0];
        peer.write_all(&sent)?;
        if !patiently {
            wait(&peer)?;
        }
        peer.read_exact(&mut got)?;
        if got != sent {
            return Err(Error::other("not the answer to what was asked"));
        }
    }
    Ok(())
}

fn sleep(time: Duration, count: u64) -> Result<()> {
    for _ in 0..count {
        let begin = Instant::now();
        std::thread::sleep(time);
        if begin.elapsed() < time {
            return Err(Error::other("a sleep ended early"));
        }
    }
    Ok(())
}

fn wake(workers: u64, rounds: u64) -> Result<()> {
    let lost = |_| Error::other("a thread is gone");
    let (answer, answers) = channel();
    let mut to = Vec::new();
    for _ in 0..workers {
        let (sender, messages) = channel::<()>();
        let answer = answer.clone();
        to.push(sender);
        thread::spawn(move || messages.iter().all(|()| answer.send(()).is_ok()));
    }
    for _ in 0..rounds {
        to.iter().try_for_each(|sender| sender.send(())).map_err(|_| Error::other("a thread is gone"))?;
        for _ in 0..workers {
            answers.recv().map_err(lost)?;
        }
    }
    Ok(())
}

fn map(threads: u64, rounds: u64) -> Result<()> {
    const SIZE: usize = 64 << 10;
    let one = move || -> Result<()> {
        for _ in 0..rounds {
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: new memory, nobody else's.
            let p = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, kind, -1, 0) };
            if p == libc::MAP_FAILED {
                return Err(Error::last_os_error());
            }
            for at in (0..SIZE).step_by(4096) {
                // SAFETY: inside of it.
                unsafe { p.cast::<u8>().add(at).write_volatile(1) };
            }
            // SAFETY: that memory, which nobody uses any more.
            unsafe { libc::munmap(p, SIZE) };
        }
        Ok(())
    };
    let all: Vec<_> = (0..threads).map(|_| thread::spawn(one)).collect();
    all.into_iter().try_for_each(|t| t.join().map_err(|_| Error::other("a thread panicked"))?)
}

#[repr(align(4096))]
struct Block([u8; 4096]);

fn disk(path: &str, count: u64) -> Result<()> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut block = Box::new(Block([0; 4096]));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        file.read_exact_at(&mut block.0, (random >> 20) % (16 << 8) * 4096)?;
    }
    Ok(())
}

/// CLOCK_MONOTONIC, in nanoseconds.
fn clock() -> Result<i64> {
    // SAFETY: all-zero is a time.
    let mut t: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: one timespec.
    match unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) } {
        0 => Ok(t.tv_sec * 1_000_000_000 + t.tv_nsec),
        _ => Err(Error::last_os_error()),
    }
}

fn timers(period: i64, going: &str) -> Result<()> {
    let (mut count, mut latest, mut next) = (0_u64, 0, clock()? + period);
    while std::path::Path::new(going).exists() {
        let at = libc::timespec { tv_sec: next / 1_000_000_000, tv_nsec: next % 1_000_000_000 };
        let (clock_id, how) = (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME);
        // SAFETY: one timespec; what would be left of an interrupted sleep is not asked for.
        let failed = unsafe { libc::clock_nanosleep(clock_id, how, &at, std::ptr::null_mut()) };
        if failed != 0 {
            return Err(Error::from_raw_os_error(failed));
        }
        let now = clock()?;
        if now < next {
            return Err(Error::other("a timer came early"));
        }
        count += 1;
        latest = latest.max(now - next);
        next = now.max(next + period);
    }
    println!("{count} timers, the latest by {} us", latest / 1000);
    if count < 100 { Err(Error::other("hardly any timers")) } else { Ok(()) }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|a| a.parse::<u64>().ok()).unwrap_or(0);
    let word = |at: usize| args.get(at).map_or("", String::as_str);
    match args.first().map(String::as_str) {
        Some("serve") => serve(number(1) as u16),
        Some("ask") => ask(word(1), number(2), false),
        Some("ask_patiently") => ask(word(1), number(2), true),
        Some("wake") => wake(number(1), number(2)),
        Some("map") => map(number(1), number(2)),
        Some("disk") => disk(word(1), number(2)),
        Some("timers") => timers(number(1) as i64 * 1000, word(2)),
        Some("sleep") => sleep(Duration::from_micros(number(1)), number(2)),
        _ => Err(Error::other("no such work")),
    }
}
