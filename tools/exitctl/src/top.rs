//! `exitctl top`: VMs, their vCPUs and mechanisms, live.
//!
//! Keys: arrows move, Enter opens a VM and Esc leaves it, Tab goes from its vCPUs to its exits and mechanisms, s sorts by the next
//! column, / filters by name, q and Ctrl-C end.

use crate::device::Device;
use crate::out::largest;
use crate::times::{Durations, said};
use crate::view::{View, Vm, Watch, title};
use anyhow::{Result, ensure};
use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{LeaveAlternateScreen, disable_raw_mode};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, TableState, Wrap};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: crate::Which,
    /// Seconds between looks.
    #[arg(long, default_value = "1", value_parser = crate::seconds)]
    interval: Duration,
    /// End after so many looks.
    #[arg(long)]
    count: Option<u64>,
}

/// What is shown of the VM that is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Page {
    #[default]
    Vcpus,
    Exits,
    Mechanisms,
}

impl Page {
    fn next(self) -> Self {
        match self {
            Self::Vcpus => Self::Exits,
            Self::Exits => Self::Mechanisms,
            Self::Mechanisms => Self::Vcpus,
        }
    }
}

/// What the person chose.
#[derive(Debug, Default)]
struct Screen {
    /// The VM that is open.
    open: Option<u64>,
    page: Page,
    /// Index into the columns that can be sorted by.
    sort: usize,
    filter: String,
    typing: bool,
    rows: usize,
    table: TableState,
}

/// Sorted by: exits, to user space, vCPUs, number.
const SORTS: [&str; 4] = ["exits", "user", "vCPUs", "number"];

enum Outcome {
    Stay,
    Leave,
}

