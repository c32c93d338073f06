//! `coordinator ladder`: trains the rows as ordinary runs, and keeps each row as soon as it is done.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use indicatif::MultiProgress;
use plurality_common::{digest::Digest, recipe::builtin, score::Count};
use thiserror::Error;

use super::{args::LadderArgs, error::CliError, follow, own_server::with_server, print, report_of, results::blocking};
use crate::{
    client::{
        Client, Request,
        view::{Run, RunStatus},
    },
    config::ServerSettings,
    ladder::{
        page,
        plan::{self, Job, Portion, Share},
        results::{Ladder, LadderError, NetworkFigure, RowResult},
        rows::{Figure, Row, VOTE_MEMBERS},
    },
    progress::Progress,
    report::{
        Report,
        files::{failed, sync_folder, write_whole},
    },
};

/// The results, for programs and for the next ladder.
const JSON_NAME: &str = "ladder.json";
/// The results, for people.
const PAGE_NAME: &str = "ladder.md";
/// Largest file of results read: one of all rows with a thousand networks each has some three.
const LADDER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// SHA-256 of MNIST's unpacked training and test images.
const MNIST: [&str; 2] = [
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
];

/// A file of results cannot be read.
#[derive(Debug, Error)]
pub enum LadderFileError {
    /// The system does not give it.
    #[error("failed to read it")]
    Read(#[from] io::Error),
    /// It is far too long.
    #[error("it has {found} bytes, expected at most {LADDER_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        found: u64,
    },
    /// It is something else.
    #[error(transparent)]
    Content(#[from] LadderError),
}

/// A ladder that is being climbed.
struct Climb<'a> {
    args: &'a LadderArgs,
    ladder: Ladder,
    commit: String,
}

/// Trains what is not done yet, on the coordinator that `args` name or on one of its own.
///
/// # Errors
/// When the rows are unknown, a run fails, the coordinator cannot be asked, or the results cannot be written.
pub async fn run(args: LadderArgs, server: ServerSettings, bars: &MultiProgress) -> Result<(), CliError> {
    let rows = plan::rows(&args.rows)?;
    let mut climb = Climb { ladder: read(&args.out)?, commit: commit().await, args: &args };
    let (done, wanted) = rows.into_iter().partition::<Vec<&Row>, _>(|row| climb.is_done(row));
    for row in done {
        print(&format!("row {} is done already; --again trains it again", row.name))?;
    }
    let jobs = plan::jobs(&wanted, args.seeds, args.scale, builtin::by_name)?;
    match &args.server {
        // Recipes may have changed since the page was made.
        _ if jobs.is_empty() => write(&args.out, &climb.ladder).await?,
        Some(server) => {
            let mut client = Client::connect(server).await?;
            climb.do_all(&jobs, &mut client, &mut Progress::new(bars)).await?;
        }
        None => {
            with_server(&server, bars, async |place, progress| {
                let dataset = place.dataset.reference;
                check_is_mnist([dataset.train_images.sha256, dataset.test_images.sha256], None)?;
                if let Some(invitation) = place.invitation() {
                    progress.say(&invitation);
                }
                let mut client = Client::connect(&place.address.to_string()).await?;
                climb.do_all(&jobs, &mut client, progress).await
            })
            .await?;
        }
    }
    print(&format!("the ladder is in {}", args.out.join(PAGE_NAME).display()))
}

