//! Plays the scripts in `testscripts/`: a line after `> ` is a command, the lines below it are what must come of it.
//!
//! A file's name is the claim that it holds; `# ` begins a remark. With `UPDATE_SCRIPTS=1` in the environment the
//! answers are written anew: read the difference before you keep it.
//!
//! Commands (w1 is a worker by its name, a1 the first attempt, r1 the first run; times are in seconds):
//!
//! ```text
//! submit size=N [quorum=N] [first=N] [seed=S] [recipe=NAME] [continue]      reproduce r1 N
//! register w1 [slots=N] [instance=NAME] [held=a1,a2] [class=NAME]
//! sync w1 [free=N] [hold=a1,a2] [uploading] [leaving] [resumed=STEP] [refused=STEP] [step=N [of=N] [seconds=N]]      poll w1 …
//! save a1 step=N [snapshot=NAME] [class=NAME] [forged]
//! commit a1 [checkpoint=NAME] [resumed=STEP] [refused=STEP] [nan] [forged]               fail a1 kind [forged] [message]
//! accept a1          reject a1 reason
//! cancel r1          pause r1           resume r1          drain w1          crash w1          leave w1
//! wait N             restart           sleep N (the coordinator itself stands still)
//! show r1            workers           verifications      discarded
//!
//! Attempts run on the class `abacus`; a worker without a class does not say what it runs on. A snapshot's bytes are its name,
//! or `snapshot N` after its step.
//! ```

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use plurality_common::{
    attempt::{FailureKind, Handle, Phase, Progress},
    digest::Digest,
    id::{AttemptId, MemberIndex, RunId, Token, WorkerId},
};
use serde_json::Value;

use super::{
    super::{
        CommitVerdict, DiscardedSnapshots, Headline, Instruction, Loss, Refusal, RefusedSnapshot, Reply, Resumption,
        RunOutcome, RunRequest, SnapshotVerdict, StopReason, SyncReport, VerificationOutcome,
    },
    AttemptReport, Command, Event, Stage, class, class_of, registration, report, request, result, snapshot,
    verification,
};

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*
    };
}

scripts! {
    a_cancelled_run_stops_its_attempts,
    a_commit_that_is_repeated_is_answered_alike,
    a_draining_worker_gets_no_work_and_leaves,
    a_late_result_is_taken_while_the_member_is_open,
    a_lost_reply_offers_the_same_attempt_again,
    a_member_fails_when_its_budget_is_spent,
    a_member_that_no_worker_can_train_says_so,
    a_false_alarm_loses_no_training,
    training_that_nobody_goes_on_from_is_lost,
    what_people_see_go_by,
    what_is_given_back_between_two_reports_says_what_it_went_on_from,
    what_is_trained_between_two_reports_says_what_it_went_on_from,
    an_ended_run_says_what_it_lost,
    a_run_with_a_quorum_goes_on_without_a_failed_member,
    a_worker_that_fails_three_members_is_in_quarantine,
    a_worker_that_spoils_what_it_gets_gets_other_members,
    a_member_that_failed_twice_on_a_worker_waits_for_another,
    a_quarantine_of_all_workers_holds_nobody_up,
    a_quarantine_ends,
    a_paused_run_rests_and_goes_on_from_its_snapshots,
    a_worker_that_knows_no_pause_is_not_waited_for,
    an_ended_run_is_not_paused,
    a_slow_member_gets_a_spare_that_will_win,
    a_spare_is_not_begun_for_little,
    a_spare_that_goes_on_alone_may_get_one_itself,
    a_run_ends_once_its_quorum_is_out_of_reach,
    a_refused_snapshot_is_offered_to_nobody_again,
    a_snapshot_goes_only_to_a_worker_of_its_class,
    a_snapshot_that_is_late_or_repeated_changes_nothing,
    after_a_refused_result_a_member_begins_anew,
    an_attempt_keeps_its_newest_two_snapshots,
    snapshots_of_an_ended_member_can_go,
    a_machines_fault_is_charged_to_the_loss_budget,
    a_member_is_trained_again_under_its_own_number,
    a_numeric_failure_that_comes_again_is_final,
    a_rejected_result_is_charged_and_tried_again,
    a_restart_is_charged_to_nobody,
    a_run_that_somebody_waits_for_goes_first,
    a_run_of_the_same_request_is_continued,
    a_silent_attempt_is_suspected_then_lost,
    a_stale_token_changes_nothing,
    a_suspect_that_returns_makes_a_spare_needless,
    a_worker_comes_back_with_what_it_holds,
    a_worker_that_was_not_heard_of_is_not_waited_for,
    an_ensemble_is_trained,
    another_worker_is_preferred_after_a_failure,
    the_first_valid_commit_wins,
    the_loss_budget_bounds_how_many_workers_die,
    time_that_the_coordinator_slept_is_nobodys_fault,
    what_cannot_be_is_refused,
}

