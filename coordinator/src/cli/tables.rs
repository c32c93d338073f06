//! Tables for people.

use comfy_table::{CellAlignment, Table, presets};
use jiff::{Timestamp, Unit};

use super::{
    attempts,
    recipes::{BuiltIn, Ours},
};
use crate::client::view::{Member, MemberStatus, Run, RunStatus, Worker, percent};

/// Returns one line a run.
pub fn runs(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "no runs yet; start one with `coordinator submit`".to_owned();
    }
    let mut table = table(["run", "status", "recipe", "seed", "committed", "vote", "submitted"], &[3, 4, 5]);
    for run in runs {
        let committed = run.members.iter().filter(|member| member.status == MemberStatus::Committed).count();
        table.add_row([
            run.run_id.clone(),
            run.word().to_owned(),
            run.recipe_name.clone(),
            run.seed.to_string(),
            format!("{committed} of {}", run.members.len()),
            run.vote_so_far.map_or_else(String::new, |vote| format!("{:.2} %", vote.percent())),
            run.submitted_at.map_or_else(String::new, moment),
        ]);
    }
    table.trim_fmt()
}

/// Returns one run and one line a member.
pub fn run(run: &Run) -> String {
    let mut text = format!(
        "run        {}\nstatus     {}\nrecipe     {} ({})\nseed       {}\n",
        run.run_id,
        run.word(),
        run.recipe_name,
        &run.recipe_sha256.get(..12).unwrap_or(&run.recipe_sha256),
        run.seed
    );
    for (label, time) in [("submitted", run.submitted_at), ("finished", run.finished_at)] {
        if let Some(time) = time {
            text += &format!("{label:<10} {}\n", moment(time));
        }
    }
    if !run.message.is_empty() {
        let label = if run.status == RunStatus::Completed { "note" } else { "reason" };
        text += &format!("{label:<10} {}\n", run.message);
    }
    if (1..run.members.len()).contains(&(run.quorum as usize)) {
        text += &format!("quorum     {} of {} members\n", run.quorum, run.members.len());
    }
    if let Some(vote) = run.vote_so_far {
        let members = vote.members;
        text += &format!(
            "vote       {} of {} right ({:.2} %), {members} members\n",
            vote.correct,
            vote.total,
            vote.percent()
        );
    }
    if !run.disk_shortage.is_empty() {
        text += &format!("disk       low, {}: results wait at their workers\n", run.disk_shortage);
    }
    if run.lost_steps > 0 {
        let Run { lost_training_seconds, lost_steps, .. } = run;
        text += &format!("lost       {lost_training_seconds:.1} s of training, {lost_steps} steps\n");
    }
    let total = run.vote_so_far.map(|vote| vote.total);
    let mut table = table(
        ["member", "status", "worker", "attempts", "epoch", "validation", "test", "seconds"],
        &[0, 3, 4, 5, 6, 7],
    );
    for member in &run.members {
        table.add_row(member_row(member, total));
    }
    text + "\n" + &table.trim_fmt() + &attempts::attempts(&run.members)
}

fn member_row(member: &Member, total: Option<u32>) -> [String; 8] {
    let progress = member.progress.as_ref();
    let validation = member.validation_accuracy.or_else(|| progress?.validation_accuracy);
    let epoch = progress.filter(|progress| progress.epochs_total > 0);
    [
        member.index.to_string(),
        member.status.word().to_owned(),
        member.worker_name.clone(),
        member.attempts.to_string(),
        epoch.map_or_else(String::new, |progress| format!("{}/{}", progress.epoch, progress.epochs_total)),
        validation.map_or_else(String::new, |share| format!("{:.2} %", share * 100.0)),
        member
            .test_correct
            .zip(total)
            .map_or_else(String::new, |(correct, total)| format!("{:.2} %", percent(correct, total))),
        member.train_seconds.map_or_else(String::new, |seconds| format!("{seconds:.0}")),
    ]
}

/// Returns one line a worker.
pub fn workers(workers: &[Worker]) -> String {
    if workers.is_empty() {
        return "no workers; start one with `worker --connect HOST:PORT`".to_owned();
    }
    let mut table = table(["worker", "name", "status", "device", "slots", "free", "members", "trains"], &[4, 5, 6]);
    for worker in workers {
        let trains = worker
            .attempts
            .iter()
            .map(|attempt| format!("{}/{}", attempt.run_id.get(..8).unwrap_or(&attempt.run_id), attempt.member));
        table.add_row([
            worker.worker_id.clone(),
            worker.name.clone(),
            if worker.quarantine.is_empty() { worker.status.word() } else { "quarantined" }.to_owned(),
            worker.device.clone(),
            worker.slots.to_string(),
            worker.free_slots.to_string(),
            worker.members_committed.to_string(),
            trains.collect::<Vec<_>>().join(" "),
        ]);
    }
    let quarantined = workers.iter().filter(|worker| !worker.quarantine.is_empty());
    let reasons = quarantined.map(|worker| format!("\n{} is in quarantine: it {}", worker.name, worker.quarantine));
    let reasons: String = reasons.collect();
    if reasons.is_empty() { table.trim_fmt() } else { format!("{}\n{reasons}", table.trim_fmt()) }
}

/// Returns one line a recipe.
pub fn recipes(recipes: &[BuiltIn]) -> String {
    let header =
        ["recipe", "network", "parameters", "multiply-adds", "passes", "images a pass", "published %", "ours %"];
    let mut table = table(header, &[2, 3, 4, 5]);
    for recipe in recipes {
        // A recipe of our own has no row to be run.
        let without_figure = if recipe.published.is_some() { "not run" } else { "–" };
        table.add_row([
            recipe.name.clone(),
            recipe.network.clone(),
            recipe.parameters.to_string(),
            recipe.multiply_adds.to_string(),
            recipe.passes.to_string(),
            recipe.images_per_pass.to_string(),
            recipe.published.unwrap_or("–").to_owned(),
            recipe.ours.as_ref().map_or_else(|| without_figure.to_owned(), Ours::text),
        ]);
    }
    table.trim_fmt()
}

/// Returns an empty table without lines, its columns `numbers` aligned to the right.
pub(super) fn table<const COLUMNS: usize>(header: [&str; COLUMNS], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn moment(time: Timestamp) -> String {
    time.round(Unit::Second).unwrap_or(time).to_string()
}