impl Climb<'_> {
    fn is_done(&self, row: &'static Row) -> bool {
        let Some(recipe) = builtin::by_name(row.recipe) else { return false };
        let networks = plan::share(row, self.args.seeds).networks;
        !self.args.again && self.ladder.has(row, recipe.digest(), self.args.scale, self.args.seed, networks)
    }

    async fn do_all(&mut self, jobs: &[Job], client: &mut Client, progress: &mut Progress) -> Result<(), CliError> {
        // Before the training, which would be lost to whoever mistyped the folder.
        write(&self.args.out, &self.ladder).await?;
        for job in jobs {
            let mut reports = Vec::new();
            for &portion in &job.portions {
                reports.push(self.train(job, portion, client, progress).await?);
            }
            // Others may have written rows into the folder meanwhile.
            self.ladder = read(&self.args.out)?;
            for &share in &job.shares {
                let result = self.result(job, share, &reports);
                progress.say(&format!("row {}: {} %", share.row.name, result.summary().text()));
                self.ladder.put(result);
            }
            self.ladder.command = command(self.args);
            write(&self.args.out, &self.ladder).await?;
        }
        Ok(())
    }

    /// Trains one run, continues it, or takes it if it has completed but its row was not written.
    async fn train(
        &self,
        job: &Job,
        portion: Portion,
        client: &mut Client,
        progress: &mut Progress,
    ) -> Result<Report, CliError> {
        let (name, last) = (&job.recipe.name, portion.first + portion.size - 1);
        let runs = client.list().await?;
        let completed = runs.iter().find(|run| !self.args.again && self.is_trained_by(run, job, portion));
        let run_id = match completed {
            Some(run) => {
                progress.say(&format!("run {}: recipe {name}, has completed before", run.run_id));
                run.run_id.clone()
            }
            None => {
                let request = Request {
                    recipe_json: job.recipe.to_canonical_json(),
                    seed: Some(self.args.seed),
                    ensemble: portion.size,
                    continues_unfinished: true,
                    first_member: portion.first,
                    quorum: None,
                };
                let submitted = client.submit(request).await?;
                let (id, verb) = (submitted.run_id, if submitted.is_continued { "goes on" } else { "has begun" });
                progress.say(&format!("run {id} {verb}: recipe {name}, members {} to {last}", portion.first));
                follow(client, &id, progress).await?;
                id
            }
        };
        let report = report_of(&client.report(&run_id).await?)?;
        let dataset = report.run.dataset;
        check_is_mnist([dataset.train_images.sha256, dataset.test_images.sha256], Some(run_id))?;
        Ok(report)
    }

    fn is_trained_by(&self, run: &Run, job: &Job, portion: Portion) -> bool {
        run.status == RunStatus::Completed
            && run.recipe_sha256 == job.recipe.digest().to_string()
            && run.seed == self.args.seed
            && run.members.len() == portion.size as usize
            && run.members.first().is_some_and(|member| member.index == portion.first)
    }

    /// Takes out of the reports of a job what belongs to one row.
    fn result(&self, job: &Job, share: Share, reports: &[Report]) -> RowResult {
        let wanted = share.networks as usize;
        let members: Vec<_> = reports.iter().flat_map(|report| &report.members).take(wanted).collect();
        let total = reports.first().map_or(0, |report| report.ensemble.majority_vote.total);
        let votes = match share.row.figure {
            Figure::Network => 0,
            Figure::Vote => wanted / VOTE_MEMBERS as usize,
        };
        let vote = |report: &Report| {
            let vote = &report.ensemble.majority_vote;
            Count { correct: vote.correct, total: vote.total }
        };
        let mut classes = Vec::new();
        for member in &members {
            if !classes.contains(&member.class) {
                classes.push(member.class.clone());
            }
        }
        RowResult {
            row: share.row.name.to_owned(),
            recipe_sha256: job.recipe_sha256,
            scale: self.args.scale,
            passes: job.recipe.training.epochs,
            seed: self.args.seed,
            networks: members
                .iter()
                .map(|member| NetworkFigure {
                    seed: member.seed.clone(),
                    test: Count { correct: member.test_correct, total },
                    train_cpu_seconds: member.train_cpu_seconds,
                })
                .collect(),
            votes: reports.iter().take(votes).map(vote).collect(),
            classes,
            commit: self.commit.clone(),
            finished: reports.iter().map(|report| report.run.finished).max().unwrap_or_default(),
        }
    }
}