#[test]
fn every_script_is_played() {
    let mut found: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    let mut listed: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    listed.sort();
    assert_eq!(found, listed);
}

/// Plays one script and compares.
fn check(name: &str) {
    let path = folder().join(format!("{name}.txt"));
    let expected = fs::read_to_string(&path).unwrap();
    let mut player = Player { stage: Stage::new() };
    let mut actual = String::new();
    for line in expected.lines() {
        let is_remark = line.starts_with("# ");
        match line.strip_prefix("> ") {
            Some(command) => writeln!(actual, "> {command}\n{}", player.play(command)).unwrap(),
            None if is_remark => writeln!(actual, "{line}").unwrap(),
            None => {}
        }
    }
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        fs::write(&path, &actual).unwrap();
    } else {
        assert_eq!(expected, actual, "{}", path.display());
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core/testscripts")
}

struct Player {
    stage: Stage,
}

impl Player {
    /// Plays one command and prints what comes of it.
    fn play(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (verb, arguments) = words.split_first().expect("a command has a verb");
        let printed = match *verb {
            "wait" => {
                let events = self.stage.pass(arguments[0].parse().unwrap());
                events.iter().map(|event| self.print_event(event)).collect()
            }
            "sleep" => {
                self.stage.now = self.stage.now.after(Duration::from_secs(arguments[0].parse().unwrap()));
                self.stage.pass(1).iter().map(|event| self.print_event(event)).collect()
            }
            "restart" => {
                self.stage.restart();
                vec!["replayed".to_owned()]
            }
            "show" => self.show(&self.run(arguments[0])),
            "workers" => self.show_workers(),
            "headlines" => self.show_headlines(),
            "discarded" => {
                let DiscardedSnapshots { blobs, .. } = self.stage.world.state.discarded_snapshots(0, usize::MAX);
                blobs.iter().map(|digest| self.name_of_snapshot(*digest)).collect()
            }
            "verifications" => {
                let pending = self.stage.world.pending_verifications();
                pending.map(|one| self.rename(&format!("{} member {}", one.attempt, one.member))).collect()
            }
            _ => {
                let command = self.parse(verb, arguments);
                let decision = self.stage.step(&command);
                let mut lines: Vec<String> = decision.events.iter().map(|event| self.print_event(event)).collect();
                lines.extend(self.print_reply(&decision.reply));
                lines
            }
        };
        printed.iter().map(|line| format!("    {line}\n")).collect()
    }

