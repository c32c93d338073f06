//! How people name runs and workers.

use std::fmt::Display;

use plurality_common::id::{RunId, WorkerId};

use super::{command::Refusal, state::State};

/// What names the newest run.
const LAST: &str = "last";

impl State {
    /// Finds a run by its id, an unambiguous beginning of it, or `last` for the newest.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownRun`] if there is none, [`Refusal::Ambiguous`] if there are several.
    pub fn find_run(&self, selector: &str) -> Result<RunId, Refusal> {
        let unknown = || Refusal::UnknownRun { run: selector.to_owned() };
        if selector == LAST {
            return self.run_order.last().cloned().ok_or_else(unknown);
        }
        let exact = RunId::new(selector);
        if self.runs.contains_key(&exact) {
            return Ok(exact);
        }
        let matches = self.run_order.iter().filter(|id| !selector.is_empty() && id.as_str().starts_with(selector));
        the_only_one(selector, matches.collect())?.ok_or_else(unknown)
    }

    /// Finds a worker by its id, an unambiguous beginning of it, or its name. Open sessions go before ended ones.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownWorker`] if there is none, [`Refusal::Ambiguous`] if there are several.
    pub fn find_worker(&self, selector: &str) -> Result<WorkerId, Refusal> {
        let exact = WorkerId::new(selector);
        if self.workers.contains_key(&exact) {
            return Ok(exact);
        }
        let fits = |is_open: bool| {
            self.workers.values().filter(move |worker| worker.end.is_none() == is_open).filter(|worker| {
                worker.profile.name == selector || (!selector.is_empty() && worker.id.as_str().starts_with(selector))
            })
        };
        for is_open in [true, false] {
            let matches = fits(is_open).map(|worker| &worker.id).collect();
            if let Some(worker) = the_only_one(selector, matches)? {
                return Ok(worker);
            }
        }
        Err(Refusal::UnknownWorker { worker: selector.to_owned() })
    }
}

/// Returns the only match, if there is one.
fn the_only_one<Id: Clone + Display>(selector: &str, matches: Vec<&Id>) -> Result<Option<Id>, Refusal> {
    match matches.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).clone())),
        _ => {
            let matches: Vec<String> = matches.iter().map(|id| id.to_string()).collect();
            Err(Refusal::Ambiguous { selector: selector.to_owned(), matches: matches.join(", ") })
        }
    }
}
