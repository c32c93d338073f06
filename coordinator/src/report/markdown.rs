//! The report as Markdown.

use std::fmt::{self, Write};

use super::{Report, percent, percent_interval, printable};

/// Most misclassified images listed; `report.json` has all.
const LISTED_MAX: usize = 200;

/// Renders the report as Markdown.
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    render(&mut text, report).expect("writing to a string cannot fail");
    text
}

fn render(out: &mut String, report: &Report) -> fmt::Result {
    let vote = &report.ensemble.majority_vote;
    writeln!(out, "# {} networks, {} % by majority vote\n", report.members.len(), percent(vote.accuracy))?;
    writeln!(
        out,
        "{wrong} of {total} test images are labelled wrong. 95 % interval of the accuracy: {interval} %. \
         The mean member alone: {mean} %. All figures but the validation accuracy are the coordinator's own.\n",
        wrong = vote.total - vote.correct,
        total = vote.total,
        interval = percent_interval(vote.interval95),
        mean = percent(report.mean_test_accuracy()),
    )?;
    write_failed(out, report)?;
    write_run(out, report)?;
    write_members(out, report)?;
    write_ensemble(out, report)?;
    write_misclassified(out, report)
}

fn write_failed(out: &mut String, report: &Report) -> fmt::Result {
    let Some(line) = report.quorum_line() else { return Ok(()) };
    writeln!(out, "{line}. The others could not be trained and have no vote:\n")?;
    for member in &report.failed {
        let reasons: Vec<_> = member.reasons.iter().map(|reason| escaped(reason)).collect();
        writeln!(out, "- member {}: {}", member.index, reasons.join("; "))?;
    }
    writeln!(out)
}

fn write_run(out: &mut String, report: &Report) -> fmt::Result {
    let run = &report.run;
    writeln!(out, "## Run\n\n| | |\n|---|---|")?;
    writeln!(out, "| id | `{}` |", run.id)?;
    writeln!(out, "| recipe | `{}`: {} |", escaped(&run.recipe.name), escaped(&run.recipe.summary))?;
    writeln!(out, "| recipe SHA-256 | `{}` |", run.recipe_sha256)?;
    writeln!(out, "| seed | {} |", run.seed)?;
    writeln!(out, "| started | {} |", run.started)?;
    writeln!(out, "| finished | {} |", run.finished)?;
    writeln!(out, "| seconds | {:.1} |", run.finished.duration_since(run.started).as_secs_f64())?;
    writeln!(out, "| lost training | {:.1} s, {} steps repeated |", run.lost_training_seconds, run.repeated_steps)?;
    writeln!(out, "| coordinator | {} |", escaped(&run.versions.coordinator))?;
    writeln!(out, "| trainer | {} |", escaped(&run.versions.trainers.join(", ")))?;
    writeln!(out, "| LibTorch | {} |\n", escaped(&run.versions.libtorch.join(", ")))
}

fn write_members(out: &mut String, report: &Report) -> fmt::Result {
    writeln!(out, "## Members\n")?;
    writeln!(
        out,
        "| member | worker | device | test % | 95 % interval | validation % | seconds | attempts | checkpoint |"
    )?;
    writeln!(out, "|---:|---|---|---:|---:|---:|---:|---:|---|")?;
    for member in &report.members {
        writeln!(
            out,
            "| {index} | {worker} | {device} | {test} | {interval} | {validation} | {seconds:.1} | {attempts} | `{checkpoint}` |",
            index = member.index,
            worker = escaped(&member.worker),
            device = escaped(&member.device),
            test = percent(member.test_accuracy),
            interval = percent_interval(member.test_interval95),
            validation = member.validation_accuracy.map_or_else(|| "–".to_owned(), percent),
            seconds = member.train_seconds,
            attempts = member.attempts,
            checkpoint = member.checkpoint_sha256.short(),
        )?;
    }
    let mut classes: Vec<_> = report.members.iter().map(|member| escaped(&member.class.to_string())).collect();
    classes.sort();
    classes.dedup();
    writeln!(out, "\nDeterminism class: {}.\n", classes.join("; "))
}

fn write_ensemble(out: &mut String, report: &Report) -> fmt::Result {
    let score = &report.ensemble;
    let (vote, mean) = (&score.majority_vote, &score.mean_softmax);
    writeln!(out, "## Ensemble\n\n| | right | of | test % | 95 % interval |\n|---|---:|---:|---:|---:|")?;
    for (name, correct, total, accuracy, interval) in [
        ("majority vote", vote.correct, vote.total, vote.accuracy, vote.interval95),
        ("mean softmax", mean.correct, mean.total, mean.accuracy, mean.interval95),
    ] {
        writeln!(out, "| {name} | {correct} | {total} | {} | {} |", percent(accuracy), percent_interval(interval))?;
    }
    writeln!(out, "\nTies in the vote: {}, of which {} were decided right.\n", vote.ties, vote.ties_correct)?;
    writeln!(out, "| measure | value | meaning |\n|---|---:|---|")?;
    for (name, value, meaning) in [
        ("disagreement", score.disagreement, "share of images on which two members differ, mean over pairs"),
        ("NLL", score.nll, "mean negative log-likelihood of the right class under the mean softmax, in nats"),
        ("Brier", score.brier, "mean squared distance of the mean softmax from the right answer, 0 to 2"),
        ("ECE", score.ece, "expected calibration error of the mean softmax, 15 bins"),
    ] {
        writeln!(out, "| {name} | {value:.5} | {meaning} |")?;
    }
    writeln!(out, "\nBy ensemble size, the mean over subsets of the members:\n")?;
    writeln!(out, "![The same as a picture](accuracy-by-size.svg)\n")?;
    writeln!(
        out,
        "| size | subsets | majority vote % | lowest – highest | mean softmax % |\n|---:|---:|---:|---|---:|"
    )?;
    for point in &score.by_size {
        let (vote, mean) = (percent(point.majority_vote), percent(point.mean_softmax));
        let range = percent_interval([point.majority_vote_min, point.majority_vote_max]);
        writeln!(out, "| {} | {} | {vote} | {range} | {mean} |", point.size, point.subsets)?;
    }
    writeln!(out)
}

fn write_misclassified(out: &mut String, report: &Report) -> fmt::Result {
    let all = &report.misclassified;
    writeln!(out, "## Misclassified\n")?;
    if all.is_empty() {
        return writeln!(out, "The vote labels every test image right.");
    }
    writeln!(
        out,
        "![Every misclassified image; upper right the correct label, lower right the vote](misclassified.png)\n"
    )?;
    writeln!(out, "| image | label | vote | members |\n|---:|---:|---:|---|")?;
    for each in all.iter().take(LISTED_MAX) {
        let votes: Vec<_> = each.votes.iter().map(u8::to_string).collect();
        writeln!(out, "| {} | {} | {} | {} |", each.index, each.label, each.vote, votes.join(" "))?;
    }
    match all.len().saturating_sub(LISTED_MAX) {
        0 => Ok(()),
        more => writeln!(out, "\n{more} more are in `report.json`."),
    }
}

/// Keeps text from outside from ending a cell or beginning a line, a tag or an emphasis.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for sign in printable(text).chars() {
        if matches!(sign, '|' | '`' | '<' | '>' | '*' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(sign);
    }
    escaped
}
