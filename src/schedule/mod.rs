//! Runs what is due: the jobs under `cron` in the configuration.
//!
//! | question | module |
//! | --- | --- |
//! | When is a job due? | `timing`, with `expression`, `numbers`, `zone` and `describe`: pure |
//! | What is to be done now? | `due`: pure; `preview` shows it |
//! | Which runs were taken, on all hosts? | `shared_state`: in the shared cache |
//! | Who looks, and starts runs? | `scheduler`, in the process of `cron` and `supervise` |
//! | What does a killed run leave? | `killed` |
//! | How does a run go? | `runner`, in a process of its own: `cron run`; `request` and `function` for these kinds |
//!
//! One run, step by step. What happens when a process is killed between two of them is in `docs/cron.md`.
//!
//! ```text
//!   scheduler: lock the job's slot ▸ take the lease (overlap: skip, queue) ▸ take the due time ▸ start `cron run` in the slot
//!   runner:    note the run ▸ record its start ▸ run ▸ [exit 75: give the due time back] ▸ report a failure
//!              ▸ record its end ▸ release the lease ▸ remove the note ▸ the slot is free
//! ```

mod describe;
mod due;
mod expression;
mod function;
mod job;
mod killed;
mod numbers;
mod preview;
mod report;
#[cfg(feature = "http")]
mod request;
mod runner;
mod scheduler;
mod seen;
mod shared_state;
#[cfg(test)]
mod tests;
mod timing;
mod zone;

pub(crate) use function::{Functions, capture};
pub(crate) use job::{Job, jobs};
pub(crate) use killed::clean_up_job;
pub(crate) use preview::{DueJob, due_jobs};
pub(crate) use report::Report;
pub(crate) use runner::Runner;
pub(crate) use scheduler::{Scheduler, StartJob};
pub(crate) use shared_state::{Outcome, Run, SharedState};
pub(crate) use timing::Schedule;
pub(crate) use zone::Zone;