impl Screen {
    fn key(&mut self, key: impl Into<KeyEvent>, view: &View) -> Outcome {
        let KeyEvent { code, modifiers, .. } = key.into();
        // The terminal is raw: it makes no signal of Ctrl-C.
        if modifiers.contains(KeyModifiers::CONTROL) && matches!(code, KeyCode::Char('c' | 'C')) {
            return Outcome::Leave;
        }
        if modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
            return Outcome::Stay;
        }
        if self.typing {
            match code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => _ = self.filter.pop(),
                KeyCode::Char(c) => self.filter.push(c),
                _ => {}
            }
            return Outcome::Stay;
        }
        match code {
            KeyCode::Char('q') => return Outcome::Leave,
            KeyCode::Esc if self.open.is_none() => return Outcome::Leave,
            KeyCode::Esc => self.to(None),
            KeyCode::Enter if self.open.is_none() => {
                let at = self.table.selected().unwrap_or(0);
                let chosen = self.vms(view).get(at).map(|vm| vm.id);
                if chosen.is_some() {
                    self.to(chosen);
                }
            }
            KeyCode::Tab if self.open.is_some() => {
                self.page = self.page.next();
                self.table.select(Some(0));
            }
            KeyCode::Char('s') => self.sort = (self.sort + 1) % SORTS.len(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Up => self.by(-1),
            KeyCode::Down => self.by(1),
            KeyCode::PageUp => self.by(-20),
            KeyCode::PageDown => self.by(20),
            KeyCode::Home => self.by(isize::MIN),
            KeyCode::End => self.by(isize::MAX),
            _ => {}
        }
        Outcome::Stay
    }

    fn to(&mut self, open: Option<u64>) {
        (self.open, self.page) = (open, Page::Vcpus);
        self.table.select(Some(0));
    }

    fn by(&mut self, step: isize) {
        let at = self.table.selected().unwrap_or(0).saturating_add_signed(step);
        self.table.select(Some(at.min(self.rows.saturating_sub(1))));
    }

    /// Filtered and sorted.
    fn vms<'a>(&self, view: &'a View) -> Vec<&'a Vm> {
        let fits = |vm: &&Vm| vm.name.contains(&self.filter);
        let mut all: Vec<&Vm> = view.vms.iter().filter(fits).collect();
        all.sort_by_key(|vm| {
            let first = match self.sort {
                0 => u64::MAX - vm.total(|v| v.exits),
                1 => u64::MAX - vm.total(|v| v.user),
                2 => u64::MAX - vm.vcpus.len() as u64,
                _ => 0,
            };
            (first, vm.id)
        });
        all
    }

    fn draw(&mut self, frame: &mut Frame<'_>, view: &View) {
        let open = self.open.and_then(|id| view.vms.iter().find(|vm| vm.id == id));
        if open.is_none() {
            // It ended.
            self.open = None;
        }
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
                .areas(frame.area());
        let seconds = view.seconds.unwrap_or(1.0);
        let all: u64 = view.vms.iter().map(|vm| vm.total(|v| v.exits)).sum();
        let title = match open {
            None => format!(
                "exitctl: {} VMs, {:.0} exits/s, sorted by {}",
                view.vms.len(),
                all as f64 / seconds,
                SORTS[self.sort]
            ),
            Some(vm) => format!(
                "{}: {:.0} exits/s",
                title(vm.id, &vm.name, vm.pid),
                vm.total(|v| v.exits) as f64 / seconds
            ),
        };
        frame.render_widget(Line::styled(title, Modifier::BOLD), head);
        let (columns, rows, widths) = match (open, self.page) {
            (None, _) => self.of_vms(view, seconds),
            (Some(vm), Page::Vcpus) => of_vcpus(vm, seconds),
            (Some(vm), Page::Exits) => of_exits(vm, seconds),
            (Some(vm), Page::Mechanisms) => of_mechanisms(vm, seconds),
        };
        self.rows = rows.len();
        self.by(0);
        let table = Table::new(rows.into_iter().map(Row::new), widths)
            .header(Row::new(columns).style(Modifier::UNDERLINED))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let reason = open.filter(|_| self.page == Page::Mechanisms).and_then(|vm| {
            let m = vm.mechanisms.get(self.table.selected()?)?;
            (m.active < vm.vcpus.len() as u32).then(|| format!("{}: {}", m.name, m.reason))
        });
        // Words end before the line does.
        let room = foot.width.saturating_sub(8).max(1) as usize;
        let lines = reason.as_ref().map_or(0, |r| r.chars().count().div_ceil(room).min(4)) as u16;
        let [body, why] = Layout::vertical([Constraint::Min(1), Constraint::Length(lines)]).areas(body);
        frame.render_stateful_widget(table, body, &mut self.table);
        let keys = match (self.typing, open) {
            (true, _) => format!("name has: {}_", self.filter),
            (_, None) => format!("Enter open  s sort  / filter {}  q quit", self.filter),
            (_, Some(_)) => "Tab vCPUs, exits, mechanisms  Esc back  q quit".into(),
        };
        if let Some(reason) = reason {
            // Why the chosen one is not active, whole, where its column has cut it.
            frame.render_widget(Paragraph::new(reason).wrap(Wrap { trim: true }), why);
        }
        frame.render_widget(Line::styled(keys, Modifier::DIM), foot);
    }

    fn of_vms(&self, view: &View, seconds: f64) -> Shown {
        let row = |vm: &&Vm| {
            let (exits, fast, user) = (vm.total(|v| v.exits), vm.total(|v| v.fast), vm.total(|v| v.user));
            let most: Vec<_> = largest(&vm.exits)
                .into_iter()
                .take(3)
                .map(|(k, n)| format!("{k} {}", share(n, exits)))
                .collect();
            vec![
                vm.id.to_string(),
                vm.pid.to_string(),
                vm.name.clone(),
                vm.vcpus.len().to_string(),
                rate(exits, seconds),
                share(fast, exits),
                rate(user, seconds),
                spent(vm, None, "guest"),
                most.join(" "),
            ]
        };
        let widths =
            [4, 8, 12, 5, 9, 5, 7, 6].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
        let columns = vec!["VM", "pid", "name", "vCPUs", "exits/s", "fast", "user/s", "guest", "most"];
        (columns, self.vms(view).iter().map(row).collect(), widths.collect())
    }
}

