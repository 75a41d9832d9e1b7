//! A witness for probe runs that the kernel skipped.
//!
//! A kprobe that fires while another runs on the same CPU is not run. The kernel counts that for every probe of the
//! address (kprobes_inc_nmissed_count), but tells it only of probes made through tracefs. So the test makes its own
//! on the functions that xctl hooked, and what those missed, xctl's missed too.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::xctl::Hook;

const TRACING: &str = "/sys/kernel/tracing";

pub struct Witness {
    group: String,
    /// Name of the probe, and the function it is on.
    probes: BTreeMap<String, String>,
}

impl Witness {
    /// Probes the same functions as `hooks` do.
    pub fn of(hooks: &[Hook]) -> Result<Witness> {
        let mut witness = Witness { group: format!("xctl_test_{}", std::process::id()), probes: BTreeMap::new() };
        for hook in hooks {
            let kind = match hook.hook.as_str() {
                "kprobe" => 'p',
                "kretprobe" => 'r',
                _ => continue,
            };
            let name = format!("{kind}_{}_{}", std::process::id(), witness.probes.len());
            write("kprobe_events", &format!("{kind}:{}/{name} {}", witness.group, hook.target))?;
            witness.probes.insert(name, hook.target.clone());
        }
        write(&format!("events/{}/enable", witness.group), "1")?;
        Ok(witness)
    }

    /// How many runs were skipped, summed over the functions. A function's entry and return probe share the skips of
    /// its address, so the larger of the two counts.
    pub fn missed(&self) -> Result<u64> {
        let profile =
            std::fs::read_to_string(Path::new(TRACING).join("kprobe_profile")).context("reading kprobe_profile")?;
        let mut missed: BTreeMap<&str, u64> = BTreeMap::new();
        for line in profile.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(_hits), Some(skips)) = (words.next(), words.next(), words.next())
                && let Some(function) = self.probes.get(name)
            {
                let most = missed.entry(function).or_default();
                *most = (*most).max(skips.parse().with_context(|| format!("kprobe_profile says {line}"))?);
            }
        }
        Ok(missed.values().sum())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = write(&format!("events/{}/enable", self.group), "0");
        for name in self.probes.keys() {
            let _ = write("kprobe_events", &format!("-:{}/{name}", self.group));
        }
    }
}

/// tracefs takes one command a write; appending keeps the probes of others.
fn write(file: &str, text: &str) -> Result<()> {
    let path = Path::new(TRACING).join(file);
    let opened = OpenOptions::new().append(true).open(&path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {text:?} to {}", path.display()))
}
