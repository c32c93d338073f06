//! A run's progress as it is watched: bars on a terminal, plain lines elsewhere.
//!
//! Both are made from the run as its coordinator shows it; `Story` turns two such pictures into lines and is pure.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::client::view::{Member, MemberStatus, Run, RunStatus, percent};

/// Least time between two lines about one member's epochs, where lines are all there is.
const EPOCH_LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How often the elapsed time is drawn anew when nothing else changes.
const TICK: Duration = Duration::from_secs(1);
/// Width of a member's bar in characters.
const BAR_WIDTH: usize = 14;

/// Shows a run.
pub struct Progress {
    story: Story,
    began: Instant,
    bars: Option<Bars>,
}

impl Progress {
    /// Shows on standard error: bars if it is a terminal, else lines.
    pub fn new(bars: &MultiProgress) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self {
            story: Story { tells_epochs: !is_terminal, ..Story::default() },
            began: Instant::now(),
            bars: is_terminal.then(|| Bars::new(bars.clone())),
        }
    }

    /// Shows the run as it is now.
    pub fn show(&mut self, run: &Run) {
        for line in self.story.tell(run, self.began.elapsed()) {
            self.say(&line);
        }
        if let Some(bars) = &mut self.bars {
            bars.draw(run);
        }
    }

    /// Writes a line of its own, above the bars.
    pub fn say(&self, line: &str) {
        // Nobody reads standard error any more: the run goes on all the same.
        let _ = match &self.bars {
            Some(bars) => bars.all.suspend(|| writeln!(io::stderr(), "{line}")),
            None => writeln!(io::stderr(), "{line}"),
        };
    }

    /// Takes the bars away.
    pub fn finish(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.clear();
        }
    }
}

/// What was told about a member.
#[derive(Clone, Debug, Default)]
struct Told {
    status: Option<MemberStatus>,
    attempts: u32,
    failures: usize,
    /// Why it last waited; empty if it did not.
    waiting: String,
    epoch: u32,
    epoch_told_at: Option<Duration>,
}

/// Tells in lines what changed from one picture of a run to the next.
#[derive(Debug, Default)]
struct Story {
    tells_epochs: bool,
    members: Vec<Told>,
    votes: u32,
    was_paused: bool,
    was_disk_low: bool,
}

impl Story {
    /// Returns what is new in `run`, `now` after the watching began.
    fn tell(&mut self, run: &Run, now: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        if run.is_paused != self.was_paused {
            self.was_paused = run.is_paused;
            lines.push(if run.is_paused {
                format!("the run is paused; `coordinator resume {}` lets it go on", run.run_id)
            } else {
                "the run goes on".to_owned()
            });
        }
        let is_disk_low = !run.disk_shortage.is_empty();
        // Whether it is low when the run has ended is not shown.
        if is_disk_low != self.was_disk_low && run.status == RunStatus::Running {
            self.was_disk_low = is_disk_low;
            lines.push(if is_disk_low {
                format!("the coordinator's disk is low, {}: results wait at their workers", run.disk_shortage)
            } else {
                "the coordinator's disk has room again".to_owned()
            });
        }
        self.members.resize(run.members.len(), Told::default());
        let total = run.vote_so_far.map(|vote| vote.total);
        for (member, told) in run.members.iter().zip(&mut self.members) {
            told.failures(member, &mut lines);
            // Said once above.
            told.wait(member, run.is_paused, &mut lines);
            told.start(member, &mut lines);
            if self.tells_epochs {
                told.epoch(member, now, &mut lines);
            }
            told.end(member, total, &mut lines);
            told.status = Some(member.status);
        }
        if let Some(vote) = run.vote_so_far
            && vote.members > self.votes
        {
            self.votes = vote.members;
            let members = if vote.members == 1 { "member" } else { "members" };
            lines.push(format!(
                "vote so far: {} {members}, {} of {} right ({:.2} %)",
                vote.members,
                vote.correct,
                vote.total,
                vote.percent()
            ));
        }
        lines
    }
}

impl Told {
    fn failures(&mut self, member: &Member, lines: &mut Vec<String>) {
        for failure in member.failures.iter().skip(self.failures) {
            lines.push(format!("member {}: attempt ended: {failure}", member.index));
        }
        self.failures = member.failures.len();
    }

