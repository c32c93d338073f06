//! The ladder as Markdown: `ladder.md`.

use std::fmt::{self, Write};

use plurality_common::recipe::Recipe;

use super::{
    results::{Ladder, RowResult},
    rows::{Figure, ROWS, Row, Source, VOTE_MEMBERS},
};

/// Renders the ladder. `recipe` returns the built-in recipes: a result of another edition is marked.
pub fn markdown(ladder: &Ladder, recipe: impl Fn(&str) -> Option<Recipe>) -> String {
    let mut text = String::new();
    render(&mut text, ladder, recipe).expect("writing to a string cannot fail");
    text
}

fn render(out: &mut String, ladder: &Ladder, recipe: impl Fn(&str) -> Option<Recipe>) -> fmt::Result {
    let command = if ladder.command.is_empty() { "coordinator ladder --local-workers auto" } else { &ladder.command };
    writeln!(out, "# The lecture's systems, published and trained here\n")?;
    writeln!(out, "- Command: `{command}`")?;
    writeln!(
        out,
        "- Figures are test accuracies in per cent of the checkpoint that the recipe keeps, which is that of the last pass or\n  \
         of the best validation pass, never one chosen on the test set. The coordinator computes them itself."
    )?;
    writeln!(
        out,
        "- Ours: mean ± sample standard deviation over n networks that differ by their seed, or over n votes of \
         {VOTE_MEMBERS} networks."
    )?;
    writeln!(out, "- † the lecture leaves a part of the recipe open. Core-seconds are CPU seconds of one network.\n")?;
    writeln!(
        out,
        "| row | published | ours | n | min – max | core-seconds | passes | scale | commit | machine | date |"
    )?;
    writeln!(out, "|---|---|---|---:|---|---:|---:|---|---|---|---|")?;
    for row in &ROWS {
        let current = recipe(row.recipe).map(|recipe| recipe.digest());
        if !ladder.of(row).any(|result| result.scale == super::plan::Scale::ONE) {
            writeln!(out, "| {} | {} | not run | | | | | | | | |", title(row), row.published)?;
        }
        for result in ladder.of(row) {
            write_result(out, row, result, current.is_none_or(|current| current == result.recipe_sha256))?;
        }
    }
    Ok(())
}

fn title(row: &Row) -> String {
    let mark = match row.source {
        Source::Lecture => "",
        Source::OwnChoices => " †",
    };
    match row.figure {
        Figure::Network => format!("`{}`{mark}", row.name),
        Figure::Vote => format!("`{}`{mark}: vote of {VOTE_MEMBERS} of `{}`", row.name, row.recipe),
    }
}

fn write_result(out: &mut String, row: &Row, result: &RowResult, is_current: bool) -> fmt::Result {
    let summary = result.summary();
    let mut machines: Vec<&str> = result.classes.iter().map(|class| class.device_model.as_str()).collect();
    machines.sort_unstable();
    machines.dedup();
    let mut scale = vec![result.scale.words()];
    if !is_current {
        scale.push("the recipe has changed since".to_owned());
    }
    scale.retain(|words| !words.is_empty());
    writeln!(
        out,
        "| {title} | {published} | {ours} | {n} | {min:.2} – {max:.2} | {seconds:.0} | {passes} | {scale} | `{commit}` | {machines} | {date} |",
        title = title(row),
        published = row.published,
        ours = summary.text(),
        n = summary.n,
        min = summary.min * 100.0,
        max = summary.max * 100.0,
        seconds = result.core_seconds(),
        passes = result.passes,
        scale = scale.join("; "),
        commit = result.commit,
        machines = machines.join(", ").replace('|', "\\|"),
        date = result.finished.strftime("%Y-%m-%d"),
    )
}

#[cfg(test)]
mod tests {
    use plurality_common::{digest::Digest, recipe::builtin, score::Count};

    use super::*;
    use crate::ladder::results::tests::result;

    #[test]
    fn the_page_reads_well() {
        let mut ladder = Ladder { command: "coordinator ladder --seeds 5".to_owned(), ..Ladder::default() };
        ladder.put(result("fc100", 1.0, &[9780, 9791, 9769]));
        ladder.put(result("fc100", 0.1, &[9512]));
        ladder.put(result("shift", 0.5, &[9931, 9933]));
        let mut vote = result("ensemble", 1.0, &[9955, 9957, 9960, 9958, 9961]);
        vote.votes = vec![Count { correct: 9966, total: 10_000 }];
        vote.recipe_sha256 = Digest::of(b"an older edition");
        ladder.put(vote);
        let recipe = |name: &str| (name == "dropout").then(|| builtin::by_name("smoke")).flatten();
        insta::assert_snapshot!(markdown(&ladder, recipe));
    }

    #[test]
    fn the_projects_own_page_is_made_from_its_results() {
        let page = include_str!("../../../docs/results/ladder.md");
        assert_eq!(page, markdown(&Ladder::own(), builtin::by_name), "run `coordinator ladder` to write it anew");
    }
}
