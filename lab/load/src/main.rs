//! Work for Linux guests, run by `lab/hosts/guest/init`. Who runs where is `taskset`'s business.
//!
//!     exitless-load serve PORT          answers one connection, byte by byte, until it ends
//!     exitless-load ask PORT N          N requests of a byte, each sent when the one before is answered, which is waited for with a
//!                                       time limit of a millisecond, again and again: a timer for each, which hardly ever comes
//!     exitless-load ask_patiently PORT N    the same without the limit
//!     exitless-load sleep MICROSECONDS N   N sleeps; none may be early

use std::{
    io::{Error, Read, Result, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
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
fn connect(port: u16) -> Result<TcpStream> {
    for _ in 0..500 {
        if let Ok(peer) = TcpStream::connect(("127.0.0.1", port)) {
            return Ok(peer);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    TcpStream::connect(("127.0.0.1", port))
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

fn ask(port: u16, count: u64, patiently: bool) -> Result<()> {
    let mut peer = connect(port)?;
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

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|a| a.parse::<u64>().ok()).unwrap_or(0);
    match args.first().map(String::as_str) {
        Some("serve") => serve(number(1) as u16),
        Some("ask") => ask(number(1) as u16, number(2), false),
        Some("ask_patiently") => ask(number(1) as u16, number(2), true),
        Some("sleep") => sleep(Duration::from_micros(number(1)), number(2)),
        _ => Err(Error::other("no such work")),
    }
}