    fn wait(&mut self, member: &Member, is_paused: bool, lines: &mut Vec<String>) {
        // Before its first attempt it waits for its turn like all others, which is no news.
        if member.attempts > 0 && member.waiting != self.waiting && !is_paused {
            self.waiting.clone_from(&member.waiting);
            if !self.waiting.is_empty() {
                lines.push(format!("member {}: waits: {}", member.index, self.waiting));
            }
        }
    }

    fn start(&mut self, member: &Member, lines: &mut Vec<String>) {
        if member.attempts > self.attempts {
            self.attempts = member.attempts;
            self.epoch = 0;
            if member.status == MemberStatus::Active {
                let again = if member.attempts > 1 { format!(", attempt {}", member.attempts) } else { String::new() };
                lines.push(format!("member {}: started on {}{again}", member.index, member.worker_name));
            }
        }
    }

    fn epoch(&mut self, member: &Member, now: Duration, lines: &mut Vec<String>) {
        let Some(progress) = &member.progress else { return };
        let is_due = self.epoch_told_at.is_none_or(|told_at| now.saturating_sub(told_at) >= EPOCH_LINE_INTERVAL);
        if member.is_training() && progress.epoch > self.epoch && is_due {
            self.epoch = progress.epoch;
            self.epoch_told_at = Some(now);
            lines.push(format!("member {}: {}", member.index, details(member)));
        }
    }

    fn end(&mut self, member: &Member, total: Option<u32>, lines: &mut Vec<String>) {
        if self.status == Some(member.status) {
            return;
        }
        let index = member.index;
        match member.status {
            MemberStatus::Queued | MemberStatus::Active | MemberStatus::Cancelled => {}
            MemberStatus::Verifying => lines.push(format!("member {index}: trained, checking its checkpoint")),
            MemberStatus::Committed => lines.push(format!("member {index}: committed{}", verdict(member, total))),
            MemberStatus::Failed => lines.push(format!("member {index}: failed for good")),
        }
    }
}

/// Returns what is known of a committed member.
fn verdict(member: &Member, total: Option<u32>) -> String {
    let mut text = String::new();
    if let (Some(correct), Some(total)) = (member.test_correct, total) {
        text += &format!(", {correct} of {total} test images right ({:.2} %)", percent(correct, total));
    }
    if let Some(seconds) = member.train_seconds {
        text += &format!(", trained in {seconds:.0} s");
    }
    if !member.worker_name.is_empty() {
        text += &format!(" on {}", member.worker_name);
    }
    text
}

/// Returns how far a member in training is.
fn details(member: &Member) -> String {
    let Some(progress) = &member.progress else { return String::new() };
    let mut text = format!("epoch {}/{}", progress.epoch, progress.epochs_total);
    if let Some(loss) = progress.loss {
        text += &format!(", loss {loss:.4}");
    }
    if let Some(accuracy) = progress.validation_accuracy {
        text += &format!(", validation {:.2} %", accuracy * 100.0);
    }
    // None were trained on since the last report while the worker evaluates: that is not a speed.
    if progress.images_per_second >= 1.0 {
        text += &format!(", {:.0} images/s", progress.images_per_second);
    }
    text
}

/// Bars: one for each member that is being trained or checked, and a line for the whole below them.
struct Bars {
    all: MultiProgress,
    summary: ProgressBar,
    /// By member; only members at work have one.
    members: Vec<Option<ProgressBar>>,
}

impl Bars {
    fn new(all: MultiProgress) -> Self {
        let summary = all.add(ProgressBar::new_spinner());
        summary.set_style(ProgressStyle::with_template("{elapsed_precise}  {msg}").expect("the template is constant"));
        summary.enable_steady_tick(TICK);
        Self { all, summary, members: Vec::new() }
    }

