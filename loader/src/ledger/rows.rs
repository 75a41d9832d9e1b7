//! The limit of a table with a row for each process, for a run of any length: rows of exited processes leave the table.

use std::collections::HashMap;

use crate::model::events::ProcessKey;
use bpf_object::sort;

/// The number of rows from which on rows of exited processes leave.
pub(super) const ROWS: usize = 4096;

/// The limit of one table.
#[derive(Debug)]
pub(super) struct Limit {
    /// The number of rows above which rows leave.
    pub(super) most: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self { most: ROWS }
    }
}

impl Limit {
    /// If there are too many rows, take out the smallest rows of exited processes, until a quarter of the table is free. Rows of
    /// living processes stay; the number of these is limited by the number of processes on the host.
    pub(super) fn take_surplus<Row, Size: Ord + Copy>(
        &mut self,
        rows: &mut HashMap<ProcessKey, Row>,
        size: impl Fn(&Row) -> Size,
        has_exited: impl Fn(&ProcessKey) -> bool,
    ) -> Vec<Row> {
        if rows.len() <= self.most {
            return Vec::new();
        }
        let exited = rows.iter().filter(|(key, _)| key.nobody == 0 && has_exited(key));
        let mut exited: Vec<_> = exited.map(|(key, row)| (size(row), *key)).collect();
        sort::by_key(&mut exited, |(size, key)| (*size, key.born, key.tgid));
        let surplus = rows.len() - ROWS / 4 * 3;
        let taken = exited.iter().take(surplus).filter_map(|(_, key)| rows.remove(key)).collect();
        // Looking at each process again takes time, so this happens only once there are a quarter more rows.
        self.most = ROWS.max(rows.len() / 4 * 5);
        taken
    }
}
