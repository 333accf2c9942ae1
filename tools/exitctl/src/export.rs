//! `exitctl exporter`: serves the counts to Prometheus.
//!
//! Who connects is not trusted to read or to go on sending: each connection has a thread, of which there are `THREADS` at most, one request,
//! and `TIME` in all.

use crate::device::Device;
use crate::out;
use crate::view::Watch;
use anyhow::{Context, Result, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const THREADS: usize = 16;
const TIME: Duration = Duration::from_secs(5);
/// The longest head of a request.
const HEAD: usize = 8192;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An address or a host's name, and a port; which of them there are is seen when it is bound.
pub(crate) fn address(text: &str) -> Result<String> {
    let (host, port) = text.rsplit_once(':').context("ADDRESS:PORT")?;
    ensure!(!host.is_empty() && port.parse::<u16>().is_ok(), "ADDRESS:PORT, with a port of 0 to 65535");
    Ok(text.into())
}

pub(crate) fn run(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen)
        .with_context(|| format!("{listen} (--listen takes another address and port)"))?;
    let watch = Mutex::new(Watch::new(Device::open()?)?);
    let address = listener.local_addr()?;
    // Who started it may have closed its end.
    let _ = writeln!(std::io::stderr(), "{}", announced(address));
    let metrics = move || {
        let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
        out::prometheus(&watch.look()?)
    };
    serve(&listener, TIME, Arc::new(metrics));
}

fn announced(address: SocketAddr) -> String {
    let to = if address.ip().is_loopback() { "" } else { "; whoever reaches this address sees every VM" };
    format!("http://{address}/metrics{to}; Ctrl-C ends it")
}

/// For ever.
fn serve(
    listener: &TcpListener,
    time: Duration,
    metrics: Arc<impl Fn() -> Result<String> + Send + Sync + 'static>,
) -> ! {
    let threads = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((peer, _)) = listener.accept() else {
            // Out of descriptors, or the peer is gone already: it passes.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        // Only this thread adds. Beyond the bound the connection is closed.
        if threads.load(Ordering::Acquire) >= THREADS {
            continue;
        }
        threads.fetch_add(1, Ordering::Relaxed);
        let one = One(Arc::clone(&threads));
        let metrics = Arc::clone(&metrics);
        let work = move || {
            let _one = one;
            // An error is the peer's affair.
            let _ = Peer { peer, end: Instant::now() + time }.answer(&*metrics);
        };
        // No thread to be had: what it was to own is dropped, and the connection closed.
        let _ = std::thread::Builder::new().spawn(work);
    }
}

/// A thread that counts until it ends.
struct One(Arc<AtomicUsize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// A connection that ends in time.
struct Peer {
    peer: TcpStream,
    end: Instant,
}

impl Peer {
    /// One request.
    fn answer(mut self, metrics: &impl Fn() -> Result<String>) -> std::io::Result<()> {
        let head = self.head()?;
        let mut words = head.split(|b| b.is_ascii_whitespace());
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, kind, text) = match (method, path.split(|b| *b == b'?').next()) {
            (b"GET", Some(b"/metrics")) => match metrics() {
                Ok(text) => ("200 OK", TYPE, text),
                Err(e) => ("500 Internal Server Error", "text/plain", format!("{e:#}\n")),
            },
            (b"GET", _) => ("404 Not Found", "text/plain", "/metrics\n".into()),
            _ => ("405 Method Not Allowed\r\nAllow: GET", "text/plain", "GET /metrics\n".into()),
        };
        let length = text.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        );
        self.send(answer.as_bytes())
    }

    fn left(&self) -> std::io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Until the empty line.
    fn head(&mut self) -> std::io::Result<Vec<u8>> {
        let mut head = Vec::new();
        let mut some = [0; 1024];
        while !head.windows(4).any(|w| w == b"\r\n\r\n") {
            self.peer.set_read_timeout(Some(self.left()?))?;
            let n = match self.peer.read(&mut some) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                r => r?,
            };
            if n == 0 || head.len() + n > HEAD {
                return Err(ErrorKind::InvalidData.into());
            }
            head.extend(&some[..n]);
        }
        Ok(head)
    }

    fn send(&mut self, mut text: &[u8]) -> std::io::Result<()> {
        while !text.is_empty() {
            self.peer.set_write_timeout(Some(self.left()?))?;
            match self.peer.write(text) {
                Ok(n) => text = &text[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(time: Duration, bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(move || Ok("x".repeat(bytes)));
        std::thread::spawn(move || serve(&listener, time, metrics));
        address
    }

    /// Empty where the connection was closed without an answer.
    fn ask(address: SocketAddr, request: &str) -> String {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut text = Vec::new();
        let _ = peer.write_all(request.as_bytes()).and_then(|()| peer.read_to_end(&mut text));
        String::from_utf8(text).unwrap()
    }

    const GET: &str = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn requests_are_answered() {
        let a = server(Duration::from_secs(60), 3);
        let text = ask(a, GET);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nxxx"), "{text}");
        assert!(text.contains("Content-Length: 3\r\n") && text.contains(TYPE), "{text}");
        assert!(ask(a, "GET /metrics?x=1 HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
        assert!(ask(a, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(ask(a, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert_eq!(ask(a, &"x".repeat(HEAD + 1)), "", "a head without end");
    }

    /// Clients that send a request and read nothing of a long answer stop nobody else.
    #[test]
    fn who_never_reads_stops_nobody() {
        let a = server(Duration::from_secs(3600), 1 << 24);
        let deaf: Vec<_> = (0..THREADS / 2)
            .map(|_| {
                let mut peer = TcpStream::connect(a).unwrap();
                peer.write_all(GET.as_bytes()).unwrap();
                peer
            })
            .collect();
        assert!(ask(a, GET).len() > 1 << 24);
        drop(deaf);
    }

    /// Also those that have all threads, and those that never end their request: they lose them in time.
    #[test]
    fn all_threads_come_back() {
        let a = server(Duration::from_millis(300), 1 << 24);
        let deaf: Vec<_> = (0..2 * THREADS)
            .map(|n| {
                let mut peer = TcpStream::connect(a).unwrap();
                peer.write_all(if n % 2 == 0 { GET } else { "GET /me" }.as_bytes()).unwrap();
                peer
            })
            .collect();
        let answered = |_| {
            ask(a, "GET / HTTP/1.1\r\n\r\n").contains("404") || {
                std::thread::sleep(Duration::from_millis(50));
                false
            }
        };
        assert!((0..600).any(answered), "30 seconds");
        drop(deaf);
    }

    #[test]
    fn an_address_that_others_reach_is_said() {
        assert!(!announced("127.0.0.1:1".parse().unwrap()).contains("whoever"));
        assert!(!announced("[::1]:1".parse().unwrap()).contains("whoever"));
        assert!(announced("0.0.0.0:1".parse().unwrap()).contains("whoever"));
    }
}
