//! `xctl sockets`: every TCP socket of the host and its owner, as `xctl trace` would know them. With `--stats`, also what each
//! connection has counted, and the verdict about it.

use std::io::{BufWriter, Write};

use anyhow::{Context, Result, anyhow};

use super::filters::Filters;
use super::{btf_path, check_privilege, default_max_sockets, say_absent};
use crate::cli::SocketsOptions;
use crate::console::{say, say_all};
use crate::error::Exit;
use crate::kernel::cgroup::Paths;
use crate::kernel::netns::Names;
use crate::kernel::terminal::columns;
use crate::kernel::{clock, libbpf, privilege};
use crate::model::events::Owner;
use crate::output::{connections, sockets};
use crate::trace::load::{Options, load_programs};
use crate::trace::seed::SEED;
use crate::trace::seed::listing::{Listed, list, program};
use crate::trace::target::{Feature, Target, check_and_read};

/// Run the command.
///
/// # Errors
/// Any error of the listing; [`Exit`] in its chain decides the exit code.
pub fn run(options: &SocketsOptions) -> Result<()> {
    let filters = Filters::find(&options.filters)?;
    libbpf::collect_messages(options.verbose);
    let result = print(options, &filters);
    if options.verbose {
        say_all(&libbpf::take_messages());
    }
    result
}

fn print(options: &SocketsOptions, filters: &Filters) -> Result<()> {
    let (bytes, shown) = super::object(None)?;
    let btf = btf_path(options.btf.as_deref());
    let (object, types) = check_and_read(&bytes, &btf);
    let object = object.context(shown)?;
    check_privilege()?;
    let target = Target::ask(&btf, types?, &object)?;
    target.check(&object)?;
    if !target.has_iterators(&[Feature::FileIterator, Feature::SocketIterator]) {
        return Err(anyhow!(
            "this kernel has no iterators over open files and TCP sockets, or its own BTF is not here to tell: Linux 5.9 \
             and newer with CONFIG_DEBUG_INFO_BTF=y have them"
        )
        .context(Exit::Host));
    }
    let wanted = |name: &str| name == SEED || name == program(options.stats);
    let load = Options {
        max_sockets: default_max_sockets()?,
        settings: filters.settings(),
        shared_ring: false,
        statistics: false,
        at_once: true,
    };
    say_absent(&filters.netns)?;
    let mut listing = list(options.stats, || load_programs(&object, wanted, &target, &load))?;
    let holders = &listing.holders;
    listing.sockets.retain(|Listed { socket, .. }| filters.want(socket, holders.of(socket.owner.holders)));
    if listing.unreachable > 0 {
        let why =
            privilege::to_see_others()?.unwrap_or_else(|| "no process is in them, and no mount leads to them".into());
        let count = listing.unreachable;
        say(format_args!("{count} more sockets are open in network namespaces that xctl cannot reach: {why}"));
    }
    let mut out = BufWriter::new(super::stdout());
    let hz = clock::jiffies_per_second()?;
    let mut names = Names::default();
    let name_of = |netns| names.of(netns).map(str::to_owned);
    match (options.json, options.stats) {
        (true, _) => {
            let mut paths = Paths::begin();
            let path_of = |owner: &Owner| paths.of(owner.cgroup, owner.tgid).map(str::to_owned);
            sockets::json(&mut out, &listing, hz, path_of, name_of)?;
        }
        (false, true) => connections::text(&mut out, &listing, columns(), hz, options.explain, name_of)?,
        (false, false) => sockets::text(&mut out, &listing, columns(), name_of)?,
    }
    out.flush()?;
    Ok(())
}
