//! What a case knows about a connection from then on, and what xctl must have said about its retransmits.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::link::Netns;
use crate::process::PATIENCE;
use crate::process::now;
use crate::workers::{Flow, Who};
use crate::xctl::{Kind, Owner, Retransmit, Trace, Xctl};
use crate::{Outcome, Verdict};

/// Whose a connection is.
#[derive(Clone, PartialEq, Debug)]
pub enum Whose {
    /// That process's, known that way.
    Of(Who, Owner),
    /// The kernel's own.
    Kernel,
    /// Somebody's, and nothing has shown whose.
    Unknown,
}

/// From a moment on a connection is of somebody.
pub struct Claim {
    what: String,
    netns: u64,
    flow: Flow,
    since: u64,
    kind: Kind,
    whose: Whose,
    /// Whose it seems to be where the kernel skipped the program that would have shown its owner: who had it before, say.
    or_else: Option<Who>,
    /// Whether that process is gone by the time that [`Claims::wait`] is called.
    exited: bool,
}

impl Claim {
    fn covers(&self, record: &Retransmit) -> bool {
        record.at.netns == self.netns && record.at.flow() == self.flow && record.mono_ns > self.since
    }

    fn is_true_of(&self, record: &Retransmit) -> bool {
        let at = &record.at;
        let named = (at.pid, at.comm.clone(), at.owner);
        match &self.whose {
            Whose::Of(who, owner) => named == (Some(who.pid), Some(who.comm.clone()), *owner),
            Whose::Kernel => named == (None, None, Owner::Kernel),
            Whose::Unknown => named == (None, None, Owner::Unknown),
        }
    }

    /// Whether it is what xctl knows of it when the kernel has skipped the program that would have shown its owner.
    fn is_behind(&self, record: &Retransmit) -> bool {
        let of = |who: &Who| record.at.is_of(who, self.flow).is_ok();
        record.at.owner == Owner::Unknown || self.or_else.as_ref().is_some_and(of)
    }
}

/// The claims of a case.
#[derive(Default)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// From now on what this end of the connection sends again is of `whose`, and there will be a retransmit of that kind.
    pub fn add(&mut self, what: &str, ns: &Netns, flow: Flow, kind: Kind, whose: Whose) -> Result<()> {
        self.add_since(now()?, what, ns, flow, kind, whose);
        Ok(())
    }

    /// The same from an earlier moment on; 0 is before all.
    pub fn add_since(&mut self, since: u64, what: &str, ns: &Netns, flow: Flow, kind: Kind, whose: Whose) {
        self.0.push(Claim {
            what: what.into(),
            netns: ns.inode,
            flow,
            since,
            kind,
            whose,
            or_else: None,
            exited: false,
        });
    }

    /// What was claimed last seems to be of `who` where the kernel has skipped the program that shows its owner.
    pub fn or_else(&mut self, who: &Who) {
        if let Some(claim) = self.0.last_mut() {
            claim.or_else = Some(who.clone());
        }
    }

    /// The process of what was claimed last has exited.
    pub fn exited(&mut self) {
        if let Some(claim) = self.0.last_mut() {
            claim.exited = true;
        }
    }

    /// Waits until xctl has printed a retransmit for each claim, in which the process that it names lives, unless it has exited.
    pub fn wait(&self, xctl: &mut Xctl) -> Result<()> {
        for claim in &self.0 {
            let seen = xctl.wait_for(|record| claim.covers(record) && record.kind == claim.kind)?;
            let seen = seen.with_context(|| {
                format!("{}: no retransmit of kind {:?} within {PATIENCE:?}", claim.what, claim.kind)
            })?;
            let lives = matches!(claim.whose, Whose::Of(..)) && !claim.exited;
            ensure!(!lives || !seen.exited, "{}: its process lives, and yet: {seen:?}", claim.what);
        }
        Ok(())
    }

    /// Ends xctl, and holds all that it said against what is true. `note`: for the reader of the log.
    pub fn judge(&self, xctl: Xctl, note: &str) -> Outcome {
        self.hold(&xctl.stop(Signal::SIGINT)?, note)
    }

    /// The same for an xctl that has ended.
    pub fn hold(&self, trace: &Trace, note: &str) -> Outcome {
        // a set whose programs can be preempted, and the kernel says how many were skipped then: an owner each
        let skipped = if trace.owners_can_be_missed() { trace.summary.lost.missed.unwrap_or(0) } else { 0 };
        let (mut count, mut behind, mut wrong) = (0, 0, vec![]);
        for claim in &self.0 {
            let records: Vec<_> = trace.retransmits.iter().filter(|record| claim.covers(record)).collect();
            let untrue: Vec<_> = records.iter().filter(|record| !claim.is_true_of(record)).collect();
            let excused = behind < skipped && untrue.iter().all(|record| claim.is_behind(record));
            if !records.iter().any(|record| record.kind == claim.kind) {
                wrong.push(format!("{}: no retransmit of kind {:?}", claim.what, claim.kind));
            } else if !untrue.is_empty() && excused {
                behind += 1;
            } else if let Some(other) = untrue.first() {
                wrong.push(format!("{} must be {:?}, but: {other:?}", claim.what, claim.whose));
            }
            count += records.len();
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        ensure!(count > 0, "nothing was claimed");
        let note = if behind > 0 {
            format!("{note}; {behind} owners not seen, the kernel skipped {skipped} runs")
        } else {
            note.to_owned()
        };
        Ok(Verdict::Passed(format!("{count} retransmits{note}")))
    }
}