/// Columns, rows, widths.
type Shown = (Vec<&'static str>, Vec<Vec<String>>, Vec<Constraint>);

fn rate(n: u64, seconds: f64) -> String {
    format!("{:.0}", n as f64 / seconds)
}

fn share(n: u64, all: u64) -> String {
    if all == 0 { "-".into() } else { format!("{:.0}%", 100.0 * n as f64 / all as f64) }
}

/// The part of the time that was spent there; "-": it is not measured.
fn spent(vm: &Vm, vcpu: Option<u32>, what: &str) -> String {
    let share = vm.times.as_ref().and_then(|t| t.share(vcpu, what));
    share.map_or("-".into(), |s| format!("{s:.0}%"))
}

fn of_vcpus(vm: &Vm, seconds: f64) -> Shown {
    let rows = vm.vcpus.iter().map(|v| {
        let cpu = if v.cpu < 0 { "-".into() } else { v.cpu.to_string() };
        vec![
            v.id.to_string(),
            cpu,
            v.state.into(),
            rate(v.exits, seconds),
            share(v.fast, v.exits),
            rate(v.user, seconds),
            spent(vm, Some(v.id), "guest"),
            spent(vm, Some(v.id), "kernel"),
            spent(vm, Some(v.id), "halted"),
        ]
    });
    (
        vec!["vCPU", "CPU", "state", "exits/s", "fast", "user/s", "guest", "kernel", "halted"],
        rows.collect(),
        [5, 5, 13, 10, 5, 10, 6, 6, 6].map(Constraint::Length).to_vec(),
    )
}

fn of_exits(vm: &Vm, seconds: f64) -> Shown {
    let mut rows = Vec::new();
    let all = vm.total(|v| v.exits);
    let handled: u64 = vm.times.iter().flat_map(|t| t.exits.values()).map(Durations::total_ns).sum();
    for (kind, counts) in [("exit", &vm.exits), ("MSR", &vm.msrs), ("port", &vm.ports)] {
        let of = largest(counts).into_iter();
        rows.extend(of.map(|(k, n)| {
            let time = vm.times.as_ref().filter(|_| kind == "exit").and_then(|t| t.exits.get(k));
            let said = |of: fn(&Durations) -> u64| time.map_or("-".into(), |d| said(of(d)));
            let part = time.map_or("-".into(), |d| share(d.total_ns(), handled));
            let [mean, most] = [said(Durations::mean_ns), said(Durations::max_ns)];
            vec![kind.into(), k.clone(), rate(n, seconds), share(n, all), part, mean, most]
        }));
    }
    let widths = [4, 27, 9, 6, 5, 10, 10].map(Constraint::Length);
    (vec!["", "what", "per s", "of all", "time", "mean", "max"], rows, widths.to_vec())
}

fn of_mechanisms(vm: &Vm, seconds: f64) -> Shown {
    let rows = vm.mechanisms.iter().map(|m| {
        let why = if m.active == 0 { m.reason.clone() } else { String::new() };
        vec![
            m.name.clone(),
            format!("{}/{}", m.active, vm.vcpus.len()),
            rate(m.hits, seconds),
            rate(m.saved, seconds),
            rate(m.added, seconds),
            why,
        ]
    });
    let widths = [18, 8, 10, 10, 10].map(Constraint::Length).into_iter().chain([Constraint::Min(20)]);
    (vec!["mechanism", "active", "hits/s", "saved/s", "added/s", "why not"], rows.collect(), widths.collect())
}

pub(crate) fn run(o: &Options) -> Result<()> {
    let mut watch = Watch::new(Device::open()?)?;
    let first = watch.since()?;
    o.which.of(first)?;
    ensure!(std::io::stdout().is_terminal(), "top needs a terminal; exitctl stat --interval 1 does not");
    let signal = Arc::new(AtomicUsize::new(0));
    for n in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register_usize(n, Arc::clone(&signal), n as usize)?;
    }
    let r = {
        let _restored = Restored;
        ratatui::try_init()
            .map_err(Into::into)
            .and_then(|mut terminal| live(o, &mut || watch.since(), &mut terminal, &signal))
    };
    match signal.load(Ordering::Relaxed) {
        0 => r,
        // The end that the signal asked for, with the terminal as it was.
        n => Ok(signal_hook::low_level::emulate_default_handler(n as i32)?),
    }
}

