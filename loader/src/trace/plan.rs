//! A plan: hooks and settings, made once from the user's request and the kernel's features. Nothing changes it later.

use anyhow::{Result, anyhow};

use super::accounts::ACCOUNT;
use super::all_open::LIST;
use super::hooks::{self, Attach, HookSet};
use super::seed::{SEED, Source};
use super::target::{Feature, Target};
use crate::error::{Blocked, Exit};
use crate::model::events::Settings;

/// The user's request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The hooks that the user asks for.
    pub attach: Attach,
    /// Filters and events. The plan adds the settings that depend on the hooks.
    pub settings: Settings,
    /// Entries of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Data pages of a CPU's ring, a power of two.
    pub perf_pages: usize,
    /// Where to learn the owners of sockets that are open already; none: the best source that this kernel has.
    pub seed: Option<Source>,
}

/// One way to trace on this kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The hooks.
    pub set: HookSet,
    /// The programs' settings.
    pub settings: Settings,
    /// Entries of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Data pages of a CPU's ring.
    pub perf_pages: usize,
    /// Where to learn the owners of sockets that are open already.
    pub seed: Source,
    /// `--verify` compares the ledger too. This takes an iterator over sockets, and the tracepoint of states. The kprobe does
    /// not see the end of a new socket that the kernel drops because another socket has finished the same handshake
    /// (`inet_ehash_nolisten()`).
    pub verifies_ledger: bool,
    /// Another plan follows if the kernel refuses this one.
    pub has_alternative: bool,
}

impl Plan {
    /// Whether this program is part of the plan.
    #[must_use]
    pub fn loads(&self, program: &str) -> bool {
        self.set.has(program)
            || (self.seed == Source::Iterator && program == SEED)
            || (self.settings.ledger != 0 && program == ACCOUNT)
            || (self.verifies_ledger && program == LIST)
    }
}

impl Request {
    /// The plans for this kernel, the best first.
    ///
    /// # Errors
    /// [`Exit::Host`] if this kernel lacks a feature that the request needs; the message names the feature and the remedy.
    pub fn plans(&self, target: &Target) -> Result<Vec<Plan>> {
        let mut sets = hooks::choose(self.attach, self.settings.sends != 0, target)?;
        if self.settings.drops != 0 {
            let hook = hooks::drops(target)?;
            sets.iter_mut().for_each(|set| set.hooks.push(hook));
        }
        if self.settings.by_netns != 0 {
            sets.iter_mut().for_each(|set| set.add_synack_timeouts(target));
        }
        let has_iterator = target.has_iterators(&[Feature::FileIterator]);
        let seed = match self.seed {
            Some(Source::Iterator) if !has_iterator => {
                let found = "this kernel has no iterator over open files, or no BTF of its own that shows one";
                return Err(Blocked::new(found, "use --seed proc").by_host());
            }
            Some(source) => source,
            None if has_iterator => Source::Iterator,
            None => Source::Proc,
        };
        let ledger = target.has_ledger();
        let can_verify = ledger && self.settings.by_netns != 0 && target.has_iterators(&[Feature::SocketIterator]);
        let plan = |set: HookSet| Plan {
            verifies_ledger: can_verify && set.has("tp_state"),
            settings: Settings {
                births_by_state: u8::from(set.births_by_state),
                by_inode: u8::from(seed == Source::Proc),
                ledger: ledger.into(),
                connections: self.settings.connections & u8::from(ledger),
                reader: self.settings.reader & u8::from(ledger && set.sees_readers()),
                ..self.settings
            },
            set,
            max_sockets: self.max_sockets,
            perf_pages: self.perf_pages,
            seed,
            has_alternative: true,
        };
        let mut plans: Vec<_> = sets.into_iter().map(plan).collect();
        if let Some(last) = plans.last_mut() {
            last.has_alternative = false;
        }
        Ok(plans)
    }
}

/// Make an attempt with each plan, the best first, until the kernel takes one. Only an attempt shows whether the kernel
/// takes a plan.
///
/// # Errors
/// The refusal of the last plan. An error with another cause than the host is returned at once, because other hooks would
/// not help.
pub fn first_accepted<T>(plans: Vec<Plan>, mut attempt: impl FnMut(Plan) -> Result<T>) -> Result<T> {
    let mut refusal = anyhow!("there is no plan");
    for plan in plans {
        match attempt(plan) {
            Err(error) if error.downcast_ref() == Some(&Exit::Host) => refusal = error,
            result => return result,
        }
    }
    Err(refusal)
}
