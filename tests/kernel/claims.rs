//! Facts that a case knows about a connection from some time on, and the check of xctl's records against these facts.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::link::Netns;
use crate::process::PATIENCE;
use crate::process::now;
use crate::workers::{Flow, Who};
use crate::xctl::{Kind, Owner, Retransmit, Trace, Xctl};
use crate::{Outcome, Verdict};

/// The owner of a connection.
#[derive(Clone, PartialEq, Debug)]
pub enum Whose {
    /// This process is the owner, and xctl knows it in this way.
    Of(Who, Owner),
    /// The kernel is the owner.
    Kernel,
    /// A process is the owner, and no hook has shown which.
    Unknown,
    /// One of these processes is the owner, and no hook has shown which.
    Shared(Vec<Who>),
}

impl Whose {
    /// The number of holders that a record lists; a record counts the rest.
    pub const LISTED: usize = 8;

    /// The holders as a record gives them: those with the lowest PIDs, and the number of the others.
    pub fn list(holders: &[Who]) -> (Vec<Who>, usize) {
        let mut all = holders.to_vec();
        all.sort_by_key(|who| who.pid);
        let rest = all.split_off(all.len().min(Whose::LISTED));
        (all, rest.len())
    }
}

/// A connection has this owner from some time on.
pub struct Claim {
    what: String,
    netns: u64,
    flow: Flow,
    since: u64,
    until: u64,
    kind: Kind,
    whose: Whose,
    /// The owner that xctl may name if the kernel skipped the program that shows the true owner: the previous owner, for
    /// example.
    or_else: Option<Who>,
    /// Whether that process has exited by the time of the call of [`Claims::wait`].
    exited: bool,
}

impl Claim {
    fn covers(&self, record: &Retransmit) -> bool {
        record.at.netns == self.netns
            && record.at.flow() == self.flow
            && (self.since + 1..self.until).contains(&record.mono_ns)
    }

    fn is_true_of(&self, record: &Retransmit) -> bool {
        let at = &record.at;
        let named = (at.pid, at.comm.clone(), at.owner);
        match &self.whose {
            Whose::Of(who, owner) => named == (Some(who.pid), Some(who.comm.clone()), *owner),
            Whose::Kernel => named == (None, None, Owner::Kernel),
            Whose::Shared(holders) => {
                let common = holders.iter().all(|who| who.comm == holders[0].comm).then(|| holders[0].comm.clone());
                let listed = (at.holders.clone(), at.more);
                (at.pid, at.owner) == (None, Owner::Shared) && at.comm == common && listed == Whose::list(holders)
            }
            Whose::Unknown => named == (None, None, Owner::Unknown),
        }
    }

    /// Whether the record is right if the kernel has skipped the program that shows the connection's owner.
    fn is_behind(&self, record: &Retransmit) -> bool {
        let of = |who: &Who| record.at.is_of(who, self.flow).is_ok();
        record.at.owner == Owner::Unknown || self.or_else.as_ref().is_some_and(of)
    }
}

/// The claims of a case.
#[derive(Default)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// From now on retransmits of this end of the connection belong to `whose`, and there will be a retransmit of that
    /// kind.
    pub fn add(&mut self, what: &str, ns: &Netns, flow: Flow, kind: Kind, whose: Whose) -> Result<()> {
        self.add_since(now()?, what, ns, flow, kind, whose);
        Ok(())
    }

    /// Like [`Claims::add`], from an earlier time on. 0 is the time before all events.
    pub fn add_since(&mut self, since: u64, what: &str, ns: &Netns, flow: Flow, kind: Kind, whose: Whose) {
        self.0.push(Claim {
            what: what.into(),
            netns: ns.inode,
            flow,
            since,
            until: u64::MAX,
            kind,
            whose,
            or_else: None,
            exited: false,
        });
    }

    /// `who` may be named as the owner in the last claim if the kernel has skipped the program that shows the owner.
    pub fn or_else(&mut self, who: &Who) {
        if let Some(claim) = self.0.last_mut() {
            claim.or_else = Some(who.clone());
        }
    }

    /// The process of the last claim has exited.
    pub fn exited(&mut self) {
        if let Some(claim) = self.0.last_mut() {
            claim.exited = true;
        }
    }

    /// The claims so far end now.
    pub fn until_now(&mut self) -> Result<()> {
        let now = now()?;
        for claim in &mut self.0 {
            claim.until = claim.until.min(now);
        }
        Ok(())
    }

    /// Waits until xctl has printed a retransmit for each claim. The record names a living process, unless the claim says
    /// that it has exited.
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

    /// Stops xctl, and compares all its records with the claims. `note` is for the reader of the log.
    pub fn judge(&self, xctl: Xctl, note: &str) -> Outcome {
        self.hold(&xctl.stop(Signal::SIGINT)?, note)
    }

    /// Like [`Claims::judge`], for an xctl that has ended.
    pub fn hold(&self, trace: &Trace, note: &str) -> Outcome {
        // programs of this set can be preempted, and the kernel counts the skipped runs: each can hide one owner
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