/// Refuses other training and test images than MNIST's: what is published is about those.
fn check_is_mnist(images: [Digest; 2], run_id: Option<String>) -> Result<(), CliError> {
    if images.map(|digest| digest.to_string()) == MNIST { Ok(()) } else { Err(CliError::OtherDataset { run_id }) }
}

/// Returns the command that trains the same, with the flags that decide about the results.
fn command(args: &LadderArgs) -> String {
    let rows = if args.rows.is_empty() { String::new() } else { format!(" --rows {}", args.rows.join(",")) };
    let LadderArgs { seeds, scale, seed, .. } = args;
    format!("coordinator ladder{rows} --seeds {seeds} --scale {scale} --seed {seed} --local-workers auto")
}

/// Returns the commit of the folder that the command runs in, `-dirty` if files differ from it; `unknown` elsewhere.
async fn commit() -> String {
    let mut git = tokio::process::Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]).kill_on_drop(true);
    match git.output().await {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

/// Reads what earlier ladders have written into the folder `out`, nothing if there is none.
fn read(out: &Path) -> Result<Ladder, CliError> {
    let path = out.join(JSON_NAME);
    read_file(&path).map_err(|source| CliError::LadderFile { path, source })
}

fn read_file(path: &PathBuf) -> Result<Ladder, LadderFileError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ladder::default()),
        Ok(metadata) if metadata.len() > LADDER_BYTES_MAX => {
            return Err(LadderFileError::TooLarge { found: metadata.len() });
        }
        Ok(_) | Err(_) => {}
    }
    Ok(Ladder::from_json(&fs::read_to_string(path)?)?)
}

