//! `xctl trace`: print retransmits as they happen.

use std::io::{self, BufWriter};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{check_privilege, default_max_sockets};
use crate::cli::{Events, Filters, TraceOptions};
use crate::embedded;
use crate::events::{COMM_LEN, Event, Owner, Settings};
use crate::fault::Exit;
use crate::hooks;
use crate::kernel::wait::{Waiter, Woken, monotonic_ns, realtime_ns};
use crate::kernel::{host, libbpf};
use crate::output::json::Json;
use crate::output::summary::{self, ByProcess, Summary};
use crate::output::text::Text;
use crate::output::{Moment, Output, Ready};
use crate::ring::order::Order;
use crate::tracer::{self, Kernel, Sizes, Tracer};

/// How long records are held back to be put in order, and so how often the rings are drained under load.
const ROUND: Duration = Duration::from_millis(5);

/// Run the command until something ends it.
///
/// # Errors
/// Whatever the message says; [`Exit`] in its chain decides the exit code.
pub fn run(options: &TraceOptions) -> Result<()> {
    libbpf::collect_messages(options.verbose);
    let result = trace(options);
    if options.verbose {
        eprint!("{}", libbpf::take_messages());
    }
    result
}

fn trace(options: &TraceOptions) -> Result<()> {
    let read; // lives as long as the object
    let bytes = match &options.object {
        None => embedded::object(),
        Some(path) => {
            read = crate::object::source::read_file(path).map_err(|error| anyhow!(error).context(Exit::Object))?;
            &read
        }
    };
    let object = tracer::check_object(bytes).with_context(|| match &options.object {
        None => "the object inside this binary".to_string(),
        Some(path) => path.display().to_string(),
    })?;
    check_privilege()?;
    let btf = options.btf.as_deref().unwrap_or(Path::new(host::KERNEL_BTF));
    let kernel = Kernel::ask(btf)?;
    let plans = hooks::choose(options.attach, options.events != Events::Retransmit, &kernel)?;
    let settings = settings(options);
    // Before the programs run, so that no signal can end the process without a summary.
    let waiter = Waiter::new()?;
    let max_sockets = match options.max_sockets {
        Some(sockets) => sockets,
        None => default_max_sockets()?,
    };
    let sizes = Sizes { max_sockets, perf_pages: options.perf_pages };
    let (mut tracer, plan) = Tracer::start(&object, plans, &kernel, btf, settings, sizes)?;
    drop(kernel);
    tracer.watch(&waiter)?;

    let out = BufWriter::new(io::stdout().lock());
    let output: Box<dyn Output> =
        if options.json { Box::new(Json::new(out)) } else { Box::new(Text::new(out, options.current)) };
    let mut printer = Printer { output, by_process: ByProcess::new(), left: options.count };
    let sha256 = hex(&hmac_sha256::Hash::hash(bytes));
    printer.output.ready(&Ready {
        plan: &plan,
        btf: &btf.to_string_lossy(),
        object_sha256: &sha256,
        max_sockets,
        seeded: tracer.seeded,
    })?;
    printer.output.flush()?;
    let deadline = options.duration.and_then(|time| Instant::now().checked_add(time));
    let ended = follow(&mut tracer, &waiter, &mut printer, deadline)?;
    if ended == Woken::OutputClosed {
        return Ok(());
    }
    // What came after the last event that was asked for is in the kernel's totals and not in ours.
    let by_process = if printer.left == Some(0) { printer.by_process } else { tracer.by_process()? };
    printer.output.summary(&Summary::new(&by_process, tracer.lost()?))?;
    printer.output.flush()?;
    Ok(())
}

/// Read and print until something ends it, then detach and print the rest.
fn follow(tracer: &mut Tracer, waiter: &Waiter, printer: &mut Printer, deadline: Option<Instant>) -> Result<Woken> {
    let mut order = Order::default();
    loop {
        round(tracer, &mut order)?;
        let realtime_offset = realtime_ns()?.wrapping_sub(monotonic_ns()?);
        while let Some(event) = order.next_complete() {
            printer.print(&event, realtime_offset)?;
        }
        printer.output.flush()?;
        let woken = match printer.left {
            Some(0) => Woken::Timeout,
            _ if order.is_empty() => waiter.wait(deadline)?,
            _ => match waiter.pause(ROUND)? {
                Woken::Timeout if deadline.is_none_or(|deadline| Instant::now() < deadline) => Woken::Records,
                woken => woken,
            },
        };
        if woken != Woken::Records {
            tracer.detach();
            round(tracer, &mut order)?;
            while let Some(event) = order.next() {
                printer.print(&event, realtime_offset)?;
            }
            return Ok(woken);
        }
    }
}

fn round(tracer: &mut Tracer, order: &mut Order<Event>) -> Result<()> {
    order.begin_round(monotonic_ns()?);
    tracer.drain(|event| order.push(event.mono_ns(), event))
}

struct Printer {
    output: Box<dyn Output>,
    /// Totals of what was printed.
    by_process: ByProcess,
    /// How many events may still be printed.
    left: Option<u64>,
}

impl Printer {
    /// Print an event, unless enough were. `realtime_offset` is what CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, in ns.
    fn print(&mut self, event: &Event, realtime_offset: u64) -> Result<()> {
        match &mut self.left {
            Some(0) => return Ok(()),
            Some(left) => *left -= 1,
            None => {}
        }
        let (Event::Retransmit(crate::events::Retransmit { owner, .. })
        | Event::Send(crate::events::Send { owner, .. })) = event;
        let moment = Moment { realtime_ns: event.mono_ns().wrapping_add(realtime_offset), exited: has_exited(owner) };
        match event {
            Event::Retransmit(event) => {
                summary::add(self.by_process.entry(summary::key_of(owner)).or_default(), event);
                self.output.retransmit(event, moment)?;
            }
            Event::Send(event) => self.output.send(event, moment)?,
        }
        Ok(())
    }
}

fn has_exited(owner: &Owner) -> bool {
    owner.is_process() && !host::is_alive(owner.tgid, owner.born)
}

fn settings(options: &TraceOptions) -> Settings {
    let Filters { pid, comm, port, netns, cgroup, family, kinds } = &options.filters;
    let mut padded = [0; COMM_LEN];
    if let Some(comm) = comm {
        padded[..comm.len()].copy_from_slice(comm.as_bytes());
    }
    let (cgroup, cgroup_level) = cgroup.unwrap_or_default();
    Settings {
        cgroup,
        cgroup_level,
        netns: netns.unwrap_or_default(),
        tgid: pid.unwrap_or_default(),
        port: port.unwrap_or_default(),
        family: family.unwrap_or_default(),
        kinds: kinds.iter().fold(0, |mask, &kind| mask | 1 << kind as u8),
        comm: padded,
        retransmits: u8::from(options.events != Events::Send),
        sends: u8::from(options.events != Events::Retransmit),
        births_by_state: 0, // the plan's business
        zero: [0; 5],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
