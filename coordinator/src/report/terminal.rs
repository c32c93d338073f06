//! The report as a table on a terminal, without colour.

use comfy_table::{CellAlignment, LineStyle, Table, presets};

use super::{Report, percent, percent_interval, printable};

/// Renders the members and the vote as a table, and below it what the vote is worth.
pub fn terminal_table(report: &Report) -> String {
    let mut table = Table::new();
    let line = LineStyle::none().fill('─').junction('─');
    table.load_style(presets::NOTHING.header_separator(line)).force_no_tty();
    table.set_header(["member", "worker", "test %", "95 % interval", "validation %", "seconds", "attempts"]);
    for member in &report.members {
        table.add_row([
            member.index.to_string(),
            printable(&member.worker),
            percent(member.test_accuracy),
            percent_interval(member.test_interval95),
            member.validation_accuracy.map_or_else(|| "–".to_owned(), percent),
            format!("{:.1}", member.train_seconds),
            member.attempts.to_string(),
        ]);
    }
    let (vote, mean) = (&report.ensemble.majority_vote, &report.ensemble.mean_softmax);
    for (name, accuracy, interval) in
        [("vote", vote.accuracy, vote.interval95), ("mean softmax", mean.accuracy, mean.interval95)]
    {
        table.add_row([name.to_owned(), String::new(), percent(accuracy), percent_interval(interval)]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if index < 2 { CellAlignment::Left } else { CellAlignment::Right });
    }
    let mut lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    // Below the header stands the line that is to part members and vote too; every row is one line.
    lines.insert(2 + report.members.len(), lines[1].clone());
    let table = lines.join("\n");
    let ties = match vote.ties {
        0 => "no ties".to_owned(),
        1 => format!("1 tie, {} decided right", vote.ties_correct),
        ties => format!("{ties} ties, {} decided right", vote.ties_correct),
    };
    let without: Vec<String> = report.failed.iter().map(|member| member.index.to_string()).collect();
    let quorum =
        report.quorum_line().map_or_else(String::new, |line| format!("{line}; failed: {}.\n", without.join(", ")));
    format!(
        "{table}\n{quorum}{name}, seed {seed}: {correct} of {total} right by majority vote, {wrong} wrong, {ties}; mean member {mean} %.\n",
        name = report.run.recipe.name,
        seed = report.run.seed,
        correct = vote.correct,
        total = vote.total,
        wrong = vote.total - vote.correct,
        mean = percent(report.mean_test_accuracy()),
    )
}