/// Writes both files, each whole or not at all.
async fn write(out: &Path, ladder: &Ladder) -> Result<(), CliError> {
    let (out, json, page) = (out.to_owned(), ladder.to_json(), page::markdown(ladder, builtin::by_name));
    let written = blocking(move || {
        fs::create_dir_all(&out).map_err(failed("make", &out))?;
        write_whole(&out.join(JSON_NAME), json.as_bytes())?;
        write_whole(&out.join(PAGE_NAME), page.as_bytes())?;
        sync_folder(&out)
    });
    Ok(written.await?)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use plurality_common::{
        attempt::DeterminismClass, blob::BlobRef, dataset::DatasetRef, id::RunId, idx, predictions::Predictions,
    };

    use super::*;
    use crate::{
        cli::args::{Cli, Command},
        report::{self, MemberFacts, RunFacts},
    };

    fn args(text: &str) -> LadderArgs {
        match Cli::try_parse_from(format!("coordinator ladder {text}").split_whitespace()).unwrap().command {
            Some(Command::Ladder { ladder, .. }) => ladder,
            other => panic!("expected a ladder, found {other:?}"),
        }
    }

    /// The report of a run of two test images, both a 1; each member labels so many of them right.
    fn report(first: u32, right: &[usize]) -> Report {
        let blob = BlobRef::of(b"");
        let member = |(index, &right): (u32, &usize)| {
            let row = |image| if image < right { [0.0, 1.0] } else { [1.0, 0.0] };
            MemberFacts {
                index: first + index,
                worker: "vega".to_owned(),
                device: "cpu".to_owned(),
                class: DeterminismClass {
                    libtorch_version: "2.11.0".to_owned(),
                    device_model: format!("EPYC {}", index % 2),
                    instruction_set: "AVX2".to_owned(),
                    threads: 1,
                    flags: String::new(),
                    trainer_version: "0.1.0".to_owned(),
                },
                checkpoint: blob,
                validation_accuracy: None,
                train_seconds: 1.0,
                train_cpu_seconds: 1.0,
                attempts: 1,
                predictions: Predictions::new(2, 2, [row(0), row(1)].concat()).unwrap(),
            }
        };
        let facts = RunFacts {
            id: RunId::new("r"),
            seed: 1,
            recipe: builtin::by_name("smoke").unwrap(),
            dataset: DatasetRef { train_images: blob, train_labels: blob, test_images: blob },
            coordinator_version: String::new(),
            started: "2001-01-01T00:00:00Z".parse().unwrap(),
            finished: "2001-01-01T00:00:00Z".parse().unwrap(),
            lost_training_seconds: 0.0,
            repeated_steps: 0,
            size: 0,
            quorum: 0,
            failed: Vec::new(),
            members: (0..).zip(right).map(member).collect(),
        };
        report::build(&facts, &[1, 1])
    }

    #[test]
    fn a_vote_is_that_of_its_own_five_and_networks_are_counted_over_all_runs() {
        let args = args("--rows dropout,ensemble --seeds 11");
        let jobs = plan::jobs(&plan::rows(&args.rows).unwrap(), args.seeds, args.scale, builtin::by_name).unwrap();
        let climb = Climb { args: &args, ladder: Ladder::default(), commit: "c".to_owned() };
        let reports = [report(0, &[2, 2, 2, 1, 1]), report(5, &[1, 1, 1, 2, 2]), report(10, &[0])];
        let result = |share: usize| climb.result(&jobs[0], jobs[0].shares[share], &reports);
        let (networks, vote) = (result(0), result(1));
        let seeds: Vec<_> = networks.networks.iter().map(|network| network.seed.as_str()).collect();
        assert_eq!((seeds.len(), seeds[0], seeds[10]), (11, "1/0", "1/10"));
        let right = networks.networks.iter().map(|network| network.test.correct).collect::<Vec<_>>();
        assert_eq!((right, networks.votes.len()), (vec![2, 2, 2, 1, 1, 1, 1, 1, 2, 2, 0], 0));
        assert_eq!(networks.classes.len(), 2);
        assert_eq!(vote.votes, [Count { correct: 2, total: 2 }, Count { correct: 1, total: 2 }]);
        assert_eq!((vote.networks.len(), vote.row.as_str(), vote.passes), (10, "ensemble", 40));
    }

    #[test]
    fn the_command_on_the_page_trains_the_same() {
        let args = args("--rows fc100,conv2 --seeds 5 --scale 0.1 --server host:1 --out elsewhere");
        let told = command(&args);
        assert_eq!(told, "coordinator ladder --rows fc100,conv2 --seeds 5 --scale 0.1 --seed 1 --local-workers auto");
        let again = super::tests::args(told.strip_prefix("coordinator ladder ").unwrap());
        assert_eq!((again.rows, again.seeds, again.scale), (args.rows, args.seeds, args.scale));
    }

    #[test]
    fn mnist_is_known_by_its_unpacked_images() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mnist");
        let digest = |name: &str| {
            let bytes = idx::unpack(name, &fs::read(folder.join(name)).unwrap()).unwrap();
            Digest::of(&bytes).to_string()
        };
        let found = [digest("train-images-idx3-ubyte.gz"), digest("t10k-images-idx3-ubyte.gz")];
        assert_eq!(found, MNIST);
        assert!(check_is_mnist([Digest::of(b""); 2], None).is_err());
    }

    #[test]
    fn a_file_that_is_no_ladder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), Ladder::default());
        fs::write(folder.path().join(JSON_NAME), "{}").unwrap();
        let error = read(folder.path()).unwrap_err();
        assert!(matches!(error, CliError::LadderFile { .. }) && error.to_string().contains(JSON_NAME), "{error}");
        let long = fs::File::create(folder.path().join(JSON_NAME)).unwrap();
        long.set_len(LADDER_BYTES_MAX + 1).unwrap();
        let error = read_file(&folder.path().join(JSON_NAME)).unwrap_err();
        assert!(matches!(error, LadderFileError::TooLarge { .. }), "{error}");
        let error = read_file(&folder.path().to_owned()).unwrap_err();
        assert!(matches!(error, LadderFileError::Read(_)), "{error}");
    }
}