    fn parse(&self, verb: &str, arguments: &[&str]) -> Command {
        let named = |key: &str| {
            arguments.iter().find_map(|argument| argument.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')))
        };
        let flag = |name: &str| arguments.contains(&name);
        let number = |key: &str| named(key).map(|value| value.parse::<u32>().unwrap());
        let handles = |key: &str| -> Vec<Handle> {
            let names = named(key).into_iter().flat_map(|names| names.split(','));
            names.map(|name| self.handle(name)).collect()
        };
        let spoken_for = || {
            let token = Token::new("forged");
            let genuine = self.handle(arguments[0]);
            if flag("forged") { Handle { token, ..genuine } } else { genuine }
        };
        let resumption = || Resumption {
            step: number("resumed").map_or(0, u64::from),
            refused: number("refused").map(|step| refused_snapshot(step.into())).into_iter().collect(),
        };
        match verb {
            "submit" => Command::Submit {
                request: RunRequest {
                    first_member: MemberIndex(number("first").unwrap_or(0)),
                    quorum: number("quorum"),
                    ..request(number("size").unwrap(), named("recipe").unwrap_or("default"))
                },
                seed: number("seed").map(u64::from),
                continue_unfinished: flag("continue"),
            },
            "reproduce" => {
                Command::Reproduce { run: self.run(arguments[0]), member: MemberIndex(arguments[1].parse().unwrap()) }
            }
            "register" => {
                let instance = named("instance").unwrap_or(arguments[0]);
                let slots = number("slots").unwrap_or(1);
                let mut registration = registration(instance, arguments[0], slots, handles("held"));
                registration.profile.class = named("class").map(class_of);
                Command::Register(registration)
            }
            "sync" | "poll" => {
                let phase = if flag("uploading") { Phase::Uploading } else { Phase::Training };
                let (step, train_seconds) = (number("step").unwrap_or(0).into(), number("seconds").unwrap_or(0).into());
                let steps_total = number("of").unwrap_or(0).into();
                let progress = Progress { phase, step, steps_total, train_seconds, ..Progress::default() };
                let reports = handles("hold").into_iter().map(|handle| report(handle, progress.clone()));
                let attempts = reports.map(|report| AttemptReport { resumption: resumption(), ..report });
                let attempts = attempts.collect();
                let report = SyncReport {
                    worker: self.worker(arguments[0]),
                    free_slots: number("free").unwrap_or(0),
                    attempts,
                    is_leaving: flag("leaving"),
                };
                if verb == "sync" { Command::Sync(report) } else { Command::Poll(report) }
            }
            "commit" => {
                let mut result = result(named("checkpoint").unwrap_or("checkpoint"));
                if flag("nan") {
                    result.train_seconds = f64::NAN;
                }
                Command::Commit { handle: spoken_for(), result, resumption: resumption() }
            }
            "save" => {
                let step = number("step").unwrap().into();
                let blob = named("snapshot")
                    .map_or_else(|| snapshot(step, &format!("snapshot {step}")), |name| snapshot(step, name));
                Command::SaveSnapshot {
                    handle: spoken_for(),
                    snapshot: blob,
                    class: named("class").map_or_else(class, class_of),
                }
            }
            "fail" => {
                let kind: FailureKind = serde_json::from_value(Value::String(arguments[1].to_owned())).unwrap();
                let message = arguments[2..].iter().find(|word| **word != "forged" && !word.contains('='));
                Command::Fail {
                    handle: spoken_for(),
                    kind,
                    message: message.copied().unwrap_or_default().to_owned(),
                    class: named("class").map(class_of),
                    resumption: resumption(),
                }
            }
            "accept" => Command::Verified {
                attempt: self.attempt(arguments[0]),
                outcome: VerificationOutcome::Accepted(verification()),
            },
            "reject" => Command::Verified {
                attempt: self.attempt(arguments[0]),
                outcome: VerificationOutcome::Rejected { reason: arguments[1..].join(" ") },
            },
            "cancel" => Command::Cancel { run: self.run(arguments[0]), reason: "on request".to_owned() },
            "pause" => Command::Pause { run: self.run(arguments[0]) },
            "resume" => Command::Resume { run: self.run(arguments[0]) },
            "drain" => {
                Command::Drain { worker: self.worker(arguments[0]), finish: arguments.get(1) == Some(&"finish") }
            }
            "crash" => Command::WorkerLeft { worker: self.worker(arguments[0]), is_crash: true },
            "leave" => Command::WorkerLeft { worker: self.worker(arguments[0]), is_crash: false },
            _ => panic!("unknown command {verb}"),
        }
    }

    /// Returns the ids of all attempts in the order in which they were offered.
    fn attempts(&self) -> Vec<&AttemptId> {
        let offered = self.stage.log.iter().filter_map(|event| match event {
            Event::AttemptOffered { attempt, .. } => Some(attempt),
            _ => None,
        });
        offered.collect()
    }

    fn attempt(&self, name: &str) -> AttemptId {
        let number: usize = name.strip_prefix('a').unwrap().parse().unwrap();
        self.attempts().get(number - 1).map_or_else(|| AttemptId::new(name), |id| (*id).clone())
    }

    fn handle(&self, name: &str) -> Handle {
        let id = self.attempt(name);
        if self.stage.world.state.attempts.contains_key(&id) {
            self.stage.handle(&id)
        } else {
            Handle { attempt_id: id, token: Token::new("invented") }
        }
    }

    fn run(&self, name: &str) -> RunId {
        let number: usize = name.strip_prefix('r').unwrap().parse().unwrap();
        self.stage.world.state.run_order.get(number - 1).map_or_else(|| RunId::new(name), Clone::clone)
    }

    fn worker(&self, name: &str) -> WorkerId {
        self.stage.world.state.find_worker(name).unwrap_or_else(|_| WorkerId::new(name))
    }

    /// Replaces ids by names that a script can know.
    fn rename(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (id, number) in self.attempts().into_iter().zip(1..) {
            text = text.replace(id.as_str(), &format!("a{number}"));
        }
        for (id, number) in self.stage.world.state.run_order.iter().zip(1..) {
            text = text.replace(id.as_str(), &format!("r{number}"));
        }
        for (id, worker) in &self.stage.world.state.workers {
            text = text.replace(id.as_str(), &worker.profile.name);
        }
        text
    }

    /// Prints an event without times, secrets and what the script itself has said.
    fn print_event(&self, event: &Event) -> String {
        let Value::Object(fields) = serde_json::to_value(event).unwrap() else { panic!("an event is an object") };
        let mut line = fields["event"].as_str().unwrap().to_owned();
        for (key, value) in &fields {
            match (key.as_str(), value) {
                ("event" | "at" | "token" | "class" | "instance" | "profile" | "request" | "result", _) => {}
                ("snapshot", _) => {}
                ("verification", _) => {}
                (_, Value::String(text)) => write!(line, " {key}={text}").unwrap(),
                (_, other) => write!(line, " {key}={other}").unwrap(),
            }
        }
        self.rename(&line)
    }

    fn print_reply(&self, reply: &Result<Reply, Refusal>) -> Vec<String> {
        let lines = match reply {
            Err(refusal) => vec![format!("refused: {refusal}")],
            Ok(Reply::Done) => vec![],
            Ok(Reply::Submitted(submitted)) => {
                let again = if submitted.is_continued { " (continued)" } else { "" };
                vec![format!("-> {} seed {}{again}", submitted.run, submitted.seed)]
            }
            Ok(Reply::Registered(registered)) => {
                let mut lines = vec![format!("-> session {}", registered.worker)];
                lines.extend(registered.stops.iter().map(|stop| print_stop(&stop.attempt, stop.reason)));
                lines
            }
            Ok(Reply::Synced(instructions)) => instructions.iter().map(print_instruction).collect(),
            Ok(Reply::Saved(SnapshotVerdict::Kept)) => vec!["-> kept".to_owned()],
            Ok(Reply::Saved(SnapshotVerdict::Needless)) => vec!["-> needless".to_owned()],
            Ok(Reply::Committed(CommitVerdict::Accepted)) => vec!["-> accepted".to_owned()],
            Ok(Reply::Committed(CommitVerdict::Superseded)) => vec!["-> superseded".to_owned()],
            Ok(Reply::Committed(CommitVerdict::Rejected { reason })) => vec![format!("-> rejected: {reason}")],
        };
        lines.iter().map(|line| self.rename(line)).collect()
    }

    /// Names a snapshot by its step, which an event of the log tells.
    fn name_of_snapshot(&self, digest: Digest) -> String {
        let mut steps = self.stage.log.iter().filter_map(|event| match event {
            Event::AttemptSnapshotted { step, snapshot, .. } if snapshot.sha256 == digest => Some(step),
            _ => None,
        });
        format!("snapshot of step {}", steps.next().unwrap())
    }

    fn show(&self, run: &RunId) -> Vec<String> {
        let view = self.stage.world.run_view(run, self.stage.now).unwrap();
        let outcome = match &view.outcome {
            None if view.is_paused => "paused",
            None => "running",
            Some(RunOutcome::Completed {}) => "completed",
            Some(RunOutcome::Failed { .. }) => "failed",
            Some(RunOutcome::Cancelled { .. }) => "cancelled",
        };
        let mut lines = vec![format!("run {outcome}")];
        if !view.message.is_empty() {
            lines.push(format!("because {}", view.message));
        }
        let (loss, repeated) = (view.loss(), view.repeated_steps());
        if loss.steps > 0 {
            let Loss { steps, train_seconds } = loss;
            lines.push(format!("lost {steps} steps, {train_seconds:.1} s; {repeated} steps repeated"));
        }
        for member in &view.members {
            let waiting = member.waiting.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
            lines.push(format!("member {} {:?}{waiting}", member.number, member.status));
            for attempt in &member.attempts {
                let status = format!("{:?}", attempt.status);
                let word = status.split([' ', '(', '{']).next().unwrap_or_default();
                let resumed = if attempt.resumed_step > 0 {
                    format!(", from step {}", attempt.resumed_step)
                } else {
                    String::new()
                };
                let kept = attempt.snapshot_step.map(|step| format!(", snapshot of step {step}")).unwrap_or_default();
                let spare = if attempt.is_spare { ", a spare" } else { "" };
                let Loss { steps, train_seconds } = attempt.loss;
                let lost =
                    if steps > 0 { format!(", lost {steps} steps, {train_seconds:.1} s") } else { String::new() };
                lines.push(format!("  {} on {} {word}{spare}{resumed}{kept}{lost}", attempt.id, attempt.worker_name));
                lines.extend(attempt.notes.iter().map(|note| format!("    {note}")));
            }
        }
        lines.iter().map(|line| self.rename(line)).collect()
    }

    /// Prints what people see go by of all that happened.
    fn show_headlines(&self) -> Vec<String> {
        let state = &self.stage.world.state;
        let headlines = self.stage.log.iter().filter_map(|event| state.headline(event));
        let lines = headlines.map(|Headline { run, member, worker, text }| {
            let run = run.map(ToString::to_string);
            let member = member.map(|member| format!("member {member}"));
            let worker = worker.map(ToOwned::to_owned);
            let about: Vec<String> = [run, member, worker].into_iter().flatten().collect();
            self.rename(&format!("{}: {text}", about.join(", ")))
        });
        lines.collect()
    }

    fn show_workers(&self) -> Vec<String> {
        let views = self.stage.world.worker_views(self.stage.now);
        let mut lines: Vec<String> = views
            .iter()
            .map(|view| {
                let attempts: Vec<String> = view.attempts.iter().map(|attempt| attempt.id.to_string()).collect();
                let (name, status, free) = (&view.profile.name, view.status, view.free_slots);
                let committed = view.members_committed;
                let quarantine = view.quarantine.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
                let attempts = attempts.join(" ");
                format!("{name} {status:?}, {free} free, holds [{attempts}], committed {committed}{quarantine}")
            })
            .map(|line| self.rename(&line))
            .collect();
        lines.sort();
        lines
    }
}

/// A refusal of the snapshot that is named after its step.
fn refused_snapshot(step: u64) -> RefusedSnapshot {
    RefusedSnapshot { snapshot: snapshot(step, &format!("snapshot {step}")), reason: "header is damaged".to_owned() }
}

fn print_instruction(instruction: &Instruction) -> String {
    match instruction {
        Instruction::Start(start) => {
            let steps: Vec<String> = start.resume.iter().map(|snapshot| snapshot.step.to_string()).collect();
            let resume = if steps.is_empty() { String::new() } else { format!(", from step {}", steps.join(" or ")) };
            format!("-> start {} member {} of {}{resume}", start.handle.attempt_id, start.member, start.run)
        }
        Instruction::Stop(stop) => print_stop(&stop.attempt, stop.reason),
        Instruction::Drain { finish: false } => "-> drain".to_owned(),
        Instruction::Drain { finish: true } => "-> drain, finish".to_owned(),
    }
}

fn print_stop(attempt: &AttemptId, reason: StopReason) -> String {
    format!("-> stop {attempt}: {reason:?}")
}