    fn draw(&mut self, run: &Run) {
        self.members.resize(run.members.len(), None);
        for (member, slot) in run.members.iter().zip(&mut self.members) {
            if matches!(member.status, MemberStatus::Active | MemberStatus::Verifying) {
                let bar = slot.get_or_insert_with(|| {
                    let bar = ProgressBar::new(1).with_style(member_style());
                    self.all.insert_before(&self.summary, bar)
                });
                draw_member(bar, member);
            } else if let Some(bar) = slot.take() {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
        }
        self.summary.set_message(summary(run));
    }

    fn clear(self) {
        for bar in self.members.into_iter().flatten() {
            bar.finish_and_clear();
        }
        self.summary.finish_and_clear();
    }
}

fn member_style() -> ProgressStyle {
    ProgressStyle::with_template(&format!("{{prefix}} [{{bar:{BAR_WIDTH}}}] {{wide_msg}}"))
        .expect("the template is constant")
        .progress_chars("=> ")
}

fn draw_member(bar: &ProgressBar, member: &Member) {
    bar.set_prefix(format!("member {}", member.index));
    if let Some(progress) = &member.progress
        && progress.steps_total > 0
    {
        bar.set_length(progress.steps_total);
        bar.set_position(progress.step);
    }
    bar.set_message(match member.status {
        MemberStatus::Verifying => "checking its checkpoint".to_owned(),
        _ if member.is_training() => short_details(member),
        _ => format!("on {}", member.worker_name),
    });
}

/// Returns how far a member in training is, in so few words that they stand beside a bar on 80 columns.
fn short_details(member: &Member) -> String {
    let Some(progress) = &member.progress else { return String::new() };
    let mut text = format!("{}/{} epochs", progress.epoch, progress.epochs_total);
    if let Some(loss) = progress.loss {
        text += &format!(", loss {loss:.4}");
    }
    if let Some(accuracy) = progress.validation_accuracy {
        text += &format!(", val {:.2} %", accuracy * 100.0);
    }
    if progress.images_per_second >= 1.0 {
        text += &format!(", {:.0}/s", progress.images_per_second);
    }
    text + ", " + &member.worker_name
}

/// Returns one line about the whole run.
fn summary(run: &Run) -> String {
    let count = |status| run.members.iter().filter(|member| member.status == status).count();
    let mut text = format!("{} of {} members committed", count(MemberStatus::Committed), run.members.len());
    let failed = count(MemberStatus::Failed);
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    let queued = count(MemberStatus::Queued);
    if queued > 0 {
        let is_nobody_at_work = !run.is_paused && count(MemberStatus::Active) + count(MemberStatus::Verifying) == 0;
        text += &format!(", {queued} waiting{}", if is_nobody_at_work { " for a worker" } else { "" });
    }
    if let Some(vote) = run.vote_so_far {
        text += &format!(", vote so far {:.2} %", vote.percent());
    }
    text
}

#[cfg(test)]
mod tests {
    use plurality_common::attempt::{Phase, Progress as Attempt};

    use super::*;
    use crate::client::view::VoteSoFar;

    fn member(index: u32, status: MemberStatus) -> Member {
        Member {
            index,
            status,
            attempts: u32::from(status != MemberStatus::Queued),
            worker_name: if status == MemberStatus::Queued { String::new() } else { "vega".to_owned() },
            progress: None,
            test_correct: None,
            validation_accuracy: None,
            train_seconds: None,
            failures: Vec::new(),
            waiting: String::new(),
            attempt_list: Vec::new(),
        }
    }

    fn at_epoch(epoch: u32) -> Member {
        let progress = Attempt {
            phase: Phase::Training,
            step: u64::from(epoch) * 10,
            steps_total: 30,
            epoch,
            epochs_total: 3,
            loss: Some(0.25),
            validation_accuracy: Some(0.9875),
            images_per_second: 1234.4,
            train_seconds: 1.0,
        };
        Member { progress: Some(progress), ..member(0, MemberStatus::Active) }
    }

    fn run(members: Vec<Member>, vote_so_far: Option<VoteSoFar>) -> Run {
        Run {
            run_id: "r".to_owned(),
            status: RunStatus::Running,
            recipe_name: "smoke".to_owned(),
            recipe_sha256: String::new(),
            seed: 1,
            submitted_at: None,
            finished_at: None,
            message: String::new(),
            vote_so_far,
            lost_training_seconds: 0.0,
            lost_steps: 0,
            repeated_steps: 0,
            quorum: 0,
            is_paused: false,
            disk_shortage: String::new(),
            members,
        }
    }

    /// Tells each run in turn, one second apart, and returns all lines.
    fn told(runs: Vec<Run>) -> Vec<String> {
        let mut story = Story { tells_epochs: true, ..Story::default() };
        let times = (0..).map(Duration::from_secs);
        runs.iter().zip(times).flat_map(|(run, now)| story.tell(run, now)).collect()
    }

