//! What connections and processes have counted: retransmissions of a run by process, the counters of each connection,
//! and the verdict about them. `summary`, `counters` and `verdict` only compute. `epochs` moves totals out of the
//! kernel's table.

pub mod balance;
pub mod connection;
pub mod counters;
pub mod epochs;
pub mod figures;
pub mod group;
pub mod owners;
pub mod row;
pub mod rows;
pub mod saved;
pub mod summary;
pub mod timeline;
pub mod verdict;
