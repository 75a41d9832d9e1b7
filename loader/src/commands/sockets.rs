//! `xctl sockets`: every TCP socket of the host and its owner, as the tracer would know them.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

use super::{btf_path, check_privilege, default_max_sockets, say_absent};
use crate::cli::Filters;
use crate::events::{self, SocketRecord, address};
use crate::fault::Exit;
use crate::kernel::{libbpf, privilege};
use crate::output::sockets;
use crate::owners;
use crate::say::{say, say_all};
use crate::tracer::{self, Kernel, Shown};

/// Options of `xctl sockets`.
#[derive(Debug)]
pub struct Args {
    /// JSON lines instead of text.
    pub json: bool,
    /// What to keep to.
    pub filters: Filters,
    /// Another BTF than the kernel's own.
    pub btf: Option<PathBuf>,
    /// Show libbpf's messages and the verifier's log whole.
    pub verbose: bool,
}

/// Run the command.
///
/// # Errors
/// Whatever the message says; [`Exit`] in its chain decides the exit code.
pub fn run(args: &Args) -> Result<()> {
    libbpf::collect_messages(args.verbose);
    let result = print(args);
    if args.verbose {
        say_all(&libbpf::take_messages());
    }
    result
}

fn print(args: &Args) -> Result<()> {
    let (bytes, shown) = super::object(None)?;
    let object = tracer::check_object(&bytes).context(shown)?;
    check_privilege()?;
    let btf = btf_path(args.btf.as_deref());
    let kernel = Kernel::ask(&btf)?;
    kernel.check(&btf, &object)?;
    if !kernel.has_iterators(&[Shown::FileIterator, Shown::SocketIterator]) {
        return Err(anyhow!(
            "this kernel has no iterators over open files and TCP sockets, or its own BTF is not here to tell: Linux 5.9 \
             and newer with CONFIG_DEBUG_INFO_BTF=y have them"
        )
        .context(Exit::Host));
    }
    drop(kernel);
    let max_sockets = default_max_sockets()?;
    let wanted = |program: &str| program == owners::SEED || program == owners::LIST;
    say_absent(args.filters.netns)?;
    let settings = args.filters.settings();
    let mut listing = owners::list(|| tracer::load(&object, wanted, &btf, &settings, max_sockets, false))?;
    listing.sockets.retain(|socket| is_wanted(&args.filters, socket));
    if listing.unreachable > 0 {
        let who = match privilege::to_see_others()? {
            None => "no process is in and no mount leads to".to_owned(),
            Some(remedy) => format!("nothing leads to that may be seen: {remedy}"),
        };
        say(format_args!("{} sockets more are open in network namespaces that {who}", listing.unreachable));
    }
    let mut out = BufWriter::new(super::stdout());
    if args.json {
        sockets::json(&mut out, &listing)?
    } else {
        sockets::text(&mut out, &listing)?
    }
    out.flush()?;
    Ok(())
}

/// As the programs judge of events: wanted() in retransmit.bpf.h.
fn is_wanted(filters: &Filters, socket: &SocketRecord) -> bool {
    let Filters { pid, comm, port, netns, cgroup, family, kinds: _ } = filters;
    let SocketRecord { flow, owner, .. } = socket;
    let family_is = |family| address(flow.saddr).is_ipv4() == (family == 4);
    pid.is_none_or(|pid| owner.tgid == pid)
        && comm.as_ref().is_none_or(|comm| events::comm(&owner.comm) == *comm)
        && port.is_none_or(|port| [flow.sport, flow.dport].contains(&port))
        && netns.is_none_or(|netns| flow.netns == netns)
        && (cgroup.is_none() || owner.in_cgroup != 0)
        && family.is_none_or(family_is)
}