    #[test]
    fn a_member_is_told_from_start_to_commit() {
        let committed =
            Member { test_correct: Some(9953), train_seconds: Some(12.3), ..member(0, MemberStatus::Committed) };
        let vote = VoteSoFar { members: 1, correct: 9953, total: 10_000 };
        let lines = told(vec![
            run(vec![member(0, MemberStatus::Queued)], None),
            run(vec![member(0, MemberStatus::Active)], None),
            run(vec![at_epoch(1)], None),
            run(vec![member(0, MemberStatus::Verifying)], None),
            run(vec![committed], Some(vote)),
        ]);
        insta::assert_snapshot!(lines.join("\n"), @r"
        member 0: started on vega
        member 0: epoch 1/3, loss 0.2500, validation 98.75 %, 1234 images/s
        member 0: trained, checking its checkpoint
        member 0: committed, 9953 of 10000 test images right (99.53 %), trained in 12 s on vega
        vote so far: 1 member, 9953 of 10000 right (99.53 %)
        ");
    }

    #[test]
    fn nothing_is_told_twice() {
        let lines = told(vec![run(vec![at_epoch(1)], None); 10]);
        assert_eq!(lines.len(), 2, "{lines:?}");
    }

    #[test]
    fn quick_epochs_are_told_a_few_seconds_apart() {
        let lines = told((1..=7).map(|epoch| run(vec![at_epoch(epoch)], None)).collect());
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[2].contains("epoch 6/3"), "{lines:?}");
    }

    #[test]
    fn a_pause_is_told_once_and_so_is_its_end() {
        let waiting =
            || Member { attempts: 1, waiting: "the run is paused".to_owned(), ..member(0, MemberStatus::Queued) };
        let paused = || Run { is_paused: true, ..run(vec![waiting()], None) };
        let lines = told(vec![paused(), paused(), run(vec![member(0, MemberStatus::Queued)], None)]);
        assert_eq!(lines, ["the run is paused; `coordinator resume r` lets it go on", "the run goes on"]);
    }

    #[test]
    fn a_low_disk_is_told_once_and_so_is_its_end() {
        let low = |free: u32| Run {
            disk_shortage: format!("{free} bytes free, 9 bytes wanted"),
            ..run(vec![member(0, MemberStatus::Active)], None)
        };
        let lines = told(vec![low(5), low(4), run(vec![member(0, MemberStatus::Active)], None)]);
        let said = "the coordinator's disk is low, 5 bytes free, 9 bytes wanted: results wait at their workers";
        assert_eq!(lines, [said, "member 0: started on vega", "the coordinator's disk has room again"]);
    }

    #[test]
    fn an_ended_attempt_is_told_with_its_reason() {
        let mut again = member(0, MemberStatus::Active);
        again.attempts = 2;
        again.failures.push("worker lost".to_owned());
        let lines = told(vec![run(vec![member(0, MemberStatus::Active)], None), run(vec![again], None)]);
        assert_eq!(lines[1..], ["member 0: attempt ended: worker lost", "member 0: started on vega, attempt 2"]);
    }

    #[test]
    fn a_member_that_no_worker_may_take_says_why_once() {
        let reason = "no connected worker can train it: vega: trainer did not start";
        let stuck = Member { attempts: 1, waiting: reason.to_owned(), ..member(0, MemberStatus::Queued) };
        let fresh = Member { attempts: 0, waiting: "no worker is connected".to_owned(), ..stuck.clone() };
        let lines = told([fresh, stuck.clone(), stuck].map(|member| run(vec![member], None)).into());
        assert_eq!(lines, [format!("member 0: waits: {reason}")]);
    }

    #[test]
    fn a_bars_words_fit_beside_it_on_80_columns() {
        assert_eq!(short_details(&at_epoch(1)), "1/3 epochs, loss 0.2500, val 98.75 %, 1234/s, vega");
        let bar = "member 0 [] ".len() + BAR_WIDTH;
        assert!(bar + short_details(&at_epoch(1)).len() <= 80);
    }

    #[test]
    fn the_summary_counts_members_and_votes() {
        let vote = VoteSoFar { members: 1, correct: 99, total: 100 };
        let members = vec![member(0, MemberStatus::Committed), member(1, MemberStatus::Queued)];
        assert_eq!(
            summary(&run(members, Some(vote))),
            "1 of 2 members committed, 1 waiting for a worker, vote so far 99.00 %"
        );
    }
}