/// The terminal as it was, however it is left, also half made; each step on its own.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = disable_raw_mode();
        let _ = execute!(std::io::stdout(), LeaveAlternateScreen, Show);
    }
}

/// A signal that comes just before the wait for a key is seen after so long.
const BLIND: Duration = Duration::from_secs(1);

fn live(
    o: &Options,
    since: &mut dyn FnMut() -> Result<View>,
    terminal: &mut ratatui::DefaultTerminal,
    signal: &AtomicUsize,
) -> Result<()> {
    let mut screen = Screen::default();
    screen.to(o.which.vm);
    let mut view = View { seconds: Some(1.0), vms: Vec::new() };
    let mut next = Instant::now() + o.interval.min(Duration::from_millis(200));
    let mut looks = 0;
    loop {
        terminal.draw(|frame| screen.draw(frame, &view))?;
        if signal.load(Ordering::Relaxed) != 0 {
            return Ok(());
        }
        let wait = next.saturating_duration_since(Instant::now());
        if event::poll(wait.min(BLIND))? {
            if let Event::Key(k) = event::read()?
                && k.kind == KeyEventKind::Press
                && matches!(screen.key(k, &view), Outcome::Leave)
            {
                return Ok(());
            }
            continue;
        }
        if Instant::now() < next {
            continue;
        }
        if o.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        view = since()?;
        view.vms.retain(|vm| o.which.pid.is_none_or(|pid| vm.pid == pid));
        looks += 1;
        next = Instant::now() + o.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::sample;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn lines(screen: &mut Screen, view: &View, width: u16, height: u16) -> Vec<String> {
        let mut t = Terminal::new(TestBackend::new(width, height)).unwrap();
        t.draw(|f| screen.draw(f, view)).unwrap();
        let buffer = t.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn view() -> View {
        View { seconds: Some(2.0), vms: vec![sample(1, 2, 1), sample(2, 104, 3), sample(3, 1, 9)] }
    }

    #[test]
    fn vms_on_a_small_terminal() {
        let (v, mut s) = (view(), Screen::default());
        let shown = lines(&mut s, &v, 80, 24);
        assert!(shown[0].starts_with("exitctl: 3 VMs, "), "{shown:?}");
        assert!(shown[1].contains("exits/s") && shown[1].contains("most"), "{shown:?}");
        assert!(shown[2].contains("guest-2") && shown[2].contains("104"), "most exits first: {shown:?}");
        assert!(shown[23].contains("q quit"), "{shown:?}");
    }

    /// The last of 104 vCPUs is reached, and the screen keeps its size.
    #[test]
    fn a_hundred_vcpus_scroll() {
        let (v, mut s) = (view(), Screen::default());
        lines(&mut s, &v, 80, 24);
        s.key(KeyCode::Enter, &v);
        let shown = lines(&mut s, &v, 80, 24);
        assert!(
            shown[0].starts_with("VM 2 guest-2 (pid 1002)") && shown[2].trim_start().starts_with('0'),
            "{shown:?}"
        );
        s.key(KeyCode::End, &v);
        let shown = lines(&mut s, &v, 80, 24);
        assert!(shown[22].trim_start().starts_with("103"), "{shown:?}");
        let words: Vec<_> = shown[22].split_whitespace().collect();
        assert_eq!(words[6..], ["80%", "5%", "5%"], "where its time went");
        s.key(KeyCode::Tab, &v);
        let shown = lines(&mut s, &v, 80, 24);
        assert!(shown.iter().any(|l| l.contains("TSC_DEADLINE")), "{shown:?}");
        assert!(shown.iter().any(|l| l.contains("hlt") && l.ends_with("3.500 us   4.000 us")), "{shown:?}");
        s.key(KeyCode::Tab, &v);
        assert!(lines(&mut s, &v, 120, 40).iter().any(|l| l.contains("boost") && l.contains("switched off")));
        // A reason that its column cuts is whole below, of the mechanism that is chosen.
        let mut long = v.clone();
        long.vms[1].mechanisms[1].reason = format!("{} the end", "a long reason ".repeat(12));
        assert!(!lines(&mut s, &long, 80, 24).iter().any(|l| l.contains("the end")), "another is chosen");
        s.key(KeyCode::Down, &long);
        let shown = lines(&mut s, &long, 80, 24);
        assert!(shown[20].starts_with("boost: a long") && shown[22].contains("the end"), "{shown:?}");
        assert!(shown[23].contains("q quit"), "{shown:?}");
        assert!(matches!(s.key(KeyCode::Esc, &v), Outcome::Stay));
        assert!(lines(&mut s, &v, 80, 24)[0].starts_with("exitctl: 3 VMs"));
        assert!(matches!(s.key(KeyCode::Char('q'), &v), Outcome::Leave));
    }

    #[test]
    fn filter_and_order() {
        let (v, mut s) = (view(), Screen::default());
        for c in "/guest-3".chars() {
            s.key(KeyCode::Char(c), &v);
        }
        s.key(KeyCode::Enter, &v);
        assert_eq!(s.vms(&v).iter().map(|vm| vm.id).collect::<Vec<_>>(), [3]);
        s.filter.clear();
        s.sort = 3;
        assert_eq!(s.vms(&v).iter().map(|vm| vm.id).collect::<Vec<_>>(), [1, 2, 3]);
        s.key(KeyCode::Char('s'), &v);
        assert_eq!(s.vms(&v)[0].id, 2);
    }

    /// Ctrl-C ends it wherever it is pressed; other chords are not typed.
    #[test]
    fn chords_are_not_text() {
        let (v, mut s) = (view(), Screen::default());
        let chord = |c, with| KeyEvent::new(KeyCode::Char(c), with);
        assert!(matches!(s.key(chord('c', KeyModifiers::CONTROL), &v), Outcome::Leave));
        s.key(KeyCode::Char('/'), &v);
        s.key(chord('G', KeyModifiers::SHIFT), &v);
        s.key(chord('u', KeyModifiers::CONTROL), &v);
        s.key(chord('x', KeyModifiers::ALT), &v);
        assert!(matches!(s.key(chord('c', KeyModifiers::CONTROL), &v), Outcome::Leave));
        assert!(s.typing && s.filter == "G", "{}", s.filter);
    }

    /// What the test below starts on its terminal; by itself it does nothing.
    #[test]
    fn on_a_terminal() {
        if std::env::var_os(ON).is_none() {
            return;
        }
        let mut n = 0;
        let mut old = View { seconds: None, vms: Vec::new() };
        let mut since = || {
            n += 1;
            let now = View { seconds: None, vms: vec![sample(1, 2, n), sample(2, 104, n)] };
            let view = now.minus(&old, 0.1);
            old = now;
            Ok(view)
        };
        let o = Options { which: crate::Which::default(), interval: Duration::from_millis(100), count: None };
        let _restored = Restored;
        let mut terminal = ratatui::try_init().unwrap();
        live(&o, &mut since, &mut terminal, &AtomicUsize::new(0)).unwrap();
    }

    const ON: &str = "EXITCTL_TEST_TERMINAL";

    /// On a real pseudo terminal of 80x24: 104 vCPUs are opened, gone through to the last, and left; the terminal is as it was. What that
    /// takes of a CPU is printed, by look.
    #[test]
    fn a_real_terminal() {
        use crate::device::tests::Pty;
        let mut pty = Pty::open(24, 80);
        let program = std::env::current_exe().unwrap();
        let mut child = pty.spawn(
            std::process::Command::new(program)
                .args(["--exact", "top::tests::on_a_terminal", "--nocapture", "--test-threads=1"])
                .env(ON, "1")
                .env("TERM", "xterm-256color"),
        );
        let mut parser = vt100::Parser::new(24, 80, 0);
        let mut shown = |pty: &mut Pty, what: &str| {
            let mut screen = String::new();
            for _ in 0..600 {
                parser.process(&pty.read(Duration::from_millis(100)));
                screen = parser.screen().contents();
                if screen.contains(what) {
                    return (screen, parser.screen().alternate_screen());
                }
            }
            panic!("no {what} in\n{screen}");
        };
        let (screen, alternate) = shown(&mut pty, "guest-2");
        assert!(alternate && screen.starts_with("exitctl: 2 VMs"), "{screen}");
        assert!(screen.lines().last().unwrap_or_default().contains("q quit"), "{screen}");
        pty.write(b"\r");
        shown(&mut pty, "VM 2 guest-2 (pid 1002)");
        // End.
        pty.write(b"\x1b[F");
        let (screen, _) = shown(&mut pty, "  103 ");
        let last = screen.lines().rfind(|l| l.contains("  103 ") || l.starts_with("103 "));
        assert!(last.is_some_and(|l| l.contains("80%")), "{screen}");
        pty.write(b"\t");
        shown(&mut pty, "TSC_DEADLINE");
        pty.write(b"q");
        let mut rest = Vec::new();
        let ended = (0..600).find_map(|_| {
            rest.extend(pty.read(Duration::from_millis(100)));
            child.try_wait().unwrap()
        });
        rest.extend(pty.read(Duration::from_millis(100)));
        parser.process(&rest);
        assert!(ended.is_some_and(|s| s.success()), "{}", parser.screen().contents());
        assert!(!parser.screen().alternate_screen() && !parser.screen().hide_cursor());
    }

    /// The cost of a look at 104 vCPUs: the difference to the last and a whole screen. At one look in a second a hundredth of a CPU is
    /// 10 ms; the ioctls of a look, a dozen, are not in it.
    #[test]
    fn a_look_is_cheap() {
        let at = |n| View { seconds: None, vms: vec![sample(1, 104, n)] };
        let (old, new) = (at(1), at(2));
        let mut s = Screen::default();
        s.to(Some(1));
        let mut t = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let before = crate::device::tests::cpu_time();
        for _ in 0..20 {
            let view = new.minus(&old, 1.0);
            t.draw(|f| s.draw(f, &view)).unwrap();
        }
        let each = (crate::device::tests::cpu_time() - before) / 20;
        println!("{each:?} of a CPU for each look");
        assert!(each < Duration::from_millis(if cfg!(debug_assertions) { 60 } else { 10 }), "{each:?}");
    }

    /// A VM that is open ends: its list comes back.
    #[test]
    fn an_open_vm_ends() {
        let (v, mut s) = (view(), Screen::default());
        s.to(Some(2));
        lines(&mut s, &v, 80, 24);
        let less = View { seconds: Some(1.0), vms: vec![sample(1, 1, 1)] };
        assert!(lines(&mut s, &less, 80, 24)[0].starts_with("exitctl: 1 VMs"));
        let none = View { seconds: Some(1.0), vms: Vec::new() };
        s.key(KeyCode::Enter, &none);
        assert!(lines(&mut s, &none, 20, 3)[0].starts_with("exitctl: 0 VMs"));
    }
}
